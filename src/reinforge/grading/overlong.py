"""Soft penalty for completions near the length limit."""

from __future__ import annotations

from reinforge.config import OverlongParams
from reinforge.types import Completion, Score

NAME = "overlong"


def overlong_score(completion: Completion, params: OverlongParams, max_tokens: int) -> Score:
    """0 up to `max_tokens - buffer_tokens`, then linear down to -1 at `max_tokens`; weighted with `penalty`
    (Yu et al. 2025, DAPO, eq. 13).

    >>> def value(length):
    ...     completion = Completion(0, (1,) * length, "", "stop", (), (), 0)
    ...     return overlong_score(completion, OverlongParams(buffer_tokens=20), max_tokens=100).value
    >>> value(80), value(90), value(100)
    (0.0, -0.5, -1.0)
    """
    over = completion.num_tokens - (max_tokens - params.buffer_tokens)
    value = -max(0, over) / params.buffer_tokens
    return Score(NAME, f"{NAME}_v1", value=value if value else 0.0, weight=params.penalty)
