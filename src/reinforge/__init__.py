"""Reinforge: reinforcement fine-tuning of language models on your own machines.

    import reinforge
    path = reinforge.train(reinforge.GRPOConfig(base_model=..., reward_fns=...), dataset=rows)

Importing it is cheap: what a name needs is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reinforge.api import evaluate, grade, resume, train
    from reinforge.config import (
        DataConfig,
        EvalConfig,
        GRPOConfig,
        LoraParams,
        OverlongParams,
        RewardFunctionsConfig,
        RewardFunctionSettings,
        RewardFunctionsRuntimeConfig,
        SamplingParams,
    )
    from reinforge.config_file import load_config
    from reinforge.errors import ReinforgeError
    from reinforge.reward_changes import get_config, update_config
    from reinforge.run_store import Run
    from reinforge.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "reinforge.api": ("train", "resume", "evaluate", "grade"),
    "reinforge.config": (
        "DataConfig",
        "EvalConfig",
        "GRPOConfig",
        "LoraParams",
        "OverlongParams",
        "RewardFunctionSettings",
        "RewardFunctionsConfig",
        "RewardFunctionsRuntimeConfig",
        "SamplingParams",
    ),
    "reinforge.config_file": ("load_config",),
    "reinforge.errors": ("ReinforgeError",),
    "reinforge.reward_changes": ("get_config", "update_config"),
    "reinforge.run_store": ("Run",),
    "reinforge.verification": ("verify",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DataConfig",
    "EvalConfig",
    "GRPOConfig",
    "LoraParams",
    "OverlongParams",
    "ReinforgeError",
    "RewardFunctionSettings",
    "RewardFunctionsConfig",
    "RewardFunctionsRuntimeConfig",
    "Run",
    "SamplingParams",
    "evaluate",
    "get_config",
    "grade",
    "load_config",
    "resume",
    "train",
    "update_config",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'reinforge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
