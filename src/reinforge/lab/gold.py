"""Right completions: how one is made from a row, and how that was found out.

Said by the user (a function `gold(example)` in the reward file, a template, an answer column) or inferred: the column
by its name and by what the functions read, the layout by what the prompt asks for, else by which one the functions give
most. What was assumed is always told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reinforge.data.template import fill_template, template_columns
from reinforge.errors import UsageError
from reinforge.lab.layouts import AS_JSON
from reinforge.types import Example

ANSWER_COLUMNS = ("answer", "gold", "gold_answer", "reference_answer", "reference", "ground_truth", "target",
                  "solution", "expected", "final_answer", "label", "labels", "output", "completion")  # fmt: skip
REASONING = "The question asks for one thing. Going through it step by step leads to it."


@dataclass(frozen=True, slots=True)
class Gold:
    """A right completion of a row."""

    row: int
    """Index of the example, from 0."""
    text: str
    answer: Any = None
    """As it stands in the data; None when the completion came whole."""
    written: str = ""
    """The answer as it stands in the text; empty when that is unknown."""

    def with_answer(self, written: str) -> str | None:
        """The completion with another answer in its place; None when the answer's place is unknown.

        >>> Gold(0, "<think>2 + 2</think><answer>4</answer>", 4, "4").with_answer("5")
        '<think>2 + 2</think><answer>5</answer>'
        """
        before, found, after = self.text.rpartition(self.written) if self.written else ("", "", "")
        return before + written + after if found else None

    @property
    def is_empty(self) -> bool:
        """Whether the right answer is nothing."""
        return self.answer is not None and is_nothing(self.answer)


@dataclass(frozen=True, slots=True)
class GoldRecipe:
    """How a right completion is made from a row."""

    column: str
    layout: str
    """Template; see layouts.py. Other columns of the row may stand in it too."""

    def make(self, example: Example) -> Gold | None:
        """None when the row has no answer.

        >>> GoldRecipe("answer", "<answer>{answer}</answer>").make(Example(0, "?", {"answer": "So 2.\\n#### 2"})).text
        '<answer>2</answer>'
        """
        answer = example.columns.get(self.column)
        if answer is None:
            return None
        reasoning, answer = split_answer(answer)
        in_json = json.dumps(answer, ensure_ascii=False)
        written = in_json if AS_JSON in self.layout else as_text(answer)
        own = {"reasoning": reasoning or REASONING, "answer": as_text(answer), "answer_json": in_json}
        values = {**example.columns, **own}
        return Gold(example.index, fill_template(self.layout, values), answer, written)


def split_answer(answer: Any) -> tuple[str, Any]:
    """(reasoning, answer): GSM8K's solutions have their answer behind `####`; other answers are one as they are."""
    if isinstance(answer, str) and "####" in answer:
        reasoning, _, answer = answer.rpartition("####")
        return reasoning.strip(), answer.strip()
    return "", answer.strip() if isinstance(answer, str) else answer


def as_text(answer: Any) -> str:
    """
    >>> as_text("a"), as_text(2.5), as_text([{"b": None}])
    ('a', '2.5', '[{"b": null}]')
    """
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def is_nothing(answer: Any) -> bool:
    """
    >>> is_nothing({"passages": []}), is_nothing(""), is_nothing(0), is_nothing("[]")
    (True, True, False, True)
    """
    if isinstance(answer, Mapping):
        return all(map(is_nothing, answer.values()))
    if isinstance(answer, str):
        return answer.strip() in ("", "[]", "{}")
    return isinstance(answer, (list, tuple)) and not answer


def answer_columns(examples: Sequence[Example], sources: Sequence[str]) -> list[str]:
    """Columns that may hold the answer, the likeliest first: those of a usual name, then those that the functions read,
    then the only one there is."""
    columns = list(examples[0].columns)
    read = [column for column in columns if any(_reads(source, column) for source in sources)]
    usual = [column for name in ANSWER_COLUMNS for column in columns if column.lower() == name]
    likely = [column for column in usual if column in read] + [column for column in usual if column not in read]
    return list(dict.fromkeys([*likely, *read, *(columns if len(columns) == 1 else [])]))


def _reads(source: str, column: str) -> bool:
    """Whether a source text names a column: in quotes, as a parameter (but for those that every function has), or in a
    template."""
    name = re.escape(column)
    parameter = "" if column in ("prompt", "completion") else rf"|\bdef \w+\([^)]*\b{name}\b"
    return re.search(rf"""["']{name}["']{parameter}|item\.{name}\b""", source) is not None


def parse_template(template: str, example: Example) -> str:
    """The user's template, checked against the columns."""
    known = {"answer", "answer_json", "reasoning", *example.columns}
    for name in template_columns(template):
        if name not in known:
            raise UsageError(
                f"--gold-template has {{{name}}}, but there is no such column (found: {', '.join(sorted(known))}).",
                hint="{answer} is the answer; literal braces are written twice.",
            )
    return template
