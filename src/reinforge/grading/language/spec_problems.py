"""What is wrong with a grader, in our words: where, the value, the rule, and the key that was probably meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

KeyPath = tuple[str | int, ...]

RULES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_too_long": "may have at most {max_length} characters",
    "dict_type": "must be a table of names and values",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "may have at most {max_length} entries",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}
"""pydantic's error type -> the rule that was broken."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    >>> str(Problem(("graders", "f1", "input"), "is not set"))
    'graders.f1.input: is not set'
    """

    path: KeyPath
    """Where it stands in the grader."""
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.text}" if self.path else self.text


def problems_of(
    error: ValidationError, value: object, keys_of: Callable[[Mapping[str, Any]], list[str]]
) -> list[Problem]:
    """One problem for each place. `keys_of` tells the keys that a node may have."""
    by_path: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for one in error.errors():
        by_path.setdefault(_written_path(one, value), []).append(one)
    return [Problem(path, _text(found, path, value, keys_of)) for path, found in by_path.items()]


def meant(wrong: object, known: Iterable[str]) -> str:
    """`; did you mean input?`, or what there is.

    >>> meant("inptu", ["input", "reference"]), meant("x", ["input", "reference"])
    ('; did you mean input?', ' (known: input, reference)')
    """
    known = list(known)
    close = difflib.get_close_matches(str(wrong), known, n=1)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})" if known else ""


def _written_path(error: Mapping[str, Any], value: Any) -> KeyPath:
    """pydantic's location without the names of union branches it puts in."""
    path: list[str | int] = []
    for depth, part in enumerate(error["loc"]):
        if isinstance(value, list) and isinstance(part, str):  # of named graders, read as a table
            names = [one.get("name") for one in value if isinstance(one, dict)]
            part = names.index(part) if part in names else part
        if part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value)):
            value = value[part]
        elif isinstance(value, dict) and depth + 1 == len(error["loc"]):
            value = None  # what is missing, or a rule about one field
        else:
            continue
        path.append(part)
    return tuple(path)


def _text(
    errors: list[Mapping[str, Any]], path: KeyPath, value: object, keys_of: Callable[[Mapping[str, Any]], list[str]]
) -> str:
    first = errors[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "missing":
        return "is not set"
    if kind in ("extra_forbidden", "unknown_option"):
        node = _at(value, path[:-1])
        known = context.get("known") or keys_of(node)
        return f"is no key of {node.get('type', 'this')}{meant(path[-1], known)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("rule", "option"):
        return str(first["msg"])
    rules = [RULES[one["type"]].format(**one.get("ctx", {})) for one in errors if one["type"] in RULES]
    shown = json.dumps(first["input"], ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown}, but it {' or '.join(dict.fromkeys(rules or [str(first['msg'])]))}"


def _at(value: Any, path: KeyPath) -> Mapping[str, Any]:
    for part in path:
        value = value[part]
    return value if isinstance(value, dict) else {}
