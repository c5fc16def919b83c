"""The one schema of a training run. No torch, no other module of ours but errors.

Field names are the ones Predibase and TRL use, so a config can be carried over; a batch is counted in prompts
everywhere. `config_file.py` reads YAML and TOML into it; `reinforge.train(GRPOConfig(...))` takes it directly.
Requirement numbers (S0-..., K...) name where a default comes from.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from reinforge.config_rewards import (
    JudgeConfig,
    JudgePrice,
    RecheckConfig,
    RewardFunctionsConfig,
    RewardFunctionSettings,
    RewardFunctionsRuntimeConfig,
)
from reinforge.config_rollout import AdaptiveGroups, DynamicSampling, ImportanceCorrection, Positive
from reinforge.config_rollout import Part as _Part

__all__ = [
    "AdaptiveGroups",
    "DataConfig",
    "DynamicSampling",
    "EvalConfig",
    "GRPOConfig",
    "ImportanceCorrection",
    "JudgeConfig",
    "JudgePrice",
    "LoraParams",
    "OverlongParams",
    "RecheckConfig",
    "RewardFunctionSettings",
    "RewardFunctionsConfig",
    "RewardFunctionsRuntimeConfig",
    "SamplingParams",
    "smoke",
]

Share = Annotated[float, Field(ge=0, le=1)]

_OPTIMIZER_NAMES = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"} | dict.fromkeys(
    ("adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"
)
"""What TRL, Unsloth and Predibase call them. Paging changes where the state lies, not what is computed."""


def _own_optimizer_name(value: object) -> object:
    return _OPTIMIZER_NAMES.get(value, value) if isinstance(value, str) else value


class SamplingParams(_Part):
    """How completions are drawn (S0-074..077)."""

    temperature: Positive = 1.0
    """Divides the logits: higher is more diverse. 1.0 samples the policy itself; Predibase suggests about 0.9."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: draw from the smallest set of tokens holding this probability. 1.0 is off."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k most likely tokens. 0 is off."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest completion in tokens. Unset: twice the longest gold answer if `data.answer_column` is set, within
    64..1024, else 512 (K8)."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion; the string itself is left out of the text."""
    speculation: bool = True
    """Where few completions are left, guess their next tokens from earlier completions of the same prompt and check the
    guesses in one pass, as long as that pays. The same tokens are drawn with it as without, beyond rounding."""


class LoraParams(_Part):
    """The adapter that is trained. The base model is never written."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the two matrices of every adapted layer."""
    lora_alpha: Positive = 32
    """Scale: the adapter adds (lora_alpha / rank) * B A."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapted layer's inputs dropped in the learner (never while sampling)."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the layers to adapt, for instance [q_proj, v_proj]; all linear layers but the output head by default."""


class OverlongParams(_Part):
    """Soft penalty near the length limit (DAPO): 0 until `max_tokens - buffer_tokens`, then linear down to -penalty."""

    buffer_tokens: Annotated[int, Field(ge=1)]
    """Tokens before `max_tokens` in which the penalty grows."""
    penalty: Positive = 1.0
    """Subtracted from the reward at `max_tokens`."""


class DataConfig(_Part):
    """Where examples come from and how they become prompts."""

    path: str | None = None
    """JSONL, CSV or Parquet file, a folder saved by `datasets`, or a hub id `org/name`."""
    split: str = "train"
    """Split of a hub data set or folder."""
    subset: str | None = None
    """Configuration name of a hub data set, for instance `main`."""
    prompt_column: str = "prompt"
    """Column with the prompt (a text or chat messages); a column named `messages` is found too."""
    answer_column: str | None = None
    """Column with the gold answer: only used to choose `max_tokens`."""
    system_prompt: str | None = None
    """Put before every prompt (S3-014)."""
    prompt_template: str | None = None
    """Text with {column} variables that becomes the prompt, for rows without a prompt column."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """Use the first rows only."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt in tokens. Unset: what the model's window leaves beside `max_tokens`."""
    overlong_prompts: Literal["error", "skip"] = "error"
    """What happens to longer ones: refuse the data set (naming the rows), or leave them out (and say how many)."""
    heldout: Annotated[float, Field(ge=0)] = 0.1
    """Kept out of training for evaluation: a share below 1, or a number of rows (1 is one row, not 100 %)."""
    heldout_path: str | None = None
    """A data set of its own to evaluate on, instead of `heldout`."""
    stratify_column: str | None = None
    """Split so that each value of this column has the same share on both sides."""


class EvalConfig(_Part):
    """Held-out evaluation during a run."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Evaluate each n steps; 0: only before the first and after the last step."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 4
    """Completions per held-out prompt at the training temperature."""
    max_prompts: Annotated[int, Field(ge=1)] | None = 200
    """At most this many held-out prompts; unset: all."""
    greedy: bool = True
    """Also one greedy completion per prompt, reported beside the sampled figure."""
    correct_fn: str | None = None
    """Reward function whose value of at least `correct_from` counts as correct (pass@1). Unset: the total reward, which
    must reach `correct_from` (1.0): if your weights sum to less, pass@1 is always 0. Completions that the function
    fails on, or does not apply to, are left out of pass@1 and counted beside it."""
    correct_from: float = 1.0
    """See `correct_fn`."""


class GRPOConfig(_Part):
    """Everything that defines a run. Equal configs, data and code give bitwise equal runs on one machine type."""

    base_model: str
    """Local folder or hub id of a Hugging Face causal language model (safetensors)."""
    reward_fns: RewardFunctionsConfig
    """The reward functions and their weights."""
    data: DataConfig = DataConfig()
    """The data set."""

    train_steps: Annotated[int, Field(ge=1)] = 1000
    """Optimizer steps (K1: 1000 as at Predibase; below 200 is a trial)."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 8
    """P: prompts in a batch. A step learns from P x num_generations completions."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """G: completions per prompt (K7); a group needs at least two to compare."""
    max_policy_lag: Annotated[int, Field(ge=0, le=1)] = 0
    """1: sample the next batch while the learner takes the step, from the policy as it was before that step, in a
    thread of its own."""
    dynamic_sampling: DynamicSampling = DynamicSampling()
    """Replacing groups that teach nothing."""
    adaptive_groups: AdaptiveGroups = AdaptiveGroups()
    """Sampling the whole of a group only where its first completions differ."""
    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on each batch of rollouts. Above 1 the ratio to the old policy is clipped."""
    sampling_params: SamplingParams = SamplingParams()
    """How completions are drawn."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = "dapo"
    """How token losses are weighted; see docs/explain/grpo_in_code.md."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide (reward - group mean) by the group's std, the batch's, or not at all."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Ratio to the old policy per token, or per completion (GSPO)."""
    importance_correction: ImportanceCorrection = ImportanceCorrection()
    """Correction for tokens that were drawn from another distribution than the policy's."""
    beta: Annotated[float, Field(ge=0)] = 0.001
    """Weight of the KL penalty to the reference, which is the base model (K2). 0 spares its forward pass."""
    use_bias_correction_kl: bool = True
    """Multiply the KL penalty by the ratio, as DeepSeek-V3.2 and TRL do: its gradient then is that of the KL itself.
    false: GRPO's own term, whose gradient is biased (it is that of the KL the other way round)."""
    epsilon: Positive = 0.2
    """Clip range below the ratio 1, and above it unless `epsilon_high` is set."""
    epsilon_high: Positive | None = None
    """Clip range above 1 (DAPO: 0.28; for CISPO the cap of the ratio, about 5)."""
    delta: Positive | None = None
    """Upper bound of the ratio for negative advantages ("two-sided" clipping); above 1 + epsilon."""
    mask_truncated_completions: bool = False
    """Leave completions cut off by `max_tokens` out of the loss."""
    overlong: OverlongParams | None = None
    """Soft penalty near the length limit."""

    lora: LoraParams = LoraParams()
    """The adapter."""
    learning_rate: Positive | None = None
    """Peak of the schedule. Unset: chosen for LoRA by the model's size, and printed with its reason (K6)."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Course of the learning rate after the warm-up."""
    min_lr_ratio: Share = 0.0
    """Where a linear or cosine course ends, as a share of the peak."""
    warmup_ratio: Share = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    optim: Annotated[Literal["adamw", "adamw_8bit"], BeforeValidator(_own_optimizer_name)] = "adamw"
    """adamw_8bit keeps the moments of matrices from 4096 elements on in 8 bits: 2 bytes per trained parameter instead
    of 8, and slightly other steps (S3-030). TRL's and Predibase's names are taken too (paged_adamw_8bit is not paged
    here)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's first-moment decay."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """AdamW's second-moment decay."""
    adam_epsilon: Positive = 1e-8
    """AdamW's denominator floor."""
    max_grad_norm: Positive = 0.2
    """Gradients are scaled down to this total norm."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the base model. auto: bfloat16 where the device computes in it, else float32 (S2-034). Adapters: float32."""
    load_in_4bit: bool = False
    """Keep the base model's linear layers in 4 bits (QLoRA) and compute in `dtype` (S3-036)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps. auto: a GPU if there is one."""
    deterministic: bool = False
    """On CUDA: take kernels whose results do not vary from run to run, so that a resume is bitwise there too; slower.
    On a CPU it always is."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch. Unset: 1 for models under 20M parameters, else all cores. With a `max_policy_lag` there are
    two pools of as many; unset, they share the cores."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for sources you trust."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more arithmetic."""
    tokens_per_microbatch: Annotated[int, Field(ge=1)] | None = None
    """Most completion tokens in one forward and backward pass; changes the gradient by rounding only. Unset: 2048 on a
    CPU, where more was slower (it leaves the caches), 16384 on a GPU, halved until the run's memory plan fits what the
    device has in all. Halved again in a step in which memory runs out (docs/explain/memory.md)."""
    slots: Annotated[int, Field(ge=1)] = 256
    """Most completions decoded at once."""

    seed: int = 0
    """All randomness is a function of it."""
    save_every: Annotated[int, Field(ge=1)] = 50
    """Checkpoint each n steps (and at the end, and when interrupted)."""
    keep_tokens_steps: Annotated[int, Field(ge=0)] = 50
    """Token ids and logprobs of completions are kept for this many latest steps; texts and scores for all."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""

    @model_validator(mode="after")
    def _parts_fit(self) -> GRPOConfig:
        upper = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.loss_type != "cispo" and self.delta <= upper:
            raise ValueError(f"delta = {self.delta} never acts: it must exceed 1 + epsilon_high = {upper:g}")
        if self.loss_type == "cispo" and self.epsilon_high is not None and self.epsilon_high <= 1:
            raise ValueError(
                f"epsilon_high = {self.epsilon_high}: for cispo it caps the ratio itself, so it must exceed 1"
            )
        start = self.adaptive_groups.start
        if start is not None and start >= self.num_generations:
            raise ValueError(f"adaptive_groups.start = {start} must be below num_generations = {self.num_generations}")
        limit = self.sampling_params.max_tokens
        if self.overlong and limit and self.overlong.buffer_tokens >= limit:
            raise ValueError(
                f"overlong.buffer_tokens = {self.overlong.buffer_tokens} must be below max_tokens = {limit}"
            )
        if self.overlong and "overlong" in self.reward_fns.functions:
            raise ValueError(
                "a reward function is named overlong, as the length penalty's score is: rename the function"
            )
        if self.eval.correct_fn is not None and self.eval.correct_fn not in self.reward_fns.functions:
            known = sorted(self.reward_fns.functions)
            raise ValueError(f"eval.correct_fn = {self.eval.correct_fn!r} is none of the functions {known}")
        return self


def smoke(config: GRPOConfig) -> GRPOConfig:
    """The same run in 2 small steps: enough to see that everything fits together (S0-095)."""
    return config.model_copy(
        update={
            "train_steps": 2,
            "prompts_per_step": min(config.prompts_per_step, 2),
            "eval": config.eval.model_copy(update={"max_prompts": 2, "samples_per_prompt": 1}),
        }
    )
