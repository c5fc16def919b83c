"""Rollouts beside the learner: the groups of the next step are drawn in a thread while this one is learned from.

The sampler has its own copy of the weights, and both threads use their own pool of compute threads. Nothing else of a
run happens while the two work, so what is drawn depends on no timing: the policy is the one that was published before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from reinforge.roles import Sampler
from reinforge.rollout.rounds import Rollouts
from reinforge.types import Adapter, Completion, Drawn, Group, SampleRequest

T = TypeVar("T")

PATIENCE_S = 5.0
"""How long a failed run waits for its sampler to end."""


def beside(work: Callable[[], T], rollouts: Rollouts, step: int, prompts_drawn: int) -> tuple[T, Drawn]:
    """Do `work` here and draw the groups of a step in a thread -> both results. What either raises is raised; when
    `work` does, sampling ends with the next completion."""
    stopped = threading.Event()
    drawing = replace(rollouts, sampler=_Stoppable(rollouts.sampler, stopped))
    drawn: Future[Drawn] = Future()

    def draw() -> None:
        try:
            drawn.set_result(drawing.draw(step, prompts_drawn))
        except BaseException as fault:  # noqa: BLE001 - raised where the result is asked for
            drawn.set_exception(fault)

    thread = threading.Thread(target=draw, name="rollouts", daemon=True)
    thread.start()
    try:
        result = work()
        return result, drawn.result()
    except BaseException:
        stopped.set()
        thread.join(PATIENCE_S)
        raise


def judged_again(rollouts: Rollouts, drawn: Drawn, step: int, prompts_drawn: int) -> Drawn:
    """The groups of a step, drawn ahead, with grades made anew: its completions are those that were sampled then, and
    only what rounds after the fault would have sampled comes from the present policy."""
    return replace(rollouts, sampler=_Recalling(rollouts.sampler, drawn.groups)).draw(step, prompts_drawn)


class _Recalling:
    """Gives completions again that exist, and samples the others (implements roles.Sampler)."""

    def __init__(self, inner: Sampler, groups: Sequence[Group]) -> None:
        self._inner = inner
        self._known = [{completion.generation: completion for completion in group.completions} for group in groups]

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        """See roles.Sampler. The last number of a request's key is its place in the step."""
        unknown = []
        for place, request in enumerate(requests):
            of_group = self._known[request.key[-1]] if request.key[-1] < len(self._known) else {}
            if set(request.generations) <= of_group.keys():
                yield from ((place, of_group[generation]) for generation in request.generations)
            else:
                unknown.append(place)
        for place, completion in self._inner.sample([requests[place] for place in unknown]):
            yield unknown[place], completion

    def load(self, adapter: Adapter) -> None:
        """See roles.Sampler."""
        self._inner.load(adapter)


class _Stoppable:
    """A sampler that can be told to end (implements roles.Sampler)."""

    def __init__(self, inner: Sampler, stopped: threading.Event) -> None:
        self._inner = inner
        self._stopped = stopped

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Completion]]:
        """See roles.Sampler."""
        for place, completion in self._inner.sample(requests):
            if self._stopped.is_set():
                raise RuntimeError("sampling was stopped")
            yield place, completion

    def load(self, adapter: Adapter) -> None:
        """See roles.Sampler."""
        self._inner.load(adapter)
