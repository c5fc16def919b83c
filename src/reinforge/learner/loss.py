"""The GRPO family of losses, as pure functions on one micro-batch of completions.

A step may be computed in several micro-batches. Every loss is a sum over tokens in which each token carries a weight
that depends on the whole step (`StepSize`) and never on the micro-batch, so losses and gradients of micro-batches add
up to the same whatever the split.

Shapes: B completions of a micro-batch, T tokens of the longest of them (right-padded; what stands in the padding is
never read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from reinforge.config import GRPOConfig
from reinforge.config_rollout import ImportanceCorrection
from reinforge.learner.importance import NO_CORRECTION, CorrectionSums, correction_weights

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]

CISPO_CAP = 5.0
"""Cap of the ratio when `epsilon_high` is not set for CISPO (Khatri et al. 2025, ScaleRL). TRL falls back to `epsilon`
there, 0.2, which is below 1 and so only shrinks every gradient to a fifth."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the loss needs from the config."""

    loss_type: LossType = "dapo"
    sequence_level: bool = False
    """The ratio to the old policy per completion (GSPO) instead of per token."""
    epsilon: float = 0.2
    """Clip range below the ratio 1."""
    epsilon_high: float = 0.2
    """Clip range above it; for cispo the cap of the ratio itself."""
    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative; cispo has no use for it."""
    beta: float = 0.0
    """Weight of the KL penalty."""
    correct_kl: bool = True
    """Multiply the KL estimate by the ratio, so that its gradient is unbiased."""
    mask_truncated: bool = False
    """Completions cut off by `max_tokens` have no token in the loss."""
    max_tokens: int = 512
    """Longest completion in tokens: the divisor of dr_grpo."""
    correction: ImportanceCorrection = NO_CORRECTION
    """Weights for tokens that another distribution has drawn."""

    @classmethod
    def from_config(cls, config: GRPOConfig, max_tokens: int) -> LossSettings:
        """`max_tokens` is passed apart because the config may leave it to the data (K8)."""
        correction = config.importance_correction
        if correction.mode is None:
            mode = "truncate" if config.max_policy_lag else "off"
            correction = correction.model_copy(update={"mode": mode})
        unset = CISPO_CAP if config.loss_type == "cispo" else config.epsilon
        return cls(
            loss_type=config.loss_type,
            sequence_level=config.importance_sampling_level == "sequence",
            epsilon=config.epsilon,
            epsilon_high=unset if config.epsilon_high is None else config.epsilon_high,
            delta=config.delta,
            beta=config.beta,
            correct_kl=config.use_bias_correction_kl,
            mask_truncated=config.mask_truncated_completions,
            max_tokens=max_tokens,
            correction=correction,
        )


@dataclass(frozen=True, slots=True)
class StepSize:
    """How much a whole optimizer step holds: what every micro-batch of it divides by."""

    num_completions: int
    """All of the step: also those with advantage 0 (though nothing is computed for them) and truncated ones, masked
    or not."""
    num_tokens: int
    """Completion tokens of the step that are in the loss: all but those of masked truncated completions."""

    @classmethod
    def of(cls, lengths: Sequence[int], truncated: Sequence[bool], settings: LossSettings) -> StepSize:
        """Of the completions' lengths in tokens.

        >>> StepSize.of([3, 8, 2], [False, True, False], LossSettings(mask_truncated=True))
        StepSize(num_completions=3, num_tokens=5)
        """
        pairs = zip(lengths, truncated, strict=True)
        tokens = sum(length for length, cut in pairs if not (cut and settings.mask_truncated))
        return cls(num_completions=len(lengths), num_tokens=tokens)


@dataclass(frozen=True, slots=True)
class LossSums:
    """Detached scalars of one micro-batch; `+` joins micro-batches, `metrics` ends the step."""

    loss: Tensor
    kl: Tensor
    """Sum of the k3 estimates over the tokens in the loss, in nats; 0 without a reference."""
    clipped_low: Tensor
    """Tokens (sequence level: completions) whose ratio is below the range and whose advantage is negative: their
    gradient is cut."""
    clipped_high: Tensor
    """The same above the range (cispo: above the cap) with a positive advantage."""
    ratio_max: Tensor
    """Largest ratio to the old policy, at least 1."""
    correction: CorrectionSums | None = None
    """None without importance correction."""

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            loss=self.loss + other.loss,
            kl=self.kl + other.kl,
            clipped_low=self.clipped_low + other.clipped_low,
            clipped_high=self.clipped_high + other.clipped_high,
            ratio_max=torch.maximum(self.ratio_max, other.ratio_max),
            correction=self.correction + other.correction if self.correction and other.correction else None,
        )

    def metrics(self, settings: LossSettings, size: StepSize) -> dict[str, float]:
        """The step's figures. Completions that were not computed count as not clipped, which they are."""
        num_tokens = max(1, size.num_tokens)
        num_ratios = max(1, size.num_completions) if settings.sequence_level else num_tokens
        low, high = self.clipped_low.item() / num_ratios, self.clipped_high.item() / num_ratios
        figures = {
            "loss": self.loss.item(),
            "clip_low_share": low,
            "clip_high_share": high,
            "clip_region_share": low + high,
        }
        figures["ratio_max"] = self.ratio_max.item()
        if settings.beta > 0:
            figures["kl"] = self.kl.item() / num_tokens
        corrected = self.correction.metrics() if self.correction else {}
        return {f"policy/{name}": value for name, value in figures.items()} | corrected


def needs_all_rows(settings: LossSettings) -> bool:
    """Whether completions with advantage 0 change the gradient: only through the KL penalty."""
    return settings.beta > 0


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    settings: LossSettings,
    size: StepSize,
    reference_logprobs_BT: Tensor | None = None,
    drawn_logprobs_BT: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """This micro-batch's share of the step's loss: sum over tokens of weight * (surrogate + beta * KL).

    `mask_BT` is True for tokens in the loss. Without `old_logprobs_BT` the old policy is the current one (detached):
    every ratio is exactly 1, which is the first update on a batch of rollouts. `reference_logprobs_BT` is needed when
    beta > 0, `drawn_logprobs_BT` (of the distribution tokens were drawn from) for importance correction, which leaves
    the KL penalty as it is. A micro-batch without any token in the loss gives exactly 0, with zero gradients.
    """
    logprobs_BT = logprobs_BT.masked_fill(~mask_BT, 0.0)
    old_BT = logprobs_BT.detach() if old_logprobs_BT is None else old_logprobs_BT.masked_fill(~mask_BT, 0.0)
    advantages_B1 = advantages_B.unsqueeze(1)
    ratio = importance_ratio(logprobs_BT, old_BT, mask_BT, sequence_level=settings.sequence_level)
    loss_BT = _surrogate(ratio, logprobs_BT, advantages_B1, settings)
    correction = None
    if settings.correction.mode != "off":
        if drawn_logprobs_BT is None:
            raise ValueError("importance correction needs drawn_logprobs_BT")
        weights_of_drawn, correction = correction_weights(old_BT, drawn_logprobs_BT, mask_BT, settings.correction)
        loss_BT = loss_BT * weights_of_drawn
    kl_BT = torch.zeros_like(logprobs_BT)
    if settings.beta > 0:
        if reference_logprobs_BT is None:
            raise ValueError(f"beta = {settings.beta:g} needs reference_logprobs_BT")
        kl_BT = k3(logprobs_BT, reference_logprobs_BT.masked_fill(~mask_BT, 0.0))
        if settings.correct_kl:
            kl_BT = ratio * kl_BT
        loss_BT = loss_BT + settings.beta * kl_BT
    weights = _token_weights(mask_BT, settings, size)
    loss = (loss_BT * weights).sum()
    return loss, replace(_sums(loss, kl_BT, ratio, advantages_B1, mask_BT, settings), correction=correction)


def importance_ratio(logprobs_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, *, sequence_level: bool) -> Tensor:
    """Probability of what was drawn under the current policy over that under the old one.

    Token level [B, T]: exp(log pi - log pi_old). Sequence level [B, 1]: exp of the mean of that over the completion's
    tokens, the length-normalised ratio of GSPO (Zheng et al. 2025); 1 for a completion with no token in the
    loss. Both inputs are 0 where the mask is.
    """
    log_ratio_BT = logprobs_BT - old_BT
    if sequence_level:
        num_tokens_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.exp(log_ratio_BT.sum(dim=1, keepdim=True) / num_tokens_B1)
    return torch.exp(log_ratio_BT)


def clipped_surrogate(ratio: Tensor, advantages_B1: Tensor, settings: LossSettings) -> Tensor:
    """-min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), in the shape of `ratio`.

    PPO's pessimistic clip (Schulman et al. 2017) with DAPO's wider upper side (Yu et al. 2025, section 3.1) and the
    two-sided bound of INTELLECT-2 (2025): where A < 0 nothing else bounds the ratio from above. At rho = 1 the value is
    -A and the gradient -A * grad log pi.
    """
    clipped = ratio.clamp(1 - settings.epsilon, 1 + settings.epsilon_high)
    bounded = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    return -torch.minimum(bounded * advantages_B1, clipped * advantages_B1)


def cispo_surrogate(ratio: Tensor, logprobs_BT: Tensor, advantages_B1: Tensor, settings: LossSettings) -> Tensor:
    """-stop_gradient(min(rho, epsilon_high)) A log pi  [B, T] (MiniMax-M1 2025, with the upper bound only).

    The clipped ratio is a weight, not part of the gradient's path: no token's gradient is ever cut to 0.
    """
    return -ratio.detach().clamp(max=settings.epsilon_high) * advantages_B1 * logprobs_BT


def k3(logprobs_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """KL(policy || reference) per token, in nats: exp(d) - d - 1 with d = log pi_ref - log pi  [B, T].

    Schulman's k3 estimator (2020), as GRPO uses it (Shao et al. 2024, eq. 4): unbiased for tokens drawn from the
    policy, never negative, 0 where both agree. Its gradient alone is on average that of KL(reference || policy), as it
    ignores that the policy also decides what is drawn. Times the ratio, whose gradient is that missing part, it is the
    one of KL(policy || reference), whatever policy the tokens were drawn from (DeepSeek-V3.2, 2025, section 3.1).
    """
    difference_BT = reference_BT - logprobs_BT
    return torch.exp(difference_BT) - difference_BT - 1


def _surrogate(ratio: Tensor, logprobs_BT: Tensor, advantages_B1: Tensor, settings: LossSettings) -> Tensor:
    if settings.loss_type == "cispo":
        return cispo_surrogate(ratio, logprobs_BT, advantages_B1, settings)
    return clipped_surrogate(ratio, advantages_B1, settings)


def _token_weights(mask_BT: Tensor, settings: LossSettings, size: StepSize) -> Tensor:
    """What each token counts in the step's loss [B, T]; 0 where the mask is.

    With N completions and M tokens in the step and L_i tokens in completion i:

        grpo          1 / (N * L_i)          mean over completions of their token mean (Shao et al. 2024, eq. 3)
        dr_grpo       1 / (N * max_tokens)   no bias towards short completions (Liu et al. 2025)
        dapo, cispo   1 / M                  token mean over the rollouts of the batch (Yu et al. 2025, section 3.3)
        bnpo          1 / M                  token mean over the step: the same, as each step takes the whole batch
    """
    weights_BT = mask_BT.to(torch.float32)
    if settings.loss_type == "grpo":
        num_tokens_B1 = weights_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
        return weights_BT / (num_tokens_B1 * size.num_completions)
    if settings.loss_type == "dr_grpo":
        return weights_BT / (size.num_completions * settings.max_tokens)
    return weights_BT / max(1, size.num_tokens)


@torch.no_grad()
def _sums(
    loss: Tensor, kl_BT: Tensor, ratio: Tensor, advantages_B1: Tensor, mask_BT: Tensor, settings: LossSettings
) -> LossSums:
    is_cispo = settings.loss_type == "cispo"
    present = mask_BT.any(dim=1, keepdim=True) if settings.sequence_level else mask_BT
    low = (ratio < 1 - settings.epsilon) & (advantages_B1 < 0) & present
    high = (ratio > settings.epsilon_high + (0 if is_cispo else 1)) & (advantages_B1 > 0) & present
    return LossSums(
        loss=loss.detach(),
        kl=kl_BT.detach().sum(),
        clipped_low=torch.zeros_like(loss) if is_cispo else low.sum().to(loss.dtype),
        clipped_high=high.sum().to(loss.dtype),
        ratio_max=ratio.max(),
    )
