"""What becomes of a failed score: what counts in its place, or that its completion is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reinforge.config import RewardFunctionSettings
from reinforge.types import Grade, Score


def settle(grade: Grade, settings: Mapping[str, RewardFunctionSettings]) -> Grade:
    """The grade with every failed score treated as its function's settings say. In this order: the value its `fallback`
    gave this completion, its `default`, then `on_error`. The score stays an error: only `stand_in` is filled.

    >>> from reinforge.config import RewardFunctionSettings as Settings
    >>> grade = Grade((Score("judge", "judge_v1", None, state="error"), Score("rule", "rule_v1", 0.5, weight=0.0)))
    >>> settle(grade, {"judge": Settings(fallback="rule")}).reward
    0.5
    >>> settle(grade, {"judge": Settings(on_error="mask")}).state
    'masked'
    """
    if all(score.state == "ok" for score in grade.scores):
        return grade
    by_name = {score.name: score for score in grade.scores}
    return Grade(tuple(_settled(score, by_name, settings.get(score.name)) for score in grade.scores))


def _settled(score: Score, by_name: Mapping[str, Score], settings: RewardFunctionSettings | None) -> Score:
    if score.state == "ok" or settings is None:
        return score
    fallback = by_name.get(settings.fallback) if settings.fallback is not None else None
    stand_in = settings.default if fallback is None or fallback.value is None else fallback.value
    if stand_in is not None:
        return replace(score, state="error", stand_in=stand_in)
    return replace(score, state="masked") if settings.on_error == "mask" else score
