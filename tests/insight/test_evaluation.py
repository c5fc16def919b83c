"""Held-out figures: exact on hand-made outcomes; the interval covers what it promises."""

from __future__ import annotations

import json
import math
import random

import pytest
from fakes import FakeGrader, FakeSampler

from reinforge.config import EvalConfig
from reinforge.evaluation import evaluate
from reinforge.insight.evaluation import Outcome, PromptOutcomes, clustered_interval, evaluate_outcomes
from reinforge.types import Completion, Example, Prompt, Score


def outcome(correct: bool, reward: float | None = 0.0, truncated: bool = False, **values: float | None) -> Outcome:
    return Outcome(reward, correct, tuple(values.items()), truncated)


def test_every_prompt_weighs_the_same_and_masked_ones_do_not_count():
    prompts = [
        PromptOutcomes((outcome(True, 1.0, f=1.0), outcome(False, 0.0, f=0.0), outcome(False, None))),
        PromptOutcomes((outcome(True, 3.0, f=3.0, g=None),), greedy=outcome(False, 0.5)),
        PromptOutcomes((outcome(False, None),), greedy=outcome(True, None)),
    ]
    found = evaluate_outcomes(prompts)
    assert (found.pass_at_1, found.reward_mean) == (0.75, 1.75)
    assert found.function_means == {"f": 1.75}
    assert (found.num_prompts, found.num_samples, found.greedy_pass_at_1) == (2, 3, 0.0)
    document = json.loads(json.dumps(found.as_json(step=7), allow_nan=False))
    assert (document["step"], document["score"]) == (7, 0.75)


def test_nothing_valid_has_no_figures():
    found = evaluate_outcomes([PromptOutcomes((outcome(False, None),))])
    assert (found.pass_at_1, found.ci95, found.greedy_pass_at_1, found.num_prompts) == (None, None, None, 0)


def test_one_completion_per_prompt_is_wilsons_interval():
    # Textbook case: 8 of 10, z = 1.96: 0.4902 to 0.9433.
    low, high = clustered_interval([[True]] * 8 + [[False]] * 2)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_samples_of_one_prompt_that_always_agree_tell_no_more_than_one():
    once = clustered_interval([[True]] * 8 + [[False]] * 2)
    assert clustered_interval([[True] * 50] * 8 + [[False] * 50] * 2) == pytest.approx(once)


def test_samples_that_do_not_depend_on_the_prompt_count_almost_fully():
    rng = random.Random(1)
    rows = [[rng.random() < 0.4 for _ in range(8)] for _ in range(200)]
    low, high = clustered_interval(rows)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.24 / 1600), rel=0.15)


@pytest.mark.parametrize(("low_rate", "high_rate"), [(0.0, 1.0), (0.1, 0.4), (0.01, 0.05)])
def test_the_interval_covers_the_truth_about_95_times_in_100(low_rate: float, high_rate: float):
    rng = random.Random(0)
    truth, covered, trials = (low_rate + high_rate) / 2, 0, 1000
    for _ in range(trials):
        rates = [rng.uniform(low_rate, high_rate) for _ in range(60)]
        low, high = clustered_interval([[rng.random() < rate for _ in range(4)] for rate in rates])
        covered += low <= truth <= high
    assert 0.92 <= covered / trials <= 0.985


def test_failed_and_masked_judgements_are_no_wrong_answers_but_counted():
    prompts = [Prompt(Example(place, "p"), "p", (1,)) for place in range(40)]
    settings = EvalConfig(max_prompts=40, samples_per_prompt=4, correct_fn="judge", correct_from=0.5)
    states: list[str] = []

    def judge(completion: Completion) -> Score:
        digit = int(completion.text[-1])
        states.append("error" if digit < 3 else "masked" if digit < 5 else "right" if digit < 9 else "wrong")
        if digit < 3:  # a stand-in is no judgement either
            return Score("judge", "judge_v1", None, state="error", kind="raised", stand_in=1.0 if digit else None)
        if digit < 5:
            return Score("judge", "judge_v1", None, state="masked", kind="worker_unavailable")
        return Score("judge", "judge_v1", float(digit < 9))

    sampled = settings.model_copy(update={"greedy": False})
    found, groups = evaluate(prompts, FakeSampler(), FakeGrader(judge), sampled, seed=1)
    shares = []
    for group in groups:
        values = [score.value for grade in group.grades for score in grade.scores if score.value is not None]
        shares += [math.fsum(values) / len(values)] if values else []
    assert found.pass_at_1 == pytest.approx(math.fsum(shares) / len(shares), abs=1e-12)
    assert found.pass_at_1 > 0.6 > 0.5 > states.count("right") / len(states)
    assert found.errors == {"judge": states.count("error")}
    assert found.num_left_out == states.count("error") + states.count("masked") > 0
    assert found.as_json(1)["num_left_out"] == found.num_left_out
    with_greedy, _ = evaluate(prompts, FakeSampler(), FakeGrader(judge), settings, seed=1)
    assert with_greedy.greedy_pass_at_1 > 0.6
