"""The groups of a step, in rounds: whole groups where they teach (adaptive groups), others for those that do not
(dynamic sampling). Every round is decided when all of the one before is judged, in the order of prompts, so no timing
can change what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reinforge.config import GRPOConfig
from reinforge.data.order import PromptOrder
from reinforge.insight.outcome import group_outcome
from reinforge.roles import Grader, Sampler
from reinforge.rollout.collect import Collected, ExtraScore, collect
from reinforge.run_store import Event
from reinforge.types import Drawn, Group, Prompt, SampleRequest

FindFault = Callable[[Sequence[Group]], Event | None]
"""Whether these groups must not be learned from, and why."""


@dataclass(frozen=True)
class Rollouts:
    """Draws the groups of steps."""

    config: GRPOConfig
    prompts: Sequence[Prompt]
    sampler: Sampler
    grader: Grader
    extra_scores: Sequence[ExtraScore]
    find_fault: FindFault

    def draw(self, step: int, prompts_drawn: int) -> Drawn:
        """The groups of the step after `step` steps, of the prompts from position `prompts_drawn` on."""
        groups: list[Group] = []
        parts: list[Collected] = []
        faulty = False
        for _ in range(1 + self.config.dynamic_sampling.max_rounds):
            num_missing = self.config.prompts_per_step - sum(map(_teaches, groups))
            if not num_missing or faulty:
                break
            places = range(len(groups), len(groups) + num_missing)
            collected = self._whole_round(step, prompts_drawn, places)
            groups += collected[-1].groups
            parts += collected
            faulty = self.find_fault(groups) is not None
        is_kept = kept(groups, self.config.prompts_per_step)
        return Drawn(
            groups=tuple(groups),
            is_kept=is_kept,
            rollout_s=sum(part.rollout_s for part in parts),
            reward_wait_s=sum(part.reward_wait_s for part in parts),
            figures=self._figures(groups, is_kept),
        )

    def _whole_round(self, step: int, prompts_drawn: int, places: range) -> list[Collected]:
        """Groups for these places of the step -> what was collected, the last with the finished groups."""
        order, start = PromptOrder(len(self.prompts), self.config.seed), self.config.adaptive_groups.start
        drawn = [order.at(prompts_drawn + place) for place in places]
        epochs = [epoch for _, epoch in drawn]
        whole = self.config.num_generations
        requests = [
            SampleRequest(self.prompts[index], start or whole, (self.config.seed, step, place))
            for place, (index, _) in zip(places, drawn, strict=True)
        ]
        first = self._collect(requests, epochs)
        if start is None or self.find_fault(first.groups) is not None:
            return [first]
        open_places = [i for i, group in enumerate(first.groups) if _is_open(group)]
        more = [replace(requests[i], num_generations=whole - start, first_generation=start) for i in open_places]
        second = self._collect(more, [epochs[i] for i in open_places])
        groups = list(first.groups)
        for i, extension in zip(open_places, second.groups, strict=True):
            groups[i] = _joined(groups[i], extension)
        return [first, replace(second, groups=tuple(groups))]

    def _collect(self, requests: Sequence[SampleRequest], epochs: Sequence[int]) -> Collected:
        return collect(requests, epochs, self.sampler, self.grader, self.extra_scores)

    def _figures(self, groups: Sequence[Group], is_kept: Sequence[bool]) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.config.dynamic_sampling.max_rounds:
            figures |= {"group/drawn": float(len(groups)), "group/kept_share": sum(is_kept) / len(groups)}
        if self.config.adaptive_groups.start is not None:
            extended = sum(len(group.completions) == self.config.num_generations for group in groups)
            figures["group/extended_share"] = extended / len(groups)
        return figures


def kept(groups: Sequence[Group], num_wanted: int) -> tuple[bool, ...]:
    """Which groups make the batch: all that teach and, where these are fewer than wanted, the first of the others."""
    num_others = num_wanted - sum(map(_teaches, groups))
    choices = []
    for group in groups:
        teaches = _teaches(group)
        choices.append(teaches or num_others > 0)
        num_others -= not teaches
    return tuple(choices)


def _teaches(group: Group) -> bool:
    return group_outcome(group) == "learning"


def _is_open(group: Group) -> bool:
    """Whether more completions can make, or keep, it a group that teaches: it does, or too few could be judged."""
    return group_outcome(group) in ("learning", "dropped")


def _joined(group: Group, extension: Group) -> Group:
    completions = group.completions + extension.completions
    return replace(group, completions=completions, grades=group.grades + extension.grades)
