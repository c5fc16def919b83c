"""What a built-in grader answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Result:
    """A score with its reason. A reward function may return it as it is; `float(result)` is the score alone.

    >>> float(Result(0.5, "1 of 2 found")) + 1
    1.5
    """

    score: float
    """Finite; 0 (wrong) to 1 (right) unless a grader says otherwise."""
    reason: str = ""
    """In words, for the logs; "" when the score says it all."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the score was made of."""

    def __float__(self) -> float:
        return self.score


def refused(reason: str) -> Result:
    """Score 0 for an input that cannot be judged, with the reason."""
    return Result(0.0, reason)
