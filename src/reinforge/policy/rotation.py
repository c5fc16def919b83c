"""Rotary positions (Su et al. 2021): each pair (x_i, x_{i + D/2}) of a head turns by position * frequency_i.

Shapes: B rows, T tokens, H query heads, K key/value heads, G = H / K, D head size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

_TABLE_STEP = 1024
"""The table of angles grows by multiples of this many positions."""


class Rotation:
    """Cosines and sines of a model's frequencies."""

    def __init__(self, frequencies: Tensor, scaling: float, dtype: torch.dtype = torch.float32) -> None:
        """`scaling` multiplies both, as yarn wants it; 1 otherwise. Computed in float32 and given out as `dtype`."""
        self._frequencies, self._scaling = frequencies.detach().float(), scaling
        self._cos_sin_SD = torch.empty(0, 2 * frequencies.numel(), dtype=dtype, device=frequencies.device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each [.., D / 2], of positions [..]."""
        longest = int(positions.max()) + 1 if positions.numel() else 0
        cos, sin = self.table(longest)[positions].chunk(2, dim=-1)
        return cos, sin

    def table(self, num_positions: int) -> Tensor:
        """[S, D] cosines and, after them, sines of at least so many positions; a later call may give another tensor."""
        if num_positions > self._cos_sin_SD.shape[0]:
            self._grow(-(-num_positions // _TABLE_STEP) * _TABLE_STEP)
        return self._cos_sin_SD

    @torch.inference_mode(False)
    def _grow(self, num_positions: int) -> None:
        positions = torch.arange(num_positions, device=self._frequencies.device).float()
        angles = positions[:, None] * self._frequencies
        table = torch.cat([angles.cos(), angles.sin()], dim=-1) * self._scaling
        self._cos_sin_SD = table.to(self._cos_sin_SD.dtype)


def heads_split(heads_BTHD: Tensor, cos: Tensor, sin: Tensor, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads next to each other [B, T, H + 2 K, D] -> turned queries [K, B, T, G, D], turned keys
    and values, each [K, B, T, D]; `cos` and `sin` are [B, T, D / 2]."""
    split = _HeadsSplit.apply(heads_BTHD, cos, sin, num_kv_heads)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor, Tensor], split)


def turned(heads_BHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads of one token of each row, turned; `cos` and `sin` are [B, D / 2]. Without a gradient."""
    out = torch.empty_like(heads_BHD)
    _turn(heads_BHD, cos[:, None], sin[:, None], out)
    return out


class _HeadsSplit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, K: int) -> tuple[Tensor, Tensor, Tensor]:
        B, T, num_heads, D = heads.shape
        G = num_heads // K - 2
        query = heads.new_empty(K, B, T, G, D)
        key, value = heads.new_empty(K, B, T, D), heads.new_empty(K, B, T, D)
        cos, sin = cos[:, :, None], sin[:, :, None]
        _turn(
            heads[:, :, : G * K].unflatten(2, (K, G)),
            cos[..., None, :],
            sin[..., None, :],
            query.permute(1, 2, 0, 3, 4),
        )
        _turn(heads[:, :, G * K : -K], cos, sin, key.permute(1, 2, 0, 3))
        value.permute(1, 2, 0, 3).copy_(heads[:, :, -K:])
        ctx.save_for_backward(cos, sin)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, query_grad: Tensor, key_grad: Tensor, value_grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        K, B, T, G, D = query_grad.shape
        grad = query_grad.new_empty(B, T, (G + 2) * K, D)
        back = grad[:, :, : G * K].unflatten(2, (K, G))
        _turn(query_grad.permute(1, 2, 0, 3, 4), cos[..., None, :], -sin[..., None, :], back)
        _turn(key_grad.permute(1, 2, 0, 3), cos, -sin, grad[:, :, G * K : -K])
        grad[:, :, -K:] = value_grad.permute(1, 2, 0, 3)
        return grad, None, None, None


def _turn(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """(a, b) -> (a cos - b sin, b cos + a sin) with a and b the halves of the last axis."""
    a, b = heads.chunk(2, dim=-1)
    out_a, out_b = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)
