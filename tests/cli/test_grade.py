"""`reinforge grade` on real files, with real worker processes."""

import json
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge

REWARDS = """
def right(prompt, completion, example):
    return float(completion == example["answer"])

def flaky(prompt, completion, example):
    if "7" in completion:
        print("about to fail\\x1b[2J")
        raise KeyError("seven")
    return len(completion) / 10
"""
ROWS = [
    {"prompt": "2+2", "completion": "4", "answer": 4},
    {"prompt": "2+2", "completion": "5", "answer": 4},
    {"prompt": "3+4", "completion": "7", "answer": 7},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_function_of_a_file_and_what_failed(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 3
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[1][:9] == ["right", "1", "0.667", "0.577", "0.000", "1.000", "0", "0", "0"]
    assert lines[2][:9] == ["flaky", "1", "0.100", "0.000", "0.100", "0.100", "1", "0", "0"]
    assert out.splitlines()[4] == "3 completions, mean reward 0.600 of 2 (1 with failed calls left out)"
    assert lines[-1] == ["3", "1.000", "1.000", "error", "7"]
    assert err.startswith("flaky raised on 1 of 3 completions (first: row 3): KeyError: 'seven'")
    assert "  it printed: about to fail\\x1b[2J" in err


def test_what_costs_a_worker_is_told_once(folder: Path, capsys: pytest.CaptureFixture[str]):
    body = "    subprocess.Popen(['sleep', '9'])\n    return 1\n"
    (folder / "rewards.py").write_text(f"import subprocess\ndef leaves(prompt, completion, example):\n{body}")
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 0
    cause = "a call left processes running"
    told = f"leaves: its worker was replaced, which costs a process start each time: {cause}\n"
    assert capsys.readouterr().err == told


def test_failed_calls_are_told_by_cause_the_frequent_first(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rewards.py").write_text(
        "def broken(prompt, completion, example):\n    raise ValueError(completion)\n"
        "def always(prompt, completion, example):\n    raise KeyError('x')\n"
    )
    rows = [{"prompt": "p", "completion": str(i)} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl", "--rows", "0"]) == 3
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "8 completions, mean reward - of 0 (8 with failed calls left out)"
    told = [line for line in err.splitlines() if not line.startswith("  ")]
    assert told[0] == "always raised on 8 of 8 completions (first: row 1): KeyError: 'x'"
    assert told[1] == "broken raised on 1 of 8 completions (first: row 1): ValueError: 0"
    assert told[5:] == ["... and 4 more causes; --json lists every call."]


def test_failed_calls_are_no_zeros_in_the_mean(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rewards.py").write_text("def one(prompt, completion, example):\n    return 1 / (completion == '9')\n")
    rows = [{"prompt": "p", "completion": str(i)} for i in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl", "--rows", "0"]) == 3
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "10 completions, mean reward 1.000 of 1 (9 with failed calls left out)"
    )
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["reward"] == {"mean": 1.0, "num_valid": 1, "errors": 9, "masked": 0}


def test_json_has_every_score_and_nothing_else_is_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["grade", "rewards.py:right", "--data", "rows.jsonl", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [function["name"] for function in result["functions"]] == ["right"]
    assert [row["reward"] for row in result["rows"]] == [1.0, 0.0, 1.0]


def test_a_config_file_gives_functions_and_weights(folder: Path, capsys: pytest.CaptureFixture[str]):
    text = "base_model: unused\nreward_fns: {functions: {is_right: rewards.py:right}, weights: {is_right: 0.5}}"
    (folder / "train.yaml").write_text(text)
    assert reinforge(["grade", "train.yaml", "--data", "rows.jsonl", "--rows", "0"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:3] == ["is_right", "0.5", "0.667"]
    assert out.splitlines()[-1] == "3 completions, mean reward 0.333"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-column", "question"], 'has no "question" (found: prompt, completion, answer)'),
        (["--completion-column", "text"], 'rows.jsonl has no column "text" (other columns: completion, answer).'),
        (["--prompt-column", "answer"], "A prompt is a text or a list of chat messages."),
    ],
)
def test_rows_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str):
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl", *arguments]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_the_hint_names_the_option_of_this_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rows.jsonl").write_text('{"question": "2+2", "completion": "4"}')
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].strip() == "Set --prompt-column question."


def test_a_judge_that_nobody_reaches_is_no_success(folder: Path, capsys: pytest.CaptureFixture[str]):
    """An address where nothing listens: every completion is masked, and a script is told."""
    (folder / "judged.yaml").write_text(
        "base_model: none\n"
        "reward_fns:\n"
        "  functions: {good: {type: score_model, model: m, input: [{role: user, content: '{{sample.output_text}}'}]}}\n"
        "  judge: {base_url: 'http://127.0.0.1:9/v1', allow_private_addresses: true, down: pause, max_retries: 0}\n"
    )
    assert reinforge(["grade", "judged.yaml", "--data", "rows.jsonl"]) == 4
    assert "mean reward - of 0" in capsys.readouterr().out
