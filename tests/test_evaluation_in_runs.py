"""Held-out evaluations inside a run: guards, interruptions and what is shown while they are made."""

import re

import pytest
from fakes import FakeGrader, FakeSampler, fake_roles
from test_loop import make_task

from reinforge import loop
from reinforge.api import SilentWatcher
from reinforge.cli import progress as shown
from reinforge.cli.live import JsonLines, PlainLines
from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import Interrupted, StoppedByGuard
from reinforge.evaluation import evaluate
from reinforge.evaluation_watch import EvaluationFailed, EvaluationWatch
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import load_rewards_file
from reinforge.roles import Roles
from reinforge.run_store import Run, decode_state, latest_checkpoint, list_checkpoints
from reinforge.types import Score

EVERY = {"eval": {"every_steps": 2, "samples_per_prompt": 2}, "save_every": 1}


def new_run(folder):
    return Run.create(folder, "run", {"train_steps": 4}, {})


def resume(folder, task, roles, steering=None):
    """As `api.resume` does; the facts of the run."""
    with Run.open(folder / "run", writable=True) as run:
        checkpoint, _ = latest_checkpoint(run.path)
        roles.learner.restore(checkpoint.path)
        run.rewind(checkpoint.step)
        state = decode_state((checkpoint.path / "state.json").read_text())
        loop.train(task, roles, run, SilentWatcher(), state, steering)
        return facts(run)


def facts(run):
    rows = [(run.row_hash(row.step), row.state_hash) for row in run.steps()]
    return rows, run.evaluations(), [(checkpoint.step, checkpoint.score) for checkpoint in list_checkpoints(run.path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The facts of a run that nothing stopped."""
    with new_run(tmp_path_factory.mktemp("whole")) as run:
        loop.train(make_task(**EVERY), fake_roles()[0], run, SilentWatcher())
        return facts(run)


class StopsAt(SilentWatcher):
    """Asks for a stop the n-th time that an evaluation of this step tells how far it is."""

    def __init__(self, step, count):
        self.stop, self.step_to_stop, self.left = loop.StopRequest(), step, count

    def progress(self, what, done, total):
        self.left -= what.startswith(f"held-out at step {self.step_to_stop}:")
        if self.left == 0:
            self.stop.signal = "SIGINT"


@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_an_evaluation_that_is_interrupted_ends_at_its_next_completion_and_is_made_anew(whole, tmp_path, step, count):
    roles, _, _, learner = fake_roles()
    watcher = StopsAt(step, count)
    with new_run(tmp_path) as run, pytest.raises(Interrupted, match=f"evaluation after step {step}") as raised:
        loop.train(make_task(**EVERY), roles, run, watcher, steering=loop.Steering(watcher.stop))
    assert raised.value.exit_code == 130
    assert len(learner.seen) == step
    assert watcher.left == 0  # no more was sampled
    with Run.open(tmp_path / "run") as run:
        assert run.status()[0] == "interrupted"
        assert latest_checkpoint(run.path)[0].step == step
        assert step not in {evaluation["step"] for evaluation in run.evaluations()}
    rows, evaluations, checkpoints = resume(tmp_path, make_task(**EVERY), fake_roles()[0])
    assert (rows, evaluations) == whole[:2]
    assert [one for one in checkpoints if one[0]] == whole[2]


def test_a_stop_request_acts_in_an_evaluation_too(tmp_path):
    with new_run(tmp_path) as run, pytest.raises(StoppedByGuard, match="budget"):
        (run.path / "control" / "stop").write_text("budget")
        loop.train(make_task(**EVERY), fake_roles()[0], run, SilentWatcher())
    assert Run.open(tmp_path / "run").last_step() == 0


@pytest.mark.parametrize(("num_failed", "stops"), [(4, True), (3, False)])
def test_rewards_that_fail_too_often_in_an_evaluation_stop_the_run_and_can_be_mended(tmp_path, num_failed, stops):
    _, sampler, _, learner = fake_roles()
    judged = []

    def judge(completion):
        judged.append(completion)
        if len(judged) > num_failed:
            return Score("digit", "digit_v1", 0.5)
        return Score("digit", "digit_v1", None, state="error", kind="raised", message="KeyError: 'x'")

    task = make_task(**EVERY)
    with new_run(tmp_path) as run:
        if not stops:
            loop.train(task, Roles(sampler, FakeGrader(judge), learner), run, SilentWatcher())
            return
        with pytest.raises(StoppedByGuard, match="digit_v1 failed on 4 of 6 completions, more than 50 %") as raised:
            loop.train(task, Roles(sampler, FakeGrader(judge), learner), run, SilentWatcher())
    assert raised.value.exit_code == 5
    assert "reinforge rewards update" in raised.value.hint
    with Run.open(tmp_path / "run") as run:
        assert (run.status()[0], run.last_step(), run.evaluations()) == ("stopped", 0, [])
        assert [event.kind for event in run.events()] == ["reward_error", "reward_guard"]
    roles, _, grader, _ = fake_roles()
    mended, grader.judge = grader.judge, judge
    judged.clear()

    def before_step(step):
        grader.judge = mended
        return ()

    evaluations = resume(tmp_path, task, roles, loop.Steering(before_step=before_step))[1]
    assert [evaluation["step"] for evaluation in evaluations] == [0, 2, 4]


def test_a_function_that_hangs_costs_an_evaluation_a_few_deadlines(tmp_path):
    (tmp_path / "hangs.py").write_text("import time\ndef hangs(prompt, completion, example):\n    time.sleep(60)\n")
    runtime = RewardFunctionsRuntimeConfig(timeout_s=0.2)
    task = make_task(heldout=200, num_generations=8, prompts_per_step=8)
    watch = EvaluationWatch(task.config, 0, str, SilentWatcher().progress)
    grader = RewardFunctionGrader(load_rewards_file("hangs.py", tmp_path), runtime)
    try:
        with pytest.raises(EvaluationFailed, match="hangs_v1 failed on") as raised:
            evaluate(task.heldout_prompts, FakeSampler(), grader, task.config.eval, 0, watch)
    finally:
        grader.close()
    share = re.search(r"failed on (\d+) of (\d+) completions, more than 50 %", str(raised.value))
    assert 4 <= int(share[1]) == int(share[2]) <= 40  # of 800, which would take 160 s


def test_how_far_an_evaluation_is_shows_now_and_then(tmp_path, monkeypatch, capsys):
    told = []

    class Watcher(SilentWatcher):
        def progress(self, what, done, total):
            told.append((what, done, total))

    roles, _, _, _ = fake_roles()
    with new_run(tmp_path) as run:
        loop.train(make_task(eval={"samples_per_prompt": 2}), roles, run, Watcher())
    at_start = [one for one in told if "step 0" in one[0]]
    sampled, judged = "held-out at step 0: completions sampled", "held-out at step 0: completions judged"
    assert at_start[:6] == [*((sampled, done, 6) for done in range(1, 6)), (judged, 6, 6)]
    assert at_start[6] == ("held-out at step 0: greedy completions sampled", 1, 3)

    for make in (PlainLines, lambda steps: JsonLines()):
        make(4).progress(*told[0])
    assert capsys.readouterr() == ("", "")  # not before some time has passed
    monkeypatch.setattr(shown, "LINE_EVERY_S", 0.0)
    PlainLines(4).progress(sampled, 1200, 8000)
    assert capsys.readouterr().err == f"{sampled} 1,200 of 8,000\n"
