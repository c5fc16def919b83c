"""The scorer of `code_tests`: its templates are filled here, the code runs in workers that run nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.builtin.result import Result
from reinforge.grading.calls import Case, openai_item, openai_sample
from reinforge.grading.code_tests import CODE_LIMITS, harness_source, judge_code
from reinforge.grading.language.error_flags import CompletionFault, GraderFault
from reinforge.grading.language.local_grader import filler
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.spec_builtins import BuiltIn
from reinforge.grading.reward_function import RewardFunction
from reinforge.grading.scorers import FunctionWorkers
from reinforge.sandbox.pool import Limits, SourceFault, Worker, WorkerUnavailable
from reinforge.types import Score


def code_scorer(
    function: RewardFunction,
    node: GraderNode,
    runtime: RewardFunctionsRuntimeConfig,
    settings: RewardFunctionSettings | None,
) -> FunctionWorkers:
    """Workers for model-written code (see start.Factory): their source is the harness, each completion a fresh one."""
    assert isinstance(node, BuiltIn)
    return FunctionWorkers(
        function,
        runtime,
        pure=settings is not None and settings.pure,
        called=replace(function, source=harness_source(), file_name="code_harness.py"),
        limits=replace(Limits.from_config(runtime).closed(), **CODE_LIMITS),
        score=partial(_score_case, function, node.full_json()["options"]),
    )


def _score_case(function: RewardFunction, options: Mapping[str, Any], case: Case, worker: Worker) -> list[Score]:
    fillers = {name: filler(value) for name, value in options.items()}
    item = openai_item(case.example)
    scores = []
    for place, text in enumerate(case.texts):
        start = perf_counter()
        namespaces = {"sample": openai_sample(text, case.finish_reason(place)), "item": item}
        score = Score(function.name, function.version, None, function.weight)
        try:
            result = _judge({name: fill(namespaces) for name, fill in fillers.items()}, worker)
            score = replace(score, value=result.score, message=result.reason, metrics=result.metrics)
        except CompletionFault as fault:
            score = replace(score, value=0.0, message=str(fault), metrics={fault.kind: 1.0})
        except GraderFault as fault:
            score = replace(score, state="error", kind=fault.kind, message=str(fault))
        except (WorkerUnavailable, SourceFault) as error:
            score = replace(score, state="masked", kind="worker_unavailable", message=str(error))
        worker.renew()  # the next completion finds neither files nor memory of this one
        scores.append(replace(score, latency_s=perf_counter() - start))
    return scores


def _judge(arguments: dict[str, Any], worker: Worker) -> Result:
    try:
        return judge_code(sandbox=worker, **arguments)
    except ValueError as error:
        raise GraderFault("other_error", f"code_tests: {error}") from None
