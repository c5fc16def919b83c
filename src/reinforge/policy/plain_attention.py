"""Attention with the log of its sum of exponentials, and its backward pass, from ordinary matrix products.

For devices without a kernel that returns that log, and what kernels are checked against. Scores are computed in
float32 (float64 for float64), for as many queries at a time as `MAX_SCORES` allows. Where a batch entry has one head of
keys for all its heads, the queries of all heads stand below each other and the keys are not copied.

Shapes: X batch, H heads, Q queries, S keys, D head size; keys are [X, H, S, D] or [X, 1, S, D]. Y = X H with R = Q
rows each, or Y = X with R = Q H.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_SCORES = 1 << 24
"""Scores held at once: 64 MiB in float32."""


def forward(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """-> out [X, H, Q, D] and the natural logs of the sums of exponentials [X, H, Q]."""
    H = query.shape[1] // key.shape[1]
    query_YRD, key_YSD, value_YSD = wide(_rows(query, H)), wide(key.flatten(0, 1)), wide(value.flatten(0, 1))
    out_YRD, sums_YR = torch.empty_like(query_YRD), query_YRD.new_empty(query_YRD.shape[:2])
    if mask is not None:
        mask = mask.expand(-1, key.shape[1], -1, -1).flatten(0, 1)
    for rows, seen in _chunks(query_YRD, key_YSD, H if is_causal else None):
        scores = _scores(query_YRD, key_YSD, rows, seen, H if is_causal else None)
        if mask is not None:
            scores += mask if mask.shape[1] == 1 else mask[:, rows]
        sums_YR[:, rows] = scores.logsumexp(-1)
        out_YRD[:, rows] = torch.bmm(scores.sub_(sums_YR[:, rows, None]).exp_(), value_YSD[:, :seen])
    return _heads(out_YRD, query, H).to(query.dtype), _heads(sums_YR[..., None], query, H)[..., 0]


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of `out`: with p = exp(score - sum) and m = sum(grad * out),
    d score = p (grad value' - m) (Dao et al. 2022)."""
    H = query.shape[1] // key.shape[1]
    query_YRD, grad_YRD = wide(_rows(query, H)), wide(_rows(grad, H))
    key_YSD, value_YSD = wide(key.flatten(0, 1)), wide(value.flatten(0, 1))
    sums_YR1, means_YR1 = _rows(sums[..., None], H), (grad_YRD * wide(_rows(out, H))).sum(-1, keepdim=True)
    grads = [torch.zeros_like(given) for given in (query_YRD, key_YSD, value_YSD)]
    for rows, seen in _chunks(query_YRD, key_YSD, H if is_causal else None):
        shares = _scores(query_YRD, key_YSD, rows, seen, H if is_causal else None).sub_(sums_YR1[:, rows]).exp_()
        grads[2][:, :seen] += torch.bmm(shares.transpose(1, 2), grad_YRD[:, rows])
        score_grads = torch.bmm(grad_YRD[:, rows], value_YSD[:, :seen].transpose(1, 2)).sub_(means_YR1[:, rows])
        score_grads.mul_(shares).mul_(query.shape[-1] ** -0.5)
        grads[0][:, rows] = torch.bmm(score_grads, key_YSD[:, :seen])
        grads[1][:, :seen] += torch.bmm(score_grads.transpose(1, 2), query_YRD[:, rows])
    query_grad = _heads(grads[0], query, H).to(query.dtype)
    return query_grad, grads[1].view(key.shape).to(key.dtype), grads[2].view(value.shape).to(value.dtype)


def wide(given: Tensor) -> Tensor:
    """At least float32."""
    return given.float() if given.dtype in (torch.bfloat16, torch.float16) else given


def _rows(given: Tensor, H: int) -> Tensor:
    """[X, H, Q, D] -> [Y, R, D]; `H` heads stand below each other, query by query."""
    return given.flatten(0, 1) if H == 1 else given.transpose(1, 2).flatten(1, 2)


def _heads(rows_YRD: Tensor, like: Tensor, H: int) -> Tensor:
    """And back to [X, H, Q, D] as in `like`."""
    X, heads, Q, _ = like.shape
    return rows_YRD.view(X, heads, Q, -1) if H == 1 else rows_YRD.view(X, Q, heads, -1).transpose(1, 2)


def _chunks(query_YRD: Tensor, key_YSD: Tensor, causal_heads: int | None) -> Iterator[tuple[slice, int]]:
    """(rows, how many keys the last of them sees)."""
    Y, R, _ = query_YRD.shape
    S, step = key_YSD.shape[1], max(1, MAX_SCORES // (Y * key_YSD.shape[1]))
    for start in range(0, R, step):
        stop = min(start + step, R)
        yield slice(start, stop), S if causal_heads is None else (stop - 1) // causal_heads + 1


def _scores(query_YRD: Tensor, key_YSD: Tensor, rows: slice, seen: int, causal_heads: int | None) -> Tensor:
    """[Y, rows, seen] over sqrt(D); -inf at what a row of causal attention does not see."""
    scores = torch.bmm(query_YRD[:, rows], key_YSD[:, :seen].transpose(1, 2)).mul_(query_YRD.shape[-1] ** -0.5)
    if causal_heads is not None:
        device = scores.device
        places_R = torch.arange(rows.start, rows.stop, device=device).div_(causal_heads, rounding_mode="floor")
        scores.masked_fill_(torch.arange(seen, device=device) > places_R[:, None], float("-inf"))
    return scores
