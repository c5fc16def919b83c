"""Whatever a model writes, a built-in answers with a finite score, in bounded time; what is no answer scores 0."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grading.builtin.cases import USES, Use
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.grading.builtin import COMPOSITES, Result, find

BY_INPUT = [use for use in USES if use.grader not in COMPOSITES]
IDS = [f"{use.grader}-{use.requirements}" for use in BY_INPUT]
MAX_CPU_S = 5.0
"""For 100 kB. All need a few milliseconds, a square of the length would need minutes."""


@pytest.fixture(autouse=True)
def nobody_watches_the_garbage_collector():
    """Hypothesis does, and an alarm that rings there is dropped with a warning. Workers have no such watcher."""
    watchers = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = watchers


def call(use: Use, value: object) -> Any:
    arguments = {**use.options, **use.cases[0].arguments, "input": value}
    if use.grader == "math_equal":
        arguments["timeout_s"] = 0.2
    return find(use.grader)(**arguments)


def check(result: object) -> None:
    assert isinstance(result, Result)
    assert math.isfinite(result.score)
    assert 0 <= result.score <= 1
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.reason or result.score
    assert len(result.reason) < 2000


texts = st.text(st.characters(), max_size=60)  # lone surrogates too
numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400)
values = st.recursive(
    numbers | texts | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            texts
            | st.sampled_from(["predicted", "passages", "name", "value", "title", "start", "end", "driver", "day"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
PIECES = (
    "<answer>", "</answer>", "<think>", "</think>", "<plan>", "</plan>", "<code>", "</code>", "```ts src/a.ts\n", "```",
    "\n", " ", "[", "]", "{", "}", '"', ",", ":", "(", ")", "1", "9", "/", "*", "-", "$", "\\frac", "^", "####", "NaN",
    '"passages"', '"predicted"', "fraud", "stripe.charges.create(", "\ud800", "\x00", "é", "１", "e999", ".", "true",
)  # fmt: skip
written = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)
as_json = values.map(lambda value: json.dumps(value, default=str, skipkeys=True))


@pytest.mark.parametrize("use", BY_INPUT, ids=IDS)
def test_any_input_gets_a_finite_score(use: Use):
    tagged = use.options.get("tag")

    @settings(max_examples=60)
    @given(values | texts | written | as_json | (written | texts).map(lambda text: f"<{tagged}>{text}</{tagged}>"))
    def every(value: object) -> None:
        check(call(use, value))

    every()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


GARBAGE: dict[str, object] = {
    "None": None,
    "empty": "",
    "white space": " \n\t\u2028",
    "an excuse": "I don't know.",
    "NaN as JSON": '{"predicted": [NaN], "passages": [Infinity]}',
    "too large a number": "1e999",
    "deep JSON": "[" * 100_000,
    "a deep list": nested(5000),
    "a lone surrogate": "\ud800",
    "bytes": b"\xff",
    "a number that Python will not print": 10**5000,
    "a list of it": [10**5000],
    "an object": object(),
}


@pytest.mark.parametrize("use", BY_INPUT, ids=IDS)
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_scores_nothing(use: Use, what: str):
    result = call(use, GARBAGE[what])
    check(result)
    wording = use.grader in ("length", "repetition", "copied_prompt")
    if not (wording and what not in ("None", "empty", "white space")):
        assert result.score == 0.0


def with_each_leaf(value: object, instead: object) -> Iterator[object]:
    """The value with one number, text or truth value in it replaced, in all ways."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: other} for other in with_each_leaf(inner, instead))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in with_each_leaf(inner, instead))
    else:
        yield instead


@pytest.mark.parametrize("use", BY_INPUT, ids=IDS)
@pytest.mark.parametrize("instead", [10**400, -(10**400), 10**4200, 1e308, nested(60)], ids="abcde")
def test_an_answer_with_a_huge_number_anywhere_in_it_gets_a_finite_score(use: Use, instead: object):
    for case in use.cases:
        if isinstance(case.score, str):
            continue
        right = case.arguments["input"]
        with contextlib.suppress(TypeError, ValueError):
            right = json.loads(right)
        for value in with_each_leaf(right, instead):
            for given_as in (value, json.dumps(value)):
                check(find(use.grader)(**{**use.options, **case.arguments, "input": given_as}))


@pytest.mark.parametrize("use", BY_INPUT, ids=IDS)
@pytest.mark.parametrize("depth", range(50, 1001, 50))
def test_nested_json_of_any_depth_gets_a_finite_score(use: Use, depth: int):
    for value in (nested(depth), "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        check(call(use, value))


def big(unit: str) -> str:
    return unit * (100_000 // len(unit))


BIG = {
    unit: big(unit)
    for unit in (
        "a", "a ", " ", "\n", "(", "()", "[", "1", "1,", "1,234,", "-", "9*", "1.5e3 ", "^9", "$", "$1$ ", "\\boxed{",
        "\\frac{", "{", "<answer>", "</answer>", "<answer></answer>", "<plan></plan><code></code>", "<think>", "<",
        "```js a\n", "```js a\ng(\n```\n", "````", "~~~\n", "f(", "/*", "#", "fraud ", "not fraud but ", "I10 ",
        '"', "\\", "é", "😀", "\ud800", "is aspirin good for ", "a b c d e f g h ",
    )
}  # fmt: skip
LISTS = {
    "many texts": ["abcd"] * 14_000,
    "many different texts": [f"{i:x}" for i in range(12_000)],
    "many lists": [[]] * 25_000,
    "one long text": ["abcd" * 25_000],
    "many long texts": ["abcd" * 25] * 990,
    "many codes": [f"E11{i % 100}" for i in range(990)],
    "pairs": [{"name": f"n{i}", "value": "8"} for i in range(3_000)],
    "overlapping records": [
        {"title": f"Dentist {i}", "start": f"2025-05-05T09:{i % 60:02}", "end": "2025-05-05T10:00"} for i in range(990)
    ],
    "the same record": [{"title": "Dentist", "start": "2025-05-05T09:00", "driver": [f"p{i}" for i in range(99)]}] * 60,
}


def cpu_s(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


@pytest.mark.parametrize("use", BY_INPUT, ids=IDS)
def test_100_kb_of_anything_take_bounded_time(use: Use):
    tagged = use.options.get("tag")
    slow = []
    inputs: list[tuple[str, object]] = [*BIG.items(), *LISTS.items()]
    inputs += [(f"field: {name}", dict.fromkeys(("predicted", "passages"), value)) for name, value in LISTS.items()]
    inputs += [(f"tagged: {name}", f"<{tagged}>{text}</{tagged}>") for name, text in BIG.items() if tagged]
    inputs += [(f"JSON: {name}", json.dumps(value)) for name, value in (LISTS | BIG).items()]
    for name, value in inputs:
        seconds = cpu_s(lambda value=value: check(call(use, value)))
        slow += [f"{name}: {seconds:.1f} s"] if seconds > MAX_CPU_S else []
    assert slow == []


@given(values, values)
def test_composites_take_numbers_and_refuse_anything_else(a: object, b: object):
    for compute in (
        lambda: find("gate")(a=a, b=b),
        lambda: find("combine")(scores={"a": a, "b": b}, weights={"a": 0.5}, clip=[-1, 1]),
    ):
        try:
            value = compute()
        except ValueError as error:
            value = float("a number" not in str(error) and math.nan)
        assert math.isfinite(value)
