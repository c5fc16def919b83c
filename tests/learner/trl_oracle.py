"""The oracle: a real TRL GRPOTrainer that computes loss and LoRA gradients of a hand-made batch.

TRL does everything itself except sampling and rewarding, through its two public hooks (`rollout_func`, a reward
function): padding, masks, advantages, old and reference logprobs, loss, backward. Nothing is downloaded. One
micro-batch holds the whole step, because TRL's `grpo`, `bnpo` and `dr_grpo` depend on the split and ours do not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

MAX_TOKENS = 11
RANK, LORA_ALPHA = 4, 8
EOS = 258
"""`<|end|>` of the tests' byte tokenizer (256 bytes, then the special tokens)."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class HandMade:
    """P prompts, G completions each, with rewards (None: masked) as TRL and the learner both get them."""

    prompts: tuple[tuple[int, ...], ...]
    completions_PG: tuple[tuple[tuple[int, ...], ...], ...]
    rewards_PG: tuple[tuple[float | None, ...], ...]

    @property
    def num_generations(self) -> int:
        return len(self.completions_PG[0])

    @property
    def rows(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(prompt, completion) of every completion, group by group."""
        pairs = zip(self.prompts, self.completions_PG, strict=True)
        return [(prompt, completion) for prompt, group in pairs for completion in group]

    @property
    def truncated(self) -> list[bool]:
        """As TRL sees it: the last token ends no sequence."""
        return [completion[-1] != EOS for _, completion in self.rows]


@dataclass(frozen=True)
class Verdict:
    """What TRL says about one optimizer step on the batch."""

    loss: float
    gradients: Weights
    batch: Mapping[str, Tensor]
    """TRL's own: advantages, completion_mask, old_per_token_logps, ref_per_token_logps ... [B] or [B, T]."""
    metrics: Mapping[str, float]


def hand_made_batch() -> HandMade:
    """Three groups of four: one in which everything happens, one with equal rewards, one with a masked reward; prompts
    and completions of all lengths, a third of the completions cut off."""
    random = torch.Generator().manual_seed(11)
    lengths = ((3, 9, 1, 6), (5, 2, 7, 4), (8, 4, 11, 2))
    cut = {(0, 1), (1, 2), (2, 0), (2, 2)}

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (count,), generator=random).tolist())

    completions = tuple(
        tuple(
            tokens(length) if (p, g) in cut else (*tokens(length - 1), EOS) for g, length in enumerate(lengths_of_group)
        )
        for p, lengths_of_group in enumerate(lengths)
    )
    rewards = ((1.0, 0.0, 0.25, 0.0), (0.5, 0.5, 0.5, 0.5), (0.1, 2.0, None, -1.0))
    return HandMade((tokens(6), tokens(2), tokens(9)), completions, rewards)


def lora_weights(shapes: Weights, seed: int, *, spread: float) -> dict[str, Tensor]:
    """Weights for every LoRA matrix, B included (it starts at 0, and then A has no gradient). Two seeds of the same
    spread are two policies far enough apart for clipping to act."""
    random = torch.Generator().manual_seed(seed)
    return {name: spread * torch.randn(shapes[name].shape, generator=random) for name in sorted(shapes)}


def lora_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def set_lora(model: torch.nn.Module, weights: Weights) -> None:
    with torch.no_grad():
        for name, parameter in lora_parameters(model).items():
            parameter.copy_(weights[name])


def ask_trl(
    folder: Path,
    output: Path,
    batch: HandMade,
    old: Weights | None,
    now: Weights,
    drawn: Sequence[Sequence[float]] | None = None,
    **settings: Any,
) -> Verdict:
    """One step of TRL's: rollouts and old logprobs under the `old` LoRA weights, loss and gradients under `now`.

    Without `old` it is the first and only update on the batch: TRL stores no old logprobs and the ratio is 1.
    `drawn` are the sampler's logprobs of every completion; with them TRL corrects as for rollouts from vLLM.
    """
    trainer = _trainer(folder, output, batch, drawn, num_iterations=1 if old is None else 2, **settings)
    if drawn is not None:  # it corrects no other rollouts; the rollout function keeps vLLM itself out
        trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by its training loop, which is not used here
    set_lora(trainer.model, now if old is None else old)
    inputs = [{"prompt": str(row)} for row in range(len(batch.rows))]
    generated = trainer._generate_and_score_completions(inputs)
    set_lora(trainer.model, now)
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, generated)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in lora_parameters(trainer.model).items()}
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return Verdict(loss.item(), gradients, {k: v for k, v in generated.items() if isinstance(v, Tensor)}, metrics)


def _trainer(
    folder: Path, output: Path, batch: HandMade, drawn: Sequence[Sequence[float]] | None, **settings: Any
) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        # TRL marks `rollout_func` experimental, and its imports use names that transformers and torch deprecate.
        warnings.simplefilter("ignore")
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(
            output_dir=str(output),
            per_device_train_batch_size=len(batch.rows),
            gradient_accumulation_steps=1,
            num_generations=batch.num_generations,
            max_completion_length=MAX_TOKENS,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            **settings,
        )
        return GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder),
            args=config,
            reward_funcs=lambda completions, **_: [reward for group in batch.rewards_PG for reward in group],
            rollout_func=lambda _prompts, _trainer: {
                "prompt_ids": [list(prompt) for prompt, _ in batch.rows],
                "completion_ids": [list(completion) for _, completion in batch.rows],
                "logprobs": None if drawn is None else [list(row) for row in drawn],
            },
            train_dataset=Dataset.from_dict({"prompt": ["0"]}),
            peft_config=lora_config(),
        )


def lora_config() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")


def largest_gap(ours: Weights, theirs: Weights) -> float:
    """Largest difference of any element of any gradient, as a share of the whole gradient's norm."""
    assert set(ours) == set(theirs)
    norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in theirs.values()))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / max(norm, 1e-12)
