"""How torch is to compute on a device: settings of the whole process, made before the first product."""

from __future__ import annotations

import os

import torch


def settle(device: torch.device, *, deterministic: bool) -> None:
    """float32 products in float32 (no TF32), and on CUDA, if asked for, equal bits from equal runs.

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
