"""Golden cases: completions stored beside a reward file with the scores they must get (S0-093).

`rewards.cases.jsonl` belongs to `rewards.py`. One JSON object a line, of one of two kinds:

    {"row": 1, "completion": "<answer>4</answer>", "scores": {"correct": 1.0, "format": [0.2, 0.8]}, "reward": 1.2}
    {"row": 1, "great": "...", "fair": "...", "poor": "..."}

`row` is a row of the data, from 1; instead, `example` may hold a row of its own (`{"prompt": ..., "answer": ...}`). A
score is a number, or the lowest and the highest allowed. `name` names a case in messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforge.errors import DataError
from reinforge.insight.trials import TOTAL
from reinforge.types import Example

LADDER = ("great", "fair", "poor")
_KEYS = {"name", "row", "example", "completion", "scores", "reward", *LADDER}


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One line of a cases file."""

    name: str
    row: int | None
    """Number in the data, from 1; None when it brings its own example."""
    example: Example | None
    completions: tuple[str, ...]
    """One, or from great to poor."""
    expected: Mapping[str, tuple[float, float]] | None
    """Name of a function (TOTAL for the reward) -> lowest and highest value; None of a ladder."""


def cases_beside(reward_file: Path) -> Path:
    """
    >>> str(cases_beside(Path("a/rewards.py")))
    'a/rewards.cases.jsonl'
    """
    return reward_file.with_suffix(".cases.jsonl")


def read_cases(path: Path, names: Sequence[str]) -> list[GoldenCase]:
    """The cases of a file; DataError names the line, the fault and the rule. `names` are the functions there are."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path} cannot be read: {fault}.") from fault
    return [_case(line, f"{path}:{number}", number, names) for number, line in enumerate(lines, 1) if line.strip()]


def _case(line: str, place: str, number: int, names: Sequence[str]) -> GoldenCase:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{place} is no JSON: {fault}.") from fault
    if not isinstance(fields, dict):
        raise DataError(f"{place} is no JSON object.")
    unknown = sorted(set(fields) - _KEYS)
    if unknown:
        raise DataError(f'{place} has an unknown "{unknown[0]}".', hint=f"Known: {', '.join(sorted(_KEYS))}.")
    row = fields.get("row")
    if ("row" in fields) == ("example" in fields) or ("row" in fields and (type(row) is not int or row < 1)):
        raise DataError(f'{place} needs either "row" (a number from 1) or "example".')
    completions = _completions(fields, place)
    expected = _expected(fields, place, names) if len(completions) == 1 else None
    return GoldenCase(str(fields.get("name") or f"case {number}"), row, _example(fields, place), completions, expected)


def _completions(fields: Mapping[str, Any], place: str) -> tuple[str, ...]:
    keys = ("completion",) if "completion" in fields else LADDER
    texts = tuple(fields.get(key) for key in keys)
    if not all(isinstance(text, str) for text in texts) or ("completion" in fields and set(fields) & set(LADDER)):
        raise DataError(f'{place} needs either "completion" or "great", "fair" and "poor", each a text.')
    return tuple(str(text) for text in texts)


def _expected(fields: Mapping[str, Any], place: str, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    scores = fields.get("scores", {})
    if not isinstance(scores, dict) or not (scores or "reward" in fields):
        raise DataError(f'{place} needs "scores" (name: number or [lowest, highest]) or "reward".')
    unknown = [name for name in scores if name not in names]
    if unknown:
        raise DataError(f"{place} names the function {unknown[0]} (there are: {', '.join(names)}).")
    given = {**scores, **({TOTAL: fields["reward"]} if "reward" in fields else {})}
    return {name: _range(value, place) for name, value in given.items()}


def _range(value: Any, place: str) -> tuple[float, float]:
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in pair):
        raise DataError(f"{place}: {json.dumps(value)} is neither a number nor [lowest, highest].")
    if pair[0] > pair[1]:
        raise DataError(f"{place}: [{pair[0]}, {pair[1]}] begins with the higher one.")
    return float(pair[0]), float(pair[1])


def _example(fields: Mapping[str, Any], place: str) -> Example | None:
    if "example" not in fields:
        return None
    row = fields["example"]
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), (str, list)):
        raise DataError(f'{place}: "example" must be an object with a "prompt".')
    prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
    return Example(0, prompt, {key: value for key, value in row.items() if key != "prompt"})
