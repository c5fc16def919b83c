"""Rows, slots, holes and prefill chunks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reinforge.inference.scheduler import PADDING_FREE_LENGTH, Scheduler, chunks_of_similar_length
from reinforge.types import Example, Prompt, SampleRequest


def make_requests(lengths, num_generations) -> list[SampleRequest]:
    return [
        SampleRequest(Prompt(Example(i, ""), "", tuple(range(n))), g, (i,))
        for i, (n, g) in enumerate(zip(lengths, num_generations, strict=True))
    ]


@given(
    groups=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 5)), max_size=12),
    num_slots=st.integers(1, 7),
    max_tokens=st.integers(1, 600),
    data=st.data(),
)
def test_every_row_lives_once_and_every_prompt_is_prefilled_once(groups, num_slots, max_tokens, data):
    requests = make_requests([n for n, _ in groups], [g for _, g in groups])
    scheduler = Scheduler(requests, num_slots)
    seen: Counter[tuple[int, int]] = Counter()
    prefilled: Counter[int] = Counter()
    ready: set[int] = set()
    slots: dict[int, tuple[int, int]] = {}  # what a cache would hold
    while not scheduler.is_done:
        first = len(scheduler.live)
        admitted = scheduler.admit()
        for chunk in scheduler.prefills(admitted, ready, max_tokens):
            prefilled.update(chunk)
            ready.update(chunk)
        for slot, row in enumerate(admitted, start=first):
            assert row.request in ready
            assert (row.num_prefix, row.next_token) == (groups[row.request][0] - 1, groups[row.request][0] - 1)
            slots[slot] = (row.request, row.generation)
            seen[slots[slot]] += 1
            if scheduler.place(row):
                ready.remove(row.request)
        live = len(scheduler.live)
        assert live == num_slots or not scheduler._waiting
        ended = data.draw(st.lists(st.integers(0, live - 1), min_size=1, max_size=live, unique=True).map(sorted))
        for source, target in scheduler.end(ended):
            slots[target] = slots.pop(source)
        assert [(row.request, row.generation) for row in scheduler.live] == [
            slots[slot] for slot in range(len(scheduler.live))
        ]
    assert seen == Counter((i, g) for i, (_, num) in enumerate(groups) for g in range(num))
    assert prefilled == Counter(i for i, (_, num) in enumerate(groups) if num)
    assert not ready


@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=30), max_tokens=st.integers(1, 3000))
def test_chunks_hold_everything_once_within_budget_and_with_little_padding(lengths, max_tokens):
    chunks = chunks_of_similar_length(range(len(lengths)), lengths, max_tokens)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    for chunk in chunks:
        longest, shortest = max(lengths[i] for i in chunk), min(lengths[i] for i in chunk)
        assert len(chunk) == 1 or len(chunk) * longest <= max_tokens
        assert longest <= max(PADDING_FREE_LENGTH, 2 * shortest)


def test_prompts_of_the_requests_that_come_next_fill_the_budget():
    scheduler = Scheduler(make_requests([11, 11, 11, 11], [1, 1, 1, 1]), num_slots=1)
    assert scheduler.prefills(scheduler.admit(), (), max_tokens=30) == [[0, 1, 2]]
    scheduler.end([0])
    assert scheduler.prefills(scheduler.admit(), (1, 2), max_tokens=30) == []


def test_chunks_count_what_a_prompt_shares_with_none():
    lengths = [1000, 1000, 1000]
    scheduler = Scheduler(make_requests(lengths, [1, 1, 1]), 3, own_lengths=[100, 90, 80])
    assert scheduler.prefills(scheduler.admit(), (), max_tokens=300) == [[0, 1, 2]]
