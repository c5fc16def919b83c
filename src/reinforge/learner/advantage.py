"""Advantages: how much better than its group each completion did. No torch.

P groups (prompts) of G completions each; groups may differ in size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Scale = Literal["group", "batch", "none"]

STD_FLOOR = 1e-4
"""Added to the standard deviation, so that a group that hardly differs is not blown up (the value TRL uses)."""


def advantages(rewards_PG: Sequence[Sequence[float | None]], scale: Scale) -> tuple[tuple[float, ...], ...]:
    """A = (r - mean) / (std + 1e-4), the mean over the group (Shao et al. 2024, DeepSeekMath, section 4.1.2).

    std is Bessel-corrected, over the valid rewards of the group (`group`) or of all groups of the step (`batch`);
    with `none` there is no division (Liu et al. 2025, Dr. GRPO). A reward of None is a masked completion: left out of
    mean and std, advantage 0. A group that does not teach (see `teaches`) has advantage exactly 0 everywhere, but its
    valid rewards do count in the std of `batch`.

    >>> advantages([[1.0, 0.0], [0.5, 0.5]], scale="none")
    ((0.5, -0.5), (0.0, 0.0))
    >>> [round(a, 3) for a in advantages([[3.0, 1.0, None, 2.0]], scale="group")[0]]
    [1.0, -1.0, 0.0, 0.0]
    """
    batch_std = 0.0
    if scale == "batch":
        batch_std = _std([reward for rewards_G in rewards_PG for reward in rewards_G if reward is not None])
    return tuple(_group_advantages(rewards_G, scale, batch_std) for rewards_G in rewards_PG)


def teaches(rewards_G: Sequence[float | None]) -> bool:
    """Whether the valid rewards differ: only then is there anything to compare, and a gradient.

    The rewards themselves are tested, because equal rewards minus their mean can leave rounding dust of 1e-17, which
    is not 0. A group with fewer than two valid rewards never teaches.

    >>> teaches([1.0, 0.0]), teaches([0.1, 0.1, 0.1]), teaches([1.0, None])
    (True, False, False)
    """
    return len({reward for reward in rewards_G if reward is not None}) > 1


def _group_advantages(rewards_G: Sequence[float | None], scale: Scale, batch_std: float) -> tuple[float, ...]:
    if not teaches(rewards_G):
        return (0.0,) * len(rewards_G)
    valid = [reward for reward in rewards_G if reward is not None]
    mean = math.fsum(valid) / len(valid)
    divisor = 1.0
    if scale != "none":
        divisor = (_std(valid) if scale == "group" else batch_std) + STD_FLOOR
    return tuple(0.0 if reward is None else (reward - mean) / divisor for reward in rewards_G)


def _std(values: Sequence[float]) -> float:
    """Bessel-corrected standard deviation; 0 for fewer than two values. `hypot` squares without overflow."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.hypot(*(value - mean for value in values)) / math.sqrt(len(values) - 1)
