"""Starts the scorer that a reward function needs: workers for Python and for local graders, a joint one for graders
that hold others, and through a factory what is judged elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading import builtin
from reinforge.grading.compound import CompoundScorer
from reinforge.grading.joining import JOINED
from reinforge.grading.local_grader import LEAVES, worker_source
from reinforge.grading.reward_function import DEFAULT_FUNCTION, RewardFunction
from reinforge.grading.scorers import FunctionWorkers, Scorer
from reinforge.grading.spec import GraderNode, PythonGrader, read, walk
from reinforge.sandbox import tiers

Factory = Callable[
    [RewardFunction, GraderNode, RewardFunctionsRuntimeConfig, RewardFunctionSettings | None],
    Scorer,
]
FACTORIES: dict[str, str] = {}
"""Type of grader -> `module:function`, a Factory: for types that are judged elsewhere than in a worker."""


def start_scorer(
    function: RewardFunction, runtime: RewardFunctionsRuntimeConfig, settings: RewardFunctionSettings | None = None
) -> Scorer:
    """The scorer that a function's dialect asks for. `settings` are those of its name."""
    if function.dialect != "grader":
        return FunctionWorkers(function, runtime, pure=settings is not None and settings.pure)
    return _start(function, read(json.loads(function.source), function.file_name), runtime, settings)


def is_local(node: GraderNode) -> bool:
    """Whether a worker can judge by it alone, without Python of the user, models or other services."""
    types = {part.type for _, part in walk(node)}
    return all(
        kind not in FACTORIES and (kind in LEAVES or kind in JOINED or kind in builtin.BUILTINS) for kind in types
    )


def _start(
    function: RewardFunction,
    node: GraderNode,
    runtime: RewardFunctionsRuntimeConfig,
    settings: RewardFunctionSettings | None,
) -> Scorer:
    pure = settings is not None and settings.pure
    if isinstance(node, PythonGrader):
        called = replace(function, source=node.source, function_name=DEFAULT_FUNCTION, dialect="openai")
        return FunctionWorkers(function, runtime, pure=pure, called=called)
    if is_local(node):
        source = worker_source(node.full_json())
        called = replace(function, source=source, file_name="<grader>", function_name=DEFAULT_FUNCTION, packages=())
        # What runs is ours: it needs what we need, and no consent where there is no isolation.
        return FunctionWorkers(function, runtime, pure=pure, called=called, tier=tiers.choose().tier)
    if node.type in FACTORIES:
        module, _, name = FACTORIES[node.type].partition(":")
        factory: Factory = getattr(importlib.import_module(module), name)
        return factory(function, node, runtime, settings)
    with ExitStack() as undo:
        parts: dict[str, Scorer] = {}
        for name, child in node.children().items():
            own = replace(function, name=name, file_name=f"{function.file_name} {name}", weight=1.0)
            parts[name] = _start(own, child, runtime, settings)
            undo.callback(parts[name].close)
        undo.pop_all()
        return CompoundScorer(function, node.full_json(), parts)
