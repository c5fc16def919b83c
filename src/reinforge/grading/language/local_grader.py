"""Graders that need nothing but the completion and the row, as one Python function. It runs inside a sandbox worker, so
that a pattern or an option that takes forever meets the worker's deadline.

The worker's source is the text that `worker_source` writes: it imports this module, and nothing of ours beyond it and
the built-in graders (no pydantic: a worker starts in the time Python takes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from reinforge.grading import builtin
from reinforge.grading.builtin.result import Result
from reinforge.grading.language.error_flags import CompletionFault, GraderFault
from reinforge.grading.language.joining import JOINED, children, gather, is_open, joiner, passed
from reinforge.grading.language.templates import Template
from reinforge.grading.language.text_metrics import METRICS

Namespaces = Mapping[str, object]
"""`item` and `sample`."""
Judge = Callable[[Namespaces], Result]

DEFAULT_INPUT = "{{sample.output_text}}"
"""What a built-in judges unless its `input` says otherwise."""


def worker_source(node: Mapping[str, Any]) -> str:
    """The text of a module whose function `grade` is this grader. `node` as `spec.full_json` writes it."""
    text = json.dumps(node, sort_keys=True)
    return f"from reinforge.grading.language.local_grader import make\ngrade = make({text!r})\n"


def make(text: str) -> Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, object]]:
    """The grader of a JSON text as `grade(sample, item)`: returns a result, or what kept it from one:
    `{"fault": kind, "message": text, "metrics": {...}}`.

    >>> grade = make('{"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "4"}')
    >>> grade({"output_text": "4"}, {})["score"]
    1.0
    """
    judge = build(json.loads(text))

    def grade(sample: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, object]:
        try:
            result = judge({"sample": sample, "item": item})
        except GraderFault as fault:
            return {"fault": fault.kind, "message": str(fault), "metrics": fault.metrics}
        return {"score": result.score, "reason": result.reason, "metrics": dict(result.metrics)}

    return grade


def build(node: Mapping[str, Any]) -> Judge:
    """A node as a function. What the completion lacks is a 0 with a reason."""
    kind, threshold = node["type"], node.get("pass_threshold")
    inner = _joined(node) if kind in JOINED else LEAVES.get(kind, _builtin)(node)

    def judge(namespaces: Namespaces) -> Result:
        try:
            result = inner(namespaces)
        except CompletionFault as fault:
            result = Result(0.0, str(fault), {fault.kind: 1.0})
        if threshold is None:
            return result
        return replace(result, metrics={**result.metrics, **passed(result.score, threshold)})

    return judge


def _joined(node: Mapping[str, Any]) -> Judge:
    judges = {name: build(child) for name, child in children(node).items()}
    join = joiner(node)

    def judge(namespaces: Namespaces) -> Result:
        parts: dict[str, Result] = {}
        faults: list[GraderFault] = []
        for name, part in judges.items():
            if node["type"] == "gate" and name == "b" and (faults or not is_open(node, parts["a"].score)):
                continue
            try:
                parts[name] = part(namespaces)
            except GraderFault as fault:
                faults.append(GraderFault(fault.kind, f"{name}: {fault}"))
        try:
            if faults:
                raise faults[0]
            return gather(join({name: part.score for name, part in parts.items()}), parts)
        except GraderFault as fault:
            raise GraderFault(fault.kind, str(fault), gather(0.0, parts).metrics) from None

    return judge


def _string_check(node: Mapping[str, Any]) -> Judge:
    given, wanted = Template.parse(node["input"]), Template.parse(node["reference"])
    compare = COMPARISONS[node["operation"]]

    def judge(namespaces: Namespaces) -> Result:
        return Result(float(compare(given.fill(namespaces), wanted.fill(namespaces))))

    return judge


COMPARISONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda given, wanted: given == wanted,
    "ne": lambda given, wanted: given != wanted,
    "like": lambda given, wanted: wanted in given,
    "ilike": lambda given, wanted: wanted.casefold() in given.casefold(),
}
"""Of string_check: equal, not equal, contains, contains in any case."""


def _text_similarity(node: Mapping[str, Any]) -> Judge:
    given, wanted = Template.parse(node["input"]), Template.parse(node["reference"])
    compare = METRICS[node["evaluation_metric"]]()

    def judge(namespaces: Namespaces) -> Result:
        return Result(compare(given.fill(namespaces), wanted.fill(namespaces)))

    return judge


def _builtin(node: Mapping[str, Any]) -> Judge:
    function = builtin.find(node["type"])
    options = {name: filler(value) for name, value in node["options"].items()}

    def judge(namespaces: Namespaces) -> Result:
        arguments = {name: fill(namespaces) for name, fill in options.items()}
        try:
            returned = function(**arguments)
        except ValueError as error:
            raise GraderFault("other_error", f"{node['type']}: {error}") from None
        return returned if isinstance(returned, Result) else Result(float(returned))

    return judge


def filler(value: object) -> Callable[[Namespaces], object]:
    """An option's value for one completion: texts are templates, also those in lists and tables."""
    if isinstance(value, str):
        return Template.parse(value).value
    if isinstance(value, list):
        entries = [filler(entry) for entry in value]
        return lambda namespaces: [entry(namespaces) for entry in entries]
    if isinstance(value, dict):
        table = {name: filler(entry) for name, entry in value.items()}
        return lambda namespaces: {name: entry(namespaces) for name, entry in table.items()}
    return lambda namespaces: value


LEAVES: dict[str, Callable[[Mapping[str, Any]], Judge]] = {
    "string_check": _string_check,
    "text_similarity": _text_similarity,
}
"""Types that are neither joined nor built-in functions -> what makes a judge of their node."""
