"""Graders as JSON text: read with the line of everything that is wrong."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from reinforge.errors import RewardError
from reinforge.grading.language.json_repair import Defect, repair
from reinforge.grading.language.spec import find_problems
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.text_positions import KeyPath, line_at, lines_of

MAX_TOLD = 10
"""Lines of an error message."""


def read_json(text: str, file_name: str = "grader") -> GraderNode:
    """The grader a text holds; RewardError naming the line of everything that is wrong.

    >>> read_json('{"type": "string_check",\\n "operation": "equals", "input": "", "reference": ""}', "check.json")
    Traceback (most recent call last):
    reinforge.errors.RewardError: check.json:2: operation: "equals", but it must be 'eq', 'ne', 'like' or 'ilike'
    """
    value = parse_json(text, file_name)
    node, problems = find_problems(value)
    if node is None:
        lines: dict[KeyPath, int] = lines_of(text) if problems[0].path else {(): 1}
        told = [f"{file_name}:{line_at(lines, problem.path)}: {problem}" for problem in problems]
        raise RewardError("\n".join(_first(told)))
    return node


def parse_json(text: str, file_name: str) -> Any:
    """The value of a JSON text; RewardError where it is none, with the repair when there is one."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse)
    except _NotTaken as error:
        raise RewardError(f"{file_name}: {error}.") from None
    except json.JSONDecodeError as error:
        repaired = repair(text)
        if repaired is None:
            raise RewardError(f"{file_name}:{error.lineno}: this is not JSON: {error.msg}.") from None
        told = [f"{file_name}:{defect.line}: {defect}." for defect in repaired[1]]
        hint = f"To have that done: reinforge grader validate {file_name} --fix"
        raise RewardError("\n".join(["this is not JSON:", *_first(told)]), hint=hint) from None
    except RecursionError:
        raise RewardError(f"{file_name}: it is nested too deeply.") from None
    except ValueError:  # the only other one of Python's reader
        most = sys.get_int_max_str_digits()
        raise RewardError(f"{file_name}: a whole number in it has more than {most:,} digits.") from None


def repaired_text(text: str) -> tuple[str, list[Defect]]:
    """The text with what `read_json` would offer to repair; unchanged where nothing is to be done or can be."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return repair(text) or (text, [])
    except (ValueError, RecursionError):  # nothing that can be repaired: read_json says what it is
        pass
    return text, []


class _NotTaken(Exception):
    """JSON that Python takes and we do not."""


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        double, _ = next(entry for entry in Counter(name for name, _ in pairs).items() if entry[1] > 1)
        raise _NotTaken(f'"{double}" is set twice in one table')
    return table


def _refuse(constant: str) -> None:
    raise _NotTaken(f"{constant} is no number of JSON")


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_TOLD
    return lines if more <= 0 else [*lines[:MAX_TOLD], f"... and {more} more."]
