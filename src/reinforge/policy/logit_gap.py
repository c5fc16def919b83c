"""Whether two ways of running a model differ by more than rounding."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_GAP, MAX_HALF_GAP = 1e-4, 0.05
"""Largest `logit_gap` that counts as rounding, in float32 and in bfloat16 or float16. A model's own passes differ
by 1 to 2 % of the largest logit in bfloat16, and by more where weights are large; a wrong mask makes other logits."""


def logit_gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest |difference|, as a share of the largest |logit| where that is above 1: rounding grows with it. A trained
    model's logits of 20 to 30 differ by 1e-4 between any two orders of summation."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def max_gap(dtype: torch.dtype) -> float:
    """Of a model whose base has this dtype."""
    return MAX_GAP if dtype == torch.float32 else MAX_HALF_GAP


def is_rounding(gap: float, dtype: torch.dtype) -> bool:
    return gap <= max_gap(dtype)
