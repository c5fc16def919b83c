"""Right completions judged again while a run trains: what is told when they score otherwise, and resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fakes import FakeGrader

import reinforge
from reinforge.api import SilentWatcher
from reinforge.cli.main import run as command
from reinforge.errors import CheckpointError, ConfigError, StoppedByGuard
from reinforge.gold_check import GoldCompletion, check_golds
from reinforge.grading.replay import ReplayingGrader
from reinforge.run_store import Run
from reinforge.types import Completion, Example, Prompt, Score

ROWS = [{"prompt": f"count to {number}", "number": number, "answer": str(number)} for number in range(14)]
RIGHT = """
def right(prompt, completion, example):
    return float(completion.strip() == example["answer"])
def brief(completions, **columns):
    return [1 / (1 + len(completion)) for completion in completions]
"""
FORGETFUL = RIGHT.replace("return float(completion", "return 0.5 * float(completion")


def golds_of(*texts: str) -> list[GoldCompletion]:
    return [
        GoldCompletion(f"row {i + 1}", Prompt(Example(i, f"p{i}"), f"p{i}", (1,)), text) for i, text in enumerate(texts)
    ]


class Judge:
    """Says what it is told to say of each text."""

    def __init__(self, **scores: Score | float | None) -> None:
        self.scores = scores

    def __call__(self, completion: Completion) -> Score:
        said = self.scores[completion.text]
        return said if isinstance(said, Score) else Score("f", "f_v1", said)


@pytest.fixture
def run(tmp_path: Path):
    with Run.create(tmp_path, "run", {"train_steps": 4}, {"functions": []}) as created:
        yield created


def test_the_first_check_is_the_start_and_later_ones_are_compared_with_it(run):
    golds = golds_of("a", "b", "c")
    judge = Judge(a=1.0, b=0.5, c=None)
    first = check_golds(golds, FakeGrader(judge), run, 0)
    assert (first.events, first.metrics) == ((), {"gold/changed": 0.0, "gold/f/mean": 0.75})
    assert [event.message for event in run.events()] == ["right completions score at the start: f_v1 0.75"]
    judge.scores = {"a": 1.0 + 1e-12, "b": 0.5, "c": None}
    assert check_golds(golds, FakeGrader(judge), run, 5).events == ()
    failed = Score("f", "f_v2", None, state="error", kind="raised", message="KeyError: 'x'\n  in f")
    judge.scores = {"a": failed, "b": 0.25, "c": 0.0}
    later = check_golds(golds, FakeGrader(judge), run, 10)
    assert later.metrics == {"gold/changed": 3.0, "gold/f/mean": 0.125}
    (event,) = later.events
    assert event.message == (
        "f_v2 no longer gives 3 of 3 right completions what they scored at the start: "
        "row 1 1 -> - (raised: KeyError: 'x'); row 2 0.5 -> 0.25; row 3 - -> 0"
    )
    assert (event.data["start"], event.data["now"]) == ([1.0, 0.5, None], [None, 0.25, 0.0])
    assert len(run.events()) == 1  # there is one start


def test_what_the_machine_lost_is_no_change_and_time_decides_nothing_twice(run):
    golds = golds_of("a", "b")
    check_golds(golds, FakeGrader(Judge(a=1.0, b=0.5)), run, 0)
    lost = Score("f", "f_v1", None, state="masked", kind="worker_unavailable")
    slow = Score("f", "f_v1", None, state="error", kind="timeout", message="no result within 1 s")
    found = check_golds(golds, FakeGrader(Judge(a=lost, b=slow)), run, 5)
    assert found.metrics == {"gold/changed": 1.0}
    assert sorted(score.kind for score in found.accidents.values()) == ["timeout", "worker_unavailable"]
    quick = FakeGrader(Judge(a=1.0, b=0.5))
    assert check_golds(golds, ReplayingGrader(quick, found.accidents), run, 5) == found
    assert check_golds(golds, ReplayingGrader(quick, found.accidents), run, 6).events == ()  # another check


def test_a_function_that_comes_later_has_its_own_start(run):
    golds = golds_of("a")
    check_golds(golds, FakeGrader(Judge(a=1.0)), run, 0)
    other = Score("g", "g_v1", 0.25)
    assert check_golds(golds, FakeGrader(Judge(a=other)), run, 3).events == ()
    (event,) = check_golds(golds, FakeGrader(Judge(a=Score("g", "g_v1", 0.5))), run, 6).events
    assert event.message.endswith("row 1 0.25 -> 0.5")


def make_config(model: Path, rewards: Path, **recheck: object) -> reinforge.GRPOConfig:
    return reinforge.GRPOConfig.model_validate(
        {
            "base_model": str(model),
            "reward_fns": {
                "functions": {name: f"{rewards}:{name}" for name in ("right", "brief")},
                "recheck": {"every_steps": 2, "rows": 4, **recheck},
            },
            "train_steps": 5,
            "prompts_per_step": 2,
            "num_generations": 2,
            "learning_rate": 1e-3,
            "lora": {"rank": 2},
            "sampling_params": {"max_tokens": 8},
            "eval": {"max_prompts": 1, "samples_per_prompt": 1, "greedy": False},
            "data": {"heldout": 2},
            "save_every": 1,
        }
    )


class Interfering(SilentWatcher):
    """Breaks the reward function after a step, and stops the run after another."""

    def __init__(self, path: Path, file: Path, broken_after: int, stop_after: int) -> None:
        self.notes: list[str] = []
        self._path, self._file, self._broken, self._stop = path, file, broken_after, stop_after

    def step(self, step, metrics, groups):
        if step == self._broken:
            self._file.write_text(FORGETFUL)
            update = ["rewards", "update", str(self._path), str(self._file), "--wait", "0", "--replay", "0"]
            assert command(update) == 0
        if step == self._stop:
            (self._path / "control" / "stop").write_text("look")

    def note(self, text):
        self.notes.append(text)


def test_a_run_tells_when_a_right_completion_is_judged_otherwise_and_resumes_bitwise(tiny_qwen2, tmp_path, capsys):
    path, file = tmp_path / "run", tmp_path / "rewards.py"
    file.write_text(RIGHT)
    watcher = Interfering(path, file, broken_after=3, stop_after=4)
    config = make_config(tiny_qwen2, file, answer_column="answer", template="{answer}")
    with pytest.raises(StoppedByGuard):
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="run", watcher=watcher)
    told = next(note for note in watcher.notes if "no longer gives" in note)
    golds = json.loads((path / "golds.json").read_text())
    assert [(gold["label"], gold["completion"]) for gold in golds] == [
        (f"row {gold['row'] + 1}", str(gold["row"])) for gold in golds
    ]
    shutil.copytree(path, tmp_path / "copy")
    reinforge.resume(path, SilentWatcher())
    with Run.open(path) as run:
        changed = {row.step: row.metrics["gold/changed"] for row in run.steps() if "gold/changed" in row.metrics}
        steps = [(row.step, row.state_hash, run.row_hash(row.step)) for row in run.steps()]
        events = [event for event in run.events() if event.kind == "gold_changed"]
    # After 0 and 2 steps; after 3, because the functions changed; after 4, also in the resumed run.
    assert changed == {1: 0.0, 3: 0.0, 4: 4.0, 5: 4.0}
    assert told == events[0].message
    assert told.startswith("right_v2 no longer gives 4 of 4 right completions what they scored at the start: row ")
    assert told.endswith(" 1 -> 0.5; and 1 more")
    assert {event.step for event in events} == {4, 5}
    for step in (3, 4, 5):
        assert reinforge.verify(path, step).equal
    reinforge.resume(tmp_path / "copy", SilentWatcher())
    with Run.open(tmp_path / "copy") as run:
        assert [(row.step, row.state_hash, run.row_hash(row.step)) for row in run.steps()] == steps
    capsys.readouterr()
    assert command(["runs", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "right completions after step 4: brief " in shown
    assert "right 0.500; 4 scores are not what they were at the start" in shown
    assert told in shown
    (path / "golds.json").write_text("[{}]")
    with pytest.raises(CheckpointError, match=r"golds\.json is damaged"):
        reinforge.verify(path, 5)


def test_golden_cases_are_right_completions_too(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(RIGHT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    cases = [
        {"name": "two", "row": 3, "completion": "2", "scores": {"right": 1.0}},
        {"example": {"prompt": "how many?", "answer": "7"}, "completion": "7", "scores": {"right": 1.0}},
        {"row": 2, "great": "1", "fair": "1 or so", "poor": "none"},
    ]
    (tmp_path / "rewards.cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    config = make_config(tiny_qwen2, Path("rewards.py"), cases="rewards.cases.jsonl")
    values = json.loads(config.model_dump_json())
    values["data"]["path"] = "rows.jsonl"
    (tmp_path / "train.yaml").write_text(json.dumps(values))
    assert command(["train", str(tmp_path / "train.yaml"), "--runs-dir", str(tmp_path), "--name", "run"]) == 0
    with Run.open(tmp_path / "run") as run:
        (start,) = [event for event in run.events() if event.kind == "gold_start"]
        assert run.steps()[-1].metrics["gold/right/mean"] == 3 / 5
    assert start.data["values"]["right"] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert reinforge.verify(tmp_path / "run", 3).equal


def test_a_run_without_right_completions_to_check_does_not_begin(tiny_qwen2, tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def right(prompt, completion, example):\n    return 1.0\n" + RIGHT[RIGHT.index("def brief") :]
    )
    config = make_config(tiny_qwen2, tmp_path / "rewards.py")
    rows = [{"prompt": f"count to {number}"} for number in range(6)]
    with pytest.raises(ConfigError, match=r"no right completions are known: .*Set reward_fns\.recheck\.answer_column"):
        reinforge.train(config, rows, runs_dir=tmp_path, name="run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="leave answer_column and template out"):
        make_config(tiny_qwen2, tmp_path / "rewards.py", cases="a.jsonl", template="{answer}")
