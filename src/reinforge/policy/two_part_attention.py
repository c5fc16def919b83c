"""Attention of many rows to prefixes they share and to themselves, without copying a prefix or building a mask.

The keys of a row fall into two parts, its prompt's and its own; or into three, where prompts begin with one system
prompt. Softmax over all keys is that over each part, weighted by its share of the sum (the rescaling of Milakov and
Gimelshein 2018, as in FlashAttention): with l = log sum exp(scores) of a part and L that of all,

    out = sum over parts of exp(l - L) * out of the part

The prompt's part is computed once for all rows behind it, with their queries as one long axis. Its gradient needs
nothing new: the kernel's own backward pass of a part is exact when it is given `out` and `L` of all parts, because a
probability is exp(score - L) whatever part its key is in.

The kernels that return L, and their backward passes, are in `attention_kernels.py`.

Shapes: K key/value heads, G query heads for each, D head size, B rows, T tokens of a row (right-padded), L prefix
tokens, N prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from reinforge.policy.attention_kernels import backward, forward


@dataclass(frozen=True, slots=True)
class Run:
    """Rows `start` to `stop` (exclusive) stand behind the first `length` tokens of prefix `prefix`; length > 0."""

    start: int
    stop: int
    prefix: int
    length: int


def runs_of(prefix_of_B: Sequence[int], lengths_N: Sequence[int]) -> list[Run]:
    """Rows next to each other with the same prefix, as one; rows without one are in none.

    >>> runs_of([2, 2, 0, 1], [5, 0, 7])
    [Run(start=0, stop=2, prefix=2, length=7), Run(start=2, stop=3, prefix=0, length=5)]
    """
    runs, start = [], 0
    for row, prefix in enumerate(prefix_of_B):
        if row + 1 == len(prefix_of_B) or prefix_of_B[row + 1] != prefix:
            if lengths_N[prefix]:
                runs.append(Run(start, row + 1, prefix, lengths_N[prefix]))
            start = row + 1
    return runs


@dataclass(frozen=True, slots=True)
class Behind:
    """Prefixes of one layer, and which rows stand behind them."""

    key_NKLD: Tensor
    value_NKLD: Tensor
    runs: Sequence[Run]


def attend(query_KBTGD: Tensor, key_KBTD: Tensor, value_KBTD: Tensor, behind: Sequence[Behind] = ()) -> Tensor:
    """Causal attention of each row to itself and to every prefix that it is in a run of -> [K, B, T, G, D]."""
    prefixes = [tensor for part in behind for tensor in (part.key_NKLD, part.value_NKLD)]
    inputs = (query_KBTGD, key_KBTD, value_KBTD, [part.runs for part in behind], *prefixes)
    return cast(Tensor, _Parts.apply(*inputs))  # type: ignore[no-untyped-call]


def attend_part(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of [X, K, Q, D] to [X, K, S, D] under an additive mask -> [X, Q, K, D], and the logs of the sums of
    exponentials [X, Q, K]; without a gradient. For parts to be joined by `add_part`."""
    out, sums = forward(query, key, value, mask=mask)
    return out.transpose(1, 2), sums.transpose(1, 2)


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Sequence[Run]], *prefixes: Tensor
    ) -> Tensor:
        out: Tensor
        own_out, own_sums = forward(*_own(query, key, value), is_causal=True)
        out, sums = own_out.transpose(1, 2).reshape(query.shape), own_sums.transpose(1, 2).reshape(query.shape[:-1])
        for part_runs, prefix_key, prefix_value in zip(runs, prefixes[::2], prefixes[1::2], strict=True):
            for run in part_runs:
                rows = slice(run.start, run.stop)
                part = _behind(query[:, rows], prefix_key, prefix_value, run)
                more_out, more_sums = (tensor.transpose(1, 2) for tensor in forward(*part))
                add_part(
                    out[:, rows],
                    sums[:, rows],
                    more_out.reshape(query[:, rows].shape),
                    more_sums.reshape(sums[:, rows].shape),
                )
        ctx.runs = runs
        ctx.save_for_backward(query, key, value, out, sums, *prefixes)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums, *prefixes = ctx.saved_tensors
        grad = grad.contiguous()
        own = _own(query, key, value)
        flat = (own[0].shape[0], *query.shape[2:])
        joined = out.view(flat).transpose(1, 2), sums.view(flat[:-1]).transpose(1, 2)
        parts = backward(grad.view(flat).transpose(1, 2), *own, *joined, is_causal=True)
        query_grad = parts[0].transpose(1, 2).reshape(query.shape)
        key_grad, value_grad = (part.reshape(key.shape) for part in parts[1:])
        prefix_grads = [torch.zeros_like(prefix) for prefix in prefixes]
        for place, part_runs in enumerate(ctx.runs):
            both, both_grads = (tensors[2 * place : 2 * place + 2] for tensors in (prefixes, prefix_grads))
            for run in part_runs:
                rows = slice(run.start, run.stop)
                behind = _behind(query[:, rows], both[0], both[1], run)
                joined = _folded(out[:, rows]), _folded(sums[:, rows, ..., None])[..., 0]
                more = backward(_folded(grad[:, rows]), *behind, *joined)
                query_grad[:, rows] += more[0].transpose(1, 2).reshape(query[:, rows].shape)
                for prefix_grad, more_grad in zip(both_grads, more[1:], strict=True):
                    prefix_grad[run.prefix, :, : run.length] += more_grad[:, 0]
        return query_grad, key_grad, value_grad, None, *prefix_grads


def add_part(out: Tensor, sums: Tensor, more_out: Tensor, more_sums: Tensor) -> None:
    """Join another part of the keys to a result, in place; `sums` are logs of sums of exponentials, without the last
    axis of `out`."""
    both = torch.logaddexp(sums, more_sums)
    out.mul_((sums - both).exp_().unsqueeze(-1)).addcmul_(more_out, (more_sums - both).exp_().unsqueeze(-1))
    sums.copy_(both)


def _own(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the kernel wants them: [K B, G, T, D], one head of keys and values for all G."""
    K, B, T, G, D = query.shape
    keys, values = (tensor.reshape(K * B, 1, T, D) for tensor in (key, value))
    return query.reshape(K * B, T, G, D).transpose(1, 2), keys, values


def _behind(query: Tensor, prefix_key: Tensor, prefix_value: Tensor, run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """[K, G, rows T, D], and the prefix's keys and values [K, 1, L, D]."""
    key, value = (tensor[run.prefix, :, None, : run.length] for tensor in (prefix_key, prefix_value))
    return _folded(query), key, value


def _folded(rows: Tensor) -> Tensor:
    """[K, rows, T, G, D] -> [K, G, rows T, D], a view where the rows lie next to each other."""
    K, R, T, G, D = rows.shape
    return rows.reshape(K, R * T, G, D).transpose(1, 2)
