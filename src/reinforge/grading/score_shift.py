"""How far an update of the reward functions moves the scores of completions that exist (S0-137)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

LARGE_MOVE = 0.5
"""Standard deviations of the reward (before, over all completions) that its mean may move without a warning."""
LARGE_TURN = 0.1
"""Share of the pairs within groups whose order may be turned round."""
LARGE_SILENCE = 0.2
"""Share of the groups that may stop to teach anything."""
LARGE_FAILURE = 0.05
"""Share of the completions on which a function may fail more than before."""


@dataclass(frozen=True, slots=True)
class ScoreShift:
    """What would have become of recent completions. Shares are 0..1; None where there is nothing to compare.

    Example:
        >>> shift = ScoreShift(3, 7, 40, 0.5, 0.25, 0.1, 0.0, 0.0, {"right": FunctionMove(0.5, 0.25, 0, 0)})
        >>> shift.in_words()
        'reward 0.5 -> 0.25 (right 0.5 -> 0.25) on the 40 completions of steps 3 to 7'
        >>> shift.warnings()
        ["the reward's mean moves by 2.5 of its standard deviations"]
        >>> ScoreShift.from_values(shift.to_values()) == shift
        True
    """

    first_step: int
    last_step: int
    num_completions: int
    reward_before: float | None
    """Mean."""
    reward_after: float | None
    reward_std_before: float | None
    pairs_turned: float | None
    """Share of the pairs within groups whose order is turned round."""
    silenced: float
    """Share of the groups that taught something and do not any more."""
    functions: Mapping[str, FunctionMove] = field(default_factory=dict)
    """By display name."""

    def to_values(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ScoreShift:
        """What `to_values` gave; TypeError or ValueError for anything else."""
        named = {name: FunctionMove.from_values(of_one) for name, of_one in values["functions"].items()}
        figures: dict[str, Any] = {key: _number(value) for key, value in values.items() if key != "functions"}
        counts = {key: int(values[key]) for key in ("first_step", "last_step", "num_completions")}
        return cls(**(figures | counts), functions=named)

    def in_words(self) -> str:
        """One line for people."""
        named = sorted(self.functions.items())  # rows keep no order, and a resumed run must say the same
        moves = [f"{name} {_figure(move.before)} -> {_figure(move.after)}" for name, move in named if move.moves]
        of_functions = f" ({', '.join(moves)})" if moves else ""
        where = f"on the {self.num_completions} completions of steps {self.first_step} to {self.last_step}"
        return f"reward {_figure(self.reward_before)} -> {_figure(self.reward_after)}{of_functions} {where}"

    def warnings(self) -> list[str]:
        """Why this change is a large one for a run; none for one that is not."""
        told = []
        if self.reward_before is not None and self.reward_after is not None:
            moved, std = abs(self.reward_after - self.reward_before), self.reward_std_before or 0.0
            if std and moved > LARGE_MOVE * std:
                told.append(f"the reward's mean moves by {moved / std:.2g} of its standard deviations")
        if self.pairs_turned is not None and self.pairs_turned > LARGE_TURN:
            told.append(f"{self.pairs_turned:.0%} of the pairs within groups are turned round")
        if self.silenced > LARGE_SILENCE:
            told.append(f"{self.silenced:.0%} of the groups would teach nothing any more")
        for name, move in self.functions.items():
            more = move.errors_after - move.errors_before
            if more > LARGE_FAILURE * self.num_completions:
                told.append(f"{name} fails on {move.errors_after} of {self.num_completions} completions")
        return told


@dataclass(frozen=True, slots=True)
class FunctionMove:
    """The mean score of one function before and after, and how often it failed."""

    before: float | None
    """None for a function that is new, or has no value."""
    after: float | None
    """None for one that is removed, or has no value."""
    errors_before: int
    errors_after: int

    @property
    def moves(self) -> bool:
        return self.before != self.after

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> FunctionMove:
        """As ScoreShift.from_values."""
        if set(values) != {one.name for one in fields(cls)}:
            raise ValueError("no move of a function")
        before, after = _number(values["before"]), _number(values["after"])
        return cls(before, after, int(values["errors_before"]), int(values["errors_after"]))


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a figure of the score shift is not finite")
    return number


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
