"""Makes the values that flow through Reinforge, for tests: batches with chosen shapes and random content."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch

from reinforge.config import GRPOConfig, LoraParams
from reinforge.learner.update import LocalLearner
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Batch, Completion, Example, Grade, Group, Prompt, Score

VOCABULARY = 200


def make_config(**changes: object) -> GRPOConfig:
    """A config with one reward function that nothing calls."""
    values: dict[str, object] = {
        "base_model": "unused",
        "reward_fns": {"functions": {"unused": "unused.py:unused"}},
        "beta": 0.0,
        "warmup_ratio": 0.0,
    }
    return GRPOConfig.model_validate(values | changes)


def make_policy(folder: Path, *, dropout: float = 0.0, rank: int = 4, seed: int = 0) -> Policy:
    """A float32 CPU policy whose B matrices are not zero, so that A gets a gradient too."""
    policy = load_policy(
        str(folder), LoraParams(rank=rank, lora_alpha=8, lora_dropout=dropout), seed=seed, device="cpu"
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=generator)
    return policy


def make_learner(
    policy: Policy, *, learning_rate: float = 1e-3, max_tokens: int = 32, **changes: object
) -> LocalLearner:
    return LocalLearner(policy, make_config(**changes), max_tokens=max_tokens, learning_rate=learning_rate)


def make_batch(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    advantages_PG: Sequence[Sequence[float]] | None = None,
    truncated: Sequence[tuple[int, int]] = (),
    vocabulary: int = VOCABULARY,
) -> Batch:
    """Random tokens; `advantages_PG` random unless given; completions at the places `truncated` are cut off."""
    draw = random.Random(seed)
    groups, drawn = [], []
    for p, (prompt_length, lengths) in enumerate(zip(prompt_lengths, completion_lengths, strict=True)):
        prompt = Prompt(Example(p, f"prompt {p}"), f"prompt {p}", _ids(draw, prompt_length, vocabulary))
        completions = tuple(
            _completion(draw, g, length, "length" if (p, g) in truncated else "stop", vocabulary)
            for g, length in enumerate(lengths)
        )
        rewards = [draw.random() for _ in lengths]
        grades = tuple(Grade((Score("r", "r_v1", reward),)) for reward in rewards)
        groups.append(Group(prompt, epoch=0, completions=completions, grades=grades))
        drawn.append(tuple(draw.uniform(-2, 2) for _ in lengths))
    return Batch(tuple(groups), tuple(tuple(a) for a in advantages_PG or drawn))


def gradients(learner: LocalLearner, batch: Batch) -> dict[str, torch.Tensor]:
    """The adapter's gradients in one update with learning rate 0."""
    learner.learning_rate = 0.0
    learner.update(batch)
    return {name: p.grad.clone() for name, p in learner.policy.trainable().items() if p.grad is not None}


def relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest element difference over the norm of the whole gradient."""
    assert set(ours) == set(theirs)
    norm = torch.sqrt(sum((t.square().sum() for t in theirs.values()), torch.zeros(())))
    return float(max((ours[n] - theirs[n]).abs().max() for n in theirs) / norm)


def _ids(draw: random.Random, length: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(draw.randrange(vocabulary) for _ in range(length))


def _completion(draw: random.Random, generation: int, length: int, reason: str, vocabulary: int) -> Completion:
    logprobs = tuple(draw.uniform(-3, 0) for _ in range(length))
    return Completion(generation, _ids(draw, length, vocabulary), "text", reason, logprobs, logprobs, policy_version=0)  # type: ignore[arg-type]
