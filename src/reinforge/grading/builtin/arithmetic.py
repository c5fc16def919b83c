"""Countdown: is the answer an arithmetic expression of the given numbers that reaches the target?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

from reinforge.grading.builtin.answers import as_float, number_of
from reinforge.grading.builtin.reading import (
    Unreadable,
    answer_of,
    choice_option,
    number_option,
    shown,
    text_of,
)
from reinforge.grading.builtin.result import Result, refused

MAX_LENGTH = 1000
"""Characters of an expression that are evaluated at all: the numbers in it stay small."""
NUMBER = r"[0-9]+(?:\.[0-9]+)?"


def equation(
    *,
    input: Any,
    reference: Any,
    numbers: Any,
    tag: str = "answer",
    use: Literal["all", "any"] = "all",
    tolerance: float = 1e-5,
    decimals: bool = False,
    max_length: int = 200,
) -> Result:
    """1 when the answer is an expression of the given numbers whose value is the target, else 0 (S0-017..021).

    `reference`: the target.
    `numbers`: those given, as a list or as text ("9 1 5", "[9, 1, 5]").
    `tag`: the expression is what stands in the last `<tag>...</tag>`; "" takes the whole input.
    `use`: "all": each given number exactly once; "any": at most once.
    `tolerance`: the value must differ by less. It is computed exactly, as a fraction.
    `decimals`: numbers with a decimal point may be written.
    `max_length`: characters of the longest expression that is read.

    The expression may hold digits, + - * / ( ) and spaces, and is never given to Python's `eval`.

    >>> equation(input="<answer>1+(9+5)</answer>", reference=15, numbers=[9, 1, 5]).score
    1.0
    >>> equation(input="<answer>9+5</answer>", reference=15, numbers=[9, 1, 5])
    Result(score=0.0, reason='uses 5, 9, given 1, 5, 9', metrics={})
    >>> equation(input="<answer>__import__('os')</answer>", reference=15, numbers=[9, 1, 5])
    Result(score=0.0, reason='"__import__(\\'os\\')" is not made of digits, + - * / ( )', metrics={})
    """
    choice_option("use", use, ("all", "any"))
    target, given = _target(reference), _given(numbers)
    longest = number_option("max_length", max_length, 1, MAX_LENGTH)
    allowed = number_option("tolerance", tolerance, 0.0)
    expression = answer_of(input, tag)
    if isinstance(expression, Unreadable):
        return refused(expression.reason)
    if len(expression) > longest:
        return refused(f"longer than {longest:g} characters")
    if not re.fullmatch(r"[0-9+\-*/() .]+" if decimals else r"[0-9+\-*/() ]+", expression):
        return refused(f"{shown(expression)} is not made of digits, + - * / ( )")
    used = Counter(Fraction(text) for text in re.findall(NUMBER, expression))
    if used != given if use == "all" else not used <= given:
        return refused(f"uses {_listed(used)}, given {_listed(given)}")
    value = evaluate(expression)
    if value is None:
        return refused(f"{shown(expression)} has no value")
    if abs(value - target) < Fraction(str(allowed)) or value == target:
        return Result(1.0)
    return refused(f"{shown(expression)} is {as_float(value):g}, not {as_float(target):g}")


def _target(reference: object) -> Fraction:
    target = None if isinstance(reference, bool) else number_of(text_of(reference))
    if target is None:
        raise ValueError(f"reference: a number is needed, not {shown(reference)}")
    return target


def _given(numbers: object) -> Counter[Fraction]:
    """The numbers of a row; a text is split at spaces, commas and brackets."""
    parts = re.split(r"[\s,;()\[\]{}]+", numbers) if isinstance(numbers, str) else numbers
    if not isinstance(parts, Sequence):
        raise ValueError(f"numbers: a list of numbers is needed, not {shown(numbers)}")
    found = [None if isinstance(part, bool) else number_of(text_of(part)) for part in parts if part != ""]
    given = [number for number in found if number is not None and number >= 0]
    if not given or len(given) < len(found):
        raise ValueError(f"numbers: a list of numbers from 0 on is needed, not {shown(numbers)}")
    return Counter(given)


def _listed(numbers: Counter[Fraction]) -> str:
    return ", ".join(f"{as_float(number):g}" for number in sorted(numbers.elements())) or "none"


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of + - * / and parentheses; None when it is malformed, divides by zero or is
    longer than 1,000 characters. One pass with two stacks (Dijkstra's shunting yard), so depth costs nothing.

    >>> evaluate("1+(9-5)/2"), evaluate("-2*-0.5"), evaluate("1//2"), evaluate("1/(2-2)"), evaluate("(" * 500)
    (Fraction(3, 1), Fraction(1, 1), None, None, None)
    """
    if len(expression) > MAX_LENGTH or not expression.isascii():
        return None
    values: list[Fraction] = []
    waiting: list[str] = []
    wants_value = True
    try:
        for token in re.findall(rf"{NUMBER}|\S", expression):
            if wants_value and token in "-(":
                waiting.append("negative" if token == "-" else "(")
            elif wants_value:
                values.append(Fraction(token))
                wants_value = False
            elif token == ")":
                _apply(values, waiting, at_least=1)
                waiting.pop()  # the parenthesis it closes
            else:
                _apply(values, waiting, at_least=BINARY[token])
                waiting.append(token)
                wants_value = True
        _apply(values, waiting, at_least=1)
    except (ValueError, KeyError, IndexError, ZeroDivisionError):
        return None
    return None if waiting or wants_value else values[0]


BINARY = {"+": 1, "-": 1, "*": 2, "/": 2}
STRENGTH = {"(": 0, **BINARY, "negative": 3}


def _apply(values: list[Fraction], waiting: list[str], at_least: int) -> None:
    """Carry out the operators on top of the stack that bind at least so strongly."""
    while waiting and STRENGTH[waiting[-1]] >= at_least:
        operator = waiting.pop()
        right = values.pop()
        if operator == "negative":
            values.append(-right)
            continue
        left = values.pop()
        if operator == "/":
            values.append(left / right)
        else:
            values.append(left * right if operator == "*" else left + (right if operator == "+" else -right))
