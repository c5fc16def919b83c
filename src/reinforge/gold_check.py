"""Right completions, judged again while a run trains: do they still score what they did at its start? (S0-098)

What they score first is an event of the run, so a resumed run compares with the same start. A score that time decided
(a deadline) is recorded like any other accident and given again, so the check never makes a resumed run another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from reinforge.grading.replay import accidents
from reinforge.roles import Grader
from reinforge.run_store import Event, Run
from reinforge.types import Completion, Group, Prompt, Score

START, CHANGED = "gold_start", "gold_changed"
"""Kinds of events."""
TOLERANCE = 1e-9
MAX_TOLD = 3
"""Completions that an event's message shows; its data have all."""


@dataclass(frozen=True, slots=True)
class GoldCompletion:
    """A right completion of a prompt."""

    label: str
    """For people: `row 5`."""
    prompt: Prompt
    text: str


@dataclass(frozen=True, slots=True)
class GoldCheck:
    """What one check found, for the record of the step after it."""

    events: tuple[Event, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    accidents: Mapping[str, Score] = field(default_factory=dict)


Values = Mapping[str, Sequence[float | None]]
"""Name of a function -> its value for every completion, None where it failed or does not apply."""


def check_golds(golds: Sequence[GoldCompletion], grader: Grader, run: Run, step: int) -> GoldCheck:
    """Judge the completions by the functions as they are after `step` steps and compare with the run's start. What a
    function scores when it is first met is its start."""
    groups = _judged(golds, grader, step)
    columns = _by_function(groups)
    start = _start(run)
    _remember({name: scores for name, scores in columns.items() if name not in start}, run)
    changes = {
        name: [place for place, score in enumerate(scores) if _differs(score, start[name][place])]
        for name, scores in columns.items()
        if name in start
    }
    events = [_changed(golds, columns[name], start[name], places) for name, places in changes.items() if places]
    means = {f"gold/{name}/mean": mean for name, scores in columns.items() if (mean := _mean(scores)) is not None}
    metrics = {"gold/changed": float(sum(map(len, changes.values()))), **means}
    return GoldCheck(tuple(events), metrics, accidents(groups))


def _judged(golds: Sequence[GoldCompletion], grader: Grader, step: int) -> list[Group]:
    """A group of its own for each: what is compared within a group must not depend on the others. In place of the
    policy's version stands a number that no other judgement has, so that accidents are not taken for each other's."""
    numbers = [-1 - place - step * len(golds) for place in range(len(golds))]
    completions = [
        Completion(0, (), gold.text, "stop", (), (), number) for gold, number in zip(golds, numbers, strict=True)
    ]
    gradings = [grader.begin(gold.prompt, 1) for gold in golds]
    for grading, completion in zip(gradings, completions, strict=True):
        grading.add(completion)
    return [
        Group(gold.prompt, 0, (completion,), grading.grades())
        for gold, completion, grading in zip(golds, completions, gradings, strict=True)
    ]


def _by_function(groups: Sequence[Group]) -> dict[str, list[Score]]:
    columns: dict[str, list[Score]] = {}
    for group in groups:
        for score in group.grades[0].scores:
            columns.setdefault(score.name, []).append(score)
    return columns


def _start(run: Run) -> dict[str, list[float | None]]:
    """What every function gave when it was first met."""
    start: dict[str, list[float | None]] = {}
    for event in run.events(limit=-1):
        if event.kind == START:
            start = {**event.data["values"], **start}
    return start


def _remember(columns: Mapping[str, Sequence[Score]], run: Run) -> None:
    """An event of the process: it outlives a rewind, so a resume compares with the start that there was."""
    if columns:
        values = {name: [score.value for score in scores] for name, scores in columns.items()}
        told = ", ".join(f"{scores[0].version} {_figure(_mean(scores))}" for scores in columns.values())
        run.record_event(Event(START, f"right completions score at the start: {told}", data={"values": values}))


def _differs(score: Score, start: float | None) -> bool:
    if score.state == "masked":  # nobody knows
        return False
    if score.value is None or start is None:
        return score.value is not start
    return abs(score.value - start) > TOLERANCE


def _changed(
    golds: Sequence[GoldCompletion], scores: Sequence[Score], start: Sequence[float | None], places: Sequence[int]
) -> Event:
    function = scores[0]
    shown = "; ".join(_told(golds[place], start[place], scores[place]) for place in places[:MAX_TOLD])
    more = f"; and {len(places) - MAX_TOLD} more" if len(places) > MAX_TOLD else ""
    message = (
        f"{function.version} no longer gives {len(places)} of {len(golds)} right completions what they scored at the "
        f"start: {shown}{more}"
    )
    data = {
        "function": function.name,
        "version": function.version,
        "completions": [golds[place].label for place in places],
        "start": [start[place] for place in places],
        "now": [scores[place].value for place in places],
    }
    return Event(CHANGED, message, level="warning", data=data)


def _told(gold: GoldCompletion, start: float | None, score: Score) -> str:
    cause = f" ({score.kind}: {score.message.partition(chr(10))[0]})" if score.state == "error" else ""
    return f"{gold.label} {_figure(start)} -> {_figure(score.value)}{cause}"


def _mean(scores: Sequence[Score]) -> float | None:
    values = list(_values(scores))
    return sum(values) / len(values) if values else None


def _values(scores: Sequence[Score]) -> Iterator[float]:
    return (score.value for score in scores if score.value is not None)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
