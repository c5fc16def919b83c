"""Templates of graders: `{{item.answer}}`, `{{sample.output_json.codes[0]}}`.

    {{ namespace step step ... }}   namespace: item (the row) or sample (the completion)
                                    step: .name, [3] or ["any name"]

Filled in one pass: what a path brings is never looked at again, so a completion that contains `{{item.answer}}` stays
what it is. A value that is no text is written as JSON; a template that is nothing but one path can hand over the value
itself. `sample` has output_text, output_tools, choices, and output_json where the completion is JSON.

A path that a row does not have is a fault of the grader (`invalid_variable_error`). One that the completion does not
have is the completion's own doing: `sample_parse_error` when it is no JSON at all.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reinforge.grading.language.error_flags import CompletionFault, GraderFault

SAMPLE_NAMES = ("output_text", "output_json", "output_tools", "choices", "output_audio")
"""What a path may begin with below `sample`. Completions here are text, so nothing has `output_audio`."""
MAX_NAME, MAX_COMPARED = 60, 100
"""Characters of a name, and names of a table, that a message about a missing one looks at."""

_NAMESPACE = re.compile(r"\s*(item|sample)(?![\w-])")
_STEP = re.compile(r"\.([\w-]+)|\[(\d{1,9})\]|\[\"([^\"]*)\"\]|\['([^']*)'\]")


@dataclass(frozen=True, slots=True)
class Path:
    """One placeholder.

    >>> Path.parse("item.codes[0]").steps
    ('codes', 0)
    """

    text: str
    """As written, without the braces."""
    namespace: str
    steps: tuple[str | int, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """ValueError when it is no path."""
        shown = "{{" + (text if len(text) <= 60 else text[:57] + "...") + "}}"
        begun = _NAMESPACE.match(text)
        if begun is None:
            raise ValueError(f"{shown} does not begin with item or sample")
        steps: list[str | int] = []
        place, end = begun.end(), len(text.rstrip())
        while place < end:
            step = _STEP.match(text, place, end)
            if step is None:
                raise ValueError(f'{shown} is no path: after {text[:place].strip()} write .name, [0] or ["name"]')
            name, index, *quoted = step.groups()
            steps.append(int(index) if index else name or next((part for part in quoted if part is not None), ""))
            place = step.end()
        if begun[1] == "sample" and steps and steps[0] not in SAMPLE_NAMES:
            raise ValueError(f"{shown}: sample has {', '.join(SAMPLE_NAMES[:-1])}{_meant(steps[0], SAMPLE_NAMES)}")
        return cls(text.strip(), begun[1], tuple(steps))

    def find(self, namespaces: Mapping[str, object]) -> object:
        """The value; GraderFault or CompletionFault when there is none."""
        value = namespaces[self.namespace]
        for depth, step in enumerate(self.steps):
            if not (
                step in value if isinstance(value, dict) else isinstance(value, list) and step in range(len(value))
            ):
                raise self._fault(value, depth)
            value = value[step]  # type: ignore[index]
        return value

    def _fault(self, value: object, depth: int) -> GraderFault:
        step, shown = self.steps[depth], "{{" + self.text + "}}"
        if self.namespace == "sample" and depth == 0 and step == "output_json":
            return CompletionFault("sample_parse_error", f"{shown}: the completion is not JSON")
        where = "the row" if self.namespace == "item" else "the completion"
        if depth:
            where = self.namespace + "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in self.steps[:depth])
        text = f"{shown}: {where} {_lack(value, step)}"
        by_model = self.namespace == "sample" and depth > 0
        return (CompletionFault if by_model else GraderFault)("invalid_variable_error", text)


def _lack(value: object, step: str | int) -> str:
    if isinstance(value, list):
        what = f"entry {step}" if isinstance(step, int) else f'names such as "{step}"'
        return f"is a list of {len(value)}, it has no {what}"
    if isinstance(value, dict):
        names = [str(name) for name in itertools.islice(value, MAX_COMPARED)]
        found = ", ".join(map(_short, names[:8])) + (", ..." if len(value) > 8 else "")
        return f'has no "{step}" (it has: {found or "nothing"}){_meant(step, names)}'
    return f"is {'null' if value is None else f'a {type(value).__name__}'}, nothing is below it"


def _meant(step: str | int, names: Sequence[str]) -> str:
    near = [name for name in names if len(name) <= MAX_NAME]  # a model may have chosen them: comparing is quadratic
    close = difflib.get_close_matches(str(step)[:MAX_NAME], near, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template.

    >>> row, completion = {"answer": [4, 5]}, {"output_text": "{{item.answer}}"}
    >>> Template.parse("<{{sample.output_text}}> {{ item.answer[1] }}").fill({"item": row, "sample": completion})
    '<{{item.answer}}> 5'
    """

    parts: tuple[str | Path, ...]
    """Literal texts and placeholders in turn."""

    @classmethod
    def parse(cls, text: str) -> Template:
        """ValueError naming the placeholder that cannot be read."""
        parts: list[str | Path] = []
        place = 0
        while (start := text.find("{{", place)) >= 0:
            end = text.find("}}", start)
            if end < 0:
                raise ValueError(f"{text[start : start + 40]!r} is never closed with }}}}")
            parts += [text[place:start], Path.parse(text[start + 2 : end])]
            place = end + 2
        parts.append(text[place:])
        return cls(tuple(part for part in parts if part != ""))

    def fill(self, namespaces: Mapping[str, object]) -> str:
        """The text with every path replaced by its value."""
        return "".join(part if isinstance(part, str) else as_text(part.find(namespaces)) for part in self.parts)

    def value(self, namespaces: Mapping[str, object]) -> object:
        """The value itself where the template is one path and nothing else, else the filled text.

        >>> Template.parse("{{item.answer}}").value({"item": {"answer": [4, 5]}})
        [4, 5]
        """
        if len(self.parts) == 1 and isinstance(self.parts[0], Path):
            return self.parts[0].find(namespaces)
        return self.fill(namespaces)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a row that it reads."""
        paths = [part for part in self.parts if isinstance(part, Path)]
        return tuple(str(path.steps[0]) for path in paths if path.namespace == "item" and path.steps)


def as_text(value: object) -> str:
    """A value in a text: texts as they are, everything else as JSON.

    >>> as_text("a"), as_text(["a", 1.0, None]), as_text(True)
    ('a', '["a", 1.0, null]', 'true')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def texts_in(value: object) -> Iterator[str]:
    """Every text in a JSON value: where templates may stand.

    >>> list(texts_in({"type": "x", "input": ["a", {"b": "c"}, 3]}))
    ['x', 'a', 'c']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for child in value.values():
            yield from texts_in(child)
    elif isinstance(value, Sequence):
        for child in value:
            yield from texts_in(child)
