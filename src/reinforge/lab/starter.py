"""`reinforge rewards new`: a commented reward file for the columns of a data set, and golden cases beside it.

Two functions to begin with, one about form and one about content (S0-178), each giving marks for part of the way
(S0-091), and `gold(example)`, which says how a right completion looks.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reinforge.lab.cases import cases_beside
from reinforge.lab.gold import Gold, answer_columns, split_answer
from reinforge.lab.layouts import ANSWER_TAGS, REASONING_TAGS, asked_layout
from reinforge.lab.probes import Answers
from reinforge.lab.starter_text import (
    CONTENT,
    FORM,
    FORM_ONLY,
    FUNCTIONS,
    GOLD,
    GOLD_OF_NONE,
    HEAD,
    IMPORTS,
    REFERENCE,
    REFERENCE_BEHIND_HASHES,
    SHAPES,
)
from reinforge.types import Example

AnswerKind = Literal["number", "label", "list", "table", "text", "none"]
DEFAULT_TAGS = ("think", "answer")
MAX_LABELS = 20


@dataclass(frozen=True, slots=True)
class Starter:
    """The two files."""

    source: str
    cases: str
    kind: AnswerKind
    column: str


def make_starter(examples: Sequence[Example], file: Path, options: str = "", column: str | None = None) -> Starter:
    """A starter for these rows; without rows for a text column named `answer`, for rows without an answer about form
    alone. `options` are those with which `reinforge rewards test` finds the rows."""
    if column is None:
        column = next(iter(answer_columns(examples, [])), "") if examples else "answer"
    answers = [a for e in examples if column and (a := split_answer(e.columns.get(column))[1]) is not None]
    kind: AnswerKind = kind_of(answers) if column else "none"
    asked = asked_layout(_prompt(examples[0])) if examples else None
    shape, names = _shape(asked)
    behind = any(isinstance(e.columns.get(column), str) and "####" in e.columns[column] for e in examples)
    reference = (REFERENCE_BEHIND_HASHES if behind else REFERENCE) if kind in ("number", "label", "text") else ""
    written = _WRITTEN[kind].replace("@part@", '.rpartition("####")[2]' if behind else "")
    values = {
        "file": file.name,
        "cases": cases_beside(file).name,
        "options": options,
        "columns": _columns(examples),
        "column": column,
        "functions": (FUNCTIONS if column else FORM_ONLY).replace("@file@", file.name),
        "tags": ", ".join(f'"{name}"' for name in names),
        "answer_tag": next((name for name in reversed(names) if name.lower() in ANSWER_TAGS), ""),
        "reference": reference,
        "layout": repr(_layout(names, asked)),
        "written": written,
    }
    shape_text = SHAPES[shape] if column else _without_column(SHAPES[shape])
    ending = GOLD if column else GOLD_OF_NONE
    source = _filled(HEAD + IMPORTS[kind] + shape_text + FORM[shape] + CONTENT[kind] + ending, values)
    return Starter(source, _cases(examples, column, shape, _layout(names, asked)), kind, column)


def _without_column(shape: str) -> str:
    text = shape.removeprefix('COLUMN = "@column@"\n')
    return "\n" + text.lstrip("\n") if text.startswith("\n") else text


def kind_of(answers: Sequence[Any]) -> AnswerKind:
    """What the answers of a column are.

    >>> kind_of(["72", "1,350"]), kind_of([["a"], []]), kind_of(["no", "yes", "no", "no"]), kind_of(["a story"])
    ('number', 'list', 'label', 'text')
    """
    if answers and all(isinstance(answer, list) for answer in answers):
        return "list"
    if answers and all(isinstance(answer, dict) for answer in answers):
        return "table"
    texts = [answer if isinstance(answer, str) else str(answer) for answer in answers]
    if texts and all(_is_number(text) for text in texts):
        return "number"
    few = len(set(texts)) <= min(MAX_LABELS, len(texts) / 2)
    return "label" if texts and few and max(map(len, texts)) <= 40 else "text"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "").replace("$", "")))
    except ValueError:
        return False


def _prompt(example: Example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(str(message.get("content")) for message in example.prompt)


def _shape(asked: str | None) -> tuple[Literal["tags", "hashes", "boxed"], tuple[str, ...]]:
    """How completions are laid out, and the names of the tags."""
    if asked is None:
        return "tags", DEFAULT_TAGS
    names = tuple(dict.fromkeys(re.findall(r"<(\w+)>", asked)))
    if not names:
        return ("hashes" if "####" in asked else "boxed"), ()
    known = (*ANSWER_TAGS, *REASONING_TAGS)
    return "tags", tuple(name for name in names if name.lower() in known)


def _layout(names: Sequence[str], asked: str | None) -> str:
    """For `str.format` in the file: {reasoning} and {answer}."""
    if asked is not None:
        return asked
    reasoning, answer = names
    return f"<{reasoning}>{{reasoning}}</{reasoning}>\n<{answer}>{{answer}}</{answer}>"


_AS_TEXT, _AS_JSON = "str(example[COLUMN])@part@.strip()", "json.dumps(example[COLUMN], ensure_ascii=False)"
_WRITTEN = {"number": _AS_TEXT, "label": _AS_TEXT, "text": _AS_TEXT, "list": _AS_JSON, "table": _AS_JSON, "none": ""}


def _columns(examples: Sequence[Example]) -> str:
    """The columns with the type and the first value of each, as comments."""
    lines = []
    for name in examples[0].columns if examples else ():
        value = next((e.columns[name] for e in examples if e.columns.get(name) is not None), None)
        shown = json.dumps(value, ensure_ascii=True, default=str)
        lines.append(f"    {name}: {type(value).__name__}, {shown if len(shown) <= 60 else shown[:57] + '...'}")
    return "\n".join(lines) or ("    none" if examples else "    answer: str")


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _cases(examples: Sequence[Example], column: str, shape: str, layout: str) -> str:
    """Golden cases: a right completion, one cut off, none, a wrong one, and a ladder."""
    own = Example(0, "What is the capital of Norway?", {column: "Oslo"})
    other = Example(1, "What is the capital of Iceland?", {column: "Reykjavik"})
    rows = [e for e in examples if e.columns.get(column) is not None] or [own, other]
    golds = [_gold(example, column, layout) for example in rows] if column else [_form_only(examples[0], layout)]
    right = golds[0]
    place: dict[str, Any] = {"row": right.row + 1}
    if not examples:
        place = {"example": {"prompt": own.prompt, **own.columns}}
    both = {"format_reward": 1} | ({"correct_reward": 1} if column else {})
    lines: list[dict[str, Any]] = [
        {"name": "right", **place, "completion": right.text, "scores": both},
        {"name": "nothing", **place, "completion": "", "scores": dict.fromkeys(both, 0)},
    ]
    wrong = Answers(golds).other_than(right) if column else None
    if shape == "tags":
        cut = right.text[: right.text.rindex("</")]
        lines.append({"name": "cut off", **place, "completion": cut, "scores": {"format_reward": [0, 0.9]}})
    if wrong is not None:
        text = right.with_answer(wrong.written) or wrong.text
        lines.append({"name": "wrong", **place, "completion": text, "scores": {**both, "correct_reward": [0, 0.9]}})
        lines.append({"name": "ladder", **place, "great": right.text, "fair": text, "poor": "I do not know."})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _form_only(example: Example, layout: str) -> Gold:
    """As `gold(example)` of a file for data without answers makes it."""
    return Gold(example.index, layout.format(reasoning="The question asks for one thing.", answer="An answer."))


def _gold(example: Example, column: str, layout: str) -> Gold:
    """As `gold(example)` of the file makes it."""
    answer = split_answer(example.columns[column])[1]
    written = json.dumps(answer, ensure_ascii=False) if isinstance(answer, (list, dict)) else str(answer).strip()
    reasoning = "The question asks for one thing."
    return Gold(example.index, layout.format(reasoning=reasoning, answer=written), answer, written)
