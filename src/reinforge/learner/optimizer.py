"""Which optimizer takes the steps, and its state as tensors that a file can hold.

adamw is torch's, with two float32 moments per parameter. adamw_8bit is bitsandbytes' (Dettmers et al. 2021,
https://arxiv.org/abs/2110.02861): each moment is one of 256 values times the largest of its block of 256. Matrices of
fewer than 4096 elements keep float32 moments. Both compute the step itself in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reinforge.config import GRPOConfig
from reinforge.policy.quantized import bitsandbytes_for

SETTING_8BIT = "optim = adamw_8bit"

_TABLES = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""The 256 values: bitsandbytes' constants, shared by all parameters, so no part of the state. Key there -> its name."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: GRPOConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that `config.optim` names; SetupError where its library is absent."""
    options: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.optim == "adamw":
        return torch.optim.AdamW(list(parameters), **options)
    made: torch.optim.Optimizer = bitsandbytes_for(SETTING_8BIT).optim.AdamW8bit(list(parameters), **options)
    return made


def state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What the optimizer remembers of a parameter, by its own names; empty before the first step."""
    state = optimizer.state.get(parameter, {})
    return {key: torch.as_tensor(value).detach() for key, value in state.items() if key not in _TABLES}


def set_state_tensors(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> None:
    """Let the optimizer remember what `state_tensors` gave."""
    on_device = {key: value.to(parameter.device) for key, value in tensors.items() if key != "step"}
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.state[parameter] = {"step": tensors["step"], **on_device}
        return
    tables = {key: _table(optimizer, name, parameter.device) for key, name in _TABLES.items()}
    is_8bit = on_device["state1"].dtype == torch.uint8
    optimizer.state[parameter] = {"step": int(tensors["step"]), **on_device, **(tables if is_8bit else {})}


def _table(optimizer: Any, name: str, device: torch.device) -> Tensor:
    """One tensor for all parameters of a device, as bitsandbytes has it."""
    optimizer.name2qmap[name] = optimizer.name2qmap[name].to(device)
    found: Tensor = optimizer.name2qmap[name]
    return found
