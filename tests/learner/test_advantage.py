"""Advantages against numpy-style arithmetic on paper, and their properties for any rewards."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.learner.advantage import STD_FLOOR, advantages, teaches

REWARD = st.one_of(st.none(), st.floats(-100, 100).map(lambda value: round(value, 3)))
GROUPS = st.lists(st.lists(REWARD, min_size=1, max_size=8), min_size=1, max_size=5)
SCALES = st.sampled_from(["group", "batch", "none"])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("none", (0.5, -0.5, 0.0, 0.0)),
        ("group", (0.5 / (0.5 + STD_FLOOR), -0.5 / (0.5 + STD_FLOOR), 0.0, 0.0)),
        # std over 1.0, 0.0, 0.5 and the other group's 2.0, 2.0
        (
            "batch",
            (
                0.5 / (statistics.stdev([1, 0, 0.5, 2, 2]) + STD_FLOOR),
                -0.5 / (statistics.stdev([1, 0, 0.5, 2, 2]) + STD_FLOOR),
                0.0,
                0.0,
            ),
        ),
    ],
)
def test_values_on_paper(scale, expected):
    first, second = advantages([[1.0, 0.0, None, 0.5], [2.0, 2.0]], scale)
    assert first == pytest.approx(expected, rel=1e-14)
    assert second == (0.0, 0.0)


@pytest.mark.parametrize("rewards", [[0.1] * 3, [1e300] * 7, [1 / 3, None, 1 / 3], [5.0, None], [None, None], [0.7]])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_without_a_difference_gets_exactly_zero(rewards, scale):
    assert not teaches(rewards)
    assert advantages([rewards, [1.0, 0.0]], scale)[0] == (0.0,) * len(rewards)


def test_equal_rewards_would_leave_dust_if_only_the_mean_were_subtracted():
    rewards = [0.1] * 10
    assert any(reward - sum(rewards) / 10 != 0 for reward in rewards)
    assert advantages([rewards], "none") == ((0.0,) * 10,)


def test_huge_rewards_do_not_overflow():
    first, second = advantages([[1e200, 0.0]], "group")[0]
    assert (first, second) == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))


@given(GROUPS, SCALES)
def test_each_group_sums_to_zero_and_masked_ones_are_zero(groups, scale):
    for rewards, result in zip(groups, advantages(groups, scale), strict=True):
        largest = max((abs(value) for value in result), default=0.0)
        assert abs(math.fsum(result)) <= 1e-9 * max(1.0, largest)
        assert all(value == 0.0 for value, reward in zip(result, rewards, strict=True) if reward is None)
        assert any(result) == teaches(rewards)


@given(GROUPS, SCALES, st.integers(-1000, 1000))
def test_a_constant_added_to_all_rewards_changes_nothing(groups, scale, shift):
    shifted = [[None if reward is None else reward + shift for reward in group] for group in groups]
    if [teaches(group) for group in groups] != [teaches(group) for group in shifted]:
        return  # the shift rounded a difference away
    for before, after in zip(advantages(groups, scale), advantages(shifted, scale), strict=True):
        assert after == pytest.approx(before, rel=1e-6, abs=1e-6)


@given(GROUPS, SCALES, st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_advantages(groups, scale, random):
    orders = [random.sample(range(len(group)), len(group)) for group in groups]
    permuted = [[group[place] for place in order] for group, order in zip(groups, orders, strict=True)]
    results = zip(orders, advantages(groups, scale), advantages(permuted, scale), strict=True)
    for order, before, after in results:
        assert after == pytest.approx([before[place] for place in order], rel=1e-12, abs=1e-12)


@given(GROUPS)
def test_group_scale_has_unit_spread(groups):
    for rewards, result in zip(groups, advantages(groups, "group"), strict=True):
        valid = [reward for reward in rewards if reward is not None]
        if teaches(rewards):
            kept = [value for value, reward in zip(result, rewards, strict=True) if reward is not None]
            std = statistics.stdev(valid)
            assert statistics.stdev(kept) == pytest.approx(std / (std + STD_FLOOR), rel=1e-9)
