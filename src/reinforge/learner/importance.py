"""Importance correction: what a token counts that another distribution than the learning policy has drawn.

Shapes: B completions of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reinforge.config_rollout import ImportanceCorrection

NO_CORRECTION = ImportanceCorrection(mode="off")


@dataclass(frozen=True, slots=True)
class CorrectionSums:
    """Detached scalars of one micro-batch; `+` joins micro-batches."""

    total: Tensor
    """Sum of the weights."""
    largest: Tensor
    """Largest ratio, before the cap."""
    capped: Tensor
    """Number of ratios above the cap."""
    count: Tensor
    """Number of ratios: tokens, at sequence level completions."""

    def __add__(self, other: CorrectionSums) -> CorrectionSums:
        return CorrectionSums(
            total=self.total + other.total,
            largest=torch.maximum(self.largest, other.largest),
            capped=self.capped + other.capped,
            count=self.count + other.count,
        )

    def metrics(self) -> dict[str, float]:
        """The step's figures, over the completions that were computed."""
        count = max(1.0, self.count.item())
        return {
            "policy/importance_mean": self.total.item() / count,
            "policy/importance_max": self.largest.item(),
            "policy/importance_capped_share": self.capped.item() / count,
        }


@torch.no_grad()
def correction_weights(
    first_BT: Tensor, drawn_BT: Tensor, mask_BT: Tensor, correction: ImportanceCorrection
) -> tuple[Tensor, CorrectionSums]:
    """Weights of the tokens' losses, [B, T], at sequence level [B, 1], and their sums.

    With the ratio w = exp(log pi_first - log q) of the learner's first pass on the batch to q, the distribution each
    token was really drawn from: min(w, cap) (`truncate`: Ionides 2008; for rollouts Yao et al. 2025, "TIS"), or w where
    it is at most cap and else 0 (`mask`). The ratio of a sequence is the product of those of its tokens. Where the
    mask is, a weight of 1 stands.
    """
    log_ratio = (first_BT - drawn_BT).masked_fill(~mask_BT, 0.0)
    present = mask_BT
    if correction.level == "sequence":
        log_ratio, present = log_ratio.sum(dim=1, keepdim=True), mask_BT.any(dim=1, keepdim=True)
    ratio = torch.exp(log_ratio)
    above = ratio > correction.cap
    weights = ratio.masked_fill(above, correction.cap if correction.mode == "truncate" else 0.0)
    counted = present.to(weights.dtype)
    sums = CorrectionSums(
        total=(weights * counted).sum(),
        largest=ratio.masked_fill(~present, 0.0).max(),
        capped=(above & present).sum().to(weights.dtype),
        count=counted.sum(),
    )
    return weights, sums
