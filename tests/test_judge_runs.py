"""Training runs whose reward is a judge's: faults, a judge that is down, budgets, resumes."""

from __future__ import annotations

import hashlib
import itertools
import json
import re

import pytest
from judge_server import JudgeServer, at_random

from reinforge import api
from reinforge.cli.main import run as command
from reinforge.config import GRPOConfig
from reinforge.errors import StoppedByGuard, UsageError
from reinforge.grading.judges.gate import Patience
from reinforge.insight.metrics import is_registered
from reinforge.run_store import Run
from reinforge.run_store.judgements import read_judgements
from reinforge.verification import verify

QUICK = Patience(first_backoff_s=0.01, max_backoff_s=0.05, probe_s=0.02, max_probe_s=0.05)
ROWS = [{"prompt": f"{number} + {number} = ", "answer": str(2 * number)} for number in range(1, 9)]
JUDGE = {
    "type": "score_model",
    "model": "judge",
    "input": [{"role": "user", "content": "Is {{sample.output_text}} the sum {{item.answer}}?"}],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("reinforge.grading.judges.client.Patience", lambda: QUICK)


def by_content(body):
    """A score that depends on nothing but the completion shown."""
    shown = re.search(r"<<<completion \w+>>>\n(.*?)\n<<<end of", body["messages"][-1]["content"], re.DOTALL)
    return {"steps": [], "result": hashlib.sha256(shown[1].encode()).digest()[0] / 255 if shown else 0.0}


def make_config(tiny_qwen2, server, judge=None, **changes) -> GRPOConfig:
    reward_fns = {
        "functions": {"judge": JUDGE},
        "judge": {"base_url": server.url, "allow_private_addresses": True, **(judge or {})},
    }
    values = {"base_model": str(tiny_qwen2), "reward_fns": reward_fns, "train_steps": 3, "prompts_per_step": 2}
    values |= {"num_generations": 4, "sampling_params": {"max_tokens": 6}, "data": {"heldout": 2}, "save_every": 2}
    values |= {"eval": {"samples_per_prompt": 2, "greedy": False}, "learning_rate": 1e-3, **changes}
    return GRPOConfig.model_validate(values)


def facts(path):
    """What a run must have in common with another to be the same."""
    with Run.open(path) as run:
        rows = [(run.row_hash(row.step), row.state_hash) for row in run.steps()]
        evaluations = [evaluation["reward_mean"] for evaluation in run.evaluations()]
        return run.status()[0], rows, evaluations


@pytest.fixture(scope="module")
def whole(tiny_qwen2, tmp_path_factory):
    """The facts of a run whose judge never failed."""
    with JudgeServer(by_content) as server:
        return facts(api.train(make_config(tiny_qwen2, server), ROWS, runs_dir=tmp_path_factory.mktemp("whole")))


def test_at_thirty_percent_faults_a_run_has_the_scores_of_one_without(tiny_qwen2, whole, tmp_path):
    kinds = ("429 zero", "500", "503", "html", "broken json", "wrong shape", "reset", "cut")
    with JudgeServer(by_content, at_random(0.3, *kinds)) as server:
        path = api.train(make_config(tiny_qwen2, server), ROWS, runs_dir=tmp_path, name="stormy")
        assert len(server.requests) > 1.2 * 28
    assert facts(path) == whole
    with Run.open(path) as run:
        assert run.functions()[0].num_ok == 24
        rewards = {row.reward for row in run.completions(step=3, limit=8)}
    assert len(rewards) > 4  # it was really judged


def test_what_a_judge_took_is_told_per_step_and_in_all(tiny_qwen2, tmp_path, capsys):
    prices = {"prices": {"judge": {"input": 10_000, "output": 100_000}}, "budget_tokens": 10_000_000}
    with JudgeServer(by_content, at_random(0.2, "500")) as server:
        path = api.train(make_config(tiny_qwen2, server, prices), ROWS, runs_dir=tmp_path, name="told")
        sent = len(server.requests)
    with Run.open(path) as run:
        steps = [{n: v for n, v in row.metrics.items() if n.startswith("judge/")} for row in run.steps()]
        evaluations = [evaluation["figures"] for evaluation in run.evaluations()]
    assert all(is_registered(name) for step in steps for name in step)
    assert sum(step["judge/calls"] for step in [*steps, *evaluations]) == sent
    for step in steps:
        assert step["judge/calls"] == step["judge/questions"] + step.get("judge/retries", 0)
        assert step["judge/prompt_tokens"] == 100 * step["judge/questions"]
        assert step["judge/cost"] == pytest.approx(2 * step["judge/questions"])
        assert step["judge/masked_share"] == 0
    assert command(["runs", "show", str(path)]) == 0
    answered = sum(step["judge/questions"] for step in [*steps, *evaluations])
    expected = f"judges: {sent} requests, {int(110 * answered):,} of 10,000,000 tokens, cost {2 * answered:.4g}"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("judge", [{"down": "pause"}, {"down": "wait", "max_wait_s": 0.3}])
def test_a_judge_that_goes_down_stops_the_run_and_a_resume_goes_on(tiny_qwen2, whole, tmp_path, judge, capsys):
    down_after = 4 + 8 + 3  # the evaluation, the first step, a part of the second
    with JudgeServer(by_content) as server:
        server.fault = lambda body, attempt: "reset" if len(server.requests) > down_after else ""
        with pytest.raises(StoppedByGuard) as stopped:
            api.train(make_config(tiny_qwen2, server, judge), ROWS, runs_dir=tmp_path, name="broken")
        assert stopped.value.exit_code == 5
        assert "judge_v1: the judge " in stopped.value.message
        assert f"reinforge runs resume {tmp_path / 'broken'}" in stopped.value.hint
        with Run.open(tmp_path / "broken") as run:
            assert (run.status()[0], run.last_step()) == ("stopped", 1)
            assert [event.data["kind"] for event in run.events() if event.kind == "judge_guard"] == ["judge_down"]
        server.fault = lambda body, attempt: ""
        asked = {json.dumps(body["messages"]) for body in server.requests[:down_after]}
        server.requests.clear()
        assert command(["runs", "resume", str(tmp_path / "broken")]) == 0
        assert not asked & {json.dumps(body["messages"]) for body in server.requests}
    assert facts(tmp_path / "broken") == whole


@pytest.mark.slow
def test_a_judge_that_comes_back_in_time_costs_nothing_but_time(tiny_qwen2, whole, tmp_path):
    with JudgeServer(by_content) as server:
        probes = itertools.count()
        server.fault = lambda body, attempt: "503" if len(server.requests) > 10 and next(probes) < 12 else ""
        config = make_config(tiny_qwen2, server, {"max_wait_s": 60.0, "concurrency": 2})
        patient = api.train(config, ROWS, runs_dir=tmp_path, name="patient")
        assert next(probes) > 12
    assert facts(patient) == whole
    _, note = read_judgements(patient)
    assert note.text.startswith("the judge answers again after ")


def test_who_looks_on_sees_that_a_run_waits_for_its_judge(tiny_qwen2, tmp_path, capsys):
    seen = []

    def look_on(body, attempt):
        if len(server.requests) in range(12, 30):
            if len(server.requests) == 28:
                capsys.readouterr()
                command(["runs", "show", str(tmp_path / "run"), "--json"])
                seen.append(json.loads(capsys.readouterr().out)["judge"])
            return "503"
        return ""

    with JudgeServer(by_content, look_on) as server:
        config = make_config(tiny_qwen2, server, {"concurrency": 1, "max_retries": 9})
        api.train(config, ROWS, runs_dir=tmp_path, name="run")
    (judge,) = seen
    assert judge["note"]["text"].startswith("the judge is down (it answered 503")
    assert judge["note"]["text"].endswith("waiting up to 600 s")
    assert judge["calls"] > 12


@pytest.mark.slow
def test_a_judge_that_is_down_in_an_evaluation_leaves_no_wrong_figure(tiny_qwen2, whole, tmp_path):
    with JudgeServer(by_content) as server:
        server.fault = lambda body, attempt: "reset" if len(server.requests) > 30 else ""
        with pytest.raises(StoppedByGuard, match="Stopped after step 3"):
            api.train(make_config(tiny_qwen2, server, {"down": "pause"}), ROWS, runs_dir=tmp_path, name="broken")
        with Run.open(tmp_path / "broken") as run:
            assert [evaluation["step"] for evaluation in run.evaluations()] == [0]
        server.fault = lambda body, attempt: ""
        api.resume(tmp_path / "broken")
    assert facts(tmp_path / "broken") == whole


def test_a_budget_stops_the_run_until_it_is_raised(tiny_qwen2, whole, tmp_path, capsys):
    with JudgeServer(by_content) as server:
        config = make_config(tiny_qwen2, server, {"budget_tokens": 1500, "concurrency": 1})
        with pytest.raises(StoppedByGuard, match="judges have used 1,540 tokens") as stopped:
            api.train(config, ROWS, runs_dir=tmp_path, name="broke")
        assert "-o reward_fns.judge.budget_tokens=N" in stopped.value.hint
        path = str(tmp_path / "broke")
        asked = len(server.requests)
        assert command(["runs", "resume", path]) == 5
        assert len(server.requests) == asked
        for other in ("learning_rate=1", "reward_fns.judge.model=better"):
            with pytest.raises(UsageError, match=r"only how judges are asked|another judge would"):
                api.resume(tmp_path / "broke", overrides=[other])
        assert command(["runs", "resume", path, "-o", "reward_fns.judge.budget_tokens=100000"]) == 0
    assert facts(tmp_path / "broke") == whole
    capsys.readouterr()
    assert command(["runs", "show", path]) == 0
    assert " of 100,000 tokens" in capsys.readouterr().out


def test_a_judge_of_moods_is_asked_once_so_a_step_can_be_computed_again(tiny_qwen2, tmp_path):
    moods = itertools.count()
    with JudgeServer(lambda body: {"result": next(moods) % 7 / 7}) as server:
        path = api.train(make_config(tiny_qwen2, server), ROWS, runs_dir=tmp_path, name="moody")
        asked = len(server.requests)
        assert verify(path, 3).equal
        assert len(server.requests) == asked


def test_a_judge_that_refused_once_is_not_believed_later(tiny_qwen2, tmp_path):
    """A masked completion stays masked when its step is computed again."""
    with JudgeServer(by_content) as server:
        server.fault = lambda body, attempt: "refusal" if attempt == 0 and by_content(body)["result"] < 0.3 else ""
        path = api.train(make_config(tiny_qwen2, server), ROWS, runs_dir=tmp_path, name="run")
        with Run.open(path) as run:
            assert run.functions()[0].num_masked > 2
        assert verify(path, 2).equal


def test_a_key_that_is_wrong_stops_before_anything_is_learned(tiny_qwen2, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-key-1234")
    with JudgeServer(fault=lambda body, attempt: "401") as server:
        config = make_config(tiny_qwen2, server, {"api_key_env": "JUDGE_KEY", "concurrency": 1})
        with pytest.raises(StoppedByGuard, match="it answered 401"):
            api.train(config, ROWS, runs_dir=tmp_path, name="refused")
        assert len(server.requests) == 1
    for file in (tmp_path / "refused").rglob("*"):
        assert not file.is_file() or b"secret-key-1234" not in file.read_bytes(), file
