"""Files of golden cases: what they may say, and what is wrong with those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reinforge.errors import DataError
from reinforge.lab.cases import GoldenCase, cases_beside, read_cases
from reinforge.types import Example


def read(folder: Path, *lines: object) -> list[GoldenCase]:
    path = cases_beside(folder / "rewards.py")
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return read_cases(path, ["right", "form"])


def test_a_case_and_a_ladder(tmp_path: Path):
    case, ladder = read(
        tmp_path,
        {"row": 2, "completion": "<a>", "scores": {"right": 1, "form": [0, 0.5]}, "reward": 0.75, "name": "cut"},
        "",
        {"example": {"prompt": "p", "answer": 4}, "great": "4", "fair": "4.1", "poor": "5"},
    )
    assert case == GoldenCase(
        "cut", 2, None, ("<a>",), {"right": (1.0, 1.0), "form": (0.0, 0.5), "": (0.75, 0.75)}
    )  # fmt: skip
    assert ladder == GoldenCase("case 3", None, Example(0, "p", {"answer": 4}), ("4", "4.1", "5"), None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1 is no JSON"),
        ([1], ":1 is no JSON object"),
        ({"row": 1, "completion": "x", "reward": 1, "rows": 2}, 'unknown "rows"'),
        ({"completion": "x", "reward": 1}, 'needs either "row"'),
        ({"row": 0, "completion": "x", "reward": 1}, 'needs either "row"'),
        ({"row": True, "completion": "x", "reward": 1}, 'needs either "row"'),
        ({"row": 1, "example": {"prompt": "p"}, "completion": "x", "reward": 1}, 'needs either "row"'),
        ({"row": 1, "completion": 5, "reward": 1}, 'needs either "completion"'),
        ({"row": 1, "great": "x", "poor": "y"}, 'needs either "completion"'),
        ({"row": 1, "completion": "x", "great": "x", "fair": "y", "poor": "z"}, 'needs either "completion"'),
        ({"row": 1, "completion": "x"}, 'needs "scores"'),
        ({"row": 1, "completion": "x", "scores": {"rihgt": 1}}, "names the function rihgt (there are: right, form)"),
        ({"row": 1, "completion": "x", "reward": "1"}, "neither a number nor [lowest, highest]"),
        ({"row": 1, "completion": "x", "reward": [1, 0]}, "begins with the higher one"),
        ({"example": {"answer": 1}, "completion": "x", "reward": 1}, 'must be an object with a "prompt"'),
    ],
)
def test_faults_are_told_with_their_line(tmp_path: Path, line: object, message: str):
    with pytest.raises(DataError) as fault:
        read(tmp_path, line)
    assert message in str(fault.value)
    assert "rewards.cases.jsonl:1" in str(fault.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_cases(tmp_path / "no.jsonl", [])
