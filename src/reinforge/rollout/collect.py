"""Prompts -> groups of graded completions: the one path of training and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from reinforge.roles import Grader, Sampler
from reinforge.types import Completion, Grade, Group, SampleRequest, Score

ExtraScore = Callable[[Completion], Score]
"""A score that needs no user code, e.g. the length penalty."""


@dataclass(frozen=True, slots=True)
class Collected:
    """Graded groups, in the order of their requests, and where the time went."""

    groups: tuple[Group, ...]
    rollout_s: float
    """Until the last completion was there; judging goes on meanwhile."""
    reward_wait_s: float
    """From then until the last grade was there."""


def collect(
    requests: Sequence[SampleRequest],
    epochs: Sequence[int],
    sampler: Sampler,
    grader: Grader,
    extra_scores: Sequence[ExtraScore] = (),
) -> Collected:
    """Sample every request and judge each group as soon as its last completion ends.

    `epochs` has the epoch of each request's prompt. The result depends on neither the order in which completions end
    nor the time graders take.
    """
    started = time.monotonic()
    places: list[list[Completion | None]] = [[None] * request.num_generations for request in requests]
    pending: dict[int, Future[tuple[Grade, ...]]] = {}
    for place, completion in sampler.sample(requests):
        places[place][completion.generation] = completion
        ended = _if_all_there(places[place])
        if ended:
            pending[place] = grader.grade(requests[place].prompt, ended)
    sampled = time.monotonic()
    groups = []
    for place, request in enumerate(requests):
        if place not in pending:
            num_there = sum(completion is not None for completion in places[place])
            raise RuntimeError(f"the sampler gave {num_there} of {request.num_generations} completions")
        completions = _if_all_there(places[place])
        grades = [_with(g, c, extra_scores) for g, c in zip(pending[place].result(), completions, strict=True)]
        groups.append(Group(request.prompt, epochs[place], completions, tuple(grades)))
    return Collected(tuple(groups), sampled - started, time.monotonic() - sampled)


def _if_all_there(completions: Sequence[Completion | None]) -> tuple[Completion, ...]:
    """All of a group's completions, or none of them."""
    there = tuple(completion for completion in completions if completion is not None)
    return there if len(there) == len(completions) else ()


def _with(grade: Grade, completion: Completion, extra_scores: Sequence[ExtraScore]) -> Grade:
    if grade.reward is None:  # no score of ours makes a masked completion, or one no function applies to, count
        return grade
    return replace(grade, scores=grade.scores + tuple(score(completion) for score in extra_scores))
