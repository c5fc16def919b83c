"""Expressions have the value that arithmetic gives them, and nothing else has one."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.grading.builtin.arithmetic import evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2-3-4", -5), ("2-(3-4)", 3), ("12/3/2", 2), ("2+3*4", 14), ("-(2+3)*-4", 20), ("--1", 1), ("1.5*2", 3)],
)
def test_operators_bind_as_in_school(expression: str, value: int):
    assert evaluate(expression) == value


MALFORMED = (
    "",
    "1+",
    "(1",
    "1)",
    "1 2",
    "1**2",
    "1//2",
    "1/0",
    "+1",
    "*1",
    "()",
    "2(3)",
    "1.2.3",
    ".5",
    "1.",
    "a",
    "٣",
)


@pytest.mark.parametrize("malformed", [*MALFORMED, "(" * 100, "-" * 100, ")" * 100, "1" * 5000])
def test_malformed_arithmetic_has_no_value(malformed: str):
    assert evaluate(malformed) is None


def test_long_expressions_are_not_read():
    assert evaluate("1+" * 499 + "1") == 500
    assert evaluate("1+" * 500 + "1") is None
    assert evaluate("(" * 499 + "1" + ")" * 499) == 1


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join)
        | inner.map(lambda one: f"({one})")
        | inner.map(lambda one: f"-{one}")
    ),
    max_leaves=8,
)


@given(expressions)
def test_arithmetic_agrees_with_python(expression: str):
    exact = re.sub("([0-9]+)", r"Fraction(\1)", expression)
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        expected = None
    assert evaluate(expression) == expected
