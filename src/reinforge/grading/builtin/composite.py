"""The mathematics of graders that join the scores of others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reinforge.grading.builtin.reading import number_option, shown


def gate(*, a: float, b: float | None, at_least: float = 1.0, share: float = 0.5, below: float | str = "a") -> float:
    """B counts only where A reaches `at_least`: share * a + (1 - share) * b there, and elsewhere what `below` says.

    `a`: the score that opens the gate.
    `b`: the score behind it; a closed gate does not ask for it, and it may be None.
    `at_least`: the gate is open from this score of A on.
    `share`: of A in the open gate's mean; 0 makes it B alone.
    `below`: the closed gate's score: "a" is A itself (S4-029), "share" is share * a, which never passes an open gate's
    score, and a number is that number.

    With the defaults a closed gate can score more than an open one (a 0.8 against a 1.0 with b 0.0): that is Runloop's
    grader as it was printed. `below="share"` keeps the order.

    >>> gate(a=1.0, b=0.5), gate(a=0.8, b=1.0), gate(a=0.8, b=1.0, below="share"), gate(a=0.0, b=0.9, below=-1)
    (0.75, 0.8, 0.4, -1.0)
    """
    a = number_option("a", a)
    share = number_option("share", share, 0.0, 1.0)
    if below not in ("a", "share"):
        below = number_option("below", below)
    if a >= number_option("at_least", at_least):
        return share * a + (1 - share) * number_option("b", b)
    return {"a": a, "share": share * a}[below] if isinstance(below, str) else below


def combine(
    *, scores: Mapping[str, float], weights: Mapping[str, float] | None = None, clip: Sequence[float] | None = None
) -> float:
    """The weighted sum of named scores, held within `clip` = (lowest, highest) where it is given (S3-024, S3-025).

    `scores`: by name.
    `weights`: by name; a score without one counts with weight 1.
    `clip`: [lowest, highest] value.

    >>> combine(scores={"similar": 0.75, "tags": 1.0}, weights={"similar": 0.5, "tags": 0.125})
    0.5
    >>> combine(scores={"a": -1.0, "b": -1.0}, clip=(-1, 1))
    -1.0
    """
    weights = dict(weights or {})
    unknown = [name for name in weights if name not in scores]
    if unknown:
        raise ValueError(f"weights: no score is named {shown(unknown[0])} (scores: {', '.join(scores)})")
    terms = [
        number_option(name, score) * number_option(f"weights.{name}", weights.get(name, 1.0))
        for name, score in scores.items()
    ]
    return clipped(math.fsum(terms), clip)


def clipped(value: float, clip: Sequence[float] | None) -> float:
    """A value held within (lowest, highest), or as it is.

    >>> clipped(1.5, (-1, 1)), clipped(1.5, None)
    (1.0, 1.5)
    """
    if clip is None:
        return value
    if not isinstance(clip, (list, tuple)) or len(clip) != 2:
        raise ValueError(f"clip: [lowest, highest] is needed, not {shown(clip)}")
    lowest, highest = number_option("clip", clip[0]), number_option("clip", clip[1])
    if lowest > highest:
        raise ValueError(f"clip: lowest {lowest:g} is above highest {highest:g}")
    return min(max(value, lowest), highest)
