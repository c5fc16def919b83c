"""Reward functions of a run changed while it trains: versions, refusals, resumes that repeat the change."""

from __future__ import annotations

import io
import json
import shlex
import sys
import threading
import time

import pytest

import reinforge
from reinforge.api import SilentWatcher
from reinforge.cli.main import run as command
from reinforge.cli.reward_logs import _log
from reinforge.errors import RewardError, StoppedByGuard, UsageError
from reinforge.grading.reward_function import RewardFunction, SourceText
from reinforge.grading.versions import RewardUpdate, apply_update, describe_change
from reinforge.plot import _mark
from reinforge.reward_updates import REFUSED, RewardUpdates, latest_functions, wait_for_update
from reinforge.run_store import Run
from reinforge.run_store.control import REWARDS, pending_requests, write_request

LENGTH = "def length(prompt, completion, example):\n    return len(completion) / 20\n"
SHORT = "def length(prompt, completion, example):\n    return 1 / (1 + len(completion))\n"
DIGITS = "def digits(completions, **columns):\n    return [0.1 * sum(map(str.isdigit, c)) for c in completions]\n"
ROWS = [{"prompt": f"count to {number}", "number": number} for number in range(14)]


def text(source, name="length"):
    return SourceText(source, f"{name}.py", name)


def function(name="length", number=1, source=LENGTH, weight=1.0):
    return RewardFunction(name, f"{name}_v{number}", source, f"{name}.py", name, "predibase", (), weight)


class FakeGrader:
    """Judges nothing; remembers what it would judge by."""

    def __init__(self, *functions):
        self.functions = functions

    def replace(self, functions):
        self.functions = tuple(functions)

    @property
    def versions(self):
        return [function.version for function in self.functions]


@pytest.fixture
def run(tmp_path):
    about = {"functions": []}
    with Run.create(tmp_path, "run", {"train_steps": 4}, about) as created:
        yield created


def put(run, update, request_id):
    write_request(run.path, REWARDS, update if isinstance(update, str) else update.to_json(), request_id)


def test_a_changed_text_or_weight_is_the_next_version_and_the_rest_stays():
    both = (function(), function("digits", source=DIGITS))
    after = apply_update(both, RewardUpdate({"length": text(SHORT)}, {"digits": 0.5}), [function(number=4)])
    assert [(f.version, f.weight, f.source) for f in after] == [("length_v5", 1.0, SHORT), ("digits_v2", 0.5, DIGITS)]
    assert describe_change(both, after) == "length_v1 -> length_v5 (new text), digits_v1 -> digits_v2 (weight 1 -> 0.5)"
    after = apply_update(both, RewardUpdate({"new": text(DIGITS, "digits")}, remove=("length",)))
    assert [f.version for f in after] == ["digits_v1", "new_v1"]
    assert after[0] is both[1]


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (RewardUpdate({"length": text(SHORT)}, base={"length": "length_v3"}), "length is at length_v1; .*length_v3"),
        (RewardUpdate({"length": text(SHORT)}, base={"length": ""}), "length is at length_v1; .*meant to add it"),
        (RewardUpdate({"gone": text(SHORT)}, base={"gone": "gone_v2"}), "gone is at no version: it was removed"),
        (RewardUpdate({"length": text("def length(:")}), "length.py:1: SyntaxError"),
        (RewardUpdate({"length": text("#" * 262_145)}), "has 262,145 bytes, at most 262,144 are taken"),
        (RewardUpdate({"length": text("def other(a, b, c): ...")}), r"no function length \(found: other\)"),
        (RewardUpdate(weights={"lenght": 2.0}), r"no reward function lenght \(there are: length"),
        (RewardUpdate(remove=("length", "digits")), "would leave no reward function"),
        (RewardUpdate(remove=("digits",)), "digits cannot be removed: eval.correct_fn names it"),
        (RewardUpdate(weights={"length": 1.0}), "changes nothing"),
        (RewardUpdate({"length": text(LENGTH)}), "changes nothing"),
        (RewardUpdate({"length": text(SHORT)}, remove=("length",)), "to be removed and to be changed"),
    ],
)
def test_what_is_refused_and_why(update, said):
    needed = {} if len(update.remove) == 2 else {"digits": "eval.correct_fn"}
    with pytest.raises(RewardError, match=said):
        apply_update((function(), function("digits", source=DIGITS)), update, needed=needed)


@pytest.mark.parametrize(
    "request_text",
    [
        *("", "{", "[]", "{}", '{"format": 2}', "[" * 100_000),
        RewardUpdate(weights={"length": float("nan")}).to_json(),
        RewardUpdate(weights={"length": 2.0})
        .to_json()
        .replace('"shift": null', '"shift": {"functions": {"length": 1}}'),
        RewardUpdate(weights={"length": 2.0}).to_json().replace('"shift": null', '"shift": "far"'),
    ],
)
def test_a_request_that_is_none_is_refused_and_used_up(run, request_text):
    put(run, request_text, "1")
    updates = RewardUpdates(run, grader := FakeGrader(function()))
    assert updates.before_step(0) == ()
    assert grader.versions == ["length_v1"]
    assert [event.kind for event in run.events()] == [REFUSED]
    assert pending_requests(run.path, "rewards") == []


def test_requests_are_carried_out_in_order_and_the_second_of_two_editors_is_refused(run):
    updates = RewardUpdates(run, grader := FakeGrader(function()))
    put(run, RewardUpdate({"length": text(SHORT)}, base={"length": "length_v1"}), "1")
    put(run, RewardUpdate(weights={"length": 3.0}, base={"length": "length_v1"}), "2")
    (event,) = updates.before_step(2)
    assert grader.versions == ["length_v2"]
    assert event.message == "reward functions changed after step 2: length_v1 -> length_v2 (new text)"
    assert wait_for_update(run.path, "1", 0).step == 2
    with pytest.raises(RewardError, match="length is at length_v2; this update was made for length_v1"):
        wait_for_update(run.path, "2", 0)
    assert run.read_reward_source("length_v2") == SHORT
    assert updates.before_step(3) == ()


def test_a_resumed_run_makes_the_change_again_after_the_same_step(run):
    put(run, RewardUpdate({"length": text(SHORT)}, at_step=2), "1")
    first = RewardUpdates(run, grader := FakeGrader(function()))
    seen = [(grader.versions, len(first.before_step(step)), grader.versions) for step in range(4)]
    assert [after for _, _, after in seen] == [["length_v1"], ["length_v1"], ["length_v2"], ["length_v2"]]
    put(run, RewardUpdate(weights={"length": 0.5}), "2")
    put(run, RewardUpdate({"length": text(SHORT)}), "1")  # the trainer died before it could remove the file
    again = RewardUpdates(run, grader := FakeGrader(function()))
    events = [(len(again.before_step(step)), grader.versions) for step in range(1, 4)]
    assert events == [(0, ["length_v1"]), (2, ["length_v3"]), (0, ["length_v3"])]
    assert [row.request for row in run.reward_updates()] == ["1", "2"]
    assert REFUSED not in {event.kind for event in run.events()}
    assert pending_requests(run.path, "rewards") == []


def make_config(model, rewards_file, **changes):
    values = {
        "base_model": str(model),
        "reward_fns": {"functions": {"length": f"{rewards_file}:length"}},
        "train_steps": 5,
        "prompts_per_step": 2,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "lora": {"rank": 2},
        "sampling_params": {"max_tokens": 8},
        "eval": {"max_prompts": 1, "samples_per_prompt": 1, "greedy": False},
        "data": {"heldout": 2},
        "save_every": 2,
    }
    return reinforge.GRPOConfig.model_validate(values | changes)


class AtStep(SilentWatcher):
    """Does something from outside when a step is recorded."""

    def __init__(self, step, act):
        self._step, self._act = step, act

    def step(self, step, metrics, groups):
        if step == self._step:
            self._act()


def test_a_running_job_is_changed_by_command_line_and_shows_both_versions(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(LENGTH)
    path = tmp_path / "runs" / "hot"

    def act():
        (tmp_path / "new.py").write_text(SHORT + DIGITS)
        new = [f"{tmp_path / 'new.py'}", f"figures={tmp_path / 'new.py'}:digits", "--weight", "figures=0.5"]
        assert command(["rewards", "update", str(path), *new, "--wait", "0"]) == 0

    config = make_config(tiny_qwen2, tmp_path / "rewards.py")
    reinforge.train(config, ROWS, runs_dir=tmp_path / "runs", name="hot", watcher=AtStep(3, act))
    with Run.open(path) as run:
        ranges = {(f.version, f.weight): (f.first_step, f.last_step) for f in run.functions()}
        (changed,) = [event for event in run.events() if event.kind == "reward_update"]
        log = run.score_log(functions=["length"])
    assert ranges == {("length_v1", 1.0): (1, 3), ("length_v2", 1.0): (4, 5), ("figures_v1", 0.5): (4, 5)}
    assert changed.step == 4
    assert [(row.step, row.version) for row in log] == [
        (s, f"length_v{1 + (s > 3)}") for s in range(1, 6) for _ in "8" * 8
    ]
    capsys.readouterr()
    assert command(["runs", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "length_v1" in shown
    assert "length_v2" in shown
    assert "reward functions changed after step 3: length_v1 -> length_v2 (new text), figures_v1 added" in shown
    assert command(["rewards", "update", str(path), "--weight", "length=2"]) == 2
    for step in (3, 4, 5):
        assert reinforge.verify(path, step).equal
    assert set(reinforge.evaluate(str(path)).function_means) == {"length", "figures"}


def test_a_stopped_run_is_changed_from_python_when_it_is_resumed(tiny_qwen2, tmp_path):
    (tmp_path / "rewards.py").write_text(LENGTH)
    config = make_config(tiny_qwen2, tmp_path / "rewards.py")
    path = tmp_path / "stopped"
    stop = AtStep(2, lambda: (path / "control" / "stop").write_text("look"))
    with pytest.raises(StoppedByGuard):
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="stopped", watcher=stop)
    rewards, late = reinforge.get_config(path), reinforge.get_config(path)

    def digits(completions, **columns):
        return [0.1 * sum(map(str.isdigit, completion)) for completion in completions]

    rewards.reward_fns["digits"] = digits
    rewards.reward_fns["length"] = None
    rewards.weights["length"] = 0.25
    request = reinforge.update_config(path, rewards)
    assert wait_for_update(path, request, 10) is None  # nobody is there to take it
    late.weights["length"] = 9.0
    refused = reinforge.update_config(path, late)  # still fits the run as it is
    reinforge.resume(path)
    assert wait_for_update(path, request, 0).step == 2
    with pytest.raises(RewardError, match="length is at length_v2"):
        wait_for_update(path, refused, 0)
    with Run.open(path) as run:
        versions = [(f.version, f.weight, f.first_step) for f in run.functions()]
    assert versions == [("length_v1", 1.0, 1), ("length_v2", 0.25, 3), ("digits_v1", 1.0, 3)]
    assert reinforge.get_config(path).versions == {"length": "length_v2", "digits": "digits_v1"}
    with pytest.raises(UsageError, match="has done all its steps"):
        reinforge.update_config(path, rewards)


def test_a_broken_function_is_corrected_and_the_run_goes_on(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text("def length(prompt, completion, example):\n    return example['nmber']\n")
    path = tmp_path / "broken"
    with pytest.raises(StoppedByGuard, match=r"Stopped after step 0: reward function length_v1 failed on 8 of 8"):
        reinforge.train(make_config(tiny_qwen2, tmp_path / "rewards.py"), ROWS, runs_dir=tmp_path, name="broken")
    with pytest.raises(StoppedByGuard):  # nothing has changed
        reinforge.resume(path)
    (tmp_path / "rewards.py").write_text(LENGTH.replace("def", "def broken(:"))
    update = ["rewards", "update", str(path), f"length={tmp_path / 'rewards.py'}:length"]
    assert command(update) == 3
    assert "SyntaxError" in capsys.readouterr().err
    (tmp_path / "rewards.py").write_text(LENGTH)
    assert command([*update, "--base", "length_v7"]) == 3
    assert "length is at length_v1; this update was made for length_v7" in capsys.readouterr().err
    assert command([*update, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] is None
    assert command(["runs", "show", str(path)]) == 0
    assert "waiting to be taken: 1 update(s) of the reward functions" in capsys.readouterr().out
    reinforge.resume(path)
    with Run.open(path) as run:
        assert [(f.version, f.num_ok, f.num_error) for f in run.functions()] == [("length_v2", 40, 0)]
    assert reinforge.verify(path, 1).equal


def test_how_far_scores_move_is_shown_before_a_change_and_kept_with_it(tiny_qwen2, tmp_path, capsys, monkeypatch):
    (tmp_path / "rewards.py").write_text(LENGTH)
    (tmp_path / "far.py").write_text(SHORT)  # the longest completions become the worst
    (tmp_path / "near.py").write_text(LENGTH.replace("/ 20", "/ 21"))
    path = tmp_path / "run"
    with pytest.raises(StoppedByGuard):
        config = make_config(tiny_qwen2, tmp_path / "rewards.py")
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="run", watcher=StopAt(path, 3))
    capsys.readouterr()
    with Run.open(path) as run:
        texts = [row.text for step in (2, 3) for row in run.completions(step=step)]
    before, near = sum(map(len, texts)) / len(texts) / 20, sum(map(len, texts)) / len(texts) / 21
    shift = (
        f"reward {before:.3g} -> {near:.3g} (length {before:.3g} -> {near:.3g}) on the 16 completions of steps 2 to 3"
    )
    update = ["rewards", "update", str(path), "--wait", "0"]

    assert command([*update, f"length={tmp_path / 'near.py'}:length", "--replay", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == f"before -> after: {shift}\n"
    assert json.loads(out)["shift"]["functions"]["length"]["after"] == pytest.approx(near)
    (request,) = pending_requests(path, REWARDS)
    request.path.unlink()

    far = [*update, f"length={tmp_path / 'far.py'}:length"]
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert command(far) == 1
    told = capsys.readouterr().err
    assert "warning  a large change: 100% of the pairs within groups are turned round" in told
    assert "Send it all the same? [y/N]" in told
    assert told.endswith("Nothing was sent.\n")
    assert pending_requests(path, REWARDS) == []
    assert command([*far, "--yes"]) == 0  # nobody is asked
    pending_requests(path, REWARDS)[0].path.unlink()
    monkeypatch.undo()
    assert command(far) == 0  # no terminal: told, and sent
    assert "warning  a large change" in capsys.readouterr().err
    pending_requests(path, REWARDS)[0].path.unlink()
    assert command([*far, "--replay", "0"]) == 0
    assert "before -> after" not in capsys.readouterr().err
    pending_requests(path, REWARDS)[0].path.unlink()

    assert command([*update, f"length={tmp_path / 'near.py'}:length", "--replay", "2"]) == 0
    reinforge.resume(path)
    with Run.open(path) as run:
        (event,) = [event for event in run.events() if event.kind == "reward_update"]
        (row,) = run.reward_updates()
    assert event.message == f"reward functions changed after step 3: length_v1 -> length_v2 (new text); {shift}"
    assert event.data["shift"] == row.shift
    assert row.shift["reward_after"] == pytest.approx(near)
    assert reinforge.verify(path, 4).equal
    figure = pytest.importorskip("matplotlib.figure")
    axes = figure.Figure().subplots()
    _mark(axes, [row.step])
    assert [list(line.get_xdata()) for line in axes.lines] == [[3.5, 3.5]]


def test_an_update_whose_shift_nobody_can_know_is_sent_all_the_same(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(LENGTH)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "run"
    data = {"path": str(tmp_path / "rows.jsonl"), "heldout": 2}
    with pytest.raises(StoppedByGuard):
        config = make_config(tiny_qwen2, tmp_path / "rewards.py", data=data)
        reinforge.train(config, runs_dir=tmp_path, name="run", watcher=StopAt(path, 1))
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rewards.py").write_text(SHORT)
    capsys.readouterr()
    assert command(["rewards", "update", str(path), str(tmp_path / "rewards.py"), "--wait", "0"]) == 0
    assert "how far scores move is unknown: " in capsys.readouterr().err
    assert len(pending_requests(path, REWARDS)) == 1


class StopAt(SilentWatcher):
    """Has the run stop after a step; keeps what it is told of changed files."""

    def __init__(self, path, step):
        self.changed: list[str] = []
        self._path, self._step = path, step

    def step(self, step, metrics, groups):
        if step == self._step:
            (self._path / "control" / "stop").write_text("look")

    def note(self, text):
        if "has changed since" in text:
            self.changed.append(text)


def test_a_resume_says_which_reward_files_are_different_by_now(tiny_qwen2, tmp_path):
    file, other, path = tmp_path / "my rewards.py", tmp_path / "other.py", tmp_path / "run"
    file.write_text(LENGTH)
    other.write_text(DIGITS)
    functions = {"length": f"{file}:length", "digits": f"{other}:digits"}
    config = make_config(tiny_qwen2, "", reward_fns={"functions": functions})

    def resume_until(step):
        watcher = StopAt(path, step)
        with pytest.raises(StoppedByGuard):
            reinforge.resume(path, watcher)
        return watcher.changed

    with pytest.raises(StoppedByGuard):
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="run", watcher=StopAt(path, 1))
    assert resume_until(2) == []
    file.write_text(SHORT)
    other.unlink()  # what is gone is no text to go on with
    (note,) = resume_until(3)
    assert note.startswith(f"{file} has changed since the run took length_v1 from it")
    assert command(shlex.split(note.partition("reinforge ")[2])) == 0
    assert resume_until(4) == []  # the new text was waiting
    with Run.open(path) as run:
        assert [f.version for f in latest_functions(run)] == ["length_v2", "digits_v1"]
    file.write_text(LENGTH)
    reinforge.resume(path, last := StopAt(path, 0))
    assert len(last.changed) == 1
    assert reinforge.verify(path, 5).equal


PRINTING = """
def loud(prompt, completion, example):
    print("looking at", example["number"])
    if example["number"] in ("3", "5"):
        raise KeyError("no answer")
    return {"score": 0.5, "reason": "fine", "metrics": {"words": 2}}
def other(completions, **columns):
    return [1.0] * len(completions)
"""


def test_logs_say_what_every_call_did_and_follow_a_run(tiny_qwen2, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(PRINTING)
    functions = {name: f"{tmp_path / 'rewards.py'}:{name}" for name in ("loud", "other")}
    settings = {"loud": {"default": 0.25}}
    config = make_config(
        tiny_qwen2,
        tmp_path,
        reward_fns={"functions": functions, "settings": settings, "max_error_rate": 1.0},
        data={"heldout": 0},
        train_steps=7,
    )
    path = tmp_path / "logged"
    followed = []

    def follow():
        while not (path / "run.json").exists():
            time.sleep(0.05)
        followed.extend(_log(path, {"functions": ["loud"]}, follow=True))

    thread = threading.Thread(target=follow)
    thread.start()
    reinforge.train(config, ROWS, runs_dir=tmp_path, name="logged")
    thread.join(30)
    assert len(followed) == 7 * 8

    def lines(*options):
        assert command(["rewards", "logs", str(path), "--json", *options]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert len(lines()) == 2 * 7 * 8
    assert {row["name"] for row in lines("--function", "other")} == {"other"}
    assert len(lines("--version", "loud_v1")) == 7 * 8
    assert {row["step"] for row in lines("--step", "3-4")} == {3, 4}
    failed = lines("--state", "error")
    assert len(failed) == 2 * 4
    assert all(row["prints"].startswith("looking at") and row["stand_in"] == 0.25 for row in failed)
    assert lines("--grep", "no answ.r") == failed
    assert command(["rewards", "logs", str(path), "--state", "error"]) == 0
    shown = capsys.readouterr().out
    assert "loud_v1  error (raised), 0.250 instead" in shown
    assert "    KeyError: 'no answer'" in shown
    assert "    | looking at 3" in shown
    assert command(["rewards", "logs", str(path), "--step", "1-7", "--function", "loud", "--state", "ok"]) == 0
    shown = capsys.readouterr().out
    assert "loud_v1  0.500" in shown
    assert "    words 2\n    fine\n    | looking at" in shown
    for bad in (["--step", "x"], ["--grep", "("], ["--version", "loud_v2"], ["--function", "lout"]):
        assert command(["rewards", "logs", str(path), *bad]) == 2
