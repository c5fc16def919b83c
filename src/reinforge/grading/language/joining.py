"""How a grader that holds others makes one score of theirs: by a formula, as a weighted sum, or as a gate.

Nodes are plain JSON objects as `spec.full_json` writes them, defaults filled in. The same functions serve graders that
run in one worker and those whose parts are judged in several places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reinforge.grading.builtin.composite import combine, gate
from reinforge.grading.builtin.result import Result
from reinforge.grading.language import formula

JOINED = ("multi", "combine", "gate")
"""Types that hold other graders."""


def children(node: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The graders a node holds, by the names their scores have in it; empty for all other types."""
    if node["type"] == "gate":
        return {"a": node["a"], "b": node["b"]}
    return dict(node["graders"]) if node["type"] in JOINED else {}


def is_open(node: Mapping[str, Any], a: float) -> bool:
    """Whether a gate asks its grader b.

    >>> is_open({"at_least": 1.0}, 0.99)
    False
    """
    return a >= float(node["at_least"])


def joiner(node: Mapping[str, Any]) -> Callable[[Mapping[str, float]], float]:
    """Scores by name -> the score of the node. FormulaFault where the formula has no value.

    >>> joiner({"type": "multi", "calculate_output": "a * b"})({"a": 0.5, "b": 0.5})
    0.25
    >>> joiner({"type": "combine", "weights": {"a": 2.0}, "clip": [0, 1]})({"a": 0.25, "b": 0.75})
    1.0
    >>> joiner({"type": "gate", "at_least": 1.0, "share": 0.0, "below": "a"})({"a": 0.5})
    0.5
    """
    if node["type"] == "multi":
        return formula.parse(node["calculate_output"]).value
    if node["type"] == "combine":
        return lambda scores: combine(scores=scores, weights=node["weights"], clip=node["clip"])
    options = {name: node[name] for name in ("at_least", "share", "below")}
    return lambda scores: gate(a=scores["a"], b=scores.get("b"), **options)


def gather(score: float, parts: Mapping[str, Result]) -> Result:
    """The node's result: its score, with the scores, figures and reasons of its parts under their names.

    >>> gather(0.5, {"f1": Result(0.5, "1 of 2", {"recall": 0.5})})
    Result(score=0.5, reason='f1: 1 of 2', metrics={'f1': 0.5, 'f1/recall': 0.5})
    """
    metrics: dict[str, float] = {}
    for name, part in parts.items():
        metrics[name] = part.score
        metrics |= {f"{name}/{figure}": value for figure, value in part.metrics.items()}
    return Result(score, "; ".join(f"{name}: {part.reason}" for name, part in parts.items() if part.reason), metrics)


def passed(score: float, threshold: float) -> dict[str, float]:
    """The metric that a `pass_threshold` adds.

    >>> passed(0.5, 0.5)
    {'passed': 1.0}
    """
    return {"passed": float(score >= threshold)}
