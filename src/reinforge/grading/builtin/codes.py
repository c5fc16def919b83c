"""Graders of codes from a classification with a hierarchy, such as ICD-10."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from reinforge.grading.builtin.lists import f1_result
from reinforge.grading.builtin.reading import Unreadable, list_of, number_option, reference_list, shown
from reinforge.grading.builtin.result import Result, refused

MAX_CODES = 1000
"""Of a completion."""
MAX_CODE_LENGTH = 16


def icd_codes(
    *,
    input: Any,
    reference: Any,
    field: str = "",
    tag: str = "",
    after: str = "",
    prefix: int = 3,
    exclusive: Sequence[Sequence[str]] = (),
    penalty: float = 0.5,
    empty_match: float = 1.0,
) -> Result:
    """F1 of two sets of codes with part credit for near ones, less for codes that exclude each other (S4-044, S4-045).

    Each code found is paired with one expected code at most, the closest first. Equal codes earn 1; codes that share
    their first s characters earn s / the longer one's length where s is at least `prefix` (in ICD-10 the first three
    characters are the category). Dots, case and repetitions do not count. F1 is taken of the sums.

    `reference`: the expected codes; None is an empty list.
    `field`: dotted path to the list in the input; null there is an empty list.
    `tag`, `after`: where the JSON stands in a text, as in exact_answer.
    `prefix`: as above; 0 gives credit to equal codes only.
    `exclusive`: pairs of code beginnings that must not stand together (`["E10", "E11"]`).
    `penalty`: for each such pair that does, the score is multiplied by 1 - `penalty`.
    `empty_match`: the score when both lists are empty. One empty list scores 0.

    >>> icd_codes(input='["E11.9", "I10"]', reference=["I10", "E11.9"]).score
    1.0
    >>> icd_codes(input='["E11.8"]', reference=["E11.9"])
    Result(score=0.75, reason='0.75 of 1 found, 0.75 of 1 expected', metrics={'precision': 0.75, 'recall': 0.75})
    >>> icd_codes(input='["E11.9", "E10.9"]', reference=["E11.9"], exclusive=[["E10", "E11"]]).reason
    '1 of 2 found, 1 of 1 expected; E10 and E11 exclude each other'
    >>> icd_codes(input="type 2 diabetes", reference=["E11.9"]).score
    0.0
    """
    least, penalty = int(number_option("prefix", prefix, 0)), number_option("penalty", penalty, 0.0, 1.0)
    pairs = _pairs(exclusive)
    empty_match = number_option("empty_match", empty_match)
    expected = _expected(reference, pairs)
    listed = list_of(input, field, tag, after, MAX_CODES)
    if isinstance(listed, Unreadable):
        return refused(listed.reason)
    if not listed and not expected:
        return Result(empty_match, "nothing found, nothing expected")
    found = {_plain(code) for code in listed}
    result = f1_result(_credit(found, expected, least), len(found), len(expected))
    broken = [pair for pair in pairs if _stand_together(pair, found)]
    if not broken:
        return result
    named = ", ".join(f"{one} and {other}" for one, other in broken[:3])
    score = result.score * (1 - penalty) ** len(broken)
    return Result(score, f"{result.reason}; {named} exclude each other", {**result.metrics, "excluded": len(broken)})


def _plain(code: object) -> str:
    """A code as it is compared; what is no code is compared as "", which is equal to no expected code."""
    if not isinstance(code, str) or len(code) > MAX_CODE_LENGTH:
        return ""
    return code.replace(".", "").strip().upper()


def _expected(reference: object, pairs: Sequence[tuple[str, str]]) -> set[str]:
    codes = reference_list(reference)
    for code in codes:
        if not _plain(code):
            raise ValueError(f"reference: a list of codes is needed, not {shown(code)} in it")
    expected = {_plain(code) for code in codes}
    for pair in pairs:
        if _stand_together(pair, expected):
            raise ValueError(f"reference: it holds codes of {pair[0]} and {pair[1]}, which exclude each other")
    return expected


def _pairs(exclusive: object) -> list[tuple[str, str]]:
    pairs = []
    for pair in exclusive if isinstance(exclusive, (list, tuple)) else [exclusive]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(_plain, pair)):
            raise ValueError(f"exclusive: pairs of code beginnings are needed, not {shown(pair)}")
        pairs.append((_plain(pair[0]), _plain(pair[1])))
    return pairs


def _stand_together(pair: tuple[str, str], codes: Iterable[str]) -> bool:
    """Whether two different codes begin with one of the pair each."""
    one, other = ({code for code in codes if code.startswith(beginning)} for beginning in pair)
    return bool(one) and bool(other) and len(one | other) > 1


def _credit(found: set[str], expected: set[str], least: int) -> float:
    """The sum of what pairs of codes earn: equal ones first, then those that share the longest beginning."""
    equal = found & expected
    credit = float(len(equal))
    left, wanted = found - equal, expected - equal
    for size in range(MAX_CODE_LENGTH, max(least, 1) - 1, -1) if least else ():
        of_found, of_wanted = _by_beginning(left, size), _by_beginning(wanted, size)
        for beginning in of_found.keys() & of_wanted.keys():
            for code, gold in zip(sorted(of_found[beginning]), sorted(of_wanted[beginning]), strict=False):
                credit += size / max(len(code), len(gold))
                left.discard(code)
                wanted.discard(gold)
    return credit


def _by_beginning(codes: Iterable[str], size: int) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for code in codes:
        if len(code) >= size:
            groups[code[:size]].append(code)
    return groups
