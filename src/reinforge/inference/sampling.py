"""From logits to a drawn token and its logprobs. Pure functions of tensors.

Order of the filters, as TRL, transformers and vLLM have it: temperature, top_k, top_p. One uniform number decides a
token (inverse CDF), so what is drawn is a function of the logits and that number alone.

Shapes: B rows, V vocabulary, k tokens kept by top_k (V without it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reinforge.config import SamplingParams


@dataclass(frozen=True, slots=True)
class Draws:
    """One token for each row."""

    token_ids_B: Tensor
    """int64"""
    logprobs_B: Tensor
    """float32, nats: log-softmax(logits / temperature) at the token."""
    sampled_logprobs_B: Tensor
    """float32, nats: of the distribution drawn from, after top_k and top_p; 0 for a greedy row."""


def draw(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams, greedy_B: Tensor | None = None) -> Draws:
    """Draw a token for each row; where `greedy_B` is true, take the most likely one (the first of equals).

    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> draws = draw(logits, torch.tensor([0.999]), SamplingParams(top_k=2))
    >>> int(draws.token_ids_B), f"{float(draws.logprobs_B):.3f}", f"{float(draws.sampled_logprobs_B):.3f}"
    (2, '-2.170', '-2.127')
    """
    logits_BV = logits_BV.float() if params.temperature == 1.0 else logits_BV.float() / params.temperature
    probs_BV = logits_BV.softmax(-1)
    if params.top_k or params.top_p < 1:
        token_ids_B, kept_B = _draw_truncated(probs_BV, uniform_B, params)
    else:
        token_ids_B, kept_B = invert_cdf(probs_BV, uniform_B), None
    if greedy_B is not None:
        token_ids_B = torch.where(greedy_B, logits_BV.argmax(-1), token_ids_B)
    logprobs_B = probs_BV.gather(1, token_ids_B[:, None])[:, 0].log()
    sampled_B = logprobs_B if kept_B is None else logprobs_B - kept_B.log()
    if greedy_B is not None:
        sampled_B = sampled_B.masked_fill(greedy_B, 0.0)
    return Draws(token_ids_B, logprobs_B, sampled_B)


def invert_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token at which the running sum of probabilities passes uniform * their total; float64.

    A token of probability 0 is never drawn, and as uniform < 1 a token is always found. Rows with NaN give the last
    token, so that the caller can see the NaN in its logprob.
    """
    cdf_BV = probs_BV.cumsum(-1, dtype=torch.float64)
    drawn_B1 = torch.searchsorted(cdf_BV, uniform_B[:, None] * cdf_BV[:, -1:], right=True)
    return drawn_B1[:, 0].clamp_(max=probs_BV.shape[1] - 1)


def _draw_truncated(probs_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids and the probability that top_k and top_p kept (float32).

    top_k keeps exactly k tokens; top_p of those the smallest most likely set that holds at least top_p of their mass.
    """
    V = probs_BV.shape[1]
    if 0 < params.top_k < V:
        probs_Bk, ids_Bk = probs_BV.topk(params.top_k, dim=-1)
    else:
        probs_Bk, ids_Bk = probs_BV.sort(dim=-1, descending=True, stable=True)
    cdf_Bk = probs_Bk.cumsum(-1, dtype=torch.float64)
    if params.top_p < 1:
        more_likely_Bk = cdf_Bk - probs_Bk
        probs_Bk = probs_Bk.masked_fill(more_likely_Bk >= params.top_p * cdf_Bk[:, -1:], 0.0)
    places_B = invert_cdf(probs_Bk, uniform_B)
    return ids_Bk.gather(1, places_B[:, None])[:, 0], probs_Bk.sum(-1, dtype=torch.float64).float()
