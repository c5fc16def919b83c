"""Held-out examples never occur in training; every epoch visits every prompt once."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.data.order import PromptOrder
from reinforge.data.split import content_key, split_examples
from reinforge.errors import ConfigError, DataError
from reinforge.types import Example


def numbered(num: int) -> list[Example]:
    return [
        Example(index, f"question {index}", {"kind": "rare" if index % 8 == 0 else "usual"}) for index in range(num)
    ]


@settings(deadline=None)
@given(
    contents=st.lists(st.integers(0, 30), min_size=2, max_size=80),
    share=st.floats(0.05, 0.9),
    stratify=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_content_on_both_sides_and_no_row_lost(contents, share, stratify, seed):
    examples = [Example(index, f"p{value}", {"kind": value % 3}) for index, value in enumerate(contents)]
    try:
        train, held = split_examples(examples, share, "kind" if stratify else None, seed)
    except DataError:
        assert len(set(contents)) <= 3 or share * len(contents) < 10 or share > 0.8
        return
    assert not {example.prompt for example in train} & {example.prompt for example in held}
    assert sorted([*train, *held], key=lambda example: example.index) == examples
    assert [example.index for example in held] == sorted(example.index for example in held)
    assert 1 <= len(held) <= max(1, round(share * len(examples)))


@pytest.mark.parametrize(("heldout", "expected"), [(0.1, 80), (0.001, 1), (37, 37), (0, 0)])
def test_size_is_exact_when_all_rows_differ(heldout, expected):
    train, held = split_examples(numbered(800), heldout, None, seed=3)
    assert (len(train), len(held)) == (800 - expected, expected)


def test_every_stratum_has_its_share():
    _, held = split_examples(numbered(800), 0.1, "kind", seed=3)
    assert Counter(example.columns["kind"] for example in held) == {"rare": 10, "usual": 70}
    _, held = split_examples(numbered(804), 0.25, "kind", seed=3)
    assert Counter(example.columns["kind"] for example in held) == {"rare": 25, "usual": 176}


def test_split_depends_on_content_and_seed_alone():
    examples = numbered(200)
    _, held = split_examples(examples, 0.2, None, seed=1)
    moved = [Example(900 - example.index, example.prompt, example.columns) for example in reversed(examples)]
    assert {example.prompt for example in split_examples(moved, 0.2, None, seed=1)[1]} == {e.prompt for e in held}
    other = split_examples(examples, 0.2, None, seed=2)[1]
    assert len({e.index for e in other} & {e.index for e in held}) < 20
    # Pinned: a run resumed under another Python version must find the same split.
    digest = hashlib.sha256(" ".join(str(example.index) for example in held).encode()).hexdigest()
    assert digest.startswith("f61ced6e0c9f")


def test_content_is_prompt_tools_and_columns():
    example = Example(0, ({"role": "user", "content": "a"},), {"x": [1]}, ({"name": "t"},))
    assert content_key(example) == content_key(
        Example(5, ({"content": "a", "role": "user"},), {"x": [1]}, example.tools)
    )
    others = [
        Example(0, "a", {"x": [1]}, example.tools),
        Example(0, example.prompt, {"x": [2]}, example.tools),
        Example(0, example.prompt, {"x": [1]}),
    ]
    assert len({content_key(other) for other in [example, *others]}) == 4


def test_impossible_splits_are_errors():
    same = [Example(index, "always", {}) for index in range(10)]
    with pytest.raises(DataError, match=r"would hold out nothing .1 different rows among 10.*data.heldout_path"):
        split_examples(same, 0.5, None, seed=0)
    with pytest.raises(DataError, match=r"hold out every row of 10"):
        split_examples(same, 10, None, seed=0)
    with pytest.raises(DataError, match=r"hold out every row"):
        split_examples(numbered(3), 0.99, None, seed=0)
    with pytest.raises(DataError, match=r"hold out every row"):
        split_examples(numbered(1), 0.1, None, seed=0)
    with pytest.raises(ConfigError, match=r"1\.5 is neither a share nor a number of rows"):
        split_examples(numbered(10), 1.5, None, seed=0)
    with pytest.raises(DataError, match=r'no column "knid" .found: kind'):
        split_examples(numbered(10), 0.5, "knid", seed=0)


@settings(deadline=None, max_examples=60)
@given(num_prompts=st.integers(1, 150), seed=st.integers(-(2**40), 2**40), epoch=st.integers(0, 10**9))
def test_each_epoch_is_a_permutation(num_prompts, seed, epoch):
    order = PromptOrder(num_prompts, seed)
    drawn = [order.at(epoch * num_prompts + place) for place in range(num_prompts)]
    assert sorted(index for index, _ in drawn) == list(range(num_prompts))
    assert {found for _, found in drawn} == {epoch}


def test_epochs_and_seeds_differ_and_are_pinned():
    orders = [
        [PromptOrder(50, seed).at(start + place)[0] for place in range(50)] for seed in (0, 1) for start in (0, 50)
    ]
    assert len({tuple(order) for order in orders}) == 4
    for order in orders:
        assert sum(index == place for place, index in enumerate(order)) < 8
    assert orders[0][:10] == [9, 22, 8, 28, 24, 49, 37, 48, 35, 27]


def test_all_permutations_are_equally_likely():
    num_draws = 1200
    counts = Counter(
        tuple(PromptOrder(3, 0).at(epoch * 3 + place)[0] for place in range(3)) for epoch in range(num_draws)
    )
    expected = num_draws / 6
    assert len(counts) == 6
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 20.5  # chi-square, 5 df, p = 0.001


def test_an_order_needs_prompts():
    with pytest.raises(ValueError, match=r"at least one"):
        PromptOrder(0, seed=0)
