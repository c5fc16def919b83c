"""Graders of one short answer: a word, a number."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from reinforge.grading.builtin.reading import (
    Unreadable,
    answer_of,
    choice_option,
    number_option,
    shown,
    text_of,
    text_option,
)
from reinforge.grading.builtin.result import Result, refused

MAX_NUMBER_LENGTH = 300
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,20}(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"([-+−]?)\s?[$€£¥]?\s?([-+−]?)({_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE]([-+]?[0-9]{{1,3}}))?\s?[%€£¥]?"
)
_LAST = re.compile(rf"[-+−]?[$€£¥]?{_DIGITS}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?")
KINDS = {
    "digits": re.compile(r"[0-9]+"),
    "integer": re.compile(rf"[-−]?{_DIGITS}"),
}


def exact_answer(
    *,
    input: Any,
    reference: Any,
    tag: str = "",
    after: str = "",
    reference_after: str = "",
    compare: Literal["exact", "text", "number"] = "exact",
) -> Result:
    """1 when the answer equals the reference, or one of them where the reference is a list, else 0 (S2-019).

    `reference`: the right answer, or a list of them.
    `tag`: the answer is what stands in the last `<tag>...</tag>`; without `tag` and `after` it is the whole input.
    `after`: the answer is what follows the last such mark.
    `reference_after`: the same mark in the reference, as `####` in GSM8K's solutions.
    `compare`: "exact": letter by letter. "text": case, runs of white space and a full stop at the end do not count.
    "number": as numbers where both are written as one ($1,234. is 1234.0), else as "text".

    >>> exact_answer(input="<answer>\\n72\\n</answer>", reference="48 + 24 = 72\\n#### 72", tag="answer",
    ...              reference_after="####").score
    1.0
    >>> exact_answer(input="<answer>$72.</answer>", reference="72", tag="answer")
    Result(score=0.0, reason="'$72.' is not '72'", metrics={})
    >>> exact_answer(input="72", reference="72", tag="answer")
    Result(score=0.0, reason='no <answer>...</answer>', metrics={})
    """
    choice_option("compare", compare, ("exact", "text", "number"))
    references = reference if isinstance(reference, (list, tuple)) else [reference]
    golds = [_gold(one, text_option("reference_after", reference_after)) for one in references]
    if not golds:
        raise ValueError("reference: the list of answers is empty")
    answer = answer_of(input, tag, after)
    if isinstance(answer, Unreadable):
        return refused(answer.reason)
    if any(_equal(answer, gold, compare) for gold in golds):
        return Result(1.0)
    return refused(f"{shown(answer)} is not {' or '.join(map(shown, golds[:3]))}")


def _gold(reference: object, mark: str) -> str:
    text = text_of(reference)
    if mark and mark not in text:
        raise ValueError(f"reference: no {mark!r} in {shown(text)}")
    gold = (text.rpartition(mark)[2] if mark else text).strip()
    if not gold:
        raise ValueError("reference: the answer is empty")
    return gold


def _equal(answer: str, gold: str, compare: str) -> bool:
    if compare == "exact":
        return answer == gold
    if compare == "number":
        number, wanted = number_of(answer), number_of(gold)
        if number is not None and wanted is not None:
            return number == wanted
    return plain_text(answer) == plain_text(gold)


def plain_text(text: str) -> str:
    """A text as it is compared: case, runs of white space and full stops at its end do not count.

    >>> plain_text(" Not  Spam. ")
    'not spam'
    """
    return " ".join(text.casefold().split()).rstrip(". ")


def number_of(text: str) -> Fraction | None:
    """The number that a text is, exactly; None when it is none. Thousands commas, a currency or percent sign and a full
    stop at its end do not count.

    >>> [str(number_of(text)) for text in ("$1,234.", "-3", "2.5e3", "12%", "three", "1,23")]
    ['1234', '-3', '2500', '12', 'None', 'None']
    """
    text = text.strip()
    text = text[:-1] if text.endswith(".") else text
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_NUMBER_LENGTH else None
    if match is None or (match[1] and match[2]):
        return None
    sign = -1 if (match[1] or match[2]) in ("-", "−") else 1
    return sign * Fraction(match[3].replace(",", "")) * Fraction(10) ** int(match[4] or 0)


def is_number(
    *, input: Any, tag: str = "", after: str = "", kind: Literal["digits", "integer", "number"] = "integer"
) -> Result:
    """1 when the answer is a number, else 0.

    `tag`, `after`: where the answer stands, as in exact_answer.
    `kind`: "digits": 0-9 and nothing else (S2-020). "integer": a minus sign and thousands commas too. "number": also
    decimals, exponents, currency and percent signs.

    >>> is_number(input="<answer>-1,234</answer>", tag="answer").score
    1.0
    >>> is_number(input="<answer>-1,234</answer>", tag="answer", kind="digits")
    Result(score=0.0, reason="'-1,234' is not digits", metrics={})
    >>> is_number(input="<answer>²</answer>", tag="answer").score
    0.0
    """
    choice_option("kind", kind, ("digits", "integer", "number"))
    answer = answer_of(input, tag, after)
    if isinstance(answer, Unreadable):
        return refused(answer.reason)
    right = KINDS[kind].fullmatch(answer) if kind in KINDS else number_of(answer) is not None
    return Result(1.0) if right else refused(f"{shown(answer)} is not {'digits' if kind == 'digits' else f'a {kind}'}")


def numeric_close(
    *,
    input: Any,
    reference: Any,
    tag: str = "",
    after: str = "",
    pick: Literal["whole", "last"] = "whole",
    abs_tol: float = 0.0,
    rel_tol: float = 1e-6,
    reach: float = 1.0,
) -> Result:
    """1 when the answer lies within a tolerance of the reference (S4-059), falling to 0 beyond it.

    With error e = |answer - reference| and tolerance t = max(abs_tol, rel_tol * |reference|): 1 where e <= t, else
    1 - (e / t - 1) / (reach - 1), at least 0: with `reach` 1 there is nothing beyond the tolerance, with `reach` 10 the
    score falls to 0 at ten times the tolerance.

    `reference`: the right number.
    `tag`, `after`: where the answer stands, as in exact_answer.
    `pick`: "whole": the answer is a number and nothing else; "last": the last number in it counts.
    `abs_tol`, `rel_tol`: the tolerance, as above.
    `reach`: how many tolerances away the score has fallen to 0.

    Numbers are compared exactly, as written in decimals; a percent or currency sign is passed over.

    >>> numeric_close(input="3.14", reference=3.14159, abs_tol=0.01).score
    1.0
    >>> numeric_close(input="about 105 in all", reference=100, pick="last", rel_tol=0.01, reach=9)
    Result(score=0.5, reason='105 is off by 5, tolerance 1', metrics={'error': 5.0})
    >>> numeric_close(input="a lot", reference=100)
    Result(score=0.0, reason="'a lot' is not a number", metrics={})
    """
    choice_option("pick", pick, ("whole", "last"))
    wanted = number_of(text_of(reference)) if not isinstance(reference, bool) else None
    if wanted is None:
        raise ValueError(f"reference: a number is needed, not {shown(reference)}")
    absolute, relative = number_option("abs_tol", abs_tol, 0.0), number_option("rel_tol", rel_tol, 0.0)
    tolerance = max(Fraction(str(absolute)), Fraction(str(relative)) * abs(wanted))
    reach = number_option("reach", reach, 1.0)
    answer = answer_of(input, tag, after)
    if isinstance(answer, Unreadable):
        return refused(answer.reason)
    number = number_of(answer if pick == "whole" else _last_number(answer))
    if number is None:
        return refused(f"{shown(answer)} is not a number" if pick == "whole" else f"no number in {shown(answer)}")
    return _closeness(number, wanted, tolerance, reach)


def _last_number(text: str) -> str:
    last = ""
    for match in _LAST.finditer(text):
        last = match[0]
    return last


def _closeness(number: Fraction, wanted: Fraction, tolerance: Fraction, reach: float) -> Result:
    error = abs(number - wanted)
    metrics = {"error": min(as_float(error), 1e15)}  # the largest number that a score keeps
    if error <= tolerance:
        return Result(1.0, "", metrics)
    reason = f"{as_float(number):g} is off by {as_float(error):g}, tolerance {as_float(tolerance):g}"
    if not tolerance or error >= tolerance * Fraction(reach):
        return Result(0.0, reason, metrics)
    return Result(float(1 - (error / tolerance - 1) / (Fraction(reach) - 1)), reason, metrics)


def as_float(number: Fraction) -> float:
    """The nearest float, infinite where there is none."""
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
