"""Prompts -> groups of graded completions: the one path of training and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from reinforge.roles import Grader, GroupGrading, Sampler
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


@dataclass(frozen=True, slots=True)
class UnderWay:
    """What is there of groups that are being sampled and judged."""

    requests: Sequence[SampleRequest]
    ended: Sequence[Mapping[int, Completion]]
    """Of each request, by generation."""
    gradings: Sequence[GroupGrading]

    @property
    def num_completions(self) -> int:
        """When all are there."""
        return sum(request.num_generations for request in self.requests)

    def judged(self) -> tuple[Group, ...]:
        """Of each prompt what is judged already."""
        groups = []
        for request, of_request, grading in zip(self.requests, self.ended, self.gradings, strict=True):
            grades = grading.judged(0.0)
            completions = tuple(of_request[generation] for generation in grades)
            groups.append(Group(request.prompt, 0, completions, tuple(grades.values())))
        return tuple(groups)


Look = Callable[[UnderWay], None]
"""Called for every completion that ends and then every LOOK_S until all are judged. What it raises ends the work."""

LOOK_S = 0.2


def collect(
    requests: Sequence[SampleRequest],
    epochs: Sequence[int],
    sampler: Sampler,
    grader: Grader,
    extra_scores: Sequence[ExtraScore] = (),
    look: Look | None = None,
) -> Collected:
    """Sample every request and judge each completion from the moment it ends.

    `epochs` has the epoch of each request's prompt. The result depends on neither the order in which completions end
    nor the time graders take.
    """
    started = time.monotonic()
    gradings = [grader.begin(r.prompt, r.num_generations, r.first_generation) for r in requests]
    ended: list[dict[int, Completion]] = [{} for _ in requests]
    under_way = UnderWay(requests, ended, gradings)
    for place, completion in sampler.sample(requests):
        ended[place][completion.generation] = completion
        gradings[place].add(completion)
        if look is not None:
            look(under_way)
    sampled = time.monotonic()
    for request, of_request in zip(requests, ended, strict=True):
        if len(of_request) != request.num_generations:
            raise RuntimeError(f"the sampler gave {len(of_request)} of {request.num_generations} completions")
    for request, grading in zip(requests, gradings, strict=True):
        while look is not None and len(grading.judged(LOOK_S)) < request.num_generations:
            look(under_way)
    groups = []
    for request, epoch, of_request, grading in zip(requests, epochs, ended, gradings, strict=True):
        completions = tuple(of_request[generation] for generation in request.generations)
        grades = [_with(g, c, extra_scores) for g, c in zip(grading.grades(), completions, strict=True)]
        groups.append(Group(request.prompt, epoch, completions, tuple(grades)))
    return Collected(tuple(groups), sampled - started, time.monotonic() - sampled)


def _with(grade: Grade, completion: Completion, extra_scores: Sequence[ExtraScore]) -> Grade:
    if grade.reward is None:  # no score of ours makes a masked completion, or one no function applies to, count
        return grade
    return replace(grade, scores=grade.scores + tuple(score(completion) for score in extra_scores))
