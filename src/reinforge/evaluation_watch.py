"""Looks at a held-out evaluation while it is made: says how far it is, and ends it when somebody asks for that or when
its scores are no judgement."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reinforge.config import GRPOConfig
from reinforge.insight.faults import FEW_CALLS, failing_already, failing_function, stopping_fault
from reinforge.rollout.collect import UnderWay
from reinforge.run_store import Event
from reinforge.types import Group

FAULTS_EVERY_S = 0.5
"""Looking through all grades takes time."""


class EvaluationStopped(Exception):
    """Somebody asked the run to stop, for this reason."""


class EvaluationFailed(Exception):
    """What its reward functions say is no judgement."""

    def __init__(self, fault: Event, groups: Sequence[Group]) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.groups = groups
        """What was judged."""


@dataclass
class EvaluationWatch:
    """What `evaluate` calls (rollout.collect.Look)."""

    config: GRPOConfig
    step: int
    take_stop_request: Callable[[], str]
    """The reason why the run is to stop, empty while nobody asks."""
    progress: Callable[[str, int, int], None]
    """See loop.Watcher."""
    looked_at: float = -FAULTS_EVERY_S

    def __call__(self, under_way: UnderWay) -> None:
        """Raises EvaluationStopped or EvaluationFailed when the evaluation is not to go on."""
        if reason := self.take_stop_request():
            raise EvaluationStopped(reason)
        tell_progress(self.progress, f"held-out at step {self.step}: ", under_way)
        if time.monotonic() - self.looked_at < FAULTS_EVERY_S:
            return
        judged = under_way.judged()
        self.looked_at = time.monotonic()
        a_step, num_calls = self.config.prompts_per_step * self.config.num_generations, under_way.num_completions
        if under_way.requests[0].greedy:  # of their functions the share is known; what hangs still must end
            a_step = num_calls = sys.maxsize
        fault = stopping_fault(judged) or failing_already(judged, *_limits(self.config), a_step, num_calls)
        if fault is not None:
            raise EvaluationFailed(fault, judged)


def tell_progress(progress: Callable[[str, int, int], None], where: str, under_way: UnderWay) -> None:
    """How many completions are sampled and, once all are, how many are judged."""
    num_sampled, num_completions = sum(map(len, under_way.ended)), under_way.num_completions
    what = f"{where}{'greedy ' if under_way.requests[0].greedy else ''}completions"
    if num_sampled < num_completions:
        progress(f"{what} sampled", num_sampled, num_completions)
    else:
        progress(f"{what} judged", sum(len(group.grades) for group in under_way.judged()), num_completions)


def evaluation_fault(config: GRPOConfig, groups: Sequence[Group]) -> Event | None:
    """Why these groups judge no policy. With a handful of completions, a share says nothing."""
    return stopping_fault(groups) or failing_function(groups, *_limits(config), min_calls=FEW_CALLS)


def fault_of(config: GRPOConfig, groups: Sequence[Group]) -> Event | None:
    """Why these groups must not be learned from: a judge is gone, or the scores of a function are no judgement."""
    return stopping_fault(groups) or failing_function(groups, *_limits(config))


def _limits(config: GRPOConfig) -> tuple[float, dict[str, float]]:
    """The share of calls that may fail, and that of functions for which it is another."""
    rewards = config.reward_fns
    strict = {name: 0.0 for name, settings in rewards.settings.items() if settings.on_error == "fail"}
    return rewards.max_error_rate, strict
