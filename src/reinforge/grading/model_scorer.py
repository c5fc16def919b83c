"""Graders that are models (`similarity`, `fluency`): one long-lived worker that may read the model's folder, and that
alone besides what every worker may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import RewardError
from reinforge.grading.language.local_grader import worker_source
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.spec_builtins import BuiltIn
from reinforge.grading.reward_function import DEFAULT_FUNCTION, RewardFunction
from reinforge.grading.scorers import FunctionWorkers
from reinforge.model_files import fingerprint_model
from reinforge.sandbox import tiers
from reinforge.sandbox.limits import Limits

LIBRARIES_BYTES = 6 << 30
"""Address space that torch and transformers reserve, whatever the model."""
COPIES = 3
"""Of the weights while they are loaded: the file, its tensors, and those in float32."""
LOAD_S = 600.0


def model_scorer(
    function: RewardFunction,
    node: GraderNode,
    runtime: RewardFunctionsRuntimeConfig,
    settings: RewardFunctionSettings | None,
) -> FunctionWorkers:
    """The scorer of a node whose option `model` is a folder (see start.Factory): one worker, which loads it once."""
    assert isinstance(node, BuiltIn)
    folder = Path(node.options["model"])
    if fingerprint_model(folder) != node.options.get("fingerprint"):
        raise RewardError(
            f"{function.name}: the model in {folder} is not the one this version was made with.",
            hint="Put the model back, or make a new version of the function: reinforge rewards update RUN FILE.",
        )
    # Loaded with the module: what threads that leaves may stay, where those of a call would get the worker replaced.
    options = node.full_json()["options"]
    source = f"from reinforge.inference.text_models import load\nload({node.type!r}, {options!r})\n"
    source = worker_source(node.full_json()) + source
    called = replace(function, source=source, file_name="<grader>", function_name=DEFAULT_FUNCTION, packages=())
    return FunctionWorkers(
        function,
        runtime.model_copy(update={"workers": 1}),
        pure=settings is not None and settings.pure,
        called=called,
        tier=tiers.choose().tier,  # what runs is ours, so it needs no consent where there is no isolation
        limits=_limits(runtime, folder),
    )


def _limits(runtime: RewardFunctionsRuntimeConfig, folder: Path) -> Limits:
    """Of the worker: what the model needs beyond the config's, and its files, wherever links in the folder lead."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    linked = {str(path.resolve()) for path in files if path.resolve().parent != path.parent.resolve()}
    limits = Limits.from_config(runtime).closed()
    needed = LIBRARIES_BYTES + COPIES * sum(path.stat().st_size for path in files)
    return replace(
        limits,
        max_memory_bytes=max(limits.max_memory_bytes, needed),
        load_s=LOAD_S,
        readable=(str(folder), *sorted(linked)),
    )
