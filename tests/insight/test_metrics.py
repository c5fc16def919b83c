"""Step metrics against hand-made groups, and the registry against everything they can name."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.insight.metrics import MAX_FIGURES, METRICS, is_registered, quantile, reward_metrics, step_metrics
from reinforge.insight.outcome import group_outcome, is_correct
from reinforge.run_store.wall_time import is_wall_time
from reinforge.types import Completion, Example, Grade, Group, Prompt, Score


def completion(generation: int, ids: tuple[int, ...] = (1, 2, 3), truncated: bool = False) -> Completion:
    logprobs = (-0.5,) * len(ids)
    return Completion(generation, ids, str(ids), "length" if truncated else "stop", logprobs, logprobs, 0)


def group(
    values: list[float | None], *, states: list[str] | None = None, truncated: bool = False, name: str = "answer"
) -> Group:
    """One function; a None value with state "ok" does not apply (so the completion is masked). The third score is from
    a cache."""
    states = states or ["ok"] * len(values)
    scores = [
        Score(name, f"{name}_v1", value, state=state, latency_s=0.1 * (i + 1), cached=i == 2)
        for i, (value, state) in enumerate(zip(values, states, strict=True))
    ]
    completions = tuple(completion(i, tuple(range(i + 2)), truncated) for i in range(len(values)))
    return Group(Prompt(Example(0, "q"), "q", (1,)), 0, completions, tuple(Grade((score,)) for score in scores))


OUTCOMES = [
    ("learning", group([0.0, 1.0, 1.0])),
    ("learning", group([0.0, None, 1.0], states=["ok", "error", "ok"])),
    ("all_right", group([1.0, 1.0])),
    ("all_right", group([1.0, 1.0], truncated=True)),
    ("all_wrong", group([0.5, 0.5])),
    ("all_wrong", group([0.0, None], states=["ok", "error"])),
    ("all_truncated", group([0.0, 0.0], truncated=True)),
    ("all_error", group([None, None], states=["error", "error"])),
    ("all_error", group([None, None, None], states=["error", "error", "masked"])),
    ("dropped", group([1.0])),
    ("dropped", group([1.0, None, None], states=["ok", "masked", "ok"])),
]


@pytest.mark.parametrize(("outcome", "made"), OUTCOMES)
def test_each_group_has_the_outcome_its_definition_says(outcome: str, made: Group):
    assert group_outcome(made) == outcome


def test_equal_rewards_for_right_and_wrong_are_told_apart():
    def graded(right: float, brief: float) -> Grade:
        return Grade((Score("right", "right_v1", right), Score("brief", "brief_v1", brief)))

    made = group([0.0, 0.0])
    mixed = Group(made.prompt, 0, made.completions, (graded(1.0, 0.0), graded(0.0, 1.0)))
    assert group_outcome(mixed, correct_fn="right") == "all_equal"
    assert [is_correct(grade, "right") for grade in mixed.grades] == [True, False]
    assert is_correct(mixed.grades[0], "missing") is None


def test_group_shares_split_the_step():
    metrics = step_metrics([made for _, made in OUTCOMES], {}, {})
    assert metrics["group/dropped"] == 2
    assert metrics["group/zero_variance_share"] == pytest.approx(7 / 11)
    assert metrics["group/learning_share"] == pytest.approx(2 / 11)
    parts = ("all_right", "all_wrong", "all_truncated", "all_error", "all_equal")
    assert [round(11 * metrics[f"group/{part}_share"]) for part in parts] == [2, 2, 1, 2, 0]


def test_reward_metrics_by_hand():
    groups = [
        group([0.0, 1.0, None], states=["ok", "ok", "masked"]),
        group([2.0, 4.0, None], states=["ok", "ok", "error"]),
    ]
    metrics = step_metrics(groups, {}, {})
    assert metrics["reward/mean"] == pytest.approx(7 / 5)  # 0 1 2 4 and the error's 0
    assert metrics["reward/std"] == pytest.approx(math.sqrt((1.96 * 2 + 0.16 + 0.36 + 6.76) / 4))
    assert metrics["reward/group_std_mean"] == pytest.approx((math.sqrt(0.5) + 2.0) / 2)
    assert metrics["reward/error_share"] == pytest.approx(1 / 6)
    assert metrics["reward/masked_share"] == pytest.approx(1 / 6)
    assert metrics["reward/answer/mean"] == pytest.approx(7 / 4)
    assert (metrics["reward/answer/errors"], metrics["reward/answer/masked"]) == (1, 1)
    assert metrics["reward/answer/latency_max_s"] == pytest.approx(0.3)
    assert metrics["reward/answer/latency_mean_s"] == pytest.approx(0.2)


def test_completion_metrics_by_hand():
    # Lengths 2, 3 and (cut off) 2, 3; each group has the pairs 01, 01 12: two distinct of three.
    metrics = step_metrics([group([0.0, 1.0]), group([0.0, 1.0], truncated=True)], {}, {"time/rollout_s": 0.5})
    assert metrics["completion/tokens_mean"] == metrics["completion/tokens_p50"] == 2.5
    assert metrics["completion/terminated_tokens_mean"] == 2.5
    assert (metrics["completion/tokens_p10"], metrics["completion/tokens_max"]) == (2.0, 3.0)
    assert metrics["completion/truncated_share"] == 0.5
    assert metrics["completion/distinct_2"] == pytest.approx(2 / 3)
    assert metrics["completion/unique_share"] == 1.0
    assert metrics["speed/tokens_per_s"] == 20.0


def test_a_step_that_reuses_a_batch_has_the_learners_metrics_only():
    assert step_metrics([], {"policy/loss": 0.5}, {"time/step_s": 1.0}) == {"policy/loss": 0.5, "time/step_s": 1.0}


def test_non_finite_numbers_are_counted_not_stored():
    metrics = step_metrics([], {"policy/loss": math.nan, "policy/kl": math.inf, "policy/grad_norm": 1.0}, {})
    assert metrics == {"policy/grad_norm": 1.0, "policy/non_finite": 2.0}


SCORES = st.tuples(
    st.one_of(st.none(), st.floats(-1e9, 1e9)), st.sampled_from(["ok", "error", "masked"]), st.booleans()
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(SCORES, max_size=4), min_size=1, max_size=4))
def test_every_metric_is_finite_and_registered_whatever_comes(rows: list[list[tuple[float | None, str, bool]]]):
    groups = [
        group(
            [value if state == "ok" else None for value, state, _ in row],
            states=[state for _, state, _ in row],
            truncated=any(cut for _, _, cut in row),
            name="a/b c",
        )
        for row in rows
    ]
    metrics = step_metrics(groups, {"policy/loss": 0.1}, {"time/rollout_s": 0.1})
    assert [name for name in metrics if not is_registered(name)] == []
    json.dumps(metrics, allow_nan=False)
    outcomes = metrics["group/learning_share"] + metrics["group/zero_variance_share"]
    assert outcomes + metrics["group/dropped"] / len(groups) == pytest.approx(1.0)


def test_every_registered_metric_of_groups_is_produced():
    produced = step_metrics([made for _, made in OUTCOMES], {}, {"time/rollout_s": 1.0})
    elsewhere = ("policy/", "time/", "judge/", "network/", "gold/", "group/drawn", "group/kept", "group/extended")
    elsewhere += ("speed/guessed_share", "speed/draft_accepted_share")
    promised = {name for name in METRICS if not name.startswith(elsewhere) and "<figure>" not in name}
    assert promised == {name.replace("/answer/", "/<function>/") for name in produced if not name.startswith("time/")}


def test_figures_beside_the_scores_have_their_mean_and_spread():
    told = [{"accurate": 5.0, "fluent": 1.0}, {"accurate": 3.0}, {}]
    grades = tuple(Grade((Score("judge", "judge_v1", 1.0, metrics=metrics),)) for metrics in told)
    metrics = reward_metrics([Group(Prompt(Example(0, "p"), "p", (1,)), 0, (), grades)])
    assert metrics["reward/judge/accurate/mean"] == 4.0
    assert metrics["reward/judge/accurate/std"] == pytest.approx(math.sqrt(2), abs=1e-12)
    assert metrics["reward/judge/fluent/mean"] == 1.0
    assert "reward/judge/fluent/std" not in metrics
    failed = Grade((Score("judge", "judge_v1", None, state="error", kind="invalid", metrics={"accurate": 0.0}),))
    with_failed = reward_metrics([Group(Prompt(Example(0, "p"), "p", (1,)), 0, (), (*grades, *[failed] * 9))])
    assert with_failed["reward/judge/accurate/mean"] == 4.0
    many = tuple(Grade((Score("f", "f_v1", 1.0, metrics={f"{n:03}": 0.0 for n in range(100)}),)) for _ in range(2))
    metrics = reward_metrics([Group(Prompt(Example(0, "p"), "p", (1,)), 0, (), many)])
    assert sorted(name for name in metrics if name.count("/") == 3)[-1] == f"reward/f/{MAX_FIGURES - 1:03}/std"


def test_what_a_resume_may_change_are_seconds_speeds_cache_hits_and_what_judges_took():
    assert {name for name in METRICS if is_wall_time(name)} == {
        name for name in METRICS if name.endswith("_s") or name.startswith(("time/", "speed/", "judge/", "network/"))
    }


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_quantiles_lie_between_the_extremes_and_grow(values: list[float]):
    values.sort()
    found = [quantile(values, share / 10) for share in range(11)]
    assert (found[0], found[10]) == (values[0], values[-1])
    assert all(low <= high + 1e-6 for low, high in pairwise(found))
