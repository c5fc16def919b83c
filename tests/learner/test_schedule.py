"""The course of the learning rate against transformers' schedules, and the default peak."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from reinforge.learner.schedule import default_learning_rate, learning_rate_at

PEAK = 3e-4
COURSES = st.sampled_from(["constant", "linear", "cosine"])


def transformers_rates(course, warmup, total, min_lr_ratio, count):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    if course == "constant":
        schedule = get_constant_schedule_with_warmup(optimizer, warmup)
    elif course == "linear":
        schedule = get_linear_schedule_with_warmup(optimizer, warmup, total)
    elif min_lr_ratio == 0.0:
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    else:
        schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=min_lr_ratio)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("course", "min_lr_ratio"), [("constant", 0.0), ("linear", 0.0), ("cosine", 0.0), ("cosine", 0.1)]
)
@pytest.mark.parametrize("total", [1, 2, 20, 33])
def test_without_warmup_equals_transformers(course, min_lr_ratio, total):
    ours = [
        learning_rate_at(s, peak=PEAK, total_steps=total, course=course, min_lr_ratio=min_lr_ratio) for s in range(40)
    ]
    theirs = transformers_rates(course, 0, total, min_lr_ratio, 40)
    assert ours[: total + 1] == pytest.approx(theirs[: total + 1], rel=1e-12, abs=1e-20)


@pytest.mark.parametrize(
    ("course", "min_lr_ratio"), [("constant", 0.0), ("linear", 0.0), ("cosine", 0.0), ("cosine", 0.1)]
)
@pytest.mark.parametrize(("total", "ratio", "warmup"), [(2, 0.03, 1), (20, 0.25, 5), (33, 0.1, 4), (5, 1.0, 5)])
def test_with_warmup_equals_transformers_without_its_step_of_rate_zero(course, min_lr_ratio, total, ratio, warmup):
    ours = [
        learning_rate_at(s, peak=PEAK, total_steps=total, course=course, warmup_ratio=ratio, min_lr_ratio=min_lr_ratio)
        for s in range(total)
    ]
    theirs = transformers_rates(course, warmup, total + 1, min_lr_ratio, total + 1)
    assert theirs[0] == 0.0
    assert ours == pytest.approx(theirs[1:], rel=1e-12, abs=1e-20)


@given(COURSES, st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_every_step_of_a_run_learns_and_rates_rise_then_fall(course, total, warmup_ratio, min_lr_ratio):
    rates = [
        learning_rate_at(
            s, peak=1.0, total_steps=total, course=course, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio
        )
        for s in range(total)
    ]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    after = learning_rate_at(
        10 * total, peak=1.0, total_steps=total, course=course, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio
    )
    assert after == pytest.approx(1.0 if course == "constant" else min_lr_ratio, abs=1e-12)


def test_default_rate_falls_with_size_and_says_why():
    sizes = [300_000, 50_000_000, 494_000_000, 1_540_000_000, 7_600_000_000, 70_000_000_000]
    rates = [default_learning_rate(size, rank=16)[0] for size in sizes]
    assert rates == [1e-3, 2e-4, 5e-5, 2e-5, 1e-5, 5e-6]
    rate, reason = default_learning_rate(494_000_000, rank=8)
    assert f"{rate:g}" in reason
    assert "494M" in reason
    assert "rank 8" in reason


def test_default_rate_keeps_the_update_of_a_larger_alpha_the_same():
    plain, _ = default_learning_rate(494_000_000, rank=16)
    scaled, reason = default_learning_rate(494_000_000, rank=64, lora_alpha=128)
    assert scaled == pytest.approx(plain / 4)
    assert "32 / 128" in reason
