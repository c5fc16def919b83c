"""What a command is pointed at: a model, an adapter, a run, or a run at one of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reinforge.config import LoraParams
from reinforge.errors import UsageError
from reinforge.policy.model import Policy, is_adapter_folder, load_adapter_folder, load_policy, resolve_folder
from reinforge.run_store import Run, list_checkpoints
from reinforge.types import Adapter


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
        base_model, adapter = self.read()
        if adapter is None:
            return load_policy(base_model, LoraParams(rank=1), seed=0, **options)
        lora, weights = adapter
        policy = load_policy(base_model, lora, seed=0, **options)
        policy.load_weights(weights)
        return policy

    def read(self) -> tuple[str, tuple[LoraParams, dict[str, Tensor]] | None]:
        """(base model, its adapter); None for the base model itself."""
        if self.adapter is None:
            assert self.base_model is not None
            return self.base_model, None
        base_model, lora, weights = load_adapter_folder(self.adapter)
        return self.base_model or base_model, (lora, weights)


def load_base_of(subjects: Mapping[str, Subject]) -> tuple[Policy, dict[str, tuple[Adapter, LoraParams]]]:
    """The base model that several subjects share, and the adapters by the subjects' names; a subject that is the base
    model itself has none."""
    base_models, adapters = {}, {}
    for name, subject in subjects.items():
        base_models[name], adapter = subject.read()
        if adapter is not None:
            adapters[name] = (Adapter(0, adapter[1]), adapter[0])
    folders = {name: resolve_folder(base_model).resolve() for name, base_model in base_models.items()}
    first, *others = folders
    for other in others:
        if folders[other] != folders[first]:
            raise UsageError(
                f"{first} is on the base model {base_models[first]}, {other} on {base_models[other]}.",
                hint="Side by side, all must share one base model; talk to each by itself: reinforge chat NAME.",
            )
    in_4bit = {name: subjects[name].trained_in_4bit for name in adapters}
    if len(set(in_4bit.values())) > 1:
        raise UsageError(
            f"{', '.join(name for name in in_4bit if in_4bit[name])}: trained on a base in 4 bits, the rest not.",
            hint="Talk to each by itself: reinforge chat NAME.",
        )
    return load_policy(base_models[first], LoraParams(rank=1), seed=0, load_in_4bit=any(in_4bit.values())), adapters


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
