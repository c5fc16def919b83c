"""What the tables of cases leave open: finer rules, each on an example that a near mistake would get wrong."""

from __future__ import annotations

import pytest

from reinforge.grading.builtin import copied_prompt, icd_codes, label, record_checks, set_f1, span_f1


def test_null_alone_is_no_list_but_a_field_may_be_null():
    assert set_f1(input="null", reference=[]).reason == "not a list but None"
    assert set_f1(input=None, reference=[]).score == 0.0
    assert set_f1(input='{"codes": null}', reference=[], field="codes").score == 1.0


def test_numbers_are_equal_by_value_and_not_to_true():
    assert set_f1(input="[1.0, 2]", reference=[1, 2.0]).score == 1.0
    assert set_f1(input="[true]", reference=[1]).score == 0.0


def test_one_code_does_not_exclude_itself():
    assert icd_codes(input='["E11.9"]', reference=["E11.9"], exclusive=[["E1", "E11"]]).score == 1.0
    both = icd_codes(input='["E11.9", "E10.1"]', reference=["E11.9"], exclusive=[["E1", "E11"]])
    assert both.reason == "1 of 2 found, 1 of 1 expected; E1 and E11 exclude each other"


def test_codes_are_paired_closest_first():
    """E11.65 goes with E11.65, so that E11.9 is left with E11.8 and not the other way round: 1 + 3/4 of 2."""
    result = icd_codes(input='["E11.9", "E11.65"]', reference=["E11.65", "E11.8"])
    assert result.score == pytest.approx(1.75 / 2)
    near = icd_codes(input='["E11.651", "E11.9"]', reference=["E11.659", "E11.8"])
    assert near.score == pytest.approx((5 / 6 + 3 / 4) / 2)


def records(*times: tuple[float, float]) -> list[dict[str, object]]:
    return [{"title": str(i), "start": start, "end": end} for i, (start, end) in enumerate(times)]


def free(found: list[dict[str, object]]) -> float:
    """The share of records that are in no conflict, where the expected ones have none."""
    gold = records(*((100 + i, 100 + i + 1) for i in range(len(found))))
    return record_checks(input=found, reference=gold, start="start", end="end").score


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ([(9, 10), (10, 11)], 1.0),
        ([(9, 17), (10, 11), (12, 13)], 0.0),  # the last overlaps the first, not its neighbour
        ([(9, 11), (10, 12), (13, 14)], 1 / 3),
        ([(9, 9), (9, 9)], 1.0),  # reminders take no time
        ([(8, 10), (9, 9)], 0.0),
        ([(10, 9)], 0.0),  # ends before it starts
    ],
)
def test_overlaps(times: list[tuple[float, float]], share: float):
    assert free(records(*times)) == pytest.approx(share)


def test_times_may_be_texts_with_zones():
    gold = records((100, 101), (102, 103))
    clash = [
        {"title": "0", "start": "2025-05-05T09:00:00+02:00", "end": "2025-05-05T10:00:00+02:00"},
        {"title": "1", "start": "2025-05-05T07:30", "end": "2025-05-05T08:30Z"},
    ]
    assert record_checks(input=clash, reference=gold, start="start", end="end").score == 0.0
    unreadable = [clash[0], clash[1] | {"start": "noon"}]
    assert record_checks(input=unreadable, reference=gold, start="start").score == 0.5


def test_the_longer_of_two_names_that_begin_alike_is_meant():
    classes = ["spam", "spam and fraud", "allowed"]
    assert label(input="This is spam and fraud.", reference="spam and fraud", classes=classes, pick="only").score == 1.0
    assert label(input="This is spam.", reference="spam and fraud", classes=classes, pick="only").score == 0.0


def test_runs_that_overlap_are_counted_once():
    result = copied_prompt(input="a b c d e x y z", reference="a b c d e f g h i j", run=3)
    assert (result.score, result.metrics) == (1.0, {"share": 5 / 8})


def test_matchers_of_passages():
    found, gold = ["rent is due in May"], ["in May rent is due"]
    assert span_f1(input=found, reference=gold, matcher="exact").score == 0.0
    assert span_f1(input=found, reference=gold, matcher="words").score == 1.0
    assert span_f1(input=["rent is due"], reference=gold, matcher="partial").score == 1.0
    assert 0.5 < span_f1(input=found, reference=gold).score < 1.0
    assert span_f1(input=found, reference=gold, threshold=0.95).score == 0.0
