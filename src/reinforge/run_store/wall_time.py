"""Which recorded numbers are wall time: the only ones that may differ between a resumed and an uninterrupted run. What
the cache of pure functions saved belongs to them: a resumed run begins with an empty one. So does what judges took,
which a resumed run does not ask again, and what reward functions sent over the network."""

from __future__ import annotations

OF_THE_MOMENT = ("time/", "speed/", "judge/", "network/")


def is_wall_time(metric: str) -> bool:
    """Whether a metric says how long something took.

    >>> [is_wall_time(name) for name in ("time/step_s", "speed/tokens_per_s", "reward/f/latency_max_s", "reward/mean")]
    [True, True, True, False]
    """
    return metric.startswith(("time/", "speed/", "judge/", "network/")) or metric.rpartition("/")[2].startswith(
        "latency_"
    )
