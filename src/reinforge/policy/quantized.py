"""A base whose linear layers are kept in 4 bits (QLoRA), through bitsandbytes.

Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314): each weight is one of 16 values (NF4) times the largest of its
block of 64, and these largest values are kept in 8 bits themselves ("double quantization"): 4.13 bits per weight. A
pass puts a layer's weights back into the model's dtype, one layer at a time; gradients go through to the adapter.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reinforge.errors import ModelError, SetupError

_DEVICES = ("cpu", "cuda")


def import_bitsandbytes() -> ModuleType | None:
    """The library, None where it is not installed. Must come before PEFT, which imports it too.

    Where the package `kernels` is installed and the processor computes in bfloat16, bitsandbytes fetches compiled code
    from the hub while it is imported, and without that package it complains on stderr. The code is for a path that
    `compute_in` turns off, so it is neither fetched nor missed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    absent: Any = None
    present = {name: module for name, module in sys.modules.items() if name == "kernels"}
    sys.modules["kernels"] = absent
    try:
        import bitsandbytes
    finally:
        del sys.modules["kernels"]
        sys.modules.update(present)
    library: ModuleType = bitsandbytes
    return library


def bitsandbytes_for(setting: str) -> ModuleType:
    """The library that a setting needs; SetupError where it is not installed."""
    library = import_bitsandbytes()
    if library is None:
        raise SetupError(f"{setting} needs the package bitsandbytes.", hint="pip install 'reinforge[quantized]'")
    return library


def load_options(model_config: Mapping[str, Any], device: torch.device, *, wanted: bool) -> dict[str, Any]:
    """What to tell transformers so that a model is loaded in 4 bits; nothing where that is neither `wanted` nor how
    the model's files are (`model_config` is its config.json). SetupError or ModelError where it cannot be."""
    stored = model_config.get("quantization_config")
    stored_in_4bit = stored is not None and bool(stored.get("load_in_4bit"))
    if not wanted and not stored_in_4bit:
        return {}
    setting = "load_in_4bit" if wanted else "This model, which is stored in 4 bits,"
    bitsandbytes_for(setting)
    if device.type not in _DEVICES:
        raise SetupError(
            f"{setting} runs on {' and '.join(_DEVICES)}, not on {device.type}.",
            hint="Set device = cpu, or a base_model and load_in_4bit = false that fit this device.",
        )
    if stored is not None and not stored_in_4bit:
        raise ModelError(
            f"load_in_4bit, but the model is quantized already (quant_method = {stored.get('quant_method')}).",
            hint="Name the model it was made from, or set load_in_4bit = false.",
        )
    options: dict[str, Any] = {"device_map": {"": device}}
    if not stored_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
    return options


def compute_in(model: nn.Module, dtype: torch.dtype) -> str:
    """Let every 4-bit layer compute in `dtype` on one path, with gradients or without; says what was quantized.

    On processors that compute in bfloat16, bitsandbytes would otherwise pack a layer's weights anew when it first runs
    without a gradient: it would write the base, compute in bfloat16 whatever `dtype` says, and give no gradients.
    """
    layers: list[Any] = [
        module for module in model.modules() if quant_state_of(getattr(module, "weight", None)) is not None
    ]
    if not layers:
        raise ModelError(
            f"load_in_4bit finds no linear layer in {type(model).__name__} to quantize.",
            hint="Set load_in_4bit = false.",
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
    before = sum(num_elements(layer.weight) for layer in layers) * dtype.itemsize
    now = sum(num_bytes(layer.weight) for layer in layers)
    return f"{len(layers)} linear layers in 4 bits: {_mb(now)} instead of {_mb(before)} of weights"


def quant_state_of(weight: object) -> Any:
    """What bitsandbytes knows about a weight in 4 bits: its shape, and its blocks' largest values; else None."""
    return getattr(weight, "quant_state", None)


def num_elements(weight: Tensor) -> int:
    """Of the matrix, also where two of them share a byte."""
    state = quant_state_of(weight)
    return weight.numel() if state is None else int(torch.Size(state.shape).numel())


def num_bytes(weight: Tensor) -> int:
    """Of the weight and what belongs to it."""
    return sum(tensor.nbytes for tensor in [weight, *_state_tensors(quant_state_of(weight))])


def shared_states(model: nn.Module) -> list[Any]:
    """What a copy of the model has to share beside parameters and buffers for its 4-bit layers."""
    return [module.quant_state for module in model.modules() if quant_state_of(module) is not None]


def _state_tensors(state: Any) -> list[Tensor]:
    """The 16 values and the blocks' largest ones, with those of the second quantization."""
    if state is None:
        return []
    own = [value for value in (state.absmax, state.code, state.offset) if isinstance(value, Tensor)]
    return own + _state_tensors(getattr(state, "state2", None))


def _mb(num: int) -> str:
    """
    >>> _mb(1_234_567)
    '1.23 MB'
    """
    return f"{num / 1e6:.3g} MB"
