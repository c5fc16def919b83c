"""The loop: what it asks of the roles, in which order, and what it writes down."""

import pytest
from fakes import FakeGrader, fake_roles
from pydantic import ValidationError

from reinforge import loop
from reinforge.api import SilentWatcher
from reinforge.config import GRPOConfig
from reinforge.errors import Interrupted, StoppedByGuard
from reinforge.roles import Roles
from reinforge.run_store import Event, Run, decode_state, latest_checkpoint, list_checkpoints
from reinforge.types import Example, Prompt, Score


def make_task(num_prompts=6, heldout=3, max_tokens=8, **changes):
    config = GRPOConfig.model_validate(
        {
            "base_model": "none",
            "reward_fns": {"functions": {"digit": "none.py:digit"}},
            "train_steps": 4,
            "prompts_per_step": 2,
            "num_generations": 3,
            **changes,
        }
    )

    def prompts(start, count):
        return [Prompt(Example(i, f"p{i}"), f"p{i}", (i + 1,)) for i in range(start, start + count)]

    return loop.Task(config, prompts(0, num_prompts), prompts(100, heldout), max_tokens)


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path, "run", {"train_steps": 4}, {}) as created:
        yield created


def test_each_step_samples_from_the_policy_the_last_one_published(run):
    roles, sampler, _, learner = fake_roles()
    loop.train(make_task(heldout=0), roles, run, SilentWatcher())
    versions = [{c.policy_version for g in batch.groups for c in g.completions} for batch in learner.batches]
    assert versions == [{0}, {1}, {2}, {3}]
    assert sampler.version == 4


def test_prompts_come_in_epochs_and_every_row_once_in_each(run):
    roles, _, _, learner = fake_roles()
    loop.train(make_task(num_prompts=4, heldout=0), roles, run, SilentWatcher())
    drawn = [(g.epoch, g.prompt.example.index) for batch in learner.batches for g in batch.groups]
    assert [epoch for epoch, _ in drawn] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sorted(index for _, index in drawn[:4]) == sorted(index for _, index in drawn[4:]) == [0, 1, 2, 3]


def test_a_batch_is_used_for_all_its_updates_before_the_next_is_collected(run):
    roles, sampler, _, learner = fake_roles()
    loop.train(make_task(heldout=0, num_iterations=2), roles, run, SilentWatcher())
    assert len(sampler.calls) == 2
    assert [batch.updates_done for batch in learner.batches] == [0, 1, 0, 1]
    assert [batch.old_logprobs_PGT is None for batch in learner.batches] == [True, False, True, False]
    assert [row.num_completions for row in run.steps()] == [6, 0, 6, 0]


def test_evaluation_before_the_first_and_after_the_last_step_and_between(run):
    roles, _, _, _ = fake_roles()
    loop.train(make_task(eval={"every_steps": 3, "samples_per_prompt": 2}), roles, run, SilentWatcher())
    assert [evaluation["step"] for evaluation in run.evaluations()] == [0, 3, 4]
    assert {evaluation["num_samples"] for evaluation in run.evaluations()} == {6}


def test_every_evaluation_draws_with_the_same_numbers(run):
    roles, sampler, _, _ = fake_roles()
    loop.train(make_task(eval={"greedy": False}), roles, run, SilentWatcher())
    before, after = sampler.calls[0], sampler.calls[-1]
    assert [request.key for request in before] == [request.key for request in after]
    assert before[0].key[1] == -1


def test_a_function_cannot_take_the_name_of_the_length_penalty():
    functions = {"functions": {"overlong": "none.py:f"}}
    with pytest.raises(ValidationError, match="rename the function"):
        make_task(reward_fns=functions, overlong={"buffer_tokens": 3})


def test_greedy_evaluation_asks_for_the_most_likely_tokens(run):
    roles, sampler, _, _ = fake_roles()
    loop.train(make_task(train_steps=1), roles, run, SilentWatcher())
    assert [{request.greedy for request in call} for call in sampler.calls] == [
        {False},
        {True},
        {False},
        {False},
        {True},
    ]


def test_every_step_draws_with_keys_of_its_own(run):
    roles, sampler, _, _ = fake_roles()
    loop.train(make_task(heldout=0), roles, run, SilentWatcher())
    keys = [request.key for call in sampler.calls for request in call]
    assert len(set(keys)) == len(keys) == 8


def test_the_length_penalty_makes_no_inapplicable_reward_count(run):
    _roles, sampler, _, learner = fake_roles()
    grader = FakeGrader(lambda completion: Score("digit", "digit_v1", None))
    task = make_task(heldout=0, max_tokens=4, overlong={"buffer_tokens": 3})
    loop.train(task, Roles(sampler, grader, learner), run, SilentWatcher())
    assert run.steps()[0].metrics["group/dropped"] == 2


def test_overlong_completions_are_penalised_through_a_score_of_their_own(run):
    roles, _, _, learner = fake_roles()
    loop.train(make_task(max_tokens=4, overlong={"buffer_tokens": 3, "penalty": 0.5}), roles, run, SilentWatcher())
    graded = [
        (c, g)
        for batch in learner.batches
        for group in batch.groups
        for c, g in zip(group.completions, group.grades, strict=True)
    ]
    for completion, grade in graded:
        digit, overlong = grade.scores
        expected = digit.value - 0.5 * max(0, completion.num_tokens - 1) / 3
        assert grade.reward == pytest.approx(expected)
        assert overlong.name == "overlong"


def test_a_stop_request_writes_a_checkpoint_and_can_be_resumed(run):
    roles, _, _, learner = fake_roles()
    (run.path / "control" / "stop").write_text("budget")
    with pytest.raises(StoppedByGuard, match="budget"):
        loop.train(make_task(heldout=0), roles, run, SilentWatcher())
    assert Run.open(run.path).status() == ("stopped", "budget")
    assert [checkpoint.step for checkpoint in list_checkpoints(run.path)] == [1]
    straight = learner.seen[:1]

    with Run.open(run.path, writable=True) as again:
        checkpoint, _ = latest_checkpoint(run.path)
        roles, _, _, learner = fake_roles()
        learner.restore(checkpoint.path)
        assert learner.seen == straight
        state = decode_state((checkpoint.path / "state.json").read_text())
        loop.train(make_task(heldout=0), roles, again, SilentWatcher(), state)
        assert again.last_step() == 4


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_run_after_its_step_with_its_exit_code(run, signal, code):
    roles, _, _, _ = fake_roles()
    stop = loop.StopRequest(signal=signal, exit_code=code)
    with pytest.raises(Interrupted, match=f"{signal} after step 1") as raised:
        loop.train(make_task(heldout=0), roles, run, SilentWatcher(), steering=loop.Steering(stop))
    assert raised.value.exit_code == code
    assert f"reinforge runs resume {run.path}" in raised.value.hint
    assert Run.open(run.path).status()[0] == "interrupted"


def test_an_interruption_in_the_last_step_is_a_finished_run(run):
    roles, _, _, _ = fake_roles()
    stopped = loop.Steering(loop.StopRequest(signal="SIGINT"))
    loop.train(make_task(heldout=0, train_steps=1), roles, run, SilentWatcher(), steering=stopped)
    assert run.last_step() == 1


def test_faults_of_reward_functions_are_told_and_stored_as_events(run):
    def judge(completion):
        if completion.generation == 0:
            return Score("digit", "digit_v1", None, state="error", kind="raised", message="KeyError: 'x'")
        return Score("digit", "digit_v1", 1.0)

    _, sampler, _, learner = fake_roles()
    told = []

    class Watcher(SilentWatcher):
        def note(self, text):
            told.append(text)

    loop.train(make_task(heldout=0), Roles(sampler, FakeGrader(judge), learner), run, Watcher())
    assert told == ["digit raised on 2 of 6 completions: KeyError: 'x'"] * 4
    assert [event.kind for event in run.events()] == ["reward_error"] * 4


def test_masked_completions_have_no_advantage_and_small_groups_are_dropped(run):
    def judge(completion):
        if completion.generation < 2:
            return Score("digit", "digit_v1", None, state="masked", kind="worker")
        return Score("digit", "digit_v1", 1.0)

    _, sampler, _, learner = fake_roles()
    task = make_task(heldout=0, reward_fns={"functions": {"digit": "none.py:digit"}, "max_error_rate": 1.0})
    loop.train(task, Roles(sampler, FakeGrader(judge), learner), run, SilentWatcher())
    assert {a for batch in learner.batches for row in batch.advantages_PG for a in row} == {0.0}
    assert run.steps()[0].metrics["group/dropped"] == 2


def test_a_sampler_that_loses_a_completion_is_an_error(run):
    roles, sampler, _, _ = fake_roles()
    sampler.sample = lambda requests: iter([(0, sampler.completion(requests[0], 0))])
    with pytest.raises(RuntimeError, match="gave 1 of 3"):
        loop.train(make_task(heldout=0), roles, run, SilentWatcher())


@pytest.mark.parametrize(
    ("reward_fns", "num_failed", "stops"),
    [
        ({}, 3, False),
        ({}, 4, True),
        ({"max_error_rate": 0.9}, 5, False),
        ({"settings": {"digit": {"on_error": "fail"}}}, 0, False),
        ({"settings": {"digit": {"on_error": "fail"}}, "max_error_rate": 1.0}, 1, True),
    ],
)
def test_a_reward_function_that_fails_too_often_stops_the_run_before_it_learns(run, reward_fns, num_failed, stops):
    _, sampler, _, learner = fake_roles()
    judged = []

    def judge(completion):
        judged.append(completion)
        ok = completion.policy_version < 2 or sum(c.policy_version == 2 for c in judged) > num_failed
        failed = {"state": "error", "kind": "raised", "message": "KeyError: 'x'\n  File \"f.py\", line 3"}
        return Score("digit", "digit_v1", 0.5) if ok else Score("digit", "digit_v1", None, **failed)

    roles = Roles(sampler, FakeGrader(judge), learner)
    task = make_task(heldout=0, reward_fns={"functions": {"digit": "none.py:digit"}, **reward_fns})
    if not stops:
        loop.train(task, roles, run, SilentWatcher())
        assert run.last_step() == 4
        return
    with pytest.raises(StoppedByGuard, match=f"digit_v1 failed on {num_failed} of 6 completions, more than") as raised:
        loop.train(task, roles, run, SilentWatcher())
    assert "reinforge rewards update" in raised.value.hint
    assert len(learner.batches) == 2  # nothing was learned from the failed step
    stopped = Run.open(run.path)
    assert stopped.status()[0] == "stopped"
    assert [event.kind for event in stopped.events()] == ["reward_error", "reward_guard"]
    assert "line 3" in stopped.events()[-1].data["message"]

    with Run.open(run.path, writable=True) as again:
        checkpoint, _ = latest_checkpoint(run.path)
        assert checkpoint.step == 2
        state = decode_state((checkpoint.path / "state.json").read_text())
        loop.train(task, Roles(sampler, FakeGrader(), learner), again, SilentWatcher(), state)
        assert again.last_step() == 4


def test_what_happens_between_two_steps_is_an_event_of_the_next(run):
    roles, _, _, _ = fake_roles()
    asked = []

    def before_step(step):
        asked.append(step)
        return (Event("change", f"after step {step}"),) if step == 2 else ()

    loop.train(make_task(heldout=0), roles, run, SilentWatcher(), steering=loop.Steering(before_step=before_step))
    assert asked == [0, 1, 2, 3]
    assert [(event.step, event.message) for event in run.events()] == [(3, "after step 2")]
