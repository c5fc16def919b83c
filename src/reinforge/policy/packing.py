"""Rows of different lengths without their padding, and back.

Everything in a layer but attention treats tokens one by one, so it runs on the real ones only, row after row.

Shapes: B rows, T tokens of the longest, M real tokens, any last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch stand."""

    num_rows: int
    row_length: int
    places_M: Tensor | None
    """Of the real tokens among all B T; None without padding."""

    @classmethod
    def of(cls, mask_BT: Tensor) -> Packing:
        """`mask_BT` is true at real tokens."""
        B, T = mask_BT.shape
        places_M = mask_BT.flatten().nonzero()[:, 0]
        return cls(B, T, None if len(places_M) == B * T else places_M)

    def packed(self, padded_BT: Tensor) -> Tensor:
        """[B, T, ..] -> [M, ..], with a gradient."""
        flat = padded_BT.flatten(0, 1)
        if self.places_M is None:
            return flat
        return cast(Tensor, _Packed.apply(flat, self.places_M))  # type: ignore[no-untyped-call]

    def padded(self, packed_M: Tensor) -> Tensor:
        """[M, ..] -> [B, T, ..] with zeros in the padding, with a gradient."""
        flat = packed_M
        if self.places_M is not None:
            flat = cast(Tensor, _Padded.apply(packed_M, self.places_M, self.num_rows * self.row_length))  # type: ignore[no-untyped-call]
        return flat.view(self.num_rows, self.row_length, *flat.shape[1:])


def _spread(packed: Tensor, places: Tensor, length: int) -> Tensor:
    return packed.new_zeros(length, *packed.shape[1:]).index_copy_(0, places, packed)


class _Packed(torch.autograd.Function):
    """Its gradient goes to places of its own each, so nothing has to be added up."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor) -> Tensor:
        ctx.length = len(flat)
        ctx.save_for_backward(places)
        return flat.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return _spread(grad, places, ctx.length), None


class _Padded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(places)
        return _spread(packed, places, length)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None
