"""Log-probabilities and entropies of chosen tokens, from hidden states, without keeping [tokens, vocabulary] around.

Shapes: M tokens that were chosen somewhere in a micro-batch, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 1 << 24
"""Logits computed at once (float32: 64 MiB)."""


def token_logprobs(hidden_ME: Tensor, head: nn.Module, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log_softmax(head(hidden) / temperature) at the targets, and the entropy of that distribution; nats, [M] each.

    Works through the tokens in chunks. When all logits fit one chunk the probabilities are kept for the backward pass,
    otherwise they are computed again there. A frozen output head gets no gradient, and no time is spent on one.
    The entropy is a figure to look at: it carries no gradient.
    """
    if type(head) is nn.Linear and not head.weight.requires_grad:
        outputs = _FrozenHead.apply(hidden_ME, head.weight, head.bias, targets_M, temperature)  # type: ignore[no-untyped-call]
        return cast(tuple[Tensor, Tensor], outputs)
    rows = max(1, CHUNK_LOGITS // _vocabulary(head, hidden_ME))
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


class _FrozenHead(torch.autograd.Function):
    """d logprob_target / d hidden = (onehot(target) - softmax) W / temperature, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor | None, targets_M: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        M, V = hidden_ME.shape[0], weight_VE.shape[0]
        ctx.rows, ctx.temperature = max(1, CHUNK_LOGITS // V), temperature
        logprobs_M = torch.empty(M, dtype=torch.float32, device=hidden_ME.device)
        entropies_M = torch.empty_like(logprobs_M)
        kept = None
        for start in range(0, M, ctx.rows):
            part = slice(start, start + ctx.rows)
            all_MV = _log_softmax(hidden_ME[part], weight_VE, bias_V, temperature)
            logprobs_M[part] = all_MV.gather(1, targets_M[part, None])[:, 0]
            probabilities_MV = all_MV.exp()
            entropies_M[part] = -torch.einsum("mv,mv->m", probabilities_MV, all_MV)
            kept = probabilities_MV if ctx.rows >= M else None
        ctx.save_for_backward(hidden_ME, weight_VE, bias_V, targets_M, kept)
        ctx.mark_non_differentiable(entropies_M)
        return logprobs_M, entropies_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _entropy_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, weight_VE, bias_V, targets_M, kept = ctx.saved_tensors
        grad_hidden_ME = torch.empty_like(hidden_ME)
        for start in range(0, hidden_ME.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            if kept is None:
                probabilities_MV = _log_softmax(hidden_ME[part], weight_VE, bias_V, ctx.temperature).exp()
            else:
                probabilities_MV = kept
            scaled_M1 = grad_M[part, None] / ctx.temperature
            grad_logits_MV = probabilities_MV * -scaled_M1
            grad_logits_MV.scatter_add_(1, targets_M[part, None], scaled_M1)
            grad_hidden_ME[part] = grad_logits_MV.to(weight_VE.dtype) @ weight_VE
        return grad_hidden_ME, None, None, None, None


def _log_softmax(hidden_ME: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    return torch.log_softmax(F.linear(hidden_ME, weight_VE, bias_V).float() / temperature, dim=-1)
