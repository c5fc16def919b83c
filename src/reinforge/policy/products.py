"""Matrix products for the two linear-algebra libraries inside torch's CPU builds.

`torch.nn.functional.linear` computes float32 through MKL. On AMD processors MKL leaves AVX-512 unused, and oneDNN,
which torch carries for other operators, is 2.0 to 2.4 times as fast there (docs/explain/why_it_is_fast.md). Which
of the two computes a product depends on the processor and the product's size alone, so equal runs stay bitwise equal.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_MULTIPLICATIONS = 1_500_000
"""Below this many, oneDNN's cost of a call (10 us against 2) is more than it saves."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., in] times weight [out, in], transposed, plus bias [out] -> [.., out]; no gradient may be asked of it.

    The last axis of `x` must be contiguous, and `weight` or its transpose (for others oneDNN has no kernel of its own
    and is a thousand times slower).
    """
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= MIN_MULTIPLICATIONS
        and x.stride(-1) == 1
        and 1 in weight.stride()
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 under a torch that has both libraries."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """Linux tells the vendor in a file of its own, Windows in the processor's name."""
    info = Path("/proc/cpuinfo")
    return info.read_text(errors="replace") if info.exists() else platform.processor()
