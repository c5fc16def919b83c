"""Where and how torch is to compute: the device, its numbers and threads, and settings of the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

import torch

from reinforge.errors import SetupError

_NUM_DEVICES: dict[str, Callable[[], int]] = {
    "cpu": lambda: 1,
    "cuda": torch.cuda.device_count,
    "mps": lambda: int(torch.backends.mps.is_available()),
}
"""How many of each kind torch can compute on here."""


def pick_device(device: str) -> torch.device:
    """auto: CUDA, then Apple's GPU, then CPU."""
    if device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError:
            chosen = None
        if chosen is None or chosen.type not in _NUM_DEVICES:
            raise SetupError(f"device = {device!r} is unknown.", hint="Use cpu, cuda, cuda:1 or mps.")
        number = _NUM_DEVICES[chosen.type]()
        if not number:
            name = {"cuda": "CUDA GPU", "mps": "Apple GPU"}[chosen.type]
            raise SetupError(f"device = {device}, but torch sees no {name}.", hint="Set device = cpu or auto.")
        if chosen.index is not None and chosen.index >= number:
            last = f"{chosen.type}:{number - 1}"
            raise SetupError(f"device = {device}, but the last of its kind is {last}.", hint=f"Set device = {last}.")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on GPUs that compute in it, else float32 (S2-034)."""
    if dtype != "auto":
        return cast(torch.dtype, getattr(torch, dtype))
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def pick_threads(threads: int | None, num_parameters: int) -> int:
    """Small models lose by sharing a step between threads (measured at 0.3M and 5M parameters)."""
    return threads or (1 if num_parameters < 20_000_000 else os.cpu_count() or 1)


def set_arithmetic(device: torch.device, *, deterministic: bool) -> None:
    """float32 products in float32 (no TF32), and on CUDA, if asked for, equal bits from equal runs. For the
    whole process, before its first product.

    On a CPU equal runs are bitwise equal anyway. On CUDA some kernels add in an order of chance; torch takes others
    where it has them (https://docs.pytorch.org/docs/stable/notes/randomness.html) and warns where it has none. cuBLAS
    reads its workspace setting when it first multiplies.
    """
    torch.set_float32_matmul_precision("highest")
    if device.type != "cuda":
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
