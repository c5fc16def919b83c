"""`reinforge grader run` with a judge that does not answer as it should."""

import json
import re

import pytest
from judge_server import JudgeServer

from reinforge.cli.main import run as reinforge
from reinforge.grading.judges.gate import Patience

QUICK = Patience(first_backoff_s=0.01, max_backoff_s=0.05, probe_s=0.02, max_probe_s=0.05)
JUDGE = {"type": "score_model", "name": "j", "model": "some-model", "input": [{"role": "user", "content": "Good?"}]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("reinforge.grading.judges.client.Patience", lambda: QUICK)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.json").write_text(json.dumps(JUDGE))
    return tmp_path


def run(folder, url, capsys, **judge):
    settings = {"base_url": url, "allow_private_addresses": True, **judge}
    functions = {"functions": {"judge": "judge.json"}, "judge": settings}
    (folder / "train.yaml").write_text(json.dumps({"base_model": "unused", "reward_fns": functions}))
    code = reinforge(["grader", "run", "judge.json", "--completion", "x", "--config", "train.yaml"])
    return code, *capsys.readouterr()


def test_what_a_judge_that_is_down_is_waited_for_is_told(folder, capsys):
    with JudgeServer() as server:
        pass
    code, out, err = run(folder, server.url, capsys, max_wait_s=0.4)
    assert code == 3
    lines = err.splitlines()
    refused = f"is it running there? ({server.url}: reward_fns.judge.base_url)"
    assert re.fullmatch(rf"no answer \(.*refused: {re.escape(refused)}\); retry 1 of 6 in 0\.0 s", lines[0])
    assert sum("retry " in line for line in lines) == 5
    assert next(line for line in lines if "the judge is down" in line).endswith("waiting up to 0 s")
    still = [line for line in lines if line.startswith("no answer yet")]
    assert len(still) >= 3
    assert all(re.search(r"next try in 0 s, giving up at \d\d:\d\d:\d\d$", line) for line in still)
    assert "the judge has not answered" in out


@pytest.mark.parametrize(
    ("fault", "judge", "told"),
    [
        ("401", {}, "401 .*: name the environment variable that holds its key in reward_fns.judge.api_key_env"),
        ("401", {"api_key_env": "JUDGE_KEY"}, r"401 .*: check the key in JUDGE_KEY \(reward_fns.judge.api_key_env\)"),
        ("404", {}, r"404 .*: check the model 'some-model' and http://127\S+/v1 \(reward_fns.judge.base_url\)"),
    ],
)
def test_one_that_turns_us_away_says_what_to_look_at(folder, capsys, monkeypatch, fault, judge, told):
    monkeypatch.setenv("JUDGE_KEY", "secret-key-1234")
    with JudgeServer(fault=lambda body, attempt: fault) as server:
        code, out, err = run(folder, server.url, capsys, **judge)
    assert code == 3
    assert re.search(told, out)
    assert err == ""


def test_a_judge_that_nobody_named_is_to_be_named_by_a_config(capsys):
    assert reinforge(["grader", "run", "judge.json", "--completion", "x"]) == 2
    assert "--config CONFIG" in capsys.readouterr().err
