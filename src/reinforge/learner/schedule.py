"""The learning rate: its course over a run, and a default peak for LoRA. No torch."""

from __future__ import annotations

import math
from typing import Literal

Course = Literal["constant", "linear", "cosine"]


def learning_rate_at(
    step: int,
    *,
    peak: float,
    total_steps: int,
    course: Course = "cosine",
    warmup_ratio: float = 0.0,
    min_lr_ratio: float = 0.0,
) -> float:
    """Learning rate of the optimizer step that follows `step` finished ones (so the first step asks for 0).

    W = ceil(warmup_ratio * total_steps) steps of linear warm-up, then a constant, a line or half a cosine from `peak`
    down towards min_lr_ratio * peak. These are transformers' schedules, with one step left out: theirs begins a
    warm-up with a step of rate 0, which would throw away a whole batch of rollouts; ours begins at peak / W. A `step`
    beyond the end stays at the lowest rate.

    >>> [learning_rate_at(s, peak=1.0, total_steps=4, course="linear", warmup_ratio=0.5) for s in range(5)]
    [0.5, 1.0, 0.6666666666666667, 0.33333333333333337, 0.0]
    >>> round(learning_rate_at(2, peak=1.0, total_steps=4, course="cosine", min_lr_ratio=0.1), 12)
    0.55
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    left_out = 1 if warmup_steps else 0
    place, end = step + left_out, total_steps + left_out
    if place < warmup_steps:
        return peak * place / warmup_steps
    if course == "constant":
        return peak
    progress = min(1.0, (place - warmup_steps) / max(1, end - warmup_steps))
    share = 1.0 - progress if course == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (min_lr_ratio + (1.0 - min_lr_ratio) * share)


# (parameters of the base model below which it holds, peak rate of full fine-tuning with GRPO). The anchor is 1e-6 at 7B
# (DeepSeekMath, and TRL's default); the others rise as models shrink, roughly with 1 / sqrt(parameters).
_FULL_FINE_TUNING_RATES = ((20e6, 1e-4), (200e6, 2e-5), (1e9, 5e-6), (4e9, 2e-6), (15e9, 1e-6), (math.inf, 5e-7))
_LORA_FACTOR = 10.0
_REFERENCE_ALPHA = 32.0


def default_learning_rate(num_parameters: int, rank: int, lora_alpha: float = _REFERENCE_ALPHA) -> tuple[float, str]:
    """Peak learning rate for a LoRA adapter on a model of this size, and the reason to print (K6).

    Ten times the full fine-tuning rate (Schulman et al. 2025, "LoRA Without Regret"), times 32 / lora_alpha: Adam
    moves every element of B by about the learning rate, so the update (lora_alpha / rank) * B A of the weight grows
    with lora_alpha * rate and, summed over `rank` products, not with the rank.

    >>> default_learning_rate(494_000_000, rank=16)[0]
    5e-05
    >>> default_learning_rate(7_600_000_000, rank=64, lora_alpha=64)[0]
    5e-06
    """
    full = next(rate for below, rate in _FULL_FINE_TUNING_RATES if num_parameters < below)
    rate = float(f"{_LORA_FACTOR * full * _REFERENCE_ALPHA / lora_alpha:.3g}")
    reason = (
        f"learning_rate = {rate:g}: full fine-tuning of a model of {_millions(num_parameters)} parameters takes about "
        f"{full:g}, LoRA ten times that"
    )
    if lora_alpha != _REFERENCE_ALPHA:
        reason += f", times {_REFERENCE_ALPHA:g} / lora_alpha = {_REFERENCE_ALPHA:g} / {lora_alpha:g}"
    return rate, f"{reason}; the same at rank {rank} as at any other"


def _millions(num_parameters: int) -> str:
    """
    >>> _millions(300_000), _millions(494_000_000), _millions(7_600_000_000)
    ('0.3M', '494M', '7.6B')
    """
    if num_parameters < 1e9:
        return f"{num_parameters / 1e6:.3g}M"
    return f"{num_parameters / 1e9:.3g}B"
