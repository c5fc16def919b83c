"""What other reward functions would have made of completions that exist: shifts, ranks, groups, advantages.

Pure: grades and advantages under both sets of functions come in, figures go out. "Before" is what was stored when the
completion was judged, "after" what the other functions say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from reinforge.types import Grade, Score

MIN_CHANGE = 1e-9
"""Differences up to here are rounding, not judgement."""


@dataclass(frozen=True, slots=True)
class ReplayedCompletion:
    """One completion under both sets of functions."""

    id: int
    """`CompletionRow.id`."""
    step: int
    example: int
    generation: int
    text: str
    before: Grade
    after: Grade
    advantage_before: float
    advantage_after: float

    @property
    def reward_shift(self) -> float | None:
        """None when it is masked under one of them."""
        if self.before.reward is None or self.after.reward is None:
            return None
        return self.after.reward - self.before.reward

    @property
    def advantage_shift(self) -> float:
        return self.advantage_after - self.advantage_before


ReplayedGroup = Sequence[ReplayedCompletion]
"""The completions of one prompt in one step."""


@dataclass(frozen=True, slots=True)
class FunctionShift:
    """One function, by its display name, on all completions."""

    name: str
    versions_before: tuple[str, ...]
    """In the order they were in use; empty for a function that is new."""
    version_after: str
    """Empty for a function that is removed."""
    weight_before: float | None
    """The last one in use."""
    weight_after: float | None
    mean_before: float | None
    """Of the completions with a value."""
    mean_after: float | None
    shift: float | None
    """Mean change of the completions with a value under both."""
    largest: float | None
    """Largest change of one completion, with its sign."""
    num_changed: int
    num_compared: int
    """Completions with a value under both."""
    errors_before: int
    errors_after: int
    first_error: str = ""
    """Kind and message of the first call that fails after, if one does."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What would change, before anything does."""

    first_step: int
    last_step: int
    num_groups: int
    num_completions: int
    functions: tuple[FunctionShift, ...]
    reward_mean_before: float | None
    reward_mean_after: float | None
    reward_std_before: float | None
    """Over all completions, Bessel-corrected."""
    reward_std_after: float | None
    zero_variance_before: float
    """Share of groups whose valid rewards are all equal: they teach nothing."""
    zero_variance_after: float
    num_silenced: int
    """Groups that taught something before and do not after."""
    num_woken: int
    """Groups that taught nothing before and do after."""
    num_reordered: int
    """Groups with a pair of completions whose order is turned round."""
    num_other_best: int
    """Groups in which none of the best completions before is among the best after."""
    pairs_turned: float | None
    """Share of the pairs within groups that had an order before and have the opposite one after."""
    pairs_tied: float | None
    """Share of those pairs that are equal after."""
    advantage_shift_mean: float
    """Mean size of the change of a completion's advantage."""
    advantage_shift_max: float
    advantage_sign_flips: float
    """Share of completions that were pushed one way and would be pushed the other."""
    advantage_correlation: float | None
    """Pearson's, over all completions; None when one side does not vary."""
    most_changed: tuple[ReplayedCompletion, ...] = field(repr=False)
    """By the size of the reward's change, then of the advantage's; those that do not change are left out."""

    def as_json(self) -> dict[str, Any]:
        """As plain values; scores by name."""
        values = asdict(self)
        values["most_changed"] = [_as_json(completion) for completion in self.most_changed]
        return values


def report(groups: Sequence[ReplayedGroup], *, num_most_changed: int = 10) -> ReplayReport:
    """The figures over these groups, of which there must be at least one.

    >>> def grade(value): return Grade((Score("f", "f_v1", value),))
    >>> group = [ReplayedCompletion(1, 1, 0, 0, "a", grade(1.0), grade(0.0), 1.0, -1.0),
    ...          ReplayedCompletion(2, 1, 0, 1, "b", grade(0.0), grade(1.0), -1.0, 1.0)]
    >>> found = report([group])
    >>> found.num_reordered, found.pairs_turned, found.advantage_sign_flips, found.functions[0].shift
    (1, 1.0, 1.0, 0.0)
    """
    completions = [completion for group in groups for completion in group]
    before, after = _rewards(completions, "before"), _rewards(completions, "after")
    taught = [(_teaches(group, "before"), _teaches(group, "after")) for group in groups]
    turned, tied, ordered = _pairs(groups)
    shifts = [abs(completion.advantage_shift) for completion in completions]
    flips = sum(completion.advantage_before * completion.advantage_after < 0 for completion in completions)
    return ReplayReport(
        first_step=min(completion.step for completion in completions),
        last_step=max(completion.step for completion in completions),
        num_groups=len(groups),
        num_completions=len(completions),
        functions=_functions(completions),
        reward_mean_before=_mean(before),
        reward_mean_after=_mean(after),
        reward_std_before=_std(before),
        reward_std_after=_std(after),
        zero_variance_before=sum(_is_flat(group, "before") for group in groups) / len(groups),
        zero_variance_after=sum(_is_flat(group, "after") for group in groups) / len(groups),
        num_silenced=sum(was and not now for was, now in taught),
        num_woken=sum(now and not was for was, now in taught),
        num_reordered=sum(_pairs([group])[0] > 0 for group in groups),
        num_other_best=sum(_other_best(group) for group in groups),
        pairs_turned=turned / ordered if ordered else None,
        pairs_tied=tied / ordered if ordered else None,
        advantage_shift_mean=math.fsum(shifts) / len(shifts),
        advantage_shift_max=max(shifts),
        advantage_sign_flips=flips / len(completions),
        advantage_correlation=_correlation(completions),
        most_changed=_most_changed(completions)[:num_most_changed],
    )


def _rewards(completions: Iterable[ReplayedCompletion], side: str) -> list[float]:
    grades: Iterable[Grade] = (getattr(completion, side) for completion in completions)
    return [grade.reward for grade in grades if grade.reward is not None]


def _teaches(group: ReplayedGroup, side: str) -> bool:
    return len(set(_rewards(group, side))) > 1


def _is_flat(group: ReplayedGroup, side: str) -> bool:
    """Zero variance as the metric `group/zero_variance_share` counts it: groups with fewer than two valid completions
    are dropped ones, not flat ones."""
    valid = _rewards(group, side)
    return len(valid) > 1 and len(set(valid)) == 1


def _pairs(groups: Iterable[ReplayedGroup]) -> tuple[int, int, int]:
    """(pairs turned round, pairs that become equal, pairs that had an order)."""
    turned = tied = ordered = 0
    for group in groups:
        both = [
            (one.before.reward, one.after.reward)
            for one in group
            if one.before.reward is not None and one.after.reward is not None
        ]
        for (before_1, after_1), (before_2, after_2) in combinations(both, 2):
            was, now = _sign(before_1 - before_2), _sign(after_1 - after_2)
            ordered += was != 0
            turned += was * now < 0
            tied += was != 0 and now == 0
    return turned, tied, ordered


def _sign(difference: float) -> int:
    return 0 if abs(difference) <= MIN_CHANGE else (1 if difference > 0 else -1)


def _other_best(group: ReplayedGroup) -> bool:
    best_before, best_after = _best(group, "before"), _best(group, "after")
    return bool(best_before and best_after) and not best_before & best_after


def _best(group: ReplayedGroup, side: str) -> set[int]:
    rewards = {one.id: getattr(one, side).reward for one in group if getattr(one, side).reward is not None}
    most = max(rewards.values(), default=0.0)
    return {one for one, reward in rewards.items() if reward >= most - MIN_CHANGE}


def _functions(completions: Sequence[ReplayedCompletion]) -> tuple[FunctionShift, ...]:
    """Every function of either side, those after first, in their order."""
    sides = [({s.name: s for s in one.before.scores}, {s.name: s for s in one.after.scores}) for one in completions]
    names = dict.fromkeys(name for _, after in sides for name in after)
    names |= dict.fromkeys(name for before, _ in sides for name in before)
    return tuple(_shift(name, [(before.get(name), after.get(name)) for before, after in sides]) for name in names)


def _shift(name: str, pairs: Sequence[tuple[Score | None, Score | None]]) -> FunctionShift:
    before = [one for one, _ in pairs if one is not None]
    after = [other for _, other in pairs if other is not None]
    changes = [
        other.value - one.value
        for one, other in pairs
        if one is not None and other is not None and one.value is not None and other.value is not None
    ]
    return FunctionShift(
        name=name,
        versions_before=tuple(dict.fromkeys(score.version for score in before)),
        version_after=after[-1].version if after else "",
        weight_before=before[-1].weight if before else None,
        weight_after=after[-1].weight if after else None,
        mean_before=_mean([score.value for score in before if score.value is not None]),
        mean_after=_mean([score.value for score in after if score.value is not None]),
        shift=_mean(changes),
        largest=max(changes, key=abs, default=None),
        num_changed=sum(abs(change) > MIN_CHANGE for change in changes),
        num_compared=len(changes),
        errors_before=sum(score.state != "ok" for score in before),
        errors_after=sum(score.state != "ok" for score in after),
        first_error=next((f"{one.kind}: {one.message.strip()}" for one in after if one.state == "error"), ""),
    )


def _most_changed(completions: Iterable[ReplayedCompletion]) -> tuple[ReplayedCompletion, ...]:
    """A completion that is masked under one side only changed more than any other."""

    def size(one: ReplayedCompletion) -> tuple[float, float, int]:
        shift = one.reward_shift
        if shift is None:
            shift = math.inf if one.before.reward != one.after.reward else 0.0
        return abs(shift), abs(one.advantage_shift), -one.id

    changed = [one for one in completions if max(size(one)[:2]) > MIN_CHANGE]
    return tuple(sorted(changed, key=size, reverse=True))


def _as_json(completion: ReplayedCompletion) -> dict[str, Any]:
    def values(scores: Iterable[Score]) -> Mapping[str, float | None]:
        return {score.name: score.value for score in scores}

    return {
        "id": completion.id,
        "step": completion.step,
        "example": completion.example,
        "generation": completion.generation,
        "text": completion.text,
        "reward_before": completion.before.reward,
        "reward_after": completion.after.reward,
        "advantage_before": completion.advantage_before,
        "advantage_after": completion.advantage_after,
        "scores_before": values(completion.before.scores),
        "scores_after": values(completion.after.scores),
    }


def _correlation(completions: Sequence[ReplayedCompletion]) -> float | None:
    before = [completion.advantage_before for completion in completions]
    after = [completion.advantage_after for completion in completions]
    spread = [_centred(before), _centred(after)]
    norms = [math.hypot(*values) for values in spread]
    if min(norms) <= MIN_CHANGE:
        return None
    return math.fsum(one * other for one, other in zip(*spread, strict=True)) / (norms[0] * norms[1])


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return math.hypot(*_centred(values)) / math.sqrt(len(values) - 1) if len(values) > 1 else None
