"""Each check of the reward lab on trials made by hand: it finds what it is for, and nothing where all is well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.insight.findings import Finding
from reinforge.insight.lab import CHECKS, check
from reinforge.insight.trials import Extraction, FunctionInfo, Kind, Trial, Trials
from reinforge.types import Grade, Score

Values = dict[str, float | None]


def trial(kind: Kind, probe: str, row: int = 1, state: str = "ok", message: str = "", **values: float | None) -> Trial:
    """A completion with a score of each function; None is a failed call."""
    scores = [
        Score(name, f"{name}_v1", value, state="ok") if value is not None
        else Score(name, f"{name}_v1", None, state="error", kind=state if state != "ok" else "raised", message=message)
        for name, value in values.items()
    ]  # fmt: skip
    return Trial(row, probe, kind, f"<text of {probe}>", Grade(tuple(scores)))


def good(row: int, changes: Mapping[str, Values] = MappingProxyType({})) -> list[Trial]:
    """A row on which a function `right` about content and one `form` about form do what they should."""
    values: dict[str, tuple[Kind, Values]] = {
        "right completion": ("gold", {"right": 1.0, "form": 1.0}),
        "another row's answer": ("wrong", {"right": 0.0, "form": 1.0}),
        "half of the answer": ("partial", {"right": 0.5, "form": 1.0}),
        "empty": ("garbage", {"right": 0.0, "form": 0.0}),
        "copied prompt": ("garbage", {"right": 0.0, "form": 0.0}),
        "two answers in one": ("hack", {"right": 0.0, "form": 1.0}),
        "text before": ("damaged", {"right": 1.0, "form": 0.0}),
        "text behind": ("damaged", {"right": 1.0, "form": 0.0}),
        "line break behind": ("same", {"right": 1.0, "form": 1.0}),
        "compact JSON": ("same", {"right": 1.0, "form": 1.0}),
        "long text": ("fuzz", {"right": 0.0, "form": 0.0}),
    }
    return [trial(kind, probe, row, **{**scores, **changes.get(probe, {})}) for probe, (kind, scores) in values.items()]


def trials(*rows: list[Trial], weights: tuple[float, float] = (0.75, 0.25), **options: object) -> Trials:
    functions = (FunctionInfo("right", weights[0]), FunctionInfo("form", weights[1]))
    weighted = [
        replace(one, grade=Grade(tuple(replace(s, weight=dict(zip(("right", "form"), weights, strict=True))[s.name])
                                       for s in one.grade.scores)))
        for row in rows
        for one in row
    ]  # fmt: skip
    return Trials(functions, tuple(weighted), num_rows=len(rows), **options)  # type: ignore[arg-type]


def found(of: Trials) -> list[tuple[str, str, str]]:
    return [(one.id, one.verdict, one.function) for one in check(of)]


def one(of: Trials, id: str) -> Finding:
    (only,) = [finding for finding in check(of) if finding.id == id]
    return only


def every_row(num_rows: int = 4, changes: Mapping[str, Values] = MappingProxyType({})) -> list[list[Trial]]:
    return [good(row, changes) for row in range(1, num_rows + 1)]


def test_good_functions_give_no_warning():
    assert found(trials(*every_row())) == [("G12", "info", "")]


def test_a_function_that_never_fires_blocks():
    rows = [[replace(t, grade=Grade((replace(t.grade.scores[0], value=0.0), t.grade.scores[1]))) for t in row]
            for row in every_row()]  # fmt: skip
    finding = check(trials(*rows))[0]
    assert (finding.id, finding.verdict, finding.function) == ("G03", "blocking", "right")
    assert finding.message.startswith("right is 0 for every one of 4 right completions and of 40 others")
    assert finding.num_evidence == 4
    without_weight = check(trials(*rows, weights=(0.0, 1.0)))
    assert ("G03", "warning", "right") in [(f.id, f.verdict, f.function) for f in without_weight]


def test_a_completion_that_beats_the_right_one_blocks():
    changed = every_row(changes={"right completion": {"right": 0.5}, "compact JSON": {"right": 1.0}})
    findings = [f for f in check(trials(*changed)) if f.id == "G03"]
    assert {(f.verdict, f.function) for f in findings} == {("blocking", "right"), ("blocking", "")}
    assert [e.probe for e in findings[0].evidence[:2]] == ["right completion", "text before"]


def test_dead_rows_are_named_and_block_where_the_right_answer_is_nothing():
    rows = [*every_row(3), good(9, {"right completion": {"right": 0.0, "form": 0.0}})]
    findings = [f for f in check(trials(*rows)) if f.check == "dead_row"]
    assert {(f.verdict, f.function, f.evidence[0].row) for f in findings} == {
        ("warning", "right", 9), ("warning", "form", 9), ("warning", "", 9),
    }  # fmt: skip
    findings = [f for f in check(trials(*rows, empty_answers=frozenset({9}))) if f.check == "dead_row"]
    assert {f.verdict for f in findings} == {"blocking"}
    assert all(f.message.startswith("row 9: the right answer is empty") for f in findings)


def extraction(returned: str | None, written: str = "72", variant: str = "", expected: str | None = None) -> Extraction:
    return Extraction("extract", 1, "solution", f"#### {written}", written, expected or written, returned, "", variant)


@pytest.mark.parametrize(
    ("extractions", "verdicts"),
    [
        ([extraction("72"), extraction("18", "$18", "dollars", "18")], []),
        ([extraction("# 72")], ["blocking"]),
        ([extraction(None)], ["blocking"]),
        ([extraction("725", "72.5", "decimal")], ["blocking"]),
        ([extraction("18", "$18", "dollars", "18"), extraction("1,234", "1,234", "comma", "1234")], ["warning"]),
        ([extraction("$18", "$18", "dollars", "18"), extraction("1,234", "1,234", "comma", "1234")], []),
    ],
)
def test_answers_must_survive_extraction(extractions: list[Extraction], verdicts: list[str]):
    findings = check(trials(*every_row(), extractions=tuple(extractions)))
    assert [f.verdict for f in findings if f.id == "G04"] == verdicts


def test_garbage_with_half_of_the_marks_blocks():
    finding = one(trials(*every_row(changes={"empty": {"right": 1.0}})), "G05")
    assert (finding.verdict, finding.check) == ("blocking", "garbage_scores_low")
    assert "empty (4 rows)" in finding.message
    assert [f for f in check(trials(*every_row(changes={"empty": {"form": 1.0}}))) if f.id == "G05"] == []


def test_wrong_answers_that_score_like_right_ones_block_and_half_of_it_warns():
    assert one(trials(*every_row(changes={"another row's answer": {"right": 1.0}})), "G05").verdict == "blocking"
    finding = one(trials(*every_row(), weights=(0.4, 0.6)), "G05")
    assert (finding.verdict, finding.value) == ("warning", 0.6)
    assert one(trials(*every_row(), weights=(0.4, 0.6), weights_given=False), "G05").verdict == "info"
    twenty = every_row(20)
    twenty[0] = good(1, {"another row's answer": {"right": 1.0}})
    assert one(trials(*twenty), "G05").verdict == "warning"


def test_tricks_that_pay_warn_by_name():
    finding = one(trials(*every_row(changes={"two answers in one": {"right": 1.0}})), "G06")
    assert (finding.verdict, finding.evidence[0].probe) == ("warning", "two answers in one")
    lower = every_row(changes={"two answers in one": {"right": 0.8}})
    assert "G06" not in [f.id for f in check(trials(*lower))]


def test_the_most_frequent_answer_counts_only_beyond_a_wrong_one():
    rows = every_row()
    constant = [trial("constant", "most frequent answer", row, right=float(row < 4), form=1.0) for row in range(1, 5)]
    finding = one(trials(*rows, constant), "G28")
    assert finding.value == pytest.approx(0.75 * 0.75 + 0.25)
    same_as_wrong = [trial("constant", "most frequent answer", row, right=0.0, form=1.0) for row in range(1, 5)]
    assert "G28" not in [f.id for f in check(trials(*rows, same_as_wrong, weights=(0.4, 0.6)))]


def test_ladders():
    def ladder(number: int, *values: float) -> list[Trial]:
        names = ("great", "fair", "poor")
        return [
            replace(trial("ladder", name, 1, right=value, form=1.0), ladder=number)
            for name, value in zip(names, values, strict=True)
        ]

    assert "G07" not in [f.id for f in check(trials(*every_row(), ladder(1, 1.0, 0.5, 0.0)))]
    assert one(trials(*every_row(), ladder(1, 1.0, 0.5, 0.5)), "G07").verdict == "blocking"
    twelve = [ladder(number, 1.0, 0.5, 0.0) for number in range(12)]
    finding = one(trials(*every_row(), *twelve, ladder(12, 0.0, 0.5, 1.0)), "G07")
    assert (finding.verdict, finding.value) == ("warning", pytest.approx(1 / 13))
    turned = every_row(changes={"half of the answer": {"right": 0.0, "form": 0.0}, "copied prompt": {"right": 0.4}})
    assert one(trials(*turned), "G07").message.startswith("right, half right and worthless")


def test_scores_that_are_no_numbers():
    rows = every_row()
    text = trial("gold", "x", 1, state="not_a_number", message="returned the text '1'", right=None, form=1.0)
    nan = trial("gold", "x", 1, state="not_finite", message="returned nan", right=None, form=1.0)
    assert one(trials(*rows, [text]), "G08").verdict == "warning"
    assert one(trials(*rows, [nan]), "G08").verdict == "blocking"
    wide = one(trials(*every_row(changes={"right completion": {"right": 2.0}, "compact JSON": {"right": 2.0},
                                    "line break behind": {"right": 2.0}})), "G08")  # fmt: skip
    assert (wide.verdict, wide.value) == ("warning", 2.0)


def test_scores_that_do_not_repeat():
    rows = every_row()
    again = [[replace(t, again=t.grade) for t in row] for row in rows]
    assert "G09" not in [f.id for f in check(trials(*again))]
    other = Grade((Score("right", "right_v1", 0.9), Score("form", "form_v1", 1.0)))
    again[2][0] = replace(again[2][0], again=other)
    finding = one(trials(*again), "G09")
    assert (finding.function, finding.value, finding.evidence[0].row) == ("right", pytest.approx(0.1), 3)
    judged = replace(trials(*again), functions=(FunctionInfo("right", 0.75, is_judge=True), FunctionInfo("form", 0.25)))
    assert "G09" not in [f.id for f in check(judged)]


@pytest.mark.parametrize(("latency_s", "verdict"), [(4.9, None), (5.1, "warning"), (121.0, "blocking")])
def test_slow_calls(latency_s: float, verdict: str | None):
    slow = [
        [replace(t, grade=Grade(tuple(replace(s, latency_s=latency_s) for s in t.grade.scores))) for t in row]
        for row in every_row()
    ]
    assert {f.verdict for f in check(trials(*slow)) if f.id == "G10"} == ({verdict} if verdict else set())


def test_failing_calls_block_on_sound_completions_only():
    broken = {"right completion": {"right": None}, "another row's answer": {"right": None}}
    finding = one(trials(*every_row(changes=broken)), "G11")
    assert (finding.verdict, finding.check) == ("blocking", "calls_succeed")
    finding = one(trials(*every_row(changes={"empty": {"right": None}, "long text": {"right": None}})), "G11")
    assert (finding.verdict, finding.check) == ("warning", "calls_survive_anything")
    assert "empty, long text (4 rows each)" in finding.message


def test_two_values_only():
    rows = every_row(changes={"half of the answer": {"right": 0.0}})
    alone = replace(trials(*rows), functions=(FunctionInfo("right"),))
    assert one(alone, "G12").verdict == "warning"
    assert one(trials(*rows), "G12").message == "only two values each: right, form"


def test_a_constant_and_a_dominant_function():
    rows = [[replace(t, grade=Grade((t.grade.scores[0], replace(t.grade.scores[1], value=0.5)))) for t in row]
            for row in every_row()]  # fmt: skip
    findings = {(f.check, f.function) for f in check(trials(*rows)) if f.id == "G13"}
    assert findings == {("dead_reward", "form"), ("no_function_dominates", "right")}


def test_weights_that_do_not_sum_to_one():
    assert one(trials(*every_row(), weights=(3.0, 1.0)), "G14").value == 4.0
    assert "G14" not in [f.id for f in check(trials(*every_row(), weights=(3.0, 1.0), weights_given=False))]


def test_a_missing_function_about_content_or_form():
    rows = every_row()
    only_form = replace(trials(*rows), functions=(FunctionInfo("form"),))
    only_right = replace(trials(*rows), functions=(FunctionInfo("right"),))
    assert one(only_form, "G15").message.startswith("no function tells a right answer from a wrong one")
    assert one(only_right, "G15").verdict == "info"


def test_what_evaluations_count_as_correct():
    assert "G22" not in [f.id for f in check(trials(*every_row(), correct_from=1.0))]
    finding = one(trials(*every_row(), weights=(0.5, 0.25), correct_from=1.0), "G22")
    assert (finding.verdict, finding.value) == ("blocking", 0.75)
    assert "G22" not in [
        f.id for f in check(trials(*every_row(), weights=(0.5, 0.25), correct_from=1.0, correct_fn="right"))
    ]


def test_other_spellings_and_text_around():
    finding = one(trials(*every_row(changes={"compact JSON": {"right": 0.0}})), "G24")
    assert (finding.verdict, finding.check) == ("warning", "near_gold_scores_alike")
    assert one(trials(*every_row(changes={"line break behind": {"form": 0.0}})), "G24").verdict == "info"
    finding = one(trials(*every_row(changes={"text before": {"form": 1.0}})), "G24")
    assert finding.message.startswith("text behind a right completion costs marks, text before it does not")


def test_columns_that_are_read_as_they_are_not():
    rows = every_row(changes={"right completion": {"right": 0.0}})
    typed = [
        [replace(t, typed=Grade((Score("right", "r", 1.0),))) if t.kind == "gold" else t for t in row] for row in rows
    ]
    finding = one(trials(*typed), "G25")
    assert (finding.verdict, finding.function) == ("blocking", "right")
    assert "G25" not in [f.id for f in check(trials(*rows))]


def test_cases():
    def case(low: float, high: float) -> list[Trial]:
        return [replace(trial("case", "mine", right=0.5, form=1.0), expected={"right": (low, high), "": (0.0, 1.0)})]

    assert "G27" not in [f.id for f in check(trials(*every_row(), case(0.5, 0.5)))]
    finding = one(trials(*every_row(), case(0.6, 1.0)), "G27")
    assert (finding.verdict, finding.evidence[0].note) == ("blocking", "should be 0.6 to 1")


def test_accepted_findings_stay_as_info():
    of = trials(*every_row(changes={"empty": {"right": 1.0}}))
    assert check(of)[0].verdict == "blocking"
    for accepted in ("G05", "G05:reward"):
        accepted_finding = next(f for f in check(of, accepted=[accepted]) if f.id == "G05")
        assert (accepted_finding.verdict, accepted_finding.message[:9]) == ("info", "accepted:")
    assert check(of, accepted=["G05:right"])[0].verdict == "blocking"


kinds = st.sampled_from(
    ["gold", "partial", "wrong", "garbage", "hack", "constant", "same", "damaged", "fuzz", "ladder"]
)
scores = st.one_of(st.none(), st.floats(-10, 10))


@given(st.lists(st.tuples(kinds, st.integers(1, 4), scores, scores), max_size=30))
def test_no_check_fails_on_any_trials(drawn: list[tuple[Kind, int, float | None, float | None]]):
    rows = [trial(kind, f"{kind} {place % 3}", row, right=a, form=b) for place, (kind, row, a, b) in enumerate(drawn)]
    for finding in check(trials(rows, correct_from=1.0)):
        assert finding.message
        assert finding.fix
        assert finding.num_evidence >= len(finding.evidence)
    assert len(CHECKS) == len(set(CHECKS))
