"""Changing the reward functions of a run: what a request asks for, and which functions follow from it.

A version is a function's text, name in it, packages and weight: whatever of these changes makes the next number,
`format_v2` beside `format_v1`. Numbers are never used twice, also not after a function was removed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from reinforge.errors import RewardError
from reinforge.grading.reward_function import RewardFunction, SourceText, load_text
from reinforge.grading.score_shift import ScoreShift
from reinforge.sandbox.pool import Limits

NO_VERSION = ""
"""The base of a function that is meant to be new."""


@dataclass(frozen=True, slots=True)
class RewardUpdate:
    """What a request changes. Functions it does not name stay as they are.

    Example:
        >>> update = RewardUpdate(weights={"brief": 0.5}, base={"brief": "brief_v1"})
        >>> RewardUpdate.from_json(update.to_json()) == update
        True
    """

    texts: Mapping[str, SourceText] = field(default_factory=dict)
    """Display name -> new text; an unknown name adds a function."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Display name -> new weight."""
    remove: tuple[str, ...] = ()
    base: Mapping[str, str] = field(default_factory=dict)
    """Display name -> version the change was made for; refused when the run has another by then."""
    at_step: int = 0
    """Not before this many steps are done."""
    packages: tuple[str, ...] | None = None
    """`name==version` for the functions that `texts` names; None: those they have, for new ones those of the others."""
    shift: ScoreShift | None = None
    """How far it moves the scores of recent completions, if whoever sent it looked."""

    def to_json(self) -> str:
        return json.dumps({"format": 1, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> RewardUpdate:
        """The update that `to_json` wrote; RewardError when it is none."""
        try:
            return cls._read(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise RewardError(f"this is not an update of reward functions ({cause}).") from None

    @classmethod
    def _read(cls, fields: dict[str, Any]) -> RewardUpdate:
        if fields.pop("format") != 1:
            raise ValueError("its format is not 1")
        update = cls(
            texts={str(name): SourceText(**_texts(text)) for name, text in fields.pop("texts").items()},
            weights={str(name): float(weight) for name, weight in fields.pop("weights").items()},
            remove=tuple(map(str, fields.pop("remove"))),
            base=_texts(fields.pop("base")),
            at_step=int(fields.pop("at_step")),
            packages=_packages(fields.pop("packages", None)),
            shift=None if (shift := fields.pop("shift", None)) is None else ScoreShift.from_values(shift),
        )
        if fields or not all(map(math.isfinite, update.weights.values())):
            raise ValueError(f"unknown or bad fields {sorted(fields) or 'weights'}")
        return update


def apply_update(
    current: Sequence[RewardFunction],
    update: RewardUpdate,
    earlier: Iterable[RewardFunction] = (),
    needed: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> tuple[RewardFunction, ...]:
    """The functions after an update, in their order, new ones last. New texts are loaded in a worker.

    `earlier` are all functions there ever were (their numbers are used up), `needed` those that may not go, with the
    reason. Raises RewardError, and then nothing has changed.
    """
    by_name = {function.name: function for function in current}
    _check(by_name, update, needed or {})
    taken = _numbers([*current, *earlier])
    changed: dict[str, RewardFunction] = {}
    for name in (*by_name, *(name for name in update.texts if name not in by_name)):
        if name not in update.remove:
            changed[name] = _changed(name, by_name.get(name), update, taken.get(name, 0) + 1, limits)
    if not changed:
        raise RewardError("the update would leave no reward function.", hint="Add another one before you remove these.")
    if tuple(changed.values()) == tuple(current):
        raise RewardError("the update changes nothing: texts and weights are what the run has.")
    return tuple(changed.values())


def describe_change(before: Sequence[RewardFunction], after: Sequence[RewardFunction]) -> str:
    """One line for people.

    >>> old = RewardFunction("f", "f_v1", "text", "f.py", "f", "predibase", ())
    >>> describe_change([old], [replace(old, version="f_v2", weight=0.5)])
    'f_v1 -> f_v2 (weight 1 -> 0.5)'
    """
    old, new = ({function.name: function for function in functions} for functions in (before, after))
    parts = []
    for name, function in new.items():
        if name not in old:
            parts.append(f"{function.version} added (weight {function.weight:g})")
        elif function != old[name]:
            what = [] if _text_of(function) == _text_of(old[name]) else ["new text"]
            what += [] if function.packages == old[name].packages else ["other packages"]
            if function.weight != old[name].weight:
                what.append(f"weight {old[name].weight:g} -> {function.weight:g}")
            parts.append(f"{old[name].version} -> {function.version} ({', '.join(what)})")
    parts += [f"{function.version} removed" for name, function in old.items() if name not in new]
    return ", ".join(parts)


def _check(by_name: Mapping[str, RewardFunction], update: RewardUpdate, needed: Mapping[str, str]) -> None:
    for name, base in update.base.items():
        now = by_name[name].version if name in by_name else NO_VERSION
        if base != now:
            made_for = f"made for {base}" if base else "meant to add it"
            raise RewardError(
                f"{name} is at {now or 'no version: it was removed'}; this update was {made_for}.",
                hint=f"Look at what the run has now, then send it again with --base {now}." if now else "",
            )
    for name in (*update.remove, *update.weights):
        if name not in by_name and (name in update.remove or name not in update.texts):
            known = ", ".join(by_name)
            raise RewardError(f"there is no reward function {name} (there are: {known}).", hint="Correct the name.")
    for name in update.remove:
        if name in update.texts or name in update.weights:
            raise RewardError(f"{name} is to be removed and to be changed.", hint="Do one of them.")
        if name in needed:
            raise RewardError(f"{name} cannot be removed: {needed[name]} names it.")


def _changed(
    name: str, function: RewardFunction | None, update: RewardUpdate, number: int, limits: Limits | None
) -> RewardFunction:
    """The function as the update wants it: the same object where nothing changes. New ones get `limits.packages`."""
    weight = update.weights.get(name, 1.0 if function is None else function.weight)
    text, limits = update.texts.get(name), limits or Limits()
    if function is not None and (text is None or _is_same(function, text, update.packages)):
        same = weight == function.weight
        return function if same else replace(function, weight=weight, version=f"{name}_v{number}")
    assert text is not None  # _check has seen to it
    packages = limits.packages if function is None or not function.packages else function.packages
    limits = replace(limits, packages=packages if update.packages is None else update.packages)
    return load_text(name, text, weight=weight, number=number, limits=limits)


def _is_same(function: RewardFunction, text: SourceText, packages: tuple[str, ...] | None) -> bool:
    if _text_of(function) != (text.source, text.function_name):
        return False
    takes_none = function.dialect == "grader" and not function.packages
    return packages is None or takes_none or packages == function.packages


def _text_of(function: RewardFunction) -> tuple[str, str]:
    return function.source, function.function_name


def _numbers(functions: Iterable[RewardFunction]) -> dict[str, int]:
    """Highest version number by name."""
    found: dict[str, int] = {}
    for function in functions:
        number = int(function.version.rpartition("_v")[2])
        found[function.name] = max(number, found.get(function.name, 0))
    return found


def _packages(values: Any) -> tuple[str, ...] | None:
    """The list, if it is one of texts."""
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("packages are no list of texts")
    return tuple(values)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The mapping, if it is one of text to text."""
    if not all(isinstance(text, str) for text in values.values()):
        raise TypeError("a value is no text")
    return dict(values)
