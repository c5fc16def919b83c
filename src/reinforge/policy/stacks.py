"""Linear layers of a model, run as few products as possible, with their adapters.

A stack is several linear layers on the same input (query, key and value; gate and up), computed as one product with
their weights below each other. Where a layer carries a LoRA adapter and the base is float32, the weight is W + s B A,
summed anew for each pass: that costs rank / tokens of the product itself, and spares the three products and two sweeps
of PEFT's own layers. A bfloat16 base would round the sum and lose small adapters: there x W' is computed in bfloat16,
s (x A') B' in float32, and their sum is rounded once, as PEFT does it.

Shapes: M tokens, I inputs, O outputs of the whole stack, R rank times the number of adapted layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from reinforge.policy.plain_attention import wide
from reinforge.policy.products import linear

_NAME = "default"
"""PEFT's name of the one adapter."""


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one this file computes exactly: float32 or bfloat16, with plain LoRA in float32 or
    without."""
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
    return type(layer) is nn.Linear and layer.weight.dtype in (torch.float32, torch.bfloat16)


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


_Adapter = tuple[slice, Tensor, Tensor, float]
"""Its rows of the stack's outputs, A [r, in], B [out, r], scaling."""


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
        self._is_merged = self._members[0].base.weight.dtype not in (torch.bfloat16, torch.float16)
        """Whether adapters are summed into the weight."""
        self._whole: Tensor | None = None
        self.added: Callable[[Tensor, Tensor], Tensor] | None = None
        """(x, y) -> y with more added to it in place: adapters that are not merged in, each for its own rows."""

    def adopt(self) -> None:
        """Move the layers' weights into one tensor of which each keeps its part: nothing is put together per pass
        any more. From then on weights may change but not be replaced. Layers whose adapters are merged stay as they
        are."""
        if self._is_merged and any(member.layer is not member.base for member in self._members):
            return
        weights = [member.base.weight.detach() for member in self._members]
        self._whole = _below_each_other(weights)
        if self._whole is not None:
            return
        self._whole = torch.cat(weights)
        for member in self._members:
            member.base.weight = nn.Parameter(self._whole[member.rows], requires_grad=False)

    @property
    def layers(self) -> list[tuple[nn.Linear, slice]]:
        """The layers below their adapters, and which of the outputs are theirs."""
        return [(member.base, member.rows) for member in self._members]

    def product(self, x: Tensor) -> Tensor:
        """x [.., I] -> the stack's output [.., O], biases and adapters included; without a gradient."""
        y = linear(x, self.weight(), self.bias)
        adapters = [] if self._is_merged else self._adapters()
        if adapters:
            inner = linear(wide(x), torch.cat([A for _, A, _, _ in adapters]))
            for (rows, _, B, scaling), own in zip(adapters, inner.split(_ranks(adapters), -1), strict=True):
                y[..., rows].add_(linear(own, B), alpha=scaling)
        return y if self.added is None else self.added(x, y)

    def input_gradient(self, grad_MO: Tensor) -> Tensor:
        """Of the stack's input [M, I], from the gradient of its output."""
        grad_MI = linear(grad_MO, self.weight().t())
        adapters = [] if self._is_merged else self._adapters()
        if adapters:
            back_MR = torch.cat([linear(wide(grad_MO[:, rows]), B.t()).mul_(s) for rows, _, B, s in adapters], dim=1)
            grad_MI.add_(linear(back_MR, torch.cat([A for _, A, _, _ in adapters]).t()))
        return grad_MI

    def weight(self) -> Tensor:
        """[O, I], adapters merged in where that is how they are computed."""
        if self._whole is not None:
            return self._whole
        adapters = [member.adapter if self._is_merged else None for member in self._members]
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
        found = self._adapters()
        if not found:
            return []
        x_MI = wide(x_MI)
        inner_MR = linear(x_MI, torch.cat([A for _, A, _, _ in found]))
        back_MR = torch.empty_like(inner_MR)
        # All pairs of adapters at once, one product with a faster kernel, pays for two of them and not for three.
        crossed_RO = None
        if len(found) <= 2 and self._is_merged:
            crossed_RO = linear(inner_MR.t().contiguous(), grad_MO.t())
        gradients_B, start = [], 0
        for rows, A, B, scaling in found:
            part, own_MO = slice(start, start + A.shape[0]), wide(grad_MO[:, rows])
            torch.mul(linear(own_MO, B.t()), scaling, out=back_MR[:, part])
            gradient_RO = torch.mm(inner_MR[:, part].t(), own_MO) if crossed_RO is None else crossed_RO[part, rows]
            gradients_B.append(torch.mul(gradient_RO.t(), scaling, out=torch.empty_like(B)))
            start = part.stop
        gradients_A = linear(back_MR.t().contiguous(), x_MI.t()).split(_ranks(found))
        return [gradient for pair in zip(gradients_A, gradients_B, strict=True) for gradient in pair]

    def _adapters(self) -> list[_Adapter]:
        """Those that are on."""
        found = [(member.rows, member.adapter) for member in self._members]
        return [(rows, on[0].detach(), on[1].detach(), on[2]) for rows, on in found if on is not None]

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


def _ranks(adapters: Sequence[_Adapter]) -> list[int]:
    return [A.shape[0] for _, A, _, _ in adapters]


def _below_each_other(weights: Sequence[Tensor]) -> Tensor | None:
    """One tensor over all of them where they lie so in memory already."""
    first, expected = weights[0], weights[0].data_ptr()
    for weight in weights:
        same_storage = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same_storage or weight.data_ptr() != expected or not weight.is_contiguous():
            return None
        expected += weight.numel() * weight.element_size()
    return first.as_strided((sum(len(weight) for weight in weights), first.shape[1]), first.stride())
