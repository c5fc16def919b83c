"""Starts the scorer that a reward function needs: workers for Python and for local graders, a joint one for graders
that hold others, and through a factory what is judged elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from reinforge.config import JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.compound import CompoundScorer, ThresholdScorer
from reinforge.grading.judge import Judges
from reinforge.grading.local_grader import worker_source
from reinforge.grading.places import FACTORIES, is_local
from reinforge.grading.reward_function import DEFAULT_FUNCTION, RewardFunction
from reinforge.grading.scorers import FunctionWorkers, Scorer
from reinforge.grading.spec import PythonGrader, read
from reinforge.grading.spec_base import GraderNode
from reinforge.grading.spec_judges import Judge
from reinforge.sandbox import tiers
from reinforge.sandbox.limits import Limits

Factory = Callable[
    [RewardFunction, GraderNode, RewardFunctionsRuntimeConfig, RewardFunctionSettings | None],
    Scorer,
]


def start_scorer(
    function: RewardFunction,
    runtime: RewardFunctionsRuntimeConfig,
    settings: RewardFunctionSettings | None = None,
    judges: Judges | None = None,
) -> Scorer:
    """The scorer that a function's dialect asks for. `settings` are those of its name; without `judges` none can be
    asked (ConfigError)."""
    if function.dialect != "grader":
        return FunctionWorkers(function, runtime, pure=settings is not None and settings.pure)
    node = read(json.loads(function.source), function.file_name)
    return _start(function, node, runtime, settings, judges or Judges(JudgeConfig()))


def _start(
    function: RewardFunction,
    node: GraderNode,
    runtime: RewardFunctionsRuntimeConfig,
    settings: RewardFunctionSettings | None,
    judges: Judges,
) -> Scorer:
    if isinstance(node, Judge):
        return _with_threshold(judges.scorer(function, node), node)
    pure = settings is not None and settings.pure
    if is_local(node):
        source = worker_source(node.full_json())
        called = replace(function, source=source, file_name="<grader>", function_name=DEFAULT_FUNCTION, packages=())
        # What runs is ours: it needs what we need, and no consent where there is no isolation.
        limits = Limits.from_config(runtime).closed()
        return FunctionWorkers(function, runtime, pure=pure, called=called, tier=tiers.choose().tier, limits=limits)
    if isinstance(node, PythonGrader):
        called = replace(function, source=node.source, function_name=DEFAULT_FUNCTION, dialect="openai")
        return _with_threshold(FunctionWorkers(function, runtime, pure=pure, called=called), node)
    if node.type in FACTORIES:
        module, _, name = FACTORIES[node.type].partition(":")
        factory: Factory = getattr(importlib.import_module(module), name)
        return _with_threshold(factory(function, node, runtime, settings), node)
    with ExitStack() as undo:
        parts: dict[str, Scorer] = {}
        for name, child in node.children().items():
            own = replace(function, name=name, file_name=f"{function.file_name} {name}", weight=1.0)
            parts[name] = _start(own, child, runtime, settings, judges)
            undo.callback(parts[name].close)
        undo.pop_all()
        return CompoundScorer(function, node.full_json(), parts)


def _with_threshold(scorer: Scorer, node: GraderNode) -> Scorer:
    threshold = getattr(node, "pass_threshold", None)
    return scorer if threshold is None else ThresholdScorer(scorer, threshold)
