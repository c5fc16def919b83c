"""Log-probabilities and entropies of chosen tokens, from hidden states, without keeping [tokens, vocabulary] around.

Shapes: M tokens that were chosen somewhere in a micro-batch, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reinforge.insight.memory import CPU_CHUNK_LOGITS, GPU_CHUNK_LOGITS, MIN_CHUNK_ROWS
from reinforge.policy.products import linear


def token_logprobs(hidden_ME: Tensor, head: nn.Module, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log_softmax(head(hidden) / temperature) at the targets, and the entropy of that distribution; nats, [M] each.

    Works through the tokens in chunks; no logits are kept for the backward pass. A frozen output head gets no gradient,
    and no time is spent on one. The entropy is a figure to look at: it carries no gradient.
    """
    if type(head) is nn.Linear and not head.weight.requires_grad:
        outputs = _FrozenHead.apply(hidden_ME, head.weight, head.bias, targets_M, temperature)  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, Tensor], outputs)
    rows = _chunk_rows(_vocabulary(head, hidden_ME), hidden_ME.device)
    parts = [
        checkpoint(_from_head, h, head, t, temperature, use_reentrant=False)
        for h, t in zip(hidden_ME.split(rows), targets_M.split(rows), strict=True)
    ]
    return torch.cat([p for p, _ in parts]), torch.cat([e for _, e in parts])


def logprobs_of_logits(logits_MV: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same from logits that are already there.

    >>> logprobs, entropies = logprobs_of_logits(torch.zeros(1, 4), torch.tensor([2]), temperature=1.0)
    >>> round(float(logprobs[0]), 4), round(float(entropies[0]), 4)
    (-1.3863, 1.3863)
    """
    all_MV = torch.log_softmax(logits_MV.float() / temperature, dim=-1)
    entropies_M = -(all_MV.detach().exp() * all_MV.detach()).sum(-1)
    return all_MV.gather(1, targets_M[:, None])[:, 0], entropies_M


def _from_head(hidden_ME: Tensor, head: nn.Module, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return logprobs_of_logits(head(hidden_ME), targets_M, temperature)


def _vocabulary(head: nn.Module, hidden_ME: Tensor) -> int:
    with torch.no_grad():
        return int(head(hidden_ME[:1]).shape[-1])


def _chunk_rows(vocabulary: int, device: torch.device) -> int:
    logits = CPU_CHUNK_LOGITS if device.type == "cpu" else GPU_CHUNK_LOGITS
    return max(MIN_CHUNK_ROWS, logits // vocabulary)


class _FrozenHead(torch.autograd.Function):
    """d logprob(target) / d hidden = (W[target] - sum over v of p_v W[v]) / temperature.

    The right side is known in the forward pass, and a token's logprob depends on its own hidden state only: so the
    backward pass is one product with a number per token, and the vocabulary is gone through once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_M: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        M = hidden_ME.shape[0]
        logprobs_M = torch.empty(M, dtype=torch.float32, device=hidden_ME.device)
        entropies_M = torch.empty_like(logprobs_M)
        slopes_ME = torch.empty_like(hidden_ME) if ctx.needs_input_grad[0] else None
        rows = _chunk_rows(weight_VE.shape[0], hidden_ME.device)
        for start in range(0, M, rows):
            part = slice(start, start + rows)
            logits_MV = linear(hidden_ME[part], weight_VE, bias_V).float()
            if temperature != 1:
                logits_MV /= temperature
            probabilities_MV = logits_MV.softmax(-1)
            # Not the log of one probability that may be 0: the largest is at least 1 / V.
            totals_M = logits_MV.amax(-1) - probabilities_MV.amax(-1).log()
            logprobs_M[part] = logits_MV.gather(1, targets_M[part, None])[:, 0] - totals_M
            entropies_M[part] = totals_M - torch.linalg.vecdot(probabilities_MV, logits_MV)
            if slopes_ME is not None:
                mean_ME = linear(probabilities_MV.to(weight_VE.dtype), weight_VE.t())
                torch.sub(weight_VE[targets_M[part]], mean_ME, out=slopes_ME[part])
        if slopes_ME is not None:
            ctx.save_for_backward(slopes_ME if temperature == 1 else slopes_ME / temperature)
        ctx.mark_non_differentiable(entropies_M)
        return logprobs_M, entropies_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_ME,) = ctx.saved_tensors
        return slopes_ME * grad_M[:, None].to(slopes_ME.dtype), None, None, None, None
