"""Rounds: groups without signal are replaced, small groups are extended, and nothing depends on timing."""

from __future__ import annotations

import itertools
import math

import pytest
from fakes import FakeGrader, FakeSampler, fake_roles
from pydantic import ValidationError

from reinforge import loop
from reinforge.api import SilentWatcher
from reinforge.config import GRPOConfig
from reinforge.learner.advantage import advantages
from reinforge.rollout.rounds import Rollouts
from reinforge.run_store import Event, Run, decode_state, list_checkpoints
from reinforge.types import Completion, Example, Grade, Prompt, Score


def make_config(**changes):
    return GRPOConfig.model_validate(
        {
            "base_model": "none",
            "reward_fns": {"functions": {"digit": "none.py:digit"}},
            "train_steps": 4,
            "prompts_per_step": 3,
            "num_generations": 4,
            "scale_rewards": "none",
            **changes,
        }
    )


class ByPrompt:
    """Rewards as a table says: of the example's index and the generation."""

    def __init__(self, rewards):
        self.rewards = rewards
        self.judged = []

    def begin(self, prompt, num_completions, first_generation=0):
        return Judging(self, prompt.example.index)

    def close(self): ...


class Judging:
    def __init__(self, of, index):
        self.of, self.index, self.completions = of, index, {}

    def add(self, completion: Completion):
        self.completions[completion.generation] = completion

    def grades(self):
        self.of.judged.append((self.index, sorted(self.completions)))
        values = (self.of.rewards(self.index, generation) for generation in sorted(self.completions))
        return tuple(Grade((Score("r", "r_v1", v, state="masked" if v is None else "ok"),)) for v in values)


def make_rollouts(config, rewards, num_prompts=20, find_fault=lambda groups: None):
    prompts = [Prompt(Example(i, f"p{i}"), f"p{i}", (i + 1,)) for i in range(num_prompts)]
    sampler, grader = FakeSampler(), ByPrompt(rewards)
    return Rollouts(config, prompts, sampler, grader, [], find_fault), sampler, grader


def in_order(rollouts, count, start=0):
    whole, _, _ = make_rollouts(make_config(prompts_per_step=count), lambda index, generation: 0.0)
    return [group.prompt.example.index for group in whole.draw(0, start).groups]


def test_groups_without_signal_are_replaced_by_the_next_prompts_in_order():
    order = in_order(None, 8)
    silent = {order[0], order[2], order[4]}
    rewards = lambda index, generation: 0.0 if index in silent else float(generation % 2)  # noqa: E731
    rollouts, sampler, _ = make_rollouts(make_config(dynamic_sampling={"max_rounds": 3}), rewards)
    drawn = rollouts.draw(5, 0)
    assert [g.prompt.example.index for g in drawn.groups] == order[:6]  # rounds of 3, 2 and 1
    assert [len(call) for call in sampler.calls] == [3, 2, 1]
    assert drawn.is_kept == (False, True, False, True, False, True)
    assert [request.key for call in sampler.calls for request in call] == [(0, 5, place) for place in range(6)]
    assert drawn.figures == {"group/drawn": 6.0, "group/kept_share": 0.5}
    batch = advantages([group.rewards_G for group in drawn.kept], "none")
    assert drawn.advantages_of_all(batch)[::2] == ((0.0,) * 4,) * 3
    assert drawn.advantages_of_all(batch)[1::2] == batch


def test_when_the_rounds_run_out_the_batch_is_filled_with_the_first_silent_groups():
    order = in_order(None, 6)
    rewards = lambda index, generation: float(generation == 1) if index == order[4] else 1.0  # noqa: E731
    rollouts, sampler, _ = make_rollouts(make_config(dynamic_sampling={"max_rounds": 1}), rewards)
    drawn = rollouts.draw(0, 0)
    assert [len(call) for call in sampler.calls] == [3, 3]
    assert drawn.is_kept == (True, True, False, False, True, False)


def test_no_round_follows_a_fault():
    seen = []

    def find_fault(groups):
        seen.append(len(groups))
        return Event("judge_down", "no answer")

    rollouts, sampler, _ = make_rollouts(
        make_config(dynamic_sampling={"max_rounds": 3}, adaptive_groups={"start": 2}), lambda *_: None, 20, find_fault
    )
    rollouts.draw(0, 0)
    assert seen == [3, 3]
    assert len(sampler.calls) == 1


def test_only_open_groups_are_extended_and_equal_what_full_sampling_draws():
    order = in_order(None, 3)
    table = {order[0]: [1.0, 1.0, 0.0, 0.0], order[1]: [1.0, 0.0, 0.0, 0.0], order[2]: [None, 1.0, 1.0, 1.0]}
    rewards = lambda index, generation: table[index][generation]  # noqa: E731
    small, _, grader = make_rollouts(make_config(adaptive_groups={"start": 2}), rewards)
    full, _, _ = make_rollouts(make_config(), rewards)
    drawn, whole = small.draw(3, 0), full.draw(3, 0)
    assert [len(group.completions) for group in drawn.groups] == [2, 4, 4]
    assert drawn.groups[0].completions == whole.groups[0].completions[:2]
    assert drawn.groups[1:] == whole.groups[1:]
    assert grader.judged[3:] == [(order[1], [2, 3]), (order[2], [2, 3])]
    assert drawn.figures == {"group/extended_share": 2 / 3}


@pytest.mark.parametrize("start", [2, 3, 4])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_adaptive_groups_weight_a_prompt_by_the_chance_that_its_first_completions_differ(start, p):
    """Rewards 1 with chance p, all 2^G outcomes. The weight on the direction from failures to successes is
    E[sum of A over successes]: in full sampling (G - 1) p (1 - p); with a start of s only of outcomes whose first s
    differ. Completions of equal reward stay exchangeable, so the direction itself is not biased."""
    G = 5

    def weight(first):
        changes = {} if first is None else {"adaptive_groups": {"start": first}}
        config = make_config(prompts_per_step=2, num_generations=G, **changes)
        total = 0.0
        for outcome in itertools.product([0.0, 1.0], repeat=G):
            chance = math.prod(p if r else 1 - p for r in outcome)
            rollouts, _, _ = make_rollouts(config, lambda index, generation, r=outcome: r[generation], 2)
            group = rollouts.draw(0, 0).groups[0]
            (of_group,) = advantages([group.rewards_G], "none")
            total += chance * sum(a for a, r in zip(of_group, group.rewards_G, strict=True) if r)
        return total

    def binomial(n, k):
        return math.comb(n, k) * p**k * (1 - p) ** (n - k)

    expected = sum(
        binomial(start, k) * binomial(G - start, j) * (k + j) * (G - k - j) / G
        for k in range(1, start)
        for j in range(G - start + 1)
    )
    assert weight(None) == pytest.approx((G - 1) * p * (1 - p), rel=1e-9)
    assert weight(start) == pytest.approx(expected, rel=1e-9)
    assert weight(start) < weight(None)


def test_a_start_must_be_smaller_than_the_group():
    with pytest.raises(ValidationError, match=r"adaptive_groups\.start = 4 must be below num_generations = 4"):
        make_config(adaptive_groups={"start": 4})


ROUNDS = {"dynamic_sampling": {"max_rounds": 2}, "adaptive_groups": {"start": 2}, "save_every": 1}


def make_task(**changes):
    prompts = [Prompt(Example(i, f"p{i}"), f"p{i}", (i + 1,)) for i in range(9)]
    return loop.Task(make_config(**changes), prompts, [], 8)


def coarse(completion):
    return Score("digit", "digit_v1", float(int(completion.text[-1]) > 6))


def train(run, roles, task, state=None, until=None):
    loop.train(task, roles, run, SilentWatcher(), state, loop.Steering(until_step=until))


def test_all_groups_are_recorded_and_the_batch_is_learned_from(tmp_path):
    roles, sampler, _, learner = fake_roles()
    roles = loop.Roles(sampler, FakeGrader(coarse), learner)
    with Run.create(tmp_path, "run", {"train_steps": 4}, {}) as run:
        train(run, roles, make_task(**ROUNDS))
        steps = run.steps()
        drawn = [int(step.metrics["group/drawn"]) for step in steps]
        assert {len(batch.groups) for batch in learner.batches} == {3}
        assert sum(drawn) > 12
        rows = run.completions(limit=-1)
        assert [len({row.place for row in rows if row.step == step}) for step in (1, 2, 3, 4)] == drawn
        learned = sum(a != 0 for batch in learner.batches for group in batch.advantages_PG for a in group)
        assert sum(row.advantage != 0 for row in rows) == learned > 0
    keys = [(r.key, g) for call in sampler.calls for r in call for g in r.generations]
    assert len(set(keys)) == len(keys)


def test_a_resumed_run_draws_the_same_groups(tmp_path):
    def trained(name, stops):
        path, state = tmp_path / name, None
        with Run.create(tmp_path, name, {"train_steps": 4}, {}) as run:
            for until in stops:
                _, sampler, _, learner = fake_roles()
                if state is not None:
                    learner.restore(list_checkpoints(path)[-1].path)
                train(run, loop.Roles(sampler, FakeGrader(coarse), learner), make_task(**ROUNDS), state, until)
                state = decode_state((list_checkpoints(path)[-1].path / "state.json").read_text())
            return [run.row_hash(step) for step in (1, 2, 3, 4)], state, learner.seen

    assert trained("straight", [4]) == trained("in_parts", [1, 3, 4])
