"""How many tokens a micro-batch may have: planned once, before a run's first step, from all memory of the device.

What is free at the moment plays no part, so that equal runs on equal machines have equal micro-batches and round alike.
"""

from __future__ import annotations

import torch

from reinforge.config import GRPOConfig
from reinforge.insight.host_memory import host_bytes
from reinforge.insight.memory import Load, MemoryPlan, ModelShape, Pass, memory_plan
from reinforge.policy.model import Policy
from reinforge.policy.quantized import quant_state_of


def plan_memory(policy: Policy, config: GRPOConfig, load: Load, tokens_per_microbatch: int | None) -> MemoryPlan | None:
    """What the run needs. None for an architecture that is not known well enough to tell."""
    shape = _shape(policy)
    if shape is None:
        return None
    modules = config.lora.target_modules
    return memory_plan(
        shape,
        pass_of(policy, config),
        load,
        rank=config.lora.rank,
        target_modules=None if modules == "all-linear" else modules,
        optimizer_8bit=config.optim == "adamw_8bit",
        total_bytes=device_bytes(policy.device),
        tokens_per_microbatch=tokens_per_microbatch or config.tokens_per_microbatch,
    )


def pass_of(policy: Policy, config: GRPOConfig) -> Pass:
    """How the learner runs this policy."""
    return Pass(
        own_network=policy.network is not None,
        shares_prefix=policy.shares_prefix,
        has_dropout=config.lora.lora_dropout > 0,
        recomputes=config.gradient_checkpointing,
        value_bytes=policy.model.dtype.itemsize,
        in_4bit=any(quant_state_of(parameter) is not None for parameter in policy.model.parameters()),
        on_gpu=policy.device.type != "cpu",
    )


def device_bytes(device: torch.device) -> int | None:
    """All memory of the device, or what this process may have of it; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_bytes() if device.type == "cpu" else None


def _shape(policy: Policy) -> ModelShape | None:
    try:
        return ModelShape.of_config(policy.model.config.get_text_config().to_dict())
    except (KeyError, TypeError):  # an architecture that names its sizes otherwise
        return None
