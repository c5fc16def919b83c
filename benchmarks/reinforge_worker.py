"""Reinforge's own loop on one job, step by step. Started by vs_trl.py."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol import Channel, StepClock, peak_bytes
from workload import LEARNING_RATE, LORA_ALPHA, LORA_RANK, Job, completion_lengths, prompts

from reinforge import loop
from reinforge.api import SilentWatcher
from reinforge.cluster import local
from reinforge.config import GRPOConfig
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.inference.engine import Engine
from reinforge.rollout import rounds
from reinforge.run_store import Run
from reinforge.types import Completion, Group


def make_config(job: Job, **changes: Any) -> GRPOConfig:
    """Defaults wherever the comparison does not ask for a value."""
    values: dict[str, Any] = {
        "base_model": str(Path(job.folder) / "model"),
        "reward_fns": {"functions": {"noise": "noise.py:noise"}},
        "data": {"heldout": 0},
        "train_steps": job.steps,
        "prompts_per_step": job.prompts_per_step,
        "num_generations": job.num_generations,
        "sampling_params": {"max_tokens": job.shape.max_tokens},
        "lora": {"rank": LORA_RANK, "lora_alpha": LORA_ALPHA},
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "beta": job.shape.beta,
        "dtype": job.dtype,
        "device": job.device,
        "threads": 1,
    }
    return GRPOConfig.model_validate(values | changes)


def build(job: Job) -> local.LocalRun:
    """Model, learner, sampler with forced lengths, and the reward's worker process."""
    rows = [{"prompt": prompt} for prompt in prompts(job)]
    started = datetime.datetime.now()
    config, folder = make_config(job), Path(job.folder)
    grader = RewardFunctionGrader.from_config(config.reward_fns, folder)
    built = local.build(config, folder, grader, started=started, tell=lambda _: None, rows=rows)
    assert isinstance(built.roles.sampler, Engine)
    force_lengths(built.roles.sampler, completion_lengths(job.shape, job.num_rows), job.num_generations)
    return built


def force_lengths(engine: Engine, lengths: Sequence[int], num_generations: int) -> None:
    """Let a row end at its length and not before, whatever it draws."""

    def completion(row: Any) -> Completion | None:
        if len(row.token_ids) < lengths[row.request * num_generations + row.generation]:
            return None
        return engine._finished(row, engine._decode(row.token_ids), is_stop=True)

    engine._completion = completion  # type: ignore[method-assign]


class TakeTurns(SilentWatcher):
    """Tells the times of each step and waits before the next."""

    def __init__(self, channel: Channel, clock: StepClock, num_steps: int) -> None:
        self.channel, self.clock, self.num_steps = channel, clock, num_steps

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        times = self.clock.times()
        num_tokens = sum(c.num_tokens for group in groups for c in group.completions)
        self.channel.tell(
            **times,
            reward_wait_s=metrics["time/reward_wait_s"],
            peak_bytes=peak_bytes(self.clock.device),
            completion_tokens=num_tokens,
            **self.more(step),
        )
        if step < self.num_steps:
            self.channel.await_go()
            self.clock.start()

    def more(self, step: int) -> dict[str, Any]:
        """Further facts to tell."""
        return {}


def train(built: local.LocalRun, watcher: TakeTurns, folder: Path) -> None:
    """The whole run, one step for each turn."""
    channel, clock = watcher.channel, watcher.clock
    rounds.collect = clock.timed("rollout", rounds.collect)
    try:
        with Run.create(folder / "runs", None, {}, {}) as run:
            channel.tell(ready=True, idle_bytes=peak_bytes(clock.device))
            channel.await_go()
            clock.start()
            loop.train(built.task, built.roles, run, watcher)
    finally:
        built.close()


def main() -> None:
    channel, job = Channel(), Job.read(Path(sys.argv[1]))
    clock = StepClock(job.device)
    train(build(job), TakeTurns(channel, clock, job.steps), Path(job.folder))


if __name__ == "__main__":
    main()
