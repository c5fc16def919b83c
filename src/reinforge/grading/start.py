"""Starts the scorer that a reward function needs: workers for Python and for local graders, a joint one for graders
that hold others, and through a factory what is judged elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

from reinforge.config import JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.compound import CompoundScorer, ThresholdScorer
from reinforge.grading.judges.judges import Judges
from reinforge.grading.judges.rubric import RubricScorer
from reinforge.grading.language.local_grader import worker_source
from reinforge.grading.language.places import FACTORIES, is_local
from reinforge.grading.language.spec import PythonGrader, read
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.spec_judges import Judge, Rubric
from reinforge.grading.network import Network
from reinforge.grading.reward_function import DEFAULT_FUNCTION, RewardFunction
from reinforge.grading.scorers import FunctionWorkers, Scorer
from reinforge.sandbox import tiers
from reinforge.sandbox.access import OnConnection, ignore
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
    network: Network | None = None,
) -> Scorer:
    """The scorer that a function's dialect asks for. `settings` are those of its name; without `judges` none can be
    asked (ConfigError). `network` hears of the connections of its workers."""
    starter = _Starter(
        runtime,
        settings,
        judges or Judges(JudgeConfig()),
        Limits.from_config(runtime, {function.name: settings} if settings else {}).of(function.name),
        network.hearing(function.version) if network else ignore,
    )
    if function.dialect != "grader":
        return starter.workers(function)
    return starter.start(function, read(json.loads(function.source), function.file_name))


@dataclass(frozen=True, slots=True)
class _Starter:
    """Starts the parts of one function's grader, which share what it may use."""

    runtime: RewardFunctionsRuntimeConfig
    settings: RewardFunctionSettings | None
    judges: Judges
    limits: Limits
    on_connection: OnConnection

    def start(self, function: RewardFunction, node: GraderNode) -> Scorer:
        if isinstance(node, Rubric) and node.children():
            judged = node.judged()
            judge = None if judged is None else self.judges.scorer(function, judged)
            return _with_threshold(RubricScorer(function, node, self._parts(function, node), judge), node)
        if isinstance(node, Judge):
            return _with_threshold(self.judges.scorer(function, node), node)
        if is_local(node):
            return self._local(function, node)
        if isinstance(node, PythonGrader):
            called = replace(function, source=node.source, function_name=DEFAULT_FUNCTION, dialect="openai")
            return _with_threshold(self.workers(function, called), node)
        if node.type in FACTORIES:
            module, _, name = FACTORIES[node.type].partition(":")
            factory: Factory = getattr(importlib.import_module(module), name)
            return _with_threshold(factory(function, node, self.runtime, self.settings), node)
        return CompoundScorer(function, node.full_json(), self._parts(function, node))

    def _parts(self, function: RewardFunction, node: GraderNode) -> dict[str, Scorer]:
        """A scorer for each grader that the node holds; none is left behind when one does not start."""
        with ExitStack() as undo:
            parts: dict[str, Scorer] = {}
            for name, child in node.children().items():
                own = replace(function, name=name, file_name=f"{function.file_name} {name}", weight=1.0)
                parts[name] = self.start(own, child)
                undo.callback(parts[name].close)
            undo.pop_all()
            return parts

    def workers(self, function: RewardFunction, called: RewardFunction | None = None) -> FunctionWorkers:
        """For Python of the user."""
        return FunctionWorkers(
            function,
            self.runtime,
            pure=self._pure,
            called=called,
            limits=self.limits,
            on_connection=self.on_connection,
        )

    def _local(self, function: RewardFunction, node: GraderNode) -> FunctionWorkers:
        """What runs is ours: it needs what we need, and no consent where there is no isolation."""
        source = worker_source(node.full_json())
        called = replace(function, source=source, file_name="<grader>", function_name=DEFAULT_FUNCTION, packages=())
        tier, limits = tiers.choose().tier, self.limits.closed()
        return FunctionWorkers(function, self.runtime, pure=self._pure, called=called, tier=tier, limits=limits)

    @property
    def _pure(self) -> bool:
        return self.settings is not None and self.settings.pure


def _with_threshold(scorer: Scorer, node: GraderNode) -> Scorer:
    threshold = getattr(node, "pass_threshold", None)
    return scorer if threshold is None else ThresholdScorer(scorer, threshold)
