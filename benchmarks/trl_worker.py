"""TRL's GRPOTrainer on one job, step by step. Started by vs_trl.py."""

from __future__ import annotations

import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import Channel, StepClock, peak_bytes
from torch import Tensor
from transformers import LogitsProcessor
from workload import END, LEARNING_RATE, LORA_ALPHA, LORA_RANK, Job, completion_lengths, prompts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's imports use names that transformers and torch deprecate
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

BEST = {
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Settings at which it is fastest on one CPU thread in float32: no gradient checkpointing, nothing logged or saved."""


class ForcedLengths(LogitsProcessor):
    """Row b ends with its token number lengths_B[b] and not before. In place: it costs two writes per token."""

    def __init__(self, lengths: Sequence[int], prompt_tokens: int) -> None:
        self.lengths_B = torch.tensor(lengths)
        self.prompt_tokens = prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.lengths_B = self.lengths_B.to(scores.device)
        is_last_B = self.lengths_B == input_ids.shape[1] - self.prompt_tokens + 1
        scores[:, END] = float("-inf")
        if is_last_B.any():
            scores[is_last_B] = float("-inf")
            scores[is_last_B, END] = 0.0
        return scores


def make_trainer(job: Job, output: Path, **more: Any) -> Any:
    """The trainer at its best settings: on policy no old logprobs, no reference unless the shape has a KL penalty,
    TRL_ROWS completions together."""
    settings: dict[str, Any] = {
        "num_generations": job.num_generations,
        "per_device_train_batch_size": job.trl_rows,
        "gradient_accumulation_steps": job.num_rows // job.trl_rows,
        "max_steps": job.steps,
    }
    settings |= device_settings(job)
    config = GRPOConfig(
        output_dir=str(output),
        max_completion_length=job.shape.max_tokens,
        beta=job.shape.beta,
        loss_type="dapo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        **BEST | settings | more.pop("settings", {}),
    )
    folder = Path(job.folder)
    reward = runpy.run_path(str(folder / "noise.py"))["noise"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, job.dtype)),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder / "model"),
            args=config,
            reward_funcs=more.pop("reward", reward),
            train_dataset=Dataset.from_dict({"prompt": prompts(job)}),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"
            ),
            **more,
        )


def device_settings(job: Job) -> dict[str, Any]:
    return {} if job.device == "cpu" else {"use_cpu": False, "bf16": True}


def force_lengths(trainer: Any, job: Job) -> None:
    """Let its generation end each completion at the job's length."""
    forced = ForcedLengths(completion_lengths(job.shape, job.num_rows), job.shape.prompt_tokens)
    generate: Callable[..., Tensor] = trainer.model.generate
    trainer.model.generate = lambda **kwargs: generate(**kwargs, logits_processor=[forced])


class Watched:
    """Takes the time of a trainer's rollouts, and counts the tokens it drew."""

    def __init__(self, trainer: Any, clock: StepClock) -> None:
        self.completion_tokens = 0
        self._generate = clock.timed("rollout", trainer._generate_single_turn)
        trainer._generate_single_turn = self._count

    def _count(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, logprobs = self._generate(*args, **kwargs)
        self.completion_tokens = sum(len(ids) for ids in completion_ids)
        return completion_ids, logprobs


class TakeTurns(TrainerCallback):
    """Waits before each step and tells its times after it."""

    def __init__(self, channel: Channel, clock: StepClock, watched: Watched) -> None:
        self.channel, self.clock, self.watched = channel, clock, watched

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.channel.await_go()
        self.clock.start()

    def on_step_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        times = self.clock.times()
        self.channel.tell(
            **times,
            peak_bytes=peak_bytes(self.clock.device),
            completion_tokens=self.watched.completion_tokens,
            **self.more(state.global_step),
        )

    def more(self, step: int) -> dict[str, Any]:
        """Further facts to tell."""
        return {}


def main() -> None:
    channel, job = Channel(), Job.read(Path(sys.argv[1]))
    clock = StepClock(job.device)
    torch.set_num_threads(1)
    trainer = make_trainer(job, Path(job.folder) / "trl")
    force_lengths(trainer, job)
    trainer.add_callback(TakeTurns(channel, clock, Watched(trainer, clock)))
    channel.tell(ready=True, idle_bytes=peak_bytes(clock.device))
    trainer.train()


if __name__ == "__main__":
    main()
