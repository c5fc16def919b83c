"""Graders whose parts are judged in different places: each part by a scorer of its own, their scores joined here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from reinforge.grading.builtin.result import Result
from reinforge.grading.calls import Case
from reinforge.grading.futures import then, when_all
from reinforge.grading.language.error_flags import GraderFault
from reinforge.grading.language.joining import gather, is_open, joiner, passed
from reinforge.grading.reward_function import RewardFunction
from reinforge.grading.scorers import Scorer
from reinforge.types import Score


class CompoundScorer:
    """Asks all parts at once; a gate asks its second part only for the completions that pass the first.

    A part that fails makes the score fail in the same way: masked before error. There is no joint score then, because
    a formula with a part missing would be another formula.
    """

    def __init__(self, function: RewardFunction, node: Mapping[str, Any], parts: Mapping[str, Scorer]) -> None:
        """`node` as `spec.full_json` writes it; `parts` by the names of its graders."""
        self.function = function
        self._node = node
        self._parts = dict(parts)
        self._join = joiner(node)

    @property
    def judges_each_alone(self) -> bool:
        return all(part.judges_each_alone for part in self._parts.values())

    def submit(self, case: Case) -> Future[list[Score]]:
        if self._node["type"] == "gate":
            first = self._parts["a"].submit(case)
            return then(first, lambda scores: self._second(case, scores))
        futures = [part.submit(case) for part in self._parts.values()]
        return when_all(futures, lambda columns: self._joined(dict(zip(self._parts, columns, strict=True))))

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _second(self, case: Case, first: list[Score]) -> Future[list[Score]]:
        """Ask the part behind the gate, and put what it says where it was asked."""
        places = [i for i, score in enumerate(first) if score.value is not None and is_open(self._node, score.value)]

        def finish(columns: list[list[Score]]) -> list[Score]:
            answers = dict(zip(places, columns[0], strict=True)) if columns else {}
            rows = [{"a": score} | ({"b": answers[i]} if i in answers else {}) for i, score in enumerate(first)]
            return [self._score(row) for row in rows]

        return when_all([self._parts["b"].submit(case.only(places))] if places else [], finish)

    def _joined(self, columns: Mapping[str, Sequence[Score]]) -> list[Score]:
        rows = zip(*columns.values(), strict=True)
        return [self._score(dict(zip(columns, row, strict=True))) for row in rows]

    def _score(self, parts: Mapping[str, Score]) -> Score:
        """The score of one completion from those of its parts."""
        known = {
            n: Result(s.value, s.message, s.metrics)
            for n, s in parts.items()
            if s.state == "ok" and s.value is not None
        }
        result = gather(0.0, known)
        score = Score(
            self.function.name,
            self.function.version,
            None,
            self.function.weight,
            prints="".join(f"[{name}]\n{part.prints}" for name, part in parts.items() if part.prints),
            latency_s=max(part.latency_s for part in parts.values()),
            metrics=result.metrics,
            cached=all(part.cached for part in parts.values()),
        )
        for state in ("masked", "error"):
            for name, part in parts.items():
                if part.state == state:
                    return replace(score, state=part.state, kind=part.kind, message=f"{name}: {part.message}")
        try:
            value = self._join({name: part.score for name, part in known.items()})
        except GraderFault as fault:
            return replace(score, state="error", kind=fault.kind, message=str(fault))
        return replace(score, value=value, message=result.reason)


class ThresholdScorer:
    """Says with each score whether it passes: the metric `passed`. The score stays as it is."""

    def __init__(self, inner: Scorer, threshold: float) -> None:
        self._inner = inner
        self._threshold = threshold

    @property
    def function(self) -> RewardFunction:
        return self._inner.function

    @property
    def judges_each_alone(self) -> bool:
        return self._inner.judges_each_alone

    def submit(self, case: Case) -> Future[list[Score]]:
        return when_all([self._inner.submit(case)], lambda answers: [self._told(score) for score in answers[0]])

    def close(self) -> None:
        self._inner.close()

    def _told(self, score: Score) -> Score:
        if score.value is None:
            return score
        return replace(score, metrics={**score.metrics, **passed(score.value, self._threshold)})
