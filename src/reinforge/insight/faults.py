"""What went wrong in reward functions, summed up for people: one event per distinct cause and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from reinforge.run_store.records import Event
from reinforge.types import Group


def reward_faults(groups: Iterable[Group]) -> Iterator[Event]:
    """Failed scores of a step, by function and cause.

    >>> from reinforge.types import Example, Grade, Prompt, Score
    >>> failed = Grade((Score("f", "f_v1", None, state="error", kind="raised", message="KeyError: 'x'\\n  at line 3"),))
    >>> group = Group(Prompt(Example(0, "Hi"), "Hi", (1,)), 0, (), (failed, failed))
    >>> [event.message for event in reward_faults([group])]
    ["f raised on 2 of 2 completions: KeyError: 'x'"]
    """
    calls: Counter[str] = Counter()
    causes: Counter[tuple[str, str, str, str]] = Counter()
    for score in (score for group in groups for grade in group.grades for score in grade.scores):
        calls[score.name] += 1
        if score.state != "ok":
            first_line = score.message.strip().splitlines()[0] if score.message.strip() else "no message"
            causes[score.name, score.state, score.kind, first_line] += 1
    for (name, state, kind, cause), count in causes.items():
        yield Event(
            f"reward_{state}",
            f"{name} {kind} on {count} of {calls[name]} completions: {cause}",
            level="warning",
            data={"function": name, "state": state, "kind": kind, "count": count, "calls": calls[name]},
        )
