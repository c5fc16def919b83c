"""The lab on judges, asked over HTTP: how they are set up, whether words sway them, what a run of them would take."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from judge_server import JudgeServer

from reinforge.cli.main import run as reinforge
from reinforge.insight.findings import Finding
from reinforge.insight.judge_checks import JudgeCost, JudgeFacts, judges_are_set_up, judges_fit_the_budget
from reinforge.lab.examine import LabReport
from reinforge.lab.subject import Request, examine_request

SHOWN = re.compile(r"<<<completion (\w+)>>>\n(.*?)\n<<<end of completion \1>>>", re.DOTALL)
JUDGE = {
    "type": "score_model",
    "model": "judge",
    "input": [{"role": "user", "content": "Right: {{item.answer}}. Answer: {{sample.output_text}}"}],
    "examples": {"great": "Oslo", "fair": "Oslo, I think", "poor": "Bergen"},
}
ROWS = [{"prompt": f"Capital {i}?", "answer": name} for i, name in enumerate(("Oslo", "Rome", "Bern"))]


def shown(body: dict) -> tuple[str, str]:
    """(the right answer, the completion), as the judge reads them."""
    text = body["messages"][-1]["content"]
    found = SHOWN.search(text)
    assert found is not None
    return text.partition("Right: ")[2].partition(".")[0], found[2]


def reply(result: float) -> dict:
    return {"steps": [{"description": "compared", "conclusion": "done"}], "result": result}


def honest(body: dict) -> dict:
    answer, completion = shown(body)
    words = re.findall(r"\w+", completion)
    names = {row["answer"] for row in ROWS} & set(words)
    return reply(1.0 if names == {answer} else 0.4 if answer in names else 0.0)


def impressed_by_length(body: dict) -> dict:
    return reply(min(1.0, len(shown(body)[1]) / 300))


@pytest.fixture
def examine(tmp_path: Path) -> Callable[..., LabReport]:
    def run(server: JudgeServer, grader: dict | None = None, **config: object) -> LabReport:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        judge = {"base_url": server.url, "allow_private_addresses": True, **config}
        rewards = {"functions": {"judged": grader or JUDGE}, "judge": judge}
        text = {"base_model": "policy", "data": {"path": "rows.jsonl"}, "reward_fns": rewards, "train_steps": 10}
        (tmp_path / "train.yaml").write_text(json.dumps(text))
        return examine_request(Request("train.yaml"), tmp_path)

    return run


def by_id(report: LabReport, id: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.id == id]


def test_a_good_judge_is_only_told_what_it_costs(examine: Callable[..., LabReport]):
    with JudgeServer(honest) as server:
        report = examine(server)
        shown_texts = [shown(body)[1] for body in server.requests]
    assert [finding.id for finding in report.findings if finding.verdict != "info"] == []
    assert report.functions[0]["gold"] == 1.0
    (cost,) = by_id(report, "G20")
    assert cost.message.startswith("a run asks its judges 640 questions: about ")
    assert float(cost.value or 0) > 640
    assert report.assumptions[-1].startswith("judges: asked ")
    assert max(map(len, shown_texts)) < 2_500


def test_a_judge_that_words_sway(examine: Callable[..., LabReport]):
    with JudgeServer(impressed_by_length) as server:
        report = examine(server)
    (biased,) = by_id(report, "G18")
    assert (biased.function, biased.verdict) == ("judged", "warning")
    assert biased.value == pytest.approx(1.0, abs=0.05)
    assert report.verdict == "blocking"


def test_a_judge_that_changes_its_mind(examine: Callable[..., LabReport]):
    moods = itertools.count()
    with JudgeServer(lambda body: reply(next(moods) % 5 / 4)) as server:
        report = examine(server)
    (fickle,) = by_id(report, "G09")
    assert (fickle.function, fickle.threshold) == ("judged", "within 0.1")


def test_how_a_judge_is_set_up(examine: Callable[..., LabReport]):
    bare = {key: value for key, value in JUDGE.items() if key != "examples"}
    with JudgeServer(honest) as server:
        report = examine(server, {**bare, "model": "policy", "sampling_params": {"temperature": 0.7}})
    checks = {finding.check for finding in by_id(report, "G17")}
    assert checks == {"judge_is_another_model", "judge_is_steady", "judge_has_examples"}


def test_a_lone_grader_takes_its_judge_from_a_config(
    examine: Callable[..., LabReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with JudgeServer(honest) as server:
        examine(server)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "judge.json").write_text(json.dumps(JUDGE))
        arguments = ["rewards", "test", "judge.json", "--data", "rows.jsonl"]
        assert reinforge([*arguments, "--config", "train.yaml", "--rows", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["functions"][0]["gold"] == 1.0
    assert reinforge(arguments) == 2
    assert "base_url" in capsys.readouterr().err


def test_rubric_weights_and_named_places():
    facts = [JudgeFacts("f", "b.style", "m", 0.0, 3, weight_sum=0.9), JudgeFacts("g", "", "m", 0.0, 1, weight_sum=1.0)]
    (finding,) = judges_are_set_up(facts, None)
    assert (finding.id, finding.verdict) == ("G14", "warning")
    assert finding.message == "the weights of f, b.style sum to 0.9"


@pytest.mark.parametrize(
    ("budget_tokens", "budget_cost", "verdict"),
    [
        (None, None, "info"),
        (2_000, None, "info"),
        (1_999, None, "blocking"),
        (None, 4.0, "info"),
        (None, 3.9, "blocking"),
    ],
)
def test_what_a_run_of_judges_takes(budget_tokens: int | None, budget_cost: float | None, verdict: str):
    cost = JudgeCost("f", 10, 200, 0.4, 100, budget_tokens, budget_cost)
    (finding,) = judges_fit_the_budget(cost)
    assert (finding.verdict, finding.value) == (verdict, 2_000.0)
    assert "about 2,000 tokens, 4 in money" in finding.message
