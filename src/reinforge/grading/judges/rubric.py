"""A rubric some of whose lines other graders check: code where code can tell, the judge for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace

from reinforge.grading.calls import Case
from reinforge.grading.futures import when_all
from reinforge.grading.judges.form import MAX_REASON, rubric_score
from reinforge.grading.language.spec_judges import Rubric
from reinforge.grading.reward_function import RewardFunction
from reinforge.grading.scorers import Scorer
from reinforge.types import Score

JUDGED = "judge"
"""What the judge's part is called in messages."""


class RubricScorer:
    """Scores by the lines of a rubric, each from where it is judged (implements scorers.Scorer).

    A part that fails makes the score fail in the same way, masked before error: without its lines it would be another
    rubric.
    """

    def __init__(
        self, function: RewardFunction, node: Rubric, checks: Mapping[str, Scorer], judge: Scorer | None
    ) -> None:
        """`checks` by the names of their lines; `judge` answers for all others, None when there are none."""
        self.function = function
        self._node = node
        self._parts = {**checks, **({JUDGED: judge} if judge is not None else {})}
        self._judge = judge

    @property
    def judges_each_alone(self) -> bool:
        return all(part.judges_each_alone for part in self._parts.values())

    def submit(self, case: Case) -> Future[list[Score]]:
        """See scorers.Scorer."""

        def join(columns: list[list[Score]]) -> list[Score]:
            return [self._score(dict(zip(self._parts, row, strict=True))) for row in zip(*columns, strict=True)]

        return when_all([part.submit(case) for part in self._parts.values()], join)

    def close(self) -> None:
        for part in self._parts.values():
            part.close()

    def _score(self, parts: Mapping[str, Score]) -> Score:
        score = Score(
            self.function.name,
            self.function.version,
            None,
            self.function.weight,
            prints="".join(f"[{name}]\n{part.prints}" for name, part in parts.items() if part.prints),
            latency_s=max(part.latency_s for part in parts.values()),
            cached=all(part.cached for part in parts.values()),
        )
        for state in ("masked", "error"):
            for name, part in parts.items():
                if part.state == state:
                    return replace(score, state=part.state, kind=part.kind, message=f"{name}: {part.message}")
        shares = {name: part.value or 0.0 for name, part in parts.items() if part is not parts.get(JUDGED)}
        if self._judge is not None:
            shares |= parts[JUDGED].metrics
        figures = {line.name: shares[line.name] for line in self._node.lines or []}
        reasons = [part.message if name == JUDGED else f"{name}: {part.message}" for name, part in parts.items()]
        reason = "; ".join(text for text in reasons if not text.endswith(": "))[:MAX_REASON]
        return replace(score, value=rubric_score(self._node, figures), message=reason, metrics=figures)
