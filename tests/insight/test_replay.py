"""The arithmetic of a reward replay, against plain counting."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.insight.replay import ReplayedCompletion, ReplayReport, report
from reinforge.types import Grade, Score

values = st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.5, 1.0, -1.0]))


def grade(value: float | None, name: str = "f", version: str = "f_v1", weight: float = 1.0) -> Grade:
    """None is a masked completion."""
    state = "masked" if value is None else "ok"
    return Grade((Score(name, version, value, weight=weight, state=state),))  # type: ignore[arg-type]


def make(groups: list[list[tuple[float | None, float | None]]]) -> ReplayReport:
    """Advantages are the rewards themselves: any numbers do."""
    number = itertools.count(1)
    replayed = [
        [
            ReplayedCompletion(
                next(number), step, 7, g, f"text {g}", grade(b), grade(a, version="f_v2"), b or 0, a or 0
            )
            for g, (b, a) in enumerate(group)
        ]
        for step, group in enumerate(groups, start=3)
    ]
    return report(replayed)


def test_every_figure_of_a_small_case_by_hand():
    found = make([[(1.0, 0.0), (0.0, 0.5), (0.0, 0.5)], [(1.0, 1.0), (1.0, 0.0)], [(1.0, 0.5), (0.0, 0.5)]])
    assert (found.first_step, found.last_step, found.num_groups, found.num_completions) == (3, 5, 3, 7)
    (shift,) = found.functions
    assert (shift.versions_before, shift.version_after) == (("f_v1",), "f_v2")
    assert shift.mean_before == pytest.approx(4 / 7)
    assert shift.mean_after == pytest.approx(3 / 7)
    assert shift.shift == pytest.approx((-1 + 0.5 + 0.5 + 0 - 1 - 0.5 + 0.5) / 7)
    assert (shift.largest, shift.num_changed, shift.num_compared) == (-1.0, 6, 7)
    assert (found.zero_variance_before, found.zero_variance_after) == (1 / 3, 1 / 3)
    assert (found.num_silenced, found.num_woken) == (1, 1)
    # Pairs with an order before: 1-2, 1-3 of the first group and the one of the third.
    assert (found.pairs_turned, found.pairs_tied) == (2 / 3, 1 / 3)
    assert (found.num_reordered, found.num_other_best) == (1, 1)
    assert found.advantage_shift_max == 1.0
    assert found.advantage_shift_mean == pytest.approx((1 + 0.5 + 0.5 + 0 + 1 + 0.5 + 0.5) / 7)
    assert found.advantage_sign_flips == 0.0
    assert [one.id for one in found.most_changed] == [1, 5, 2, 3, 6, 7]
    assert found.reward_std_before == pytest.approx(math.sqrt((4 * (3 / 7) ** 2 + 3 * (4 / 7) ** 2) / 6))


def test_a_function_that_is_new_or_removed_has_no_shift():
    both = ReplayedCompletion(1, 1, 0, 0, "", grade(1.0, "old", "old_v1"), grade(0.5, "new", "new_v1"), 0.0, 0.0)
    new, old = report([[both]]).functions
    assert (new.name, new.versions_before, new.version_after, new.shift, new.num_compared) == (
        "new", (), "new_v1", None, 0,
    )  # fmt: skip
    assert (old.name, old.version_after, old.weight_after, old.mean_before) == ("old", "", None, 1.0)


def test_a_completion_masked_on_one_side_changed_the_most():
    found = make([[(1.0, None), (0.0, 1.0), (None, None)]])
    assert [one.id for one in found.most_changed] == [1, 2]
    assert found.most_changed[0].reward_shift is None
    assert (found.functions[0].errors_before, found.functions[0].errors_after) == (1, 2)
    assert (found.zero_variance_before, found.zero_variance_after) == (0.0, 0.0)
    assert found.num_silenced == 1


groups_of_pairs = st.lists(st.lists(st.tuples(values, values), min_size=1, max_size=5), min_size=1, max_size=5)


@given(groups_of_pairs)
def test_counts_agree_with_plain_counting(groups: list[list[tuple[float | None, float | None]]]):
    found = make(groups)
    ordered = turned = tied = 0
    for group in groups:
        for (b1, a1), (b2, a2) in itertools.combinations(group, 2):
            if None in (b1, a1, b2, a2) or b1 == b2:
                continue
            ordered += 1
            turned += (b1 < b2) != (a1 < a2) and a1 != a2
            tied += a1 == a2
    assert found.pairs_turned == (turned / ordered if ordered else None)
    assert found.pairs_tied == (tied / ordered if ordered else None)
    flat = [[a for _, a in group if a is not None] for group in groups]
    assert found.zero_variance_after == sum(len(g) > 1 and len(set(g)) == 1 for g in flat) / len(groups)
    assert found.num_silenced - found.num_woken == sum(
        (len({b for b, _ in g if b is not None}) > 1) - (len({a for _, a in g if a is not None}) > 1) for g in groups
    )
    changed = sum(b != a for group in groups for b, a in group)
    assert len(found.most_changed) == min(changed, 10)


@given(groups_of_pairs)
def test_the_same_functions_change_nothing(groups: list[list[tuple[float | None, float | None]]]):
    found = make([[(before, before) for before, _ in group] for group in groups])
    assert found.most_changed == ()
    assert found.functions[0].shift in (0.0, None)
    assert found.advantage_shift_max == found.advantage_sign_flips == found.num_reordered == found.num_other_best == 0
    assert found.advantage_correlation in (None, pytest.approx(1.0))
    assert found.zero_variance_before == found.zero_variance_after
