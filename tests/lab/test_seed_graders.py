"""The lab on the graders that the seeds print, faults included: it finds each fault by name and row (S2-052..055,
S4-018, S4-034, S4-054)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reinforge.insight.findings import Finding
from reinforge.lab.examine import LabReport
from reinforge.lab.subject import Request, examine_request

SEEDS = Path(__file__).parent / "seeds"
RUNLOOP = "<plan>\n{plan}\n</plan>\n<code>\n```typescript {path}\n{code}\n```\n</code>"


def examine(subject: str, data: str | None = None, **options: object) -> LabReport:
    return examine_request(Request(subject, data, **options), SEEDS)  # type: ignore[arg-type]


def of(report: LabReport, check: str, function: str | None = None) -> list[Finding]:
    return [f for f in report.findings if f.check == check and function in (None, f.function)]


@pytest.fixture(scope="module")
def gsm8k() -> LabReport:
    return examine("gsm8k.py", "gsm8k.jsonl")


def test_gsm8k_rewards_that_can_never_fire(gsm8k: LabReport):
    """S2-052: correctness and int; S2-054: strict."""
    dead = of(gsm8k, "gold_scores_full")
    assert {f.function for f in dead} == {"correctness_reward", "int_reward", "strict_format_reward"}
    for finding in dead:
        assert (finding.verdict, finding.value, finding.num_evidence) == ("blocking", 0.0, 5)
        assert [evidence.row for evidence in finding.evidence] == [1, 2, 3, 4, 5]
    assert gsm8k.assumptions[1].startswith(r"right completions: '<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n")


def test_gsm8k_extraction_loses_the_answer(gsm8k: LabReport):
    """S2-052: the text behind </answer>; S2-053: # 72, 72.5 as 725, and 1,234 with its comma."""
    by_helper = {f.message.split()[0]: f for f in of(gsm8k, "gold_survives_extraction")}
    assert set(by_helper) == {"extract_xml_answer", "extract_hash_answer"}
    assert all(f.verdict == "blocking" for f in by_helper.values())
    assert {e.note for e in by_helper["extract_xml_answer"].evidence} >= {"'', not '72'", "'', not '72.5'"}
    notes = {(e.row, e.probe): e.note for e in by_helper["extract_hash_answer"].evidence}
    assert notes[1, "solution"] == "'# 72', not '72'"
    assert notes[1, "decimal"] == "'# 725', not '72.5'"
    assert notes[1, "thousands comma"] == "'# 1,234', not '1234'"


def test_gsm8k_can_rise_to_full_marks_on_format_alone(gsm8k: LabReport):
    """S2-055."""
    (finding,) = of(gsm8k, "wrong_answer_scores_low")
    assert (finding.verdict, finding.value) == ("blocking", 1.0)
    assert [e.row for e in finding.evidence] == [1, 2, 3, 4, 5]


def test_gsm8k_defines_a_reward_that_is_not_used():
    """S2-026, with the functions that the seed passes to the trainer."""
    report = examine("gsm8k.yaml")
    (finding,) = of(report, "source_text")
    assert (finding.id, finding.function, finding.verdict) == ("G21", "strict_format_reward", "warning")
    assert {f.function for f in of(report, "gold_scores_full")} == {"int", "correctness"}


def test_chipstack_never_rewards_a_right_abstention():
    """S4-018: row 3 has nothing to bind."""
    report = examine("chipstack.py", "chipstack.jsonl")
    (finding,) = of(report, "dead_row")
    assert (finding.verdict, finding.function, [e.row for e in finding.evidence]) == ("blocking", "grade", [3])
    assert finding.evidence[0].text == '{"predicted": []}'
    assert of(report, "gold_scores_full") == []


def test_harvey_never_rewards_the_empty_list_it_asks_for():
    """S4-054: row 3 has no passages."""
    report = examine("harvey.py", "harvey.jsonl")
    (finding,) = of(report, "dead_row")
    assert (finding.verdict, finding.function, [e.row for e in finding.evidence]) == ("blocking", "grade", [3])
    assert finding.evidence[0].text == '{"passages": []}'


def test_runloop_takes_a_language_for_a_path_and_does_not_look_before_the_plan():
    """S4-034, on every row."""
    report = examine("runloop.py", "runloop.jsonl", answer_column="code", gold_template=RUNLOOP)
    (near,) = of(report, "near_gold_scores_alike")
    assert (near.verdict, near.value) == ("warning", 0.5)
    assert {(e.row, e.probe) for e in near.evidence} == {(row, "code block without its path") for row in (1, 2, 3)}
    (around,) = of(report, "text_around_gold")
    assert around.message.startswith(
        "text behind a right completion costs marks, text before it does not (rows 1, 2, 3)"
    )
    assert report.verdict == "warning"


def test_the_mended_chipstack_grader_has_no_dead_row(tmp_path: Path):
    mended = (SEEDS / "chipstack.py").read_text().replace(
        '    matched =', '    if not predicted and not expected:\n        return 1.0\n    matched ='
    )  # fmt: skip
    (tmp_path / "chipstack.py").write_text(mended)
    report = examine_request(Request("chipstack.py", str(SEEDS / "chipstack.jsonl")), tmp_path)
    assert of(report, "dead_row") == []
    assert report.verdict != "blocking"


def test_a_report_is_json():
    report = examine("harvey.py", "harvey.jsonl")
    told = json.loads(json.dumps(report.as_json()))
    assert told["verdict"] == "blocking"
    assert told["findings"][0]["id"] == "G03"
    assert told["functions"][0]["gold"] == 1.0
