"""What is kept, what is found again, and what goes first."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from reinforge.inference import kept_keys
from reinforge.inference.kept_keys import KeptKeys
from reinforge.policy.prompt_parts import common_length
from reinforge.policy.slots import Prefix

BYTES = 8
"""Of the keys and values of one token here."""


def prefix_of(token_ids) -> Prefix:
    """Keys that say which tokens they belong to."""
    keys = torch.tensor(token_ids, dtype=torch.float32).reshape(1, -1, 1)
    return Prefix((keys,), (-keys,), len(token_ids), is_shared=False)


def longest(store: KeptKeys, token_ids) -> tuple[int, ...]:
    found = store.longest(0, tuple(token_ids))
    if found is None:
        return ()
    assert found.length == found.keys[0].shape[1]
    assert torch.equal(found.keys[0], -found.values[0])
    return tuple(found.keys[0].flatten().int().tolist())


@given(st.lists(st.lists(st.integers(0, 2), max_size=9).map(tuple), max_size=9), st.lists(st.integers(0, 2)).map(tuple))
def test_the_longest_kept_beginning_is_found(kept, asked):
    kept_keys_minimum = 2
    store = KeptKeys(10**6)
    for token_ids in kept:
        store.put(0, token_ids, prefix_of(token_ids))
    best = max((common_length(token_ids, asked) for token_ids in kept), default=0)
    original, kept_keys.MIN_REUSED_TOKENS = kept_keys.MIN_REUSED_TOKENS, kept_keys_minimum
    try:
        assert longest(store, asked) == (asked[:best] if best >= kept_keys_minimum else ())
    finally:
        kept_keys.MIN_REUSED_TOKENS = original


def test_another_adapters_keys_are_not_found():
    one, other = tuple(range(30)), (*range(20), *range(50, 60))
    store = KeptKeys(10**6)
    store.put(1, one, prefix_of(one))
    for owner, token_ids in ((-1, one), (0, other), (2, one)):
        assert store.longest(owner, token_ids) is None
    store.put(2, one[:25], prefix_of(one[:25]))
    assert store.longest(1, one).length == 30
    assert store.longest(2, one).length == 25


def test_few_tokens_are_not_worth_it():
    store = KeptKeys(10**6)
    store.put(0, tuple(range(40)), prefix_of(range(40)))
    few = kept_keys.MIN_REUSED_TOKENS - 1
    assert longest(store, [*range(few), 99]) == ()
    assert longest(store, [*range(few + 1), 99]) == tuple(range(few + 1))


def test_the_least_recently_used_goes_first():
    one, two, three = ([first, *range(20)] for first in (100, 200, 300))
    store = KeptKeys(2 * 21 * BYTES)
    store.put(0, tuple(one), prefix_of(one))
    store.put(0, tuple(two), prefix_of(two))
    assert longest(store, one) == tuple(one)
    store.put(0, tuple(three), prefix_of(three))
    assert [longest(store, each) for each in (one, two, three)] == [tuple(one), (), tuple(three)]


def test_what_is_continued_takes_no_room_and_what_is_too_large_none_at_all():
    one, other = list(range(20)), [100, *range(19)]
    store = KeptKeys(50 * BYTES)
    for length in (18, 19, 20, 20):
        store.put(0, tuple(one[:length]), prefix_of(one[:length]))
    store.put(0, tuple(other), prefix_of(other))
    assert longest(store, one) == tuple(one)  # 18 + 19 + 20 tokens would have been too many
    large = [100, *range(60)]
    store.put(0, tuple(large), prefix_of(large))
    assert longest(store, large) == ()
