"""What the built-ins share: taking text, lists and answers out of what a model wrote, and checking options.

A completion may be anything: where a reader finds nothing in it, it answers with the reason (`Unreadable`) and never
raises. References and options are the user's own: there a reader raises ValueError.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reinforge.grading.nesting import MAX_NESTING, is_too_deep

MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why nothing was found in an input."""

    reason: str


def shown(value: object) -> str:
    """A value, short enough for a reason and safe to print.

    >>> shown("a\\ud800" * 100)
    "'a\\\\ud800a\\\\ud8...\\\\ud800a\\\\ud800'"
    """
    try:
        text = reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def text_of(value: object) -> str:
    """The text of an input: itself, a number as written, nothing for None, JSON for lists and dicts.

    >>> text_of("a"), text_of(None), text_of(5), text_of([1, "b"])
    ('a', '', '5', '[1, "b"]')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""


def json_of(value: object, *, fence: bool = True) -> Any:
    """The value itself, or what a text holds as JSON, in a code fence too where `fence` is true; or Unreadable.

    >>> json_of("```json\\n[1]\\n```"), json_of({"a": 1}), json_of("[NaN]").reason
    ([1], {'a': 1}, 'not JSON: NaN is no number of JSON')
    """
    if not isinstance(value, str):
        return Unreadable(_TOO_DEEP) if is_too_deep(value) else value
    text = value.strip()
    if fence and text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") + 1 : -3]
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        return Unreadable(_TOO_DEEP)
    except ValueError as error:
        return Unreadable(f"not JSON: {error}" if text else "empty")
    return Unreadable(_TOO_DEEP) if is_too_deep(found) else found


_TOO_DEEP = f"not JSON that is read: it is nested more than {MAX_NESTING} levels deep"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is too large")
    return number


def list_of(
    value: object, field: str, tag: str = "", after: str = "", max_entries: int | None = None
) -> list[Any] | Unreadable:
    """The list in an input: the input itself, what its JSON holds, or what lies at the dotted path `field` in that,
    where null is empty too. In a text it stands where `tag` and `after` say. No more than `max_entries` are read.

    >>> list_of('{"a": {"b": [1]}}', "a.b"), list_of({"a": None}, "a"), list_of("{}", "a").reason
    ([1], [], 'no field "a"')
    >>> list_of("<think>[1]?</think>[2]", "", after="</think>")
    [2]
    """
    found = json_of(answer_of(value, tag, after) if isinstance(value, str) else value)
    for name in text_option("field", field).split(".") if field else ():
        if isinstance(found, Unreadable):
            return found
        if not isinstance(found, Mapping) or name not in found:
            return Unreadable(f'no field "{name}"')
        found = found[name]
    if isinstance(found, Unreadable):
        return found
    if found is None and field:
        return []
    if not isinstance(found, (list, tuple)):
        return Unreadable(f"not a list but {shown(found)}")
    if max_entries is not None and len(found) > max_entries:
        return Unreadable(f"{len(found):,} entries, at most {max_entries:,} are read")
    return list(found)


def reference_list(reference: object) -> list[Any]:
    """The list of a reference: a list, its text as JSON or Python (columns of the Predibase form are texts), or None.

    >>> reference_list("[{'a': 1}]"), reference_list('["b"]'), reference_list(None)
    ([{'a': 1}], ['b'], [])
    """
    found = literal_of(reference) if isinstance(reference, str) else reference
    if found is None:
        return []
    if isinstance(found, (list, tuple, set, frozenset)):
        return list(found)
    raise ValueError(f"reference: a list is needed, not {shown(reference)}")


def literal_of(text: str) -> Any:
    """What a reference's text holds as JSON or as a Python literal; ValueError when it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"reference: neither JSON nor a Python literal: {shown(text)}") from None


def canonical(value: object) -> str:
    """A text that is equal for equal JSON values and only for them (1 and 1.0 are one number, true is none).

    >>> canonical({"b": 1, "a": [True]}) == canonical({"a": [True], "b": 1.0}), canonical(1) == canonical(True)
    (True, False)
    """
    return json.dumps(_with_plain_numbers(value), sort_keys=True)


def _with_plain_numbers(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_with_plain_numbers(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _with_plain_numbers(entry) for key, entry in value.items()}
    return value


def inside(text: str, tag: str) -> str | None:
    """What stands in the last `<tag>...</tag>` of a text, without white space around it; None when there is none.

    >>> inside("<answer>1</answer> no: <answer> 2 </answer>", "answer"), inside("<answer>1", "answer")
    ('2', None)
    """
    _, opened, rest = text.rpartition(f"<{tag}>")
    inner, closed, _ = rest.partition(f"</{tag}>")
    return inner.strip() if opened and closed else None


def answer_of(value: object, tag: str, after: str = "") -> str | Unreadable:
    """The answer in an input: what stands in the last block of `tag`, or follows the last `after`, or all of it.

    >>> answer_of(" 5 ", ""), answer_of("<a>5</a>", "a"), answer_of("#### 5", "", "####"), answer_of("5", "a").reason
    ('5', '5', '5', 'no <a>...</a>')
    """
    if tag and after:
        raise ValueError("tag and after: only one of them can say where the answer stands")
    text = text_of(value)
    if tag:
        answer = inside(text, tag_name(tag))
        if answer is None:
            return Unreadable(f"no <{tag}>...</{tag}>")
    else:
        _, mark, rest = text.rpartition(text_option("after", after)) if after else ("", "", text)
        if after and not mark:
            return Unreadable(f"no {after!r}")
        answer = rest.strip()
    return answer or Unreadable("empty")


def tag_name(tag: object) -> str:
    """A tag's name, checked."""
    if not isinstance(tag, str) or not re.fullmatch(r"[^\s<>/]+", tag):
        raise ValueError(f"tag: a name without <, >, / and spaces is needed, not {shown(tag)}")
    return tag


def number_option(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high, checked.

    >>> number_option("weight", 2, high=1)
    Traceback (most recent call last):
    ValueError: weight: a number up to 1 is needed, not 2
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
        with contextlib.suppress(OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number
    bounds = {(False, False): "", (True, False): f" from {low:g} on", (False, True): f" up to {high:g}"}
    words = bounds.get((low > -math.inf, high < math.inf), f" from {low:g} to {high:g}")
    raise ValueError(f"{name}: a number{words} is needed, not {shown(value)}")


def text_option(name: str, value: object) -> str:
    """A text, checked."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: a text is needed, not {shown(value)}")
    return value


def choice_option(name: str, value: object, choices: Iterable[str]) -> None:
    """ValueError unless the value is one of the choices."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name}: one of {', '.join(known)} is needed, not {shown(value)}")


def names_option(name: str, value: object, at_least: int = 0) -> tuple[str, ...]:
    """A list of texts, checked; one text is a list of one."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, (list, tuple)) and len(names) >= at_least and all(isinstance(entry, str) for entry in names):
        return tuple(names)
    needed = f"at least {at_least} of them, " if at_least else ""
    raise ValueError(f"{name}: a list of texts is needed, {needed}not {shown(value)}")


def f1(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall; 0 when both are 0.

    >>> f1(0.5, 1.0), f1(0.0, 0.0)
    (0.6666666666666666, 0.0)
    """
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
