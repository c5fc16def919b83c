"""What a reward function may return, and what counts as its value.

| returned | value of the score |
|---|---|
| int, float | the number |
| bool | True is 1.0, False is 0.0 |
| NumPy or torch scalar, Decimal, Fraction, any object with `__float__` | the number |
| `{"score": ..., "valid": ..., "reason": ..., "metrics": {...}}` | that of `score`; see below |
| a dataclass with such fields, as the built-in graders return | the same |
| None | TRL form: does not apply to this row (no value, state `ok`); else error `not_a_number` |
| NaN, infinity, an integer beyond 1.8e308 | error `not_finite` |
| a number beyond +-1e15 | error `out_of_range`: sums and squares of it would lose what smaller ones say |
| text (also "0.5"), complex, list, dict, generator, anything else | error `not_a_number` |

A result is a dict with a `score` and no keys but these. `valid` false (true unless given) means that the function could
not judge: error `invalid`, whatever the score. `reason` is kept as the score's message, `metrics` are further finite
numbers that are stored with it. A result of another shape is an error `not_a_result`.

An error has no value and counts as reward 0 (S0-014). Text is refused even when it looks like a number: it is nearly
always a column returned by mistake, and the fix is one `float(...)`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

MAX_SHOWN = 100
MAX_REASON = 4000
"""Characters kept of a reason."""
MAX_VALUE = 1e15
"""Whole numbers up to here are exact, and squares of a step's rewards stay far from overflow."""


@dataclass(frozen=True, slots=True)
class Value:
    """A returned value as a score sees it: a finite number, or None with the reason in `kind` (empty: inapplicable)."""

    number: float | None
    kind: str = ""
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)


def read_value(returned: object, *, none_applies_not: bool) -> Value:
    """Judge one returned value, as it came through JSON.

    Example:
        >>> read_value(True, none_applies_not=False).number
        1.0
        >>> read_value("0.5", none_applies_not=False)
        Value(number=None, kind='not_a_number', message="returned the text '0.5', not a number")
        >>> read_value(None, none_applies_not=True)
        Value(number=None, kind='', message='')
    """
    if returned is None and none_applies_not:
        return Value(None)
    if isinstance(returned, (bool, int, float)):
        try:
            number = float(returned)
        except OverflowError:
            return Value(None, "not_finite", "returned an integer too large for a float: rewards must be finite")
        if abs(number) <= MAX_VALUE:
            return Value(number)
        if math.isfinite(number):
            return Value(None, "out_of_range", f"returned {number:g}: rewards must lie within +-{MAX_VALUE:g}")
        return Value(None, "not_finite", f"returned {number}: rewards must be finite")
    if isinstance(returned, dict) and "score" in returned:
        return _read_result(returned, none_applies_not)
    if isinstance(returned, dict) and returned.get("$type") == "int":  # beyond what JSON numbers carry
        return Value(None, "not_finite", f"returned {in_words(returned)}: rewards must be finite")
    return Value(None, "not_a_number", f"returned {in_words(returned)}, not a number")


def read_grader_value(returned: object) -> Value:
    """What `local_grader` returned: a result, or the fault that kept it from one.

    >>> read_grader_value({"fault": "formula_parse_error", "message": "1 / 0", "metrics": {"a": 0.0}})
    Value(number=None, kind='formula_parse_error', message='1 / 0')
    """
    if isinstance(returned, dict) and set(returned) == {"fault", "message", "metrics"}:
        return Value(None, str(returned["fault"]), str(returned["message"]), returned["metrics"])
    return read_value(returned, none_applies_not=False)


RESULT_KEYS = ("score", "valid", "reason", "metrics")


def _read_result(result: Mapping[str, object], none_applies_not: bool) -> Value:
    valid, reason, metrics = result.get("valid", True), _cut(result.get("reason")), result.get("metrics")
    unknown = [key for key in result if key not in RESULT_KEYS]
    if unknown:
        known = ", ".join(RESULT_KEYS)
        return Value(None, "not_a_result", f"returned a result with {reprlib.repr(unknown[0])} (known keys: {known})")
    if not isinstance(valid, bool):
        return Value(None, "not_a_result", f'returned {in_words(valid)} as "valid", not true or false')
    if reason is not None and not isinstance(reason, str):
        return Value(None, "not_a_result", f'returned {in_words(reason)} as "reason", not a text')
    if metrics is not None and not isinstance(metrics, dict):
        return Value(None, "not_a_result", f'returned {in_words(metrics)} as "metrics", not a dict')
    figures = {}
    for name, value in (metrics or {}).items():
        figure = read_value(value, none_applies_not=False)
        if figure.number is None:
            return Value(None, figure.kind, f"{figure.message} (metrics[{reprlib.repr(name)}])")
        figures[name] = figure.number
    if not valid:
        return Value(None, "invalid", reason or "the function says that its score is not valid", figures)
    value = read_value(result["score"], none_applies_not=none_applies_not)
    return value if value.kind else replace(value, message=reason or "", metrics=figures)


def _cut(reason: object) -> object:
    if not isinstance(reason, str) or len(reason) <= MAX_REASON:
        return reason
    return f"{reason[:MAX_REASON]}[... cut: {len(reason) - MAX_REASON} characters more]"


def in_words(returned: object) -> str:
    """A returned value, short enough for a table.

    Example:
        >>> in_words([1, 2]), in_words({"$type": "complex", "$text": "1j"}), in_words(None)
        ('a list [1, 2]', 'a complex 1j', 'None')
    """
    if returned is None:
        return "None"
    if isinstance(returned, str):
        return f"the text {reprlib.repr(returned)}"
    if isinstance(returned, dict) and set(returned) == {"$type", "$text"}:
        words = f"a {returned['$type']} {returned['$text']}".encode("utf-8", "backslashreplace").decode("utf-8")
        return words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + "..."
    return f"a {type(returned).__name__} {reprlib.repr(returned)}"
