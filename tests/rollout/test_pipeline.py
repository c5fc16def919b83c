"""Rollouts beside the learner: which policy samples what, resumed and not, and that no timing is in it."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from builders import make_config as config_of_learner
from fakes import FakeGrader, FakeLearner, FakeSampler, fake_roles

from reinforge import loop
from reinforge.api import SilentWatcher
from reinforge.config import GRPOConfig
from reinforge.data.order import PromptOrder
from reinforge.errors import StoppedByGuard
from reinforge.learner.advantage import advantages
from reinforge.learner.loss import LossSettings
from reinforge.rollout.collect import collect
from reinforge.run_store import Event, Run, decode_state, list_checkpoints
from reinforge.run_store.codec import encode_state
from reinforge.types import Batch, Drawn, Example, Prompt, SampleRequest, Score, TrainState

ROUNDS = {"dynamic_sampling": {"max_rounds": 2}, "adaptive_groups": {"start": 2}}
PROMPTS = [Prompt(Example(i, f"p{i}"), f"p{i}", (i + 1,)) for i in range(7)]


def make_task(**changes):
    values = {
        "base_model": "none",
        "reward_fns": {"functions": {"digit": "none.py:digit"}},
        "train_steps": 5,
        "prompts_per_step": 2,
        "num_generations": 3,
        "save_every": 1,
        "keep_tokens_steps": 100,
    }
    return loop.Task(GRPOConfig.model_validate(values | changes), PROMPTS, [], 8)


def versions(batches):
    return [{c.policy_version for group in batch.groups for c in group.completions} for batch in batches]


def train(folder, roles, task, state=None, **steering):
    if not (folder / "run").exists():
        Run.create(folder, "run", {"train_steps": 5}, {}).close()
    with Run.open(folder / "run", writable=True) as run:
        loop.train(task, roles, run, SilentWatcher(), state, loop.Steering(**steering))
        return [(row.state_hash, run.row_hash(row.step)) for row in run.steps()]


class HomeSampler(FakeSampler):
    """Knows in which thread it was asked."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def sample(self, requests):
        self.threads.append(threading.current_thread().name)
        yield from super().sample(requests)


def test_without_a_lag_every_step_is_that_of_the_plain_loop(tmp_path):
    """The oracle: sample, grade, compare, update, publish, one after the other, as on the front page."""
    task, learner, sampler, grader = make_task(), FakeLearner(), FakeSampler(), FakeGrader()
    order, expected = PromptOrder(len(PROMPTS), 0), []
    for step in range(5):
        sampler.load(learner.publish())
        drawn = [order.at(2 * step + place) for place in range(2)]
        requests = [SampleRequest(PROMPTS[index], 3, (0, step, place)) for place, (index, _) in enumerate(drawn)]
        groups = collect(requests, [epoch for _, epoch in drawn], sampler, grader).groups
        learner.update(Batch(groups, advantages([group.rewards_G for group in groups], "group")))
        expected.append(learner.state_hash())

    home, roles = HomeSampler(), fake_roles()[0]
    found = train(tmp_path, replace(roles, sampler=home), task)
    assert [state for state, _ in found] == expected
    assert set(home.threads) == {threading.current_thread().name}


@pytest.mark.parametrize(
    ("num_iterations", "sampled_by", "lags"),
    [(1, [{0}, {0}, {1}, {2}, {3}], [0, 1, 1, 1, 1]), (2, [{0}, {0}, {1}, {1}, {3}], [0, 1, 1, 2, 1])],
)
def test_the_next_batch_is_sampled_from_the_policy_before_the_step(tmp_path, num_iterations, sampled_by, lags):
    """With two updates per batch the lag of the second one counts from the same policy."""
    roles, sampler, _, learner = fake_roles()
    train(tmp_path, roles, make_task(max_policy_lag=1, num_iterations=num_iterations))
    assert versions(learner.batches) == sampled_by
    with Run.open(tmp_path / "run") as run:
        assert [row.metrics["policy/lag"] for row in run.steps()] == lags
        assert {row.policy_version for row in run.completions(limit=-1)} == set.union(*sampled_by)

    straight, plain, _, _ = fake_roles()
    train(tmp_path / "plain", straight, make_task(num_iterations=num_iterations))
    assert [request for call in sampler.calls for request in call] == [r for call in plain.calls for r in call]


def test_sampling_goes_on_while_the_learner_works(tmp_path):
    """The learner's step ends only when the sampler has begun the next one, and the other way round."""
    learning, sampling = threading.Event(), threading.Event()

    class Learner(FakeLearner):
        def update(self, batch):
            if len(self.seen) < 4:  # the last step has nothing beside it
                learning.set()
                assert sampling.wait(20)
                sampling.clear()
            return super().update(batch)

    class Sampler(FakeSampler):
        def sample(self, requests):
            if threading.current_thread().name == "rollouts":
                assert learning.wait(20)
                learning.clear()
                sampling.set()
            yield from super().sample(requests)

    train(tmp_path, loop.Roles(Sampler(), FakeGrader(), Learner()), make_task(max_policy_lag=1))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_iterations": 2}, ROUNDS],
    ids=str,
)
def test_a_run_resumed_anywhere_is_the_run_that_was_not_interrupted(tmp_path, changes):
    task = make_task(max_policy_lag=1, **changes)
    straight = train(tmp_path / "straight", fake_roles()[0], task)
    for stop in range(1, 5):
        folder = tmp_path / str(stop)
        train(folder, fake_roles()[0], task, until_step=stop)
        checkpoint = list_checkpoints(folder / "run")[-1]
        state = decode_state((checkpoint.path / "state.json").read_text())
        roles, _, _, learner = fake_roles()
        learner.restore(checkpoint.path)
        assert (state.ahead is None) == (state.batch is not None)
        assert train(folder, roles, task, state) == straight


def test_a_change_of_the_reward_functions_judges_what_is_drawn_after_it(tmp_path):
    grader = FakeGrader()
    roles = replace(fake_roles()[0], grader=grader)

    def before_step(step):
        if step == 2:
            grader.judge = lambda completion: Score("digit", "digit_v2", 0.5)
            return (Event("reward_update", "changed"),)
        return ()

    train(tmp_path, roles, make_task(max_policy_lag=1), before_step=before_step)
    with Run.open(tmp_path / "run") as run:
        judged = [
            {score.version for row in run.completions(step=step) for score in run.scores([row.id])[row.id]}
            for step in range(1, 6)
        ]
    # Those of step 3 were drawn beside step 2, before the change.
    assert judged == [{"digit_v1"}] * 3 + [{"digit_v2"}] * 2


@pytest.mark.parametrize("changes", [{}, ROUNDS], ids=str)
def test_a_batch_ahead_that_a_guard_refused_is_judged_again(tmp_path, changes):
    task = make_task(max_policy_lag=1, **changes)
    straight = train(tmp_path / "straight", fake_roles()[0], task)

    def down(completion):
        if completion.policy_version == 1:  # drawn beside the second step, for the third
            return Score("digit", "digit_v1", None, state="masked", kind="judge_down", message="no answer")
        return Score("digit", "digit_v1", float(completion.text[-1]) / 10)

    roles = replace(fake_roles()[0], grader=FakeGrader(down))
    with pytest.raises(StoppedByGuard, match="after step 2: "):
        train(tmp_path, roles, task)
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    state = decode_state((checkpoint.path / "state.json").read_text())
    roles, sampler, _, learner = fake_roles()
    learner.restore(checkpoint.path)
    resumed = train(tmp_path, roles, task, state)
    if not changes:  # else its second half and its second round are sampled now
        assert resumed == straight
        assert sampler.calls[0] == []
    assert [row_hash for _, row_hash in resumed[:2]] == [row_hash for _, row_hash in straight[:2]]
    assert len(resumed) == 5


def test_a_fault_of_the_sampler_beside_the_learner_is_raised(tmp_path):
    class Failing(FakeSampler):
        def sample(self, requests):
            if requests[0].key[1] == 2:
                raise ValueError("logits are NaN")
            yield from super().sample(requests)

    roles = replace(fake_roles()[0], sampler=Failing())
    with pytest.raises(ValueError, match="logits are NaN"):
        train(tmp_path, roles, make_task(max_policy_lag=1))
    assert not any(thread.name == "rollouts" for thread in threading.enumerate())


def test_a_fault_of_the_learner_ends_the_sampler(tmp_path):
    goes_on = threading.Event()

    class Endless(FakeSampler):
        def sample(self, requests):
            for place, completion in super().sample(requests):
                if threading.current_thread().name == "rollouts":
                    goes_on.set()
                    while True:
                        yield place, completion
                yield place, completion

    class Failing(FakeLearner):
        def update(self, batch):
            assert goes_on.wait(20)
            raise RuntimeError("out of memory")

    roles = loop.Roles(Endless(), FakeGrader(), Failing())
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path, roles, make_task(max_policy_lag=1))
    assert not any(thread.name == "rollouts" for thread in threading.enumerate())


def test_rollouts_ahead_survive_the_checkpoint():
    roles, sampler, grader, _ = fake_roles()
    sampler.load(roles.learner.publish())
    groups = collect([SampleRequest(PROMPTS[0], 3, (0, 0, 0))], [0], sampler, grader).groups
    state = TrainState(3, 8, None, Drawn(groups, (True,), 1.5, 0.25, {"group/drawn": 1.0}))
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize(
    ("lag", "mode", "expected"), [(0, None, "off"), (1, None, "truncate"), (1, "off", "off"), (0, "mask", "mask")]
)
def test_a_lag_turns_importance_correction_on(lag, mode, expected):
    config = config_of_learner(max_policy_lag=lag, importance_correction={"mode": mode})
    assert LossSettings.from_config(config, 8).correction.mode == expected
