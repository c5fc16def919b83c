"""What went wrong in reward functions, summed up for people: one event per distinct cause and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from reinforge.run_store.records import Event
from reinforge.types import STOPPING_KINDS, Group, Score


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


REPLACED = "worker_replaced"
"""Kind of the event that says why a function's worker was replaced."""


def replaced_workers(groups: Iterable[Group], told: Iterable[str] = ()) -> Iterator[Event]:
    """Why workers were replaced, but for timeouts and ends, which are scores: one event per function version and cause.
    `told` are messages of earlier events.

    >>> from reinforge.types import Example, Grade, Prompt, Score
    >>> group = Group(Prompt(Example(0, "Hi"), "Hi", (1,)), 0, (), (Grade((Score("f", "f_v1", 1.0, note="why"),)),) * 2)
    >>> [event.message for event in replaced_workers([group])]
    ['f_v1: its worker is replaced, which costs a process start each time: why']
    """
    known = set(told)
    for score in (score for group in groups for grade in group.grades for score in grade.scores):
        message = f"{score.version}: its worker is replaced, which costs a process start each time: {score.note}"
        if score.note and message not in known:
            known.add(message)
            yield Event(REPLACED, message, level="warning", data={"function": score.name, "cause": score.note})


def stopping_fault(groups: Iterable[Group]) -> Event | None:
    """The first score that says that nothing more can be judged (types.STOPPING_KINDS), or None. One with a stand-in
    counts, so it stops nothing.

    >>> from reinforge.types import Example, Grade, Prompt, Score
    >>> down = Score("judge", "judge_v1", None, state="masked", kind="judge_down", message="no answer for 600 s")
    >>> event = stopping_fault([Group(Prompt(Example(0, "Hi"), "Hi", (1,)), 0, (), (Grade((down,)),))])
    >>> event.message, event.data["kind"]
    ('judge_v1: no answer for 600 s', 'judge_down')
    """
    for score in (score for group in groups for grade in group.grades for score in grade.scores):
        if score.state == "masked" and score.kind in STOPPING_KINDS:
            data = {"function": score.name, "kind": score.kind, "message": score.message}
            return Event("judge_guard", f"{score.version}: {score.message}", "error", data)
    return None


def network_faults(failures: Mapping[tuple[str, str, str, str], int]) -> Iterator[Event]:
    """Connections that reward functions did not get: (function version, host, verdict, reason) -> how many.

    >>> [event] = network_faults({("judge_v1", "a.example:443", "refused", "a.example is none of the hosts."): 12})
    >>> event.kind, event.message
    ('network_refused', 'judge_v1: 12 connections to a.example:443 refused: a.example is none of the hosts.')
    """
    for (version, host, verdict, reason), count in failures.items():
        if verdict == "unwritten":
            yield Event("network_unwritten", f"network.jsonl is written no more: {reason}", level="warning")
            continue
        connections = "a connection" if count == 1 else f"{count} connections"
        data = {"function": version, "host": host, "verdict": verdict, "reason": reason, "count": count}
        message = f"{version}: {connections} to {host or 'no host'} {verdict}: {reason}"
        yield Event(f"network_{verdict}", message, level="warning", data=data)


FEW_CALLS = 4
"""Fewer calls say nothing of the share that fails; so many that all hang say that the next one hangs too."""


def failing_function(
    groups: Iterable[Group], max_error_rate: float, of_function: Mapping[str, float], min_calls: int = 1
) -> Event | None:
    """The first function that failed on more than its share of its calls, or None. `of_function` are shares that differ
    from `max_error_rate`. A function with fewer than `min_calls` may fail, unless its share is 0.

    >>> from reinforge.types import Example, Grade, Prompt, Score
    >>> good, bad = Score("f", "f_v1", 1.0), Score("f", "f_v1", None, state="error")
    >>> groups = [Group(Prompt(Example(0, "Hi"), "Hi", (1,)), 0, (), (Grade((good,)), Grade((bad,))))]
    >>> failing_function(groups, 0.5, {}) is None, failing_function(groups, 0.5, {"f": 0.0}).message
    (True, 'reward function f_v1 failed on 1 of 2 completions, more than 0 %')
    """
    for name, scores in _by_function(groups).items():
        failed, limit = _failed(scores), of_function.get(name, max_error_rate)
        if len(failed) > limit * len(scores) and (len(scores) >= min_calls or not limit):
            return _failing(failed, len(scores), limit)
    return None


def failing_already(
    groups: Iterable[Group], max_error_rate: float, of_function: Mapping[str, float], num_enough: int, num_calls: int
) -> Event | None:
    """`failing_function` of the first of `num_calls` calls: the first function that failed on too many of them
    whatever the others bring, on too many of `num_enough` calls or more, or hung in all of FEW_CALLS or more.

    >>> from reinforge.types import Example, Grade, Prompt, Score
    >>> hung = Grade((Score("f", "f_v1", None, state="error", kind="timeout"),))
    >>> groups = [Group(Prompt(Example(0, "Hi"), "Hi", (1,)), 0, (), (hung,) * 4)]
    >>> failing_already(groups, 0.5, {}, 64, 800).message, failing_already(groups, 1.0, {}, 64, 800) is None
    ('reward function f_v1 failed on 4 of 4 completions, more than 50 %', True)
    """
    for name, scores in _by_function(groups).items():
        failed, limit = _failed(scores), of_function.get(name, max_error_rate)
        hangs = len(scores) >= FEW_CALLS and all(score.kind == "timeout" for score in scores)
        of_calls = len(scores) if hangs or len(scores) >= num_enough else num_calls
        if len(failed) > limit * of_calls and (of_calls >= FEW_CALLS or not limit):
            return _failing(failed, len(scores), limit)
    return None


def _by_function(groups: Iterable[Group]) -> dict[str, list[Score]]:
    scores: dict[str, list[Score]] = {}
    for score in (score for group in groups for grade in group.grades for score in grade.scores):
        scores.setdefault(score.name, []).append(score)
    return scores


def _failed(scores: Iterable[Score]) -> list[Score]:
    return [score for score in scores if score.state != "ok"]


def _failing(failed: Sequence[Score], num_calls: int, limit: float) -> Event:
    counts = f"{len(failed)} of {num_calls} completions, more than {100 * limit:.3g} %"
    data = {"function": failed[0].name, "kind": failed[0].kind, "message": failed[0].message}
    return Event("reward_guard", f"reward function {failed[0].version} failed on {counts}", "error", data)
