"""TRL's GRPOTrainer on the Countdown demo, step by step. Started by time_to_target.py."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from countdown import Job, save_adapter
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from protocol import Channel, StepClock, peak_bytes
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl_worker import BEST, Dataset, GRPOConfig, GRPOTrainer, LoraConfig, TakeTurns, Watched

from reinforge.config import GRPOConfig as OurConfig
from reinforge.data.load import load_data
from reinforge.data.render import Renderer
from reinforge.learner.schedule import learning_rate_at
from reinforge.policy.model import load_policy
from reinforge.recipes.countdown import rewards
from reinforge.types import Prompt

PAGES = {"page_size": 64, "num_blocks": 128, "max_batch_tokens": 1024}
"""Of transformers' continuous batching, where it is asked for."""


def settings(config: OurConfig, job: Job) -> dict[str, Any]:
    """The demo's config in TRL's words."""
    sampling = config.sampling_params
    return {
        "num_generations": config.num_generations,
        "per_device_train_batch_size": job.trl_rows,
        "gradient_accumulation_steps": config.prompts_per_step * config.num_generations // job.trl_rows,
        "max_steps": config.train_steps,
        "max_completion_length": sampling.max_tokens,
        "temperature": sampling.temperature,
        "loss_type": config.loss_type,
        "scale_rewards": config.scale_rewards,
        "beta": config.beta,
        "epsilon": config.epsilon,
        "epsilon_high": config.epsilon_high,
        "adam_beta2": config.adam_beta2,
        "max_grad_norm": config.max_grad_norm,
        "reward_weights": list(config.reward_fns.weights.values()),
        "seed": config.seed,
        "use_transformers_continuous_batching": job.trl_generate_batch,
        "transformers_continuous_batching_config": PAGES | {"seed": config.seed} if job.trl_generate_batch else None,
    }


def reward(function: Callable[..., float]) -> Callable[..., list[float]]:
    """One of the demo's reward functions in TRL's form."""

    def judge(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        examples = [
            {"numbers": numbers, "target": target}
            for numbers, target in zip(columns["numbers"], columns["target"], strict=True)
        ]
        return [function(*row) for row in zip(prompts, completions, examples, strict=True)]

    judge.__name__ = function.__name__
    return judge


def make_prompts(config: OurConfig) -> list[Prompt]:
    """The demo's training prompts as Reinforge gives them to the model."""
    renderer = Renderer.from_folder(config.base_model)
    examples, _ = load_data(config.data, Path(), config.seed, None, lambda _: None)
    return [renderer.prompt(example) for example in examples]


def make_trainer(job: Job) -> Any:
    """The trainer at its best settings, beginning with the very adapter that Reinforge begins with."""
    config = job.training_config()
    folder = config.base_model
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    prompts = make_prompts(config)
    if any(tuple(tokenizer(prompt.text)["input_ids"]) != prompt.token_ids for prompt in prompts):
        raise SystemExit("TRL would give the model other prompts than Reinforge")
    lora = config.lora
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=tokenizer,
            args=GRPOConfig(
                output_dir=str(Path(job.folder) / "trl"),
                learning_rate=config.learning_rate,
                **BEST | settings(config, job),
            ),
            reward_funcs=[reward(rewards.format_reward), reward(rewards.correct_reward)],
            train_dataset=Dataset.from_list([{"prompt": p.text, **p.example.columns} for p in prompts]),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.lora_alpha, target_modules="all-linear"
            ),
        )
    first = load_policy(folder, lora, seed=config.seed, dtype="float32", device="cpu").adapter(0)
    set_peft_model_state_dict(trainer.model, dict(first.weights))
    set_schedule(trainer, config)
    return trainer


def set_schedule(trainer: Any, config: OurConfig) -> None:
    """Reinforge's learning rates, to the step."""
    assert config.learning_rate is not None
    peak = config.learning_rate

    def share(step: int) -> float:
        rate = learning_rate_at(
            step,
            peak=peak,
            total_steps=config.train_steps,
            course=config.lr_scheduler_type,
            warmup_ratio=config.warmup_ratio,
            min_lr_ratio=config.min_lr_ratio,
        )
        return rate / peak

    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.create_optimizer(), share)


class TakeTurnsAndSave(TakeTurns):
    """Leaves the adapter where it is to be judged, after the step's time was taken."""

    def __init__(self, channel: Channel, job: Job, trainer: Any) -> None:
        clock = StepClock()
        super().__init__(channel, clock, Watched(trainer, clock))
        self.job, self.trainer = job, trainer

    def more(self, step: int) -> dict[str, Any]:
        path = self.job.adapter_after("trl", step)
        if path is None:
            return {}
        save_adapter(get_peft_model_state_dict(self.trainer.model), path)
        return {"adapter": str(path)}


def main() -> None:
    channel = Channel()
    torch.set_num_threads(1)
    job = Job.read(Path(sys.argv[1]))
    trainer = make_trainer(job)
    trainer.add_callback(TakeTurnsAndSave(channel, job, trainer))
    channel.tell(ready=True, idle_bytes=peak_bytes())
    trainer.train()


if __name__ == "__main__":
    main()
