"""Grades completions that exist already, wherever they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from reinforge.errors import DataError
from reinforge.grading.calls import Case
from reinforge.grading.futures import Progress, awaited, no_progress
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.types import Example, Grade


def grade_completions(
    grader: RewardFunctionGrader, rows: Sequence[Mapping[str, Any]], progress: Progress = no_progress
) -> list[Grade]:
    """Grade completions that exist already. Rows have `prompt`, `completion` and any columns; neighbours with the
    same prompt and columns are judged together, as the group they came from. No chat template is at hand here: a
    Predibase-form function sees chat messages as the text of a Python list."""
    pending: list[Future[tuple[Grade, ...]]] = []
    start = 0
    while start < len(rows):
        first = _example_of(rows[start], start)
        end = start + 1
        while end < len(rows) and _same_example(rows[end], rows[start]):
            _example_of(rows[end], end)
            end += 1
        texts = tuple(rows[i]["completion"] for i in range(start, end))
        text = first.prompt if isinstance(first.prompt, str) else str(list(first.prompt))
        pending.append(grader.grade_case(Case(first, text, texts, ((),) * len(texts))))
        start = end
    judged = awaited(pending, len(rows), "completions judged", progress)
    return [grade for of_case in judged for grade in of_case]


def _example_of(row: Mapping[str, Any], index: int) -> Example:
    for column in ("prompt", "completion"):
        if column not in row:
            found = ", ".join(row)
            raise DataError(f'row {index + 1} has no "{column}" (found: {found}).', hint="Rename the column.")
    if not isinstance(row["completion"], str):
        raise DataError(f'row {index + 1}: "completion" is a {type(row["completion"]).__name__}, it must be text.')
    prompt = row["prompt"]
    if not isinstance(prompt, (str, list, tuple)):
        raise DataError(f'row {index + 1}: "prompt" is a {type(prompt).__name__}, it must be text or chat messages.')
    prompt = prompt if isinstance(prompt, str) else tuple(prompt)
    return Example(index, prompt, {key: row[key] for key in row if key not in ("prompt", "completion")})


def _same_example(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return {k: one[k] for k in one if k != "completion"} == {k: other[k] for k in other if k != "completion"}
