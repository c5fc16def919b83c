"""The other work both trainers are given: the Countdown demo (reinforge.recipes.countdown) with its config, base model,
data and reward functions. One piece of code, HeldOut, judges the adapters of either side."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from reinforge.config import GRPOConfig
from reinforge.config_file import load_config

RECIPE = Path(str(files("reinforge.recipes.countdown")))
HELD_OUT_SEED = 1
"""Every adapter of every run is judged with the same random numbers."""


@dataclass(frozen=True)
class Job:
    """What one worker process is to do; travels as a JSON file."""

    folder: str
    """Where workers leave their adapters and whatever else they write."""
    evaluate_every: int
    """Steps between two adapters that are judged."""
    trl_rows: int
    """Completions in one of TRL's micro-batches (per_device_train_batch_size)."""
    overrides: tuple[str, ...] = ()
    """Of the demo's config, as `-o` of the command line takes them: the seed, and smaller values for tests."""
    trl_generate_batch: bool = False
    """Whether TRL draws with transformers' continuous batching instead of its default, `generate`."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        values = json.loads(path.read_text())
        return cls(**values | {"overrides": tuple(values["overrides"])})

    def config(self) -> GRPOConfig:
        """The demo's, with held-out problems."""
        return load_config([RECIPE / "config.yaml"], self.overrides)

    def training_config(self) -> GRPOConfig:
        """The demo's without held-out problems: no evaluation within the run."""
        return load_config([RECIPE / "config.yaml"], [*self.overrides, "data.heldout_path=null", "data.heldout=0"])

    def adapter_after(self, side: str, step: int) -> Path | None:
        """Where a side leaves its adapter after this step, if it is to be judged."""
        return None if step % self.evaluate_every else Path(self.folder) / f"{side}-{step:05d}.safetensors"


def build(config: GRPOConfig) -> Any:
    """The roles of a run of the demo, in this process."""
    from reinforge.cluster import local
    from reinforge.grading.grader import RewardFunctionGrader

    grader = RewardFunctionGrader.from_config(config.reward_fns, RECIPE)
    return local.build(config, RECIPE, grader, started=datetime.datetime.now(), tell=lambda _: None)


def save_adapter(weights: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path)


class HeldOut:
    """Sampled correctness on the demo's held-out problems, by our engine and the demo's reward functions."""

    def __init__(self, job: Job) -> None:
        self._config = job.config()
        self._settings = self._config.eval.model_copy(update={"greedy": False})
        self._built = build(self._config)

    def judge(self, adapter: Path | None) -> dict[str, Any]:
        """-> `correct` with its 95 % interval, and how many completions that is of; None is the adapter before
        training."""
        from safetensors.torch import load_file

        from reinforge.evaluation import evaluate
        from reinforge.types import Adapter

        task, roles = self._built.task, self._built.roles
        weights = self._built.policy.adapter(0).weights if adapter is None else load_file(adapter)
        roles.sampler.load(Adapter(0, weights))
        found, _ = evaluate(task.heldout_prompts, roles.sampler, roles.grader, self._settings, HELD_OUT_SEED)
        return {"correct": found.pass_at_1, "ci95": found.ci95, "completions": found.num_samples}

    def __enter__(self) -> HeldOut:
        return self

    def __exit__(self, *fault: object) -> None:
        self._built.close()
