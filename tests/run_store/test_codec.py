"""TrainState -> JSON -> TrainState is the identity."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.errors import CheckpointError
from reinforge.run_store import decode_state, encode_state
from reinforge.types import Batch, Completion, Example, Grade, Group, Prompt, Score, TrainState

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
# `fold` (the second of two equal hours in autumn) is not written by isoformat; no data file has it.
TIMES = st.one_of(st.datetimes(), st.times()).map(lambda time: time.replace(fold=0))
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), FLOAT, TEXT, st.binary(max_size=4), st.dates(), TIMES)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(TEXT, st.just("$"), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
SCORE = st.builds(
    Score,
    name=TEXT,
    version=TEXT,
    value=st.one_of(st.none(), FLOAT),
    weight=FLOAT,
    state=st.sampled_from(["ok", "error", "masked"]),
    kind=TEXT,
    message=TEXT,
    prints=TEXT,
    latency_s=FLOAT,
    stand_in=st.one_of(st.none(), FLOAT),
    metrics=st.dictionaries(TEXT, FLOAT, max_size=2),
    cached=st.booleans(),
)


@st.composite
def completions(draw: st.DrawFn, generation: int) -> Completion:
    num = draw(st.integers(0, 4))
    ids = st.lists(st.integers(0, 200_000), min_size=num, max_size=num).map(tuple)
    logprobs = st.lists(FLOAT, min_size=num, max_size=num).map(tuple)
    reason = draw(st.sampled_from(["stop", "length"]))
    return Completion(
        generation, draw(ids), draw(TEXT), reason, draw(logprobs), draw(logprobs), draw(st.integers(0, 9))
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    num = draw(st.integers(0, 3))
    messages = st.lists(st.dictionaries(TEXT, VALUE, max_size=2), max_size=2).map(tuple)
    columns, tools = draw(st.dictionaries(TEXT, VALUE, max_size=3)), draw(messages)
    example = Example(draw(st.integers(0, 10**9)), draw(st.one_of(TEXT, messages)), columns, tools)
    prompt = Prompt(example, draw(TEXT), tuple(draw(st.lists(st.integers(0, 200_000), min_size=1, max_size=4))))
    grades = tuple(Grade(tuple(draw(st.lists(SCORE, max_size=2)))) for _ in range(num))
    return Group(prompt, draw(st.integers(0, 9)), tuple(draw(completions(i)) for i in range(num)), grades)


@st.composite
def states(draw: st.DrawFn) -> TrainState:
    found = tuple(draw(st.lists(groups(), max_size=2)))
    advantages = tuple(tuple(draw(FLOAT) for _ in group.completions) for group in found)
    old = tuple(tuple(completion.logprobs for completion in group.completions) for group in found)
    batch = Batch(found, advantages, draw(st.integers(0, 5)), draw(st.sampled_from([None, old])))
    return TrainState(draw(st.integers(0)), draw(st.integers(0)), draw(st.sampled_from([None, batch])))


@settings(max_examples=60, deadline=None)
@given(states())
def test_a_state_comes_back_equal(state: TrainState):
    text = encode_state(state)
    text.encode("ascii")
    back = decode_state(text)
    assert back == state
    assert repr(back) == repr(state), "types too: 1 is not 1.0, a list is no tuple"


def one_group(**columns: object) -> TrainState:
    completion = Completion(0, (1,), "a", "stop", (-0.1,), (-0.1,), 0)
    prompt = Prompt(Example(0, "q", columns), "q", (1,))
    group = Group(prompt, 0, (completion,), (Grade((Score("f", "f_v1", 1.0),)),))
    return TrainState(1, 1, Batch((group,), ((0.0,),)))


def test_columns_may_hold_what_json_cannot():
    state = one_group(price=Decimal("1.10"), missing=math.inf, when=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    assert decode_state(encode_state(state)) == state
    json.loads(encode_state(state), parse_constant=pytest.fail)
    (group,) = decode_state(encode_state(one_group(missing=math.nan))).batch.groups
    assert math.isnan(group.prompt.example.columns["missing"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_of_training_must_be_finite(bad: float):
    state = one_group()
    assert state.batch is not None
    with pytest.raises(ValueError, match="Out of range float"):
        encode_state(replace(state, batch=replace(state.batch, advantages_PG=((bad,),))))


def test_a_column_that_cannot_be_kept_is_named():
    with pytest.raises(CheckpointError, match="holds a complex"):
        encode_state(one_group(z=1j))
