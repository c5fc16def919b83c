"""Whole runs in which one call in a hundred raises, or one in a step hangs: what it costs, and what is said of it."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

import reinforge
from reinforge.api import SilentWatcher
from reinforge.cli.main import run as command
from reinforge.plot import _draw_rewards
from reinforge.run_store import Run

ROWS = [{"prompt": f"count to {number}", "number": number} for number in range(40)]
DEADLINE_S = 3.0


def make_config(model: Path, rewards: Path, *functions: str, **changes: Any) -> reinforge.GRPOConfig:
    values = {
        "base_model": str(model),
        "reward_fns": {
            "functions": {name: f"{rewards}:{name}" for name in functions},
            "runtime": {"timeout_s": DEADLINE_S},
            "max_error_rate": 1.0,
        },
        "prompts_per_step": 8,
        "num_generations": 8,
        "learning_rate": 1e-3,
        "lora": {"rank": 2},
        "sampling_params": {"max_tokens": 8},
        "eval": {"max_prompts": 2, "samples_per_prompt": 2, "greedy": False},
        "data": {"heldout": 2},
    }
    return reinforge.GRPOConfig.model_validate(values | changes)


RAISING = """
import zlib
def flaky(prompt, completion, example):  # never 0: a 0 anywhere is an error that poses as a score
    if zlib.crc32((prompt + completion).encode()) % 100 == 0:
        raise KeyError("answer")
    return 1 + len(completion) / 7
def dark(prompt, completion, example):
    raise ValueError("never")
"""


def flaky(prompt: str, completion: str) -> float | None:
    """What the function above says, or None where it raises."""
    import zlib

    return None if zlib.crc32((prompt + completion).encode()) % 100 == 0 else 1 + len(completion) / 7


@pytest.fixture(scope="module")
def raising_run(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raising")
    (folder / "rewards.py").write_text(RAISING)
    config = make_config(tiny_qwen2, folder / "rewards.py", "flaky", "dark", train_steps=10)
    return reinforge.train(config, ROWS, runs_dir=folder, name="run")


def expected_by_step(run: Run) -> dict[int, list[float | None]]:
    """Step -> what `flaky` must have said of its completions."""
    rows = [row for step in run.steps() for row in run.completions(step=step.step, limit=-1)]
    expected: dict[int, list[float | None]] = {}
    for row in rows:
        expected.setdefault(row.step, []).append(flaky(f"count to {row.example}", row.text))
    return expected


@pytest.mark.slow
def test_the_mean_is_that_of_the_valid_scores_and_the_counts_are_right(raising_run):
    with Run.open(raising_run) as run:
        expected = expected_by_step(run)
        said = [value for values in expected.values() for value in values]
        assert len(said) == 640
        assert 0 < said.count(None) < 40
        for step in run.steps():
            valid = [value for value in expected[step.step] if value is not None]
            assert step.metrics["reward/flaky/mean"] == math.fsum(valid) / len(valid)
            assert step.metrics["reward/flaky/errors"] == expected[step.step].count(None)
            assert step.metrics["reward/dark/errors"] == 64
            assert "reward/dark/mean" not in step.metrics
        whole, dark = run.functions()
        valid = [value for value in said if value is not None]
        assert (whole.num_ok, whole.num_error, whole.num_masked) == (len(valid), said.count(None), 0)
        assert whole.mean == pytest.approx(statistics.fmean(valid), rel=1e-12)
        assert (dark.num_ok, dark.num_error, dark.mean) == (0, 640, None)
        for evaluation in run.evaluations():
            assert "dark" not in evaluation["function_means"]
            assert evaluation["errors"]["dark"] == 4
            assert evaluation["function_means"]["flaky"] >= 1


@pytest.mark.slow
def test_no_error_is_shown_or_exported_as_a_zero(raising_run, capsys):
    def out(*arguments: str) -> str:
        assert command([*arguments]) == 0
        return capsys.readouterr().out

    with Run.open(raising_run) as run:
        num_errors = sum(values.count(None) for values in expected_by_step(run).values())
        about, steps = run.about, [(row.step, row.metrics) for row in run.steps()]
    story = json.loads(out("runs", "show", str(raising_run), "--completions", "64", "--json"))
    for score in (score for row in story["completions"] for score in row["scores"]):
        assert (score["value"] is None) == (score["state"] == "error")
        assert score["value"] is None or score["value"] >= 1
    log = [json.loads(line) for line in out("rewards", "logs", str(raising_run), "--json").splitlines()]
    assert len(log) == 2 * 640
    assert sum(row["state"] == "error" for row in log if row["name"] == "flaky") == num_errors
    assert all((row["value"] is None) == (row["state"] == "error") for row in log)
    assert all(row["value"] is None or row["value"] >= 1 for row in log)

    shown = out("runs", "show", str(raising_run), "--completions", "64").splitlines()
    versions = {line.split()[0]: line.split() for line in shown if line.startswith(("flaky_v1", "dark_v1"))}
    assert versions["dark_v1"][2:5] == ["-", "0", "640"]
    assert float(versions["flaky_v1"][2]) >= 1
    assert versions["flaky_v1"][3:5] == [str(640 - num_errors), str(num_errors)]
    completions = [line for line in shown if line.startswith("-- example")]
    assert len(completions) == 64
    assert all("dark -)" in line and "flaky 0" not in line for line in completions)
    for line in out("rewards", "logs", str(raising_run), "--state", "error").splitlines():
        assert not line.startswith("step ") or "error (raised)" in line

    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    _draw_rewards(axes, steps, {function["name"]: function["weight"] for function in about["functions"]})
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert min(lines["flaky (weight 1)"]) >= 1
    assert not any(label.startswith("dark") for label in lines)  # there is nothing to draw


HANGING = """
import time
def measured(prompt, completion, example):
    if (prompt, completion) == HANGS: time.sleep(600)
    return len(completion) / 7
def other(completions, **columns):
    return [1.0] * len(completions)
"""


@pytest.mark.slow
def test_one_hanging_call_in_64_costs_a_step_its_deadline_and_little_more(tiny_qwen2, tmp_path):
    """The same run twice: as it is, and with one call of step 3 hanging. What a step costs on this machine right now is
    measured beside it, by the steps around."""

    def train(name: str, hangs: tuple[str, str] | None) -> tuple[list[float], Path]:
        rewards = tmp_path / f"{name}.py"
        rewards.write_text(HANGING.replace("HANGS", repr(hangs)))
        config = make_config(tiny_qwen2, rewards, "measured", "other", train_steps=5)
        path = reinforge.train(config, ROWS, runs_dir=tmp_path, name=name)
        with Run.open(path) as run:
            return [row.metrics["time/step_s"] for row in run.steps()], path

    calm_s, path = train("calm", None)
    with Run.open(path) as run:
        seen = [(row.step, row.example, row.text) for s in range(1, 4) for row in run.completions(step=s, limit=-1)]
        candidates = [(example, text) for step, example, text in seen if step == 3]
        judged = [(example, text) for _, example, text in seen]
    victim = next(pair for pair in candidates if judged.count(pair) == 1)
    hanging_s, path = train("hanging", (f"count to {victim[0]}", victim[1]))
    with Run.open(path) as run:
        rows = run.completions(step=3, limit=-1)
        scores = [score for of_one in run.scores(row.id for row in rows).values() for score in of_one]
    assert [row.text for row in rows].count(victim[1]) == 1
    (hung,) = [score for score in scores if score.state != "ok"]
    assert (hung.name, hung.kind, hung.latency_s) == ("measured", "timeout", DEADLINE_S)
    assert len(scores) == 2 * 64
    others = [*calm_s, *hanging_s[:2], *hanging_s[3:]]
    noise_s = max(others) - min(others)
    assert hanging_s[2] - statistics.median(others) <= hung.latency_s + 1.0 + noise_s


LEAVING = """
import subprocess, threading, time
def threads(prompt, completion, example):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return len(completion) / 7
def processes(completions, **columns):
    subprocess.Popen(["sleep", "60"])
    return [1.0] * len(completions)
def tidy(prompt, completion, example):
    return 1.0
"""


class Notes(SilentWatcher):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.slow
def test_why_workers_are_replaced_is_told_once_for_each_cause(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(LEAVING)
    small = {"prompts_per_step": 2, "num_generations": 2, "train_steps": 3, "save_every": 1}
    config = make_config(tiny_qwen2, tmp_path / "rewards.py", "threads", "processes", "tidy", **small)
    notes = Notes()
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="run", watcher=notes)
    why = "its worker is replaced, which costs a process start each time: a call left"
    expected = {f"processes_v1: {why} processes running", f"threads_v1: {why} threads running"}
    assert sorted(text for text in notes.texts if "replaced" in text) == sorted(expected)
    with Run.open(path) as run:
        events = [event for event in run.events() if event.kind == "worker_replaced"]
        assert {(event.message, event.data["cause"]) for event in events} == {
            (message, message.partition("time: ")[2]) for message in expected
        }
        assert {(row.name, row.num_ok) for row in run.functions()} == {
            (n, 12) for n in ("threads", "processes", "tidy")
        }
    for show in (["runs", "show"], ["rewards", "logs"]):
        assert command([*show, str(path)]) == 0
        shown = capsys.readouterr().out
        assert all(shown.count(message) == 1 for message in expected)
    assert reinforge.verify(path, 3).equal  # what a call leaves behind is no part of a step
