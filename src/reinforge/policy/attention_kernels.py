"""Attention that also returns the log of its sum of exponentials, and its backward pass from those logs.

`two_part_attention.py` joins parts of the keys by these logs and calls the backward pass of a part with `out` and
`sums` of all parts. Which code computes it depends on device and dtype alone and is decided in `_kernel`: torch's flash
kernel for the CPU; on CUDA and in bfloat16 torch's flash kernel for CUDA, if it agrees with the plain form on that very
GPU; the plain form everywhere else.

Shapes: X batch, H heads, Q queries, S keys, D head size; `key` and `value` are [X, H, S, D] or, one head of them for
all H, [X, 1, S, D].
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from reinforge.policy import plain_attention

MAX_FLASH_GAP = 0.03
"""Largest difference between the CUDA kernel and the plain form, as a share of the largest value (bfloat16: 2^-8)."""

MAX_SHORT_KEYS = 128
"""Up to so many keys the CPU kernel's backward pass is faster in float32 than in bfloat16, up to 2.5 times."""

Gradients = tuple[Tensor, Tensor, Tensor]


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-> out [X, H, Q, D] and the natural logs of the sums of exponentials [X, H, Q], at least float32.

    Scores are divided by sqrt(D). `is_causal` needs Q = S; `mask` is additive, [X, 1, 1, S], or
    [X, 1, Q, S] with keys of each head's own."""
    return _kernel(query, mask).forward(query, key, value, is_causal, mask)


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, *, is_causal: bool = False
) -> Gradients:
    """Gradients of query, key and value, each in its own shape; for what was computed without a mask."""
    return _kernel(query, None).backward(grad, query, key, value, out, sums, is_causal)


class Kernel(Protocol):
    """One way to compute both."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, is_causal: bool, mask: Tensor | None, /
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, is_causal: bool, /
    ) -> Gradients: ...


def _kernel(query: Tensor, mask: Tensor | None) -> Kernel:
    if query.device.type == "cpu":
        return CpuFlash
    suits_flash = query.dtype == torch.bfloat16 and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if query.device.type == "cuda" and suits_flash and mask is None and cuda_flash_agrees(query.device):
        return CudaFlash
    return plain_attention


class CpuFlash:
    """torch's flash kernel for the CPU."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        keys, values = _for_all_heads(query, key, value)
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, is_causal=is_causal, attn_mask=mask
        )
        return out, sums

    @staticmethod
    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, is_causal: bool
    ) -> Gradients:
        dtype = query.dtype
        if key.shape[2] <= MAX_SHORT_KEYS:
            grad, query, key, value, out = (plain_attention.wide(given) for given in (grad, query, key, value, out))
        keys, values = _for_all_heads(query, key, value)
        query_grad, key_grad, value_grad = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, keys, values, out, sums, 0.0, is_causal
        )
        return query_grad.to(dtype), _summed(key_grad, key).to(dtype), _summed(value_grad, value).to(dtype)


class CudaFlash:
    """torch's flash kernel for CUDA, called as torch's own autograd does (tools/autograd/derivatives.yaml). It takes no
    mask, and sums only where they are contiguous. Never yet run on a GPU by this project."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        keys, values = _for_all_heads(query, key, value)
        out, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values, 0.0, is_causal)
        return out, sums

    @staticmethod
    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor, is_causal: bool
    ) -> Gradients:
        keys, values = _for_all_heads(query, key, value)
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        query_grad, key_grad, value_grad = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, query, keys, values, out, sums.contiguous(), None, None, query.shape[2], key.shape[2],
            0.0, is_causal, no_dropout, no_dropout,
        )  # fmt: skip
        return query_grad, _summed(key_grad, key), _summed(value_grad, value)


@cache
def cuda_flash_agrees(device: torch.device) -> bool:
    """Whether CUDA's flash kernel gives the values and gradients of the plain form on this GPU, for a part of the keys
    joined with others. False too where there is no such kernel; a warning tells either."""
    try:
        gap = flash_gap(CudaFlash, device)
        reason = f"differs from it by {gap:.1e} of the largest value, allowed is {MAX_FLASH_GAP:.0e}"
    except RuntimeError as fault:  # how torch says that a build or a GPU has no such kernel
        gap, reason = float("inf"), f"fails: {str(fault).splitlines()[0]}"
    agrees = gap <= MAX_FLASH_GAP
    if not agrees:
        text = f"Attention runs in its plain form, which is slower: torch's flash kernel for CUDA {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return agrees


@torch.no_grad()
def flash_gap(kernel: type[CpuFlash] | type[CudaFlash], device: torch.device) -> float:
    """Largest difference between a kernel and the plain form in bfloat16, as a share of the largest value."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 40, 64), (2, 3, 40, 64), (2, 1, 40, 64), (2, 1, 40, 64)]
    grad, query, key, value = (torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes)
    gaps = []
    for is_causal in (True, False):
        out, sums = plain_attention.forward(query, key, value, is_causal, None)
        joined = sums + 0.5  # as if other keys had a part of the sum
        pairs = [
            *zip(kernel.forward(query, key, value, is_causal, None), (out, sums), strict=True),
            *zip(
                kernel.backward(grad, query, key, value, out, joined, is_causal),
                plain_attention.backward(grad, query, key, value, out, joined, is_causal),
                strict=True,
            ),
        ]
        gaps += [(ours.float() - plain.float()).abs().max() / plain.float().abs().max() for ours, plain in pairs]
    return float(torch.stack(gaps).max())


def _for_all_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The same keys and values for all heads, without a copy."""
    keys, values = (given.expand(-1, query.shape[1], -1, -1) for given in (key, value))
    return keys, values


def _summed(grad: Tensor, like: Tensor) -> Tensor:
    """Over heads that share their keys."""
    return grad.sum(1, keepdim=True) if grad.shape[1] != like.shape[1] else grad
