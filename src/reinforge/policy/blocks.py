"""The pieces of a decoder layer as autograd functions that keep little and sweep little.

Each computes what transformers' modules compute; the gradients are written out. Kept for the backward pass are a
block's input, one number per token for its norm, and the widest result that would be dear to compute again.

Shapes: M tokens, E hidden size, I inputs, O outputs of a stack, F width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforge.policy.plain_attention import wide
from reinforge.policy.stacks import Stack


@dataclass(frozen=True, slots=True)
class Norm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019). The weight is frozen.

    As in transformers the mean is at least float32, and what is multiplied by the weight has the dtype of x."""

    weight_E: Tensor
    eps: float

    def __call__(self, x_ME: Tensor) -> Tensor:
        return self.apply(x_ME, self.rates(x_ME))

    def rates(self, x_ME: Tensor) -> Tensor:
        """1 / sqrt(mean(x^2) + eps), [M, 1]; at least float32."""
        norms_M1 = torch.linalg.vector_norm(wide(x_ME), dim=-1, keepdim=True)
        means_M1: Tensor = norms_M1.square_().mul_(1 / x_ME.shape[-1])
        return means_M1.add_(self.eps).rsqrt_()

    def apply(self, x_ME: Tensor, rates_M1: Tensor) -> Tensor:
        return (x_ME * rates_M1).to(x_ME.dtype).mul_(self.weight_E)

    def input_gradient(self, x_ME: Tensor, rates_M1: Tensor, grad_ME: Tensor) -> Tensor:
        """r g w - x r^3 mean(g w x), with r the rates."""
        weighted_ME, wide_ME = wide(grad_ME * self.weight_E), wide(x_ME)
        means_M1 = torch.linalg.vecdot(weighted_ME, wide_ME)[:, None].mul_(1 / x_ME.shape[-1])
        slopes_ME = weighted_ME.mul_(rates_M1).addcmul_(wide_ME, means_M1 * rates_M1.pow(3), value=-1)
        return slopes_ME.to(x_ME.dtype)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """The norm of [.., E], with a gradient."""
    return cast(Tensor, _Normed.apply(x, norm))  # type: ignore[no-untyped-call]


def projected(hidden_ME: Tensor, stack: Stack, norm: Norm | None = None) -> Tensor:
    """The stack of the (normed) hidden states -> [M, O], with gradients for them and for its adapters."""
    return cast(Tensor, _Projected.apply(hidden_ME, norm, stack, *stack.matrices()))  # type: ignore[no-untyped-call]


def mlp_added(hidden_ME: Tensor, norm: Norm, gate_up: Stack, down: Stack) -> Tensor:
    """hidden + down(silu(gate) * up) of the normed hidden states, with gradients for them and for all adapters."""
    matrices = [*gate_up.matrices(), *down.matrices()]
    return cast(Tensor, _Mlp.apply(hidden_ME, norm, gate_up, down, *matrices))  # type: ignore[no-untyped-call]


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        rates = norm.rates(x)
        ctx.norm = norm
        ctx.save_for_backward(x, rates)
        return norm.apply(x, rates)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rates = ctx.saved_tensors
        size = x.shape[-1]
        flat = ctx.norm.input_gradient(x.reshape(-1, size), rates.reshape(-1, 1), grad.reshape(-1, size))
        return flat.view_as(x), None


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ME: Tensor, norm: Norm | None, stack: Stack, *matrices: Tensor) -> Tensor:
        rates_M1 = norm.rates(hidden_ME) if norm is not None else None
        x_MI = norm.apply(hidden_ME, rates_M1) if norm is not None and rates_M1 is not None else hidden_ME
        ctx.norm, ctx.stack = norm, stack
        ctx.save_for_backward(hidden_ME, rates_M1)
        return stack.product(x_MI)

    @staticmethod
    def backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, rates_M1 = ctx.saved_tensors
        norm, stack, grad_MO = ctx.norm, ctx.stack, grad_MO.contiguous()
        x_MI = hidden_ME if norm is None else norm.apply(hidden_ME, rates_M1)
        gradients = stack.matrix_gradients(x_MI, grad_MO)
        grad_ME = None
        if ctx.needs_input_grad[0]:
            grad_ME = stack.input_gradient(grad_MO)
            if norm is not None:
                grad_ME = norm.input_gradient(hidden_ME, rates_M1, grad_ME)
        return grad_ME, None, None, *gradients


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ME: Tensor, norm: Norm, gate_up: Stack, down: Stack, *matrices: Tensor) -> Tensor:
        rates_M1 = norm.rates(hidden_ME)
        wide_MO = gate_up.product(norm.apply(hidden_ME, rates_M1))
        ctx.norm, ctx.gate_up, ctx.down = norm, gate_up, down
        ctx.save_for_backward(hidden_ME, rates_M1, wide_MO)
        gate_MF, up_MF = wide_MO.chunk(2, dim=-1)
        return down.product(F.silu(gate_MF).mul_(up_MF)).add_(hidden_ME)

    @staticmethod
    def backward(ctx: Any, grad_ME: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ME, rates_M1, wide_MO = ctx.saved_tensors
        norm, gate_up, down, grad_ME = ctx.norm, ctx.gate_up, ctx.down, grad_ME.contiguous()
        gate_MF, up_MF = wide_MO.chunk(2, dim=-1)
        silu_MF = F.silu(gate_MF)
        down_gradients = down.matrix_gradients(silu_MF * up_MF, grad_ME)
        inner_MF = down.input_gradient(grad_ME)
        wide_grad_MO = torch.empty_like(wide_MO)
        torch.mul(inner_MF, silu_MF, out=wide_grad_MO[:, gate_MF.shape[1] :])
        inner_MF *= up_MF
        torch.ops.aten.silu_backward.grad_input(inner_MF, gate_MF, grad_input=wide_grad_MO[:, : gate_MF.shape[1]])
        gate_up_gradients = gate_up.matrix_gradients(norm.apply(hidden_ME, rates_M1), wide_grad_MO)
        hidden_grad_ME = None
        if ctx.needs_input_grad[0]:
            normed_grad_ME = gate_up.input_gradient(wide_grad_MO)
            hidden_grad_ME = norm.input_gradient(hidden_ME, rates_M1, normed_grad_ME).add_(grad_ME)
        return hidden_grad_ME, None, None, None, *gate_up_gradients, *down_gradients
