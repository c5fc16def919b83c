"""`reinforge train`: the config that comes out of files and options."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.config_file import load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.yaml").write_text("base_model: m\nreward_fns: {functions: {r: rewards.py:r}}\ntrain_steps: 7\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_prints_a_config_that_gives_the_same_run(folder: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["-o", "lora.rank=4", "--data", "1.10", "--model", "org/model"]
    assert reinforge(["train", "train.yaml", "--dry-run", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (folder / "again.yaml").write_text(out)
    config = load_config(["again.yaml"])
    assert (config.lora.rank, config.data.path, config.base_model) == (4, "1.10", "org/model")
    assert config == load_config(["train.yaml"], ["lora.rank=4", "data.path='1.10'", "base_model=org/model"])
    assert sorted(path.name for path in folder.iterdir()) == ["again.yaml", "train.yaml"]


def test_smoke_is_the_same_run_in_two_small_steps(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["train", "train.yaml", "--dry-run", "--smoke", "--json"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["train_steps"], config["prompts_per_step"], config["num_generations"]) == (2, 2, 8)


def test_a_smoke_run_is_called_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["train", str(trained / "train.yaml"), "--smoke", "--runs-dir", str(tmp_path), "--json"]) == 0
    (run,) = tmp_path.iterdir()
    assert re.fullmatch(r"smoke-\d{8}-\d{6}-[0-9a-f]{6}", run.name)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["steps"] == 2
    warnings = [event["text"] for event in events if event["event"] == "note" and event["text"].startswith("warning")]
    assert [text.partition(". ")[0] for text in warnings] == [
        "warning  rewards.py:1: digits has no docstring",
        "warning  rewards.py:3: flaky has no docstring",
    ]


def test_mistakes_in_the_config_are_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["train", "train.yaml", "-o", "lora.rnk=4", "-o", "train_steps=0"]) == 2
    assert capsys.readouterr().err == (
        "config  -o train_steps=0  train_steps = 0, but it must be at least 1.\n"
        "        -o lora.rnk=4  Unknown key lora.rnk. Did you mean lora.rank?\n"
    )


def test_a_run_can_be_shown_and_its_faults_are_counted(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["runs", "show", "first", "--runs-dir", str(trained / "runs"), "--json"]) == 0
    story = json.loads(capsys.readouterr().out)
    assert (story["status"], story["step"], story["steps"]) == ("succeeded", 3, 3)
    functions = {function["name"]: function for function in story["functions"]}
    assert functions["digits"]["num_ok"] == functions["flaky"]["num_ok"] + functions["flaky"]["num_error"] == 3 * 3 * 4
    assert functions["flaky"]["num_error"] % 4 == 0
    assert [evaluation["step"] for evaluation in story["evaluations"]] == [0, 3]
    assert (trained / "runs" / "first" / "adapter" / "adapter_model.safetensors").is_file()


def test_verify_computes_a_step_again(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["verify", "first@3", "--runs-dir", str(trained / "runs"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["equal"], result["from_step"]) == (True, 2)
    state = result["stored"]["state"]
    assert reinforge(["verify", "first@3", "--runs-dir", str(trained / "runs")]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["state", state[:12], state[:12]]
    assert len(state) > 12
    assert reinforge(["verify", "first@9", "--runs-dir", str(trained / "runs")]) == 2
    assert reinforge(["verify", "first", "--runs-dir", str(trained / "runs")]) == 2
    assert "Write RUN@STEP" in capsys.readouterr().err


def test_verify_says_so_when_a_stored_hash_differs(trained: Path, capsys: pytest.CaptureFixture[str]):
    copy = trained / "copies" / "first"
    shutil.copytree(trained / "runs" / "first", copy)
    database = sqlite3.connect(copy / "run.db")
    with database:
        database.execute("UPDATE steps SET state_hash = 'other' WHERE step >= 2")
        change = ("machine_changed", "slots = 8 instead of 256 from step 3 on, as asked", '{"step": 3, "slots": 8}')
        database.execute("INSERT INTO events VALUES (99, 2, 0, 0, ?, 'info', ?, ?)", change)
    database.close()
    assert reinforge(["verify", f"{copy}@3"]) == 1
    told = capsys.readouterr().out
    assert "computed again from the checkpoint at step 2: DIFFERENT" in told
    assert "slots" not in told
    assert reinforge(["verify", f"{copy}@2"]) == 1
    told = capsys.readouterr().out
    assert told.endswith("computed as the run does now: slots = 8 instead of 256 from step 3 on, as asked\n")


def test_resume_of_a_run_that_is_done_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["runs", "resume", "first", "--runs-dir", str(trained / "runs")]) == 2
    assert "has done all 3 steps" in capsys.readouterr().err


def test_a_stopped_run_goes_on_from_another_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A stop request after the first step; then the same weights as without it."""
    source, stopped = trained / "runs" / "first", tmp_path / "runs" / "stopped"
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("reinforge.run_store.Run.take_stop_request", lambda run: "enough" if run.last_step() else None)
        arguments = ["train", str(trained / "train.yaml"), "--name", "stopped", "--json"]
        assert reinforge(arguments) == 5
    assert "reinforge runs resume" in capsys.readouterr().err
    assert reinforge(["runs", "resume", str(stopped), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [2, 3]
    assert (lines[-1]["event"], lines[-1]["status"]) == ("run", "succeeded")
    file = Path("adapter") / "adapter_model.safetensors"
    assert (stopped / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_a_checkpoint_and_says_how_to_go_on(
    trained: Path, tmp_path: Path, number: signal.Signals, exit_code: int, capsys: pytest.CaptureFixture[str]
):
    command = [sys.executable, "-m", "reinforge", "train", str(trained / "train.yaml"), "--name", "stopped"]
    command += ["--runs-dir", str(tmp_path), "--json", "-o", "train_steps=10000", "-o", "save_every=10000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if json.loads(line)["event"] == "step":
                break
        program.send_signal(number)
        _, stderr = program.communicate(timeout=60)
    assert program.returncode == exit_code
    assert stderr.startswith("interrupted  ")
    assert f"reinforge runs resume {tmp_path / 'stopped'}" in stderr
    assert "Traceback" not in stderr
    assert reinforge(["runs", "list", "--runs-dir", str(tmp_path), "--json"]) == 0
    (summary,) = json.loads(capsys.readouterr().out)
    assert summary["status"] == "interrupted"
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{summary['step']:08d}" / "manifest.json").is_file()
