"""What a command is pointed at: a model, an adapter, a run, or a run at one of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforge.config import LoraParams
from reinforge.errors import UsageError
from reinforge.policy.model import Policy, is_adapter_folder, load_adapter_folder, load_policy
from reinforge.run_store import Run, list_checkpoints


@dataclass(frozen=True)
class Subject:
    """A model or adapter by its place, before it is loaded."""

    base_model: str | None
    """None: said by the adapter."""
    adapter: Path | None
    run: Path | None
    """The run it comes from, whose config says how it was trained."""
    trained_in_4bit: bool = False
    """Its adapter belongs to a base in 4 bits."""

    def load(
        self,
        *,
        seed: int = 0,
        dtype: str = "auto",
        device: str = "auto",
        trust_remote_code: bool = False,
        load_in_4bit: bool = False,
    ) -> Policy:
        """The policy; one without an adapter is the base model. In 4 bits if asked for, or trained so."""
        options: dict[str, Any] = {
            "dtype": dtype,
            "device": device,
            "trust_remote_code": trust_remote_code,
            "load_in_4bit": load_in_4bit or self.trained_in_4bit,
        }
        if self.adapter is None:
            assert self.base_model is not None
            return load_policy(self.base_model, LoraParams(rank=1), seed=0, **options)
        base_model, lora, weights = load_adapter_folder(self.adapter)
        policy = load_policy(self.base_model or base_model, lora, seed=0, **options)
        policy.load_weights(weights)
        return policy


def find_subject(name: str | Path) -> Subject:
    """A run's directory (its adapter, or the newest checkpoint's), RUN@STEP (that checkpoint's), an adapter folder, or
    the folder or hub id of a model."""
    name = str(name)
    path, at, step = name.rpartition("@")
    if at and (Path(path) / "run.json").is_file():
        return _of_run(Path(path), _number(name, step))
    if (Path(name) / "run.json").is_file():
        return _of_run(Path(name), None)
    if is_adapter_folder(Path(name)):
        return Subject(None, Path(name), None)
    return Subject(name, None, None)


def _of_run(path: Path, step: int | None) -> Subject:
    with Run.open(path) as run:
        config = run.config()
    base_model, in_4bit = str(config["base_model"]), bool(config.get("load_in_4bit"))
    if step is None and is_adapter_folder(path / "adapter"):
        return Subject(base_model, path / "adapter", path, in_4bit)
    checkpoints = {checkpoint.step: checkpoint.path for checkpoint in list_checkpoints(path)}
    if not checkpoints:
        raise UsageError(f"{path} has no adapter yet.", hint="Wait for its first checkpoint.")
    chosen = max(checkpoints) if step is None else step
    if chosen not in checkpoints:
        raise UsageError(
            f"{path} has no checkpoint of step {chosen} (it has {sorted(checkpoints)}).", hint="Name one of those."
        )
    return Subject(base_model, checkpoints[chosen] / "adapter", path, in_4bit)


def _number(name: str, step: str) -> int:
    if not step.isdigit():
        raise UsageError(f"{name}: {step!r} is no step.", hint="Write RUN@STEP with a number.")
    return int(step)
