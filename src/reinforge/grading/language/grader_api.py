"""OpenAI's grader endpoints as plain functions: `validate` and `run`, with their replies.

Keys beside OpenAI's, all in `metadata`: `logs` (what Python graders printed), `valid` (false where the reward is no
judgement but an error), `reason`, and `version`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from reinforge.config import JudgeConfig, RewardFunctionsRuntimeConfig
from reinforge.errors import RewardError
from reinforge.grading.calls import Case
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.language.error_flags import ERROR_DETAILS, ERROR_FLAGS
from reinforge.grading.language.grader_json import read_json
from reinforge.grading.language.spec import PythonGrader, canonical_text, read, walk
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.reward_function import SourceText, load_text
from reinforge.run_store.judgements import Usage
from reinforge.sandbox.environments import Tell, silent, worker_limits
from reinforge.types import Example, Score

MACHINE_KINDS = {"worker_unavailable"}
"""Faults of the machine that runs a Python grader."""


def validate(grader: str | Mapping[str, Any]) -> dict[str, Any]:
    """`{"grader": ...}`, normalised; RewardError with everything that is wrong, with lines where a text is given.

    >>> check = {"type": "string_check", "name": "n", "input": "a", "reference": "b", "operation": "neq"}
    >>> validate(check)["grader"]["operation"]
    'ne'
    """
    return {"grader": _read(grader).to_json()}


def run(
    grader: str | Mapping[str, Any],
    model_sample: str,
    item: Mapping[str, Any] | None = None,
    *,
    runtime: RewardFunctionsRuntimeConfig | None = None,
    judge: JudgeConfig | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Judge one completion; `judge` says where judges are asked, `tell` hears what the waiting is for.

    RewardError when the grader cannot be loaded; what goes wrong while it judges is in the reply's flags, and the
    reward is 0 then.

    >>> check = {"type": "string_check", "name": "n", "input": "{{sample.output_text}}", "reference": "{{item.a}}",
    ...     "operation": "eq"}
    >>> reply = run(check, "4", {"a": 4})
    >>> reply["reward"], reply["metadata"]["errors"]["invalid_variable_error"]
    (1.0, False)
    """
    node, runtime = _read(grader), runtime or RewardFunctionsRuntimeConfig()
    name = node.name or node.type
    function = load_text(name, SourceText(canonical_text(node), f"<{name}>", ""), limits=worker_limits(runtime, tell))
    started = time.perf_counter()
    with closing(RewardFunctionGrader([function], runtime, tell=tell, judge=judge, tell_try=tell)) as judging:
        (grade,) = judging.grade_case(_case(model_sample, item or {})).result()
        usage = judging.judges.usage()
    return reply_of(node, grade.scores[0], usage, time.perf_counter() - started)


def _read(grader: str | Mapping[str, Any]) -> GraderNode:
    return read_json(grader) if isinstance(grader, str) else read(grader)


def _case(model_sample: str, item: Mapping[str, Any]) -> Case:
    columns = dict(item)
    messages = columns.pop("messages", None)
    if messages is None:
        return Case(Example(0, "", columns), "", (model_sample,), ((),))
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise RewardError("item.messages must be a list of messages.")
    tools = tuple(columns.pop("tools", None) or ())
    example = replace(Example(0, tuple(messages), columns), tools=tools)
    return Case(example, json.dumps(messages), (model_sample,), ((),))


def reply_of(node: GraderNode, score: Score, usage: Sequence[Usage], execution_time_s: float) -> dict[str, Any]:
    """A score as the run endpoint replies it, with what judges used for it."""
    parts = {name: score.metrics.get(name) for name in node.children()}
    return {
        "reward": 0.0 if score.value is None else score.value,
        "sub_rewards": parts,
        "model_grader_token_usage_per_model": {
            of.model: {
                "prompt_tokens": of.prompt_tokens,
                "completion_tokens": of.completion_tokens,
                "total_tokens": of.tokens,
            }
            for of in usage
        },
        "metadata": {
            "name": node.name or node.type,
            "type": node.type,
            "execution_time": execution_time_s,
            "scores": parts or {node.name or node.type: score.value},
            "token_usage": sum(of.tokens for of in usage) if usage else None,
            "sampled_model_name": usage[0].model if len(usage) == 1 else None,
            "errors": errors_of(node, score),
            "logs": score.prints,
            "valid": score.value is not None,
            "reason": score.message,
            "version": score.version,
        },
    }


def errors_of(node: GraderNode, score: Score) -> dict[str, Any]:
    """The fourteen flags.

    A completion that lacks what the grader reads raises its flag though its score is an honest 0. A call that takes
    too long is `unresponsive_reward_error`; in Python it is a runtime error too.
    """
    flags: dict[str, Any] = {}
    for flag in ERROR_FLAGS:
        flags |= {flag: False} | ({ERROR_DETAILS[flag]: None} if flag in ERROR_DETAILS else {})
    raised = {name.rpartition("/")[2] for name, value in score.metrics.items() if value}
    flags |= {flag: True for flag in ERROR_FLAGS if flag in raised}
    if score.state == "ok":
        return flags
    for flag in _flags_of(node, score.kind):
        flags[flag] = True
        if flag in ERROR_DETAILS:
            flags[ERROR_DETAILS[flag]] = score.kind if flag == "python_grader_server_error" else score.message
    return flags


def _flags_of(node: GraderNode, kind: str) -> set[str]:
    if kind in ERROR_FLAGS:
        return {kind}
    if kind.startswith("judge_"):
        return {"model_grader_server_error"}
    has_python = any(isinstance(part, PythonGrader) for _, part in walk(node))
    if kind in MACHINE_KINDS:
        return {"python_grader_server_error" if has_python else "other_error"}
    slow = {"unresponsive_reward_error"} if kind == "timeout" else set()
    return slow | ({"python_grader_runtime_error"} if has_python else set() if slow else {"other_error"})
