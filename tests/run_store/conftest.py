"""Groups and records the run-store tests share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from reinforge.run_store import Event, Run, StepRecord
from reinforge.types import Completion, Example, Grade, Group, Prompt, Score

CONFIG = {"base_model": "tiny", "train_steps": 20}


def make_group(seed: int, example: int, epoch: int = 0, num_generations: int = 4) -> Group:
    """A group in which everything is a function of `seed`: some scores fail, some are masked, some do not apply."""
    rng = random.Random(seed)
    completions, grades = [], []
    for generation in range(num_generations):
        length = rng.randint(1, 12)
        logprobs = tuple(-rng.random() for _ in range(length))
        text = f"try {rng.random()} \ud83d" if rng.random() < 0.2 else f"try {rng.random()}"
        completions.append(
            Completion(
                generation=generation,
                token_ids=tuple(rng.randrange(100_000) for _ in range(length)),
                text=text,
                finish_reason=rng.choice(["stop", "length"]),
                logprobs=logprobs,
                sampled_logprobs=logprobs if rng.random() < 0.5 else tuple(-rng.random() for _ in range(length)),
                policy_version=seed % 7,
            )
        )
        grades.append(Grade((make_score(rng, "format"), make_score(rng, "answer"))))
    prompt = Prompt(Example(example, f"question {example}"), f"<user>question {example}", (1, 2, example))
    return Group(prompt, epoch, tuple(completions), tuple(grades))


def make_score(rng: random.Random, name: str) -> Score:
    chance = rng.random()
    common = {"name": name, "version": f"{name}_v1", "weight": 0.5, "latency_s": rng.random()}
    if chance < 0.1:
        failed = {"state": "error", "kind": "raised", "message": "KeyError: '\ud800'", "prints": "before"}
        return Score(**common, **failed, value=None, stand_in=rng.choice([None, 0.5]))
    if chance < 0.15:
        return Score(**common, value=None, state="masked", kind="worker_lost", message="gone")
    if chance < 0.2:
        return Score(**common, value=None)
    value = rng.choice([0.0, 0.1, 1.0, rng.random()])
    return Score(**common, value=value, metrics={"words \ud800": 3.5} if chance > 0.9 else {})


def make_record(step: int, num_prompts: int = 3, wall: float = 0.0) -> StepRecord:
    """Step `step`: the same for the same step, but for wall time."""
    groups = tuple(make_group(1000 * step + place, example=(step + place) % 5) for place in range(num_prompts))
    return StepRecord(
        step=step,
        metrics={"reward/mean": step / 7, "policy/loss": 0.1, "time/step_s": 1.0 + wall},
        state_hash=f"hash of {step}",
        groups=groups,
        advantages_PG=tuple(tuple(0.1 * i for i in range(len(group.completions))) for group in groups),
        events=(Event("note", f"step {step}", data={"step": step}),),
    )


@pytest.fixture
def run(tmp_path: Path):
    with Run.create(tmp_path / "runs", "first", CONFIG, {"python": "3.11"}) as run:
        yield run
