"""`reinforge runs`: read real run directories."""

import json
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.insight.metrics import step_metrics
from reinforge.run_store import Event, Run, StepRecord
from reinforge.types import Completion, Example, Grade, Group, Prompt, Score

FUNCTIONS = {"short": "rewards.py:short", "right": "rewards.py:right"}
CONFIG = {"base_model": "org/model", "train_steps": 5, "reward_fns": {"functions": FUNCTIONS}}
PRINTED = "tokens: 3\n-- example 9\x1b[2J" + "x" * 500


def make_run(runs_dir: Path, name: str, num_steps: int = 2) -> Run:
    run = Run.create(runs_dir, name, CONFIG, {})
    for step in range(1, num_steps + 1):
        prompt = Prompt(Example(step, "p"), f"prompt {step}\x1b[2J", (1, 2))
        completions = tuple(
            Completion(g, (3, 4), f"text {g}\u202e", "stop", (-1.0, -1.0), (-1.0, -1.0), 0) for g in range(2)
        )
        failed = Score("short", "short_v1", None, state="error", kind="raised", message="KeyError", prints=PRINTED)
        grades = (
            Grade((failed, Score("right", "right_v1", 1.0, weight=0.5))),
            Grade((Score("short", "short_v1", 1.0), Score("right", "right_v1", 0.0, weight=0.5))),
        )
        groups = (Group(prompt, 0, completions, grades),)
        events = (Event("reward_error", "short raised KeyError\r on 1 of 2 completions", level="warning"),)
        metrics = step_metrics(groups, {"policy/kl": 0.25}, {"time/rollout_s": 2.0})
        run.record_step(StepRecord(step, metrics, f"hash {step}", groups, ((0.0, 1.0),), events))
    return run


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    first = make_run(folder, "first")
    first.save_evaluation(
        "before", {"step": 0, "score": 0.2, "pass_at_1": 0.2, "ci95": (0.1, 0.3), "reward_mean": 0.25}
    )
    after = {"step": 2, "score": 0.5, "pass_at_1": 0.5, "ci95": None, "greedy_pass_at_1": 0.6}
    first.save_evaluation("after", {**after, "errors": {"short": 3, "right": 2}, "num_left_out": 7})
    first.finish("succeeded")
    make_run(folder, "second", num_steps=0).close()
    return folder


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert reinforge(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_list_has_a_line_for_each_run(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    header, *rows = lines_of(capsys, "runs", "list", "--runs-dir", str(runs_dir))
    assert header.split() == ["name", "status", "step", "reward", "held-out", "time", "started"]
    by_name = {row.split()[0]: row.split()[1:7] for row in rows}
    assert by_name["first"] == ["succeeded", "2/5", "0.750", "0.200", "->", "0.500"]
    assert by_name["second"][:4] == ["interrupted", "0/5", "-", "-"]


def test_list_as_json(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    (text,) = lines_of(capsys, "runs", "list", "--json", "--runs-dir", str(runs_dir))
    assert {run["name"]: run["step"] for run in json.loads(text)} == {"first": 2, "second": 0}


def test_an_empty_folder_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["runs", "list", "--runs-dir", str(tmp_path / "none")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("No runs in")


def test_show_tells_the_whole_story(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    text = "\n".join(lines_of(capsys, "runs", "show", "first", "--runs-dir", str(runs_dir), "--completions", "2"))
    assert text.startswith("first  succeeded  step 2/5  ")
    tables = {block.split("\n")[0].split("  ")[0]: block.split("\n")[1:] for block in text.split("\n\n")}
    assert [line.split() for line in tables["held-out at step"]] == [
        ["0", "0.200", "0.100", "..", "0.300", "-", "0.250", "-", "0", "-"],
        ["2", "0.500", "-", "0.600", "-", "-", "5", "7"],
    ]
    assert [line.split()[:7] for line in tables["reward function"]] == [
        ["short_v1", "1", "1.000", "2", "2", "0", "0"],
        ["right_v1", "0.5", "0.500", "4", "0", "0", "0"],
    ]
    assert [line.split() for line in tables["step"]] == [
        [step, "0.750", "1.000", "0.500", "50.0%", "0.354", "0%", "2", "0.2500", "2"] for step in ("1", "2")
    ]
    (names,) = (line for line in text.splitlines() if line.startswith("step  "))
    assert names.split()[1:5] == ["reward", "short", "right", "errors"]
    assert (
        "-- example 2, completion 0: reward 0.5 (short -, right 1)\nprompt 2\\x1b[2J ▸ text 0\\u202e\n"
        "  short error (raised): KeyError\n  short printed: tokens: 3\n    -- example 9\\x1b[2Jxxx"
    ) in text
    assert "x" * 300 + "...\n" in text
    assert text.splitlines()[-1] == "warning step 2  short raised KeyError\\r on 1 of 2 completions"


def test_show_takes_a_folder_and_the_newest_run_by_default(runs_dir: Path, capsys: pytest.CaptureFixture[str]):
    (first, *_) = lines_of(capsys, "runs", "show", str(runs_dir / "second"))
    assert first.startswith("second  interrupted (process ended)  step 0/5")
    (text,) = lines_of(capsys, "runs", "show", "--runs-dir", str(runs_dir), "--json", "--steps", "0")
    story = json.loads(text)
    assert story["name"] in ("first", "second")  # made within the same second
    assert story["config"] == CONFIG
    assert story["latest_steps"] == []


def test_a_run_that_is_not_there(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["runs", "show", "frist", "--runs-dir", str(runs_dir)]) == 2
    assert "Did you mean first?" in capsys.readouterr().err
    assert reinforge(["runs", "show", "--runs-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("usage  There are no runs in")
