"""Linear layers of a model, run as few products as possible, with their adapters merged in.

A stack is several linear layers on the same input (query, key and value; gate and up), computed as one product with
their weights below each other. Where a layer carries a LoRA adapter, the weight is W + s B A, summed anew for each
pass: that costs rank / tokens of the product itself, and spares the three products and two sweeps of PEFT's own layers.

Shapes: M tokens, I inputs, O outputs of the whole stack, R rank times the number of adapted layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from reinforge.policy.products import linear

_NAME = "default"
"""PEFT's name of the one adapter."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one this file computes exactly: float32, with plain LoRA or without."""
    if isinstance(layer, LoraLinear):
        dropout = layer.lora_dropout[_NAME] if list(layer.lora_A) == [_NAME] else None
        return (
            type(layer) is LoraLinear
            and not layer.merged
            and not layer.use_dora.get(_NAME, False)
            and not layer.lora_bias.get(_NAME, False)
            and type(dropout) is nn.Identity
            and layer.lora_A[_NAME].weight.dtype == torch.float32
            and is_plain(layer.get_base_layer())
        )
    return type(layer) is nn.Linear and layer.weight.dtype == torch.float32


@dataclass(frozen=True)
class _Member:
    """One layer of a stack."""

    layer: Any
    base: nn.Linear
    rows: slice
    """Of the stack's outputs."""

    @property
    def adapter(self) -> tuple[Tensor, Tensor, float] | None:
        """(A [r, in], B [out, r], scaling), None where there is none or it is switched off."""
        if self.layer is self.base or self.layer.disable_adapters:
            return None
        return self.layer.lora_A[_NAME].weight, self.layer.lora_B[_NAME].weight, self.layer.scaling[_NAME]


class Stack:
    """Several plain layers (see `is_plain`) on the same input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        bases = [layer.get_base_layer() if isinstance(layer, LoraLinear) else layer for layer in layers]
        self._members: list[_Member] = []
        self.num_out = 0
        for layer, base in zip(layers, cast(list[nn.Linear], bases), strict=True):
            rows = slice(self.num_out, self.num_out + base.out_features)
            self._members.append(_Member(layer, base, rows))
            self.num_out = rows.stop
        self.num_in = self._members[0].base.in_features
        self.bias = self._stacked_bias()
        self._whole: Tensor | None = None
        self.added: Callable[[Tensor, Tensor], Tensor] | None = None
        """(x, y) -> y with more added to it in place: adapters that are not merged in, each for its own rows."""

    def adopt(self) -> None:
        """Move the layers' weights into one tensor of which each keeps its part: nothing is put together per pass
        any more. From then on weights may change but not be replaced. Layers with adapters stay as they are."""
        if any(member.layer is not member.base for member in self._members):
            return
        if len(self._members) == 1:
            self._whole = self._members[0].base.weight.detach()
            return
        whole = torch.cat([member.base.weight.detach() for member in self._members])
        for member in self._members:
            member.base.weight = nn.Parameter(whole[member.rows], requires_grad=False)
        self._whole = whole

    @property
    def layers(self) -> list[tuple[nn.Linear, slice]]:
        """The layers below their adapters, and which of the outputs are theirs."""
        return [(member.base, member.rows) for member in self._members]

    def product(self, x: Tensor) -> Tensor:
        """x [.., I] times the weights, plus biases -> [.., O]; without a gradient."""
        y = linear(x, self.weight(), self.bias)
        return y if self.added is None else self.added(x, y)

    def weight(self) -> Tensor:
        """[O, I], adapters merged in."""
        if self._whole is not None:
            return self._whole
        adapters = [member.adapter for member in self._members]
        if len(self._members) == 1 and adapters[0] is None:
            return self._members[0].base.weight.detach()
        merged = self._members[0].base.weight.new_empty(self.num_out, self.num_in)
        for member, adapter in zip(self._members, adapters, strict=True):
            base, own = member.base.weight.detach(), merged[member.rows]
            if adapter is None:
                own.copy_(base)
            else:
                A, B, scaling = adapter
                torch.addmm(base, B.detach(), A.detach(), alpha=scaling, out=own)
        return merged

    def matrices(self) -> list[Tensor]:
        """A and B of every adapter that is on, in turn: what a pass can have gradients for."""
        found = [member.adapter for member in self._members]
        return [matrix for adapter in found if adapter is not None for matrix in adapter[:2]]

    def matrix_gradients(self, x_MI: Tensor, grad_MO: Tensor) -> list[Tensor]:
        """Of the `matrices`, from the stack's input and the gradient of its output.

        With y = x (W + s B A)': dB = s g' (x A'), dA = s (g B)' x.
        """
        adapted = [(member.rows, member.adapter) for member in self._members if member.adapter is not None]
        found = [(rows, *adapter) for rows, adapter in adapted if adapter is not None]
        if not found:
            return []
        inner_MR = linear(x_MI, torch.cat([A.detach() for _, A, _, _ in found]))
        back_MR = torch.empty_like(inner_MR)
        # All pairs of adapters at once, one product with a faster kernel, pays for two of them and not for three.
        crossed_RO = linear(inner_MR.t().contiguous(), grad_MO.t()) if len(found) <= 2 else None
        gradients_B, start = [], 0
        for rows, A, B, scaling in found:
            part = slice(start, start + A.shape[0])
            torch.mul(linear(grad_MO[:, rows], B.detach().t()), scaling, out=back_MR[:, part])
            if crossed_RO is None:
                gradient_RO = torch.mm(inner_MR[:, part].t(), grad_MO[:, rows])
            else:
                gradient_RO = crossed_RO[part, rows]
            gradients_B.append(torch.mul(gradient_RO.t(), scaling, out=torch.empty_like(B)))
            start = part.stop
        gradients_A = linear(back_MR.t().contiguous(), x_MI.t()).split([A.shape[0] for _, A, _, _ in found])
        return [gradient for pair in zip(gradients_A, gradients_B, strict=True) for gradient in pair]

    def _stacked_bias(self) -> Tensor | None:
        if all(member.base.bias is None for member in self._members):
            return None
        parts = [
            member.base.weight.new_zeros(member.base.out_features)
            if member.base.bias is None
            else member.base.bias.detach()
            for member in self._members
        ]
        return torch.cat(parts)
