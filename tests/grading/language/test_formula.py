"""Formulas: values equal Python's on every expression both can read, and nothing hostile takes time."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.grading.language.formula import FUNCTIONS, MAX_LENGTH, MAX_VALUE, FormulaFault, parse

NUMBERS = st.sampled_from(["0", "1", "2.5", ".5", "3.", "1e2", "12E-1", "a", "b"])


def expressions():
    """Nested expressions as (text for our parser, text for Python)."""
    atoms = NUMBERS.map(lambda text: (text, text))

    def grow(inner):
        binary = st.tuples(inner, st.sampled_from("+-*/"), inner).map(
            lambda t: (f"{t[0][0]} {t[1]} {t[2][0]}", f"{t[0][1]} {t[1]} {t[2][1]}")
        )
        power = st.tuples(inner, inner).map(lambda t: (f"({t[0][0]})^({t[1][0]})", f"power(({t[0][1]}), ({t[1][1]}))"))
        sign = st.tuples(st.sampled_from("+-"), inner).map(lambda t: (f"{t[0]}({t[1][0]})", f"{t[0]}({t[1][1]})"))
        brackets = inner.map(lambda t: (f"( {t[0]})", f"({t[1]})"))
        one = st.tuples(st.sampled_from(["abs", "floor", "ceil", "exp", "sqrt", "log"]), inner).map(
            lambda t: (f"{t[0]}({t[1][0]})", f"{t[0]}({t[1][1]})")
        )
        many = st.tuples(st.sampled_from(["min", "max"]), st.lists(inner, min_size=2, max_size=4)).map(
            lambda t: tuple(f"{t[0]}({', '.join(one[side] for one in t[1])})" for side in (0, 1))
        )
        return binary | power | sign | brackets | one | many

    return st.recursive(atoms, grow, max_leaves=12)


@given(expressions())
def test_values_are_pythons(both):
    ours, pythons = both
    names = {name: getattr(math, name, None) or __builtins__[name] for name in FUNCTIONS} | {"power": math.pow}
    try:
        expected = eval(pythons, names, {"a": 0.25, "b": -3.0})
    except (ArithmeticError, ValueError):
        with pytest.raises(FormulaFault):
            parse(ours).value({"a": 0.25, "b": -3.0})
        return
    try:
        value = parse(ours).value({"a": 0.25, "b": -3.0})
    except FormulaFault as fault:
        if "beyond" not in str(fault):  # Python's floats reach further
            raise
        return
    assert value == expected


@given(st.text("0123456789.eE+-*/^(), abmx_minsqrt\n$é٣", max_size=60))
def test_any_text_gives_a_finite_number_or_the_documented_fault(text):
    try:
        value = parse(text).value({"a": 1.0, "b": 0.0})
    except FormulaFault:
        return
    assert abs(value) <= MAX_VALUE


@pytest.mark.parametrize(
    ("text", "value"),
    [("-2^2", -4), ("2^3^2", 512), ("2^-1", 0.5), ("8/2/2", 2), ("7-2-1", 4), ("--3", 3), ("2*-3", -6), ("max(4)", 4)],
)
def test_precedence(text, value):
    assert parse(text).value({}) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9**9**9", r"\*\* is Python: write \^"),
        ("9^9^9", "too large"),
        ("exp(exp(exp(9)))", "too large"),
        ("1e300*1e300", "1e300 is 1e\\+300, beyond"),
        ("(" * 10_000 + "1" + ")" * 10_000, "20,001 characters, at most 4,000"),
        ("(" * 1000 + "1" + ")" * 1000, "nested more than 64 deep"),
        ("-" * 1000 + "1", "nested more than 64 deep"),
        ("2^" * 1000 + "1", "nested more than 64 deep"),
        ("abs(" * 500 + "1" + ")" * 500, "nested more than 64 deep"),
        ("a/0", "0.5 / 0 divides by zero"),
        ("log(0)", r"log\(0\) has no value"),
        ("(0-8)^(1/3)", "no value among the real numbers"),
        ("sqrt(-1)", r"sqrt\(-1\) has no value"),
        ("a + c", r"c has no value \(known: a\)"),
        ("a b", "after \"a\" there is 'b' where an operator"),
        ("(a", 'after "\\(a" a closing bracket'),
        ("a +", 'after "a \\+" a number, a name or a bracket is missing'),
        ("abs(a, a)", "abs takes one argument, not 2"),
        ("eval(a)", r"eval\(...\) is no function"),
        ("a.b", r"'\.' at character 2"),
        ("__import__('os')", '"\'" at character 12'),
        ("", "empty"),
    ],
)
def test_what_is_refused_and_why(text, said):
    with pytest.raises(FormulaFault, match=said):
        parse(text).value({"a": 0.5})


def test_brackets_beside_each_other_are_not_within_each_other():
    assert parse(" + ".join(["(1)"] * 200)).value({}) == 200


def test_the_longest_formulas_answer_at_once():
    started = time.process_time()
    parse("1+" * (MAX_LENGTH // 2 - 1) + "1").value({})
    parse("(" * 64 + "1" + ")" * 64).value({})
    assert time.process_time() - started < 1.0


def test_a_score_that_is_no_number_is_refused():
    for score in (math.nan, math.inf, 1e16):
        with pytest.raises(FormulaFault, match="beyond"):
            parse("a").value({"a": score})
