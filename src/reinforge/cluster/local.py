"""Builds the roles of a run in this process: one model, one learner, one sampler, reward functions beside them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reinforge.cluster.task import Tell, make_task
from reinforge.config import GRPOConfig, SamplingParams
from reinforge.data.load import fingerprint, load_data
from reinforge.data.render import Renderer
from reinforge.errors import RewardError
from reinforge.grading.calls import columns_needed
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.lint import column_types, lint_functions
from reinforge.grading.replay import ReplayingGrader
from reinforge.inference.adapter_bank import AdapterBank
from reinforge.inference.adapters import base_copy, sampling_copy, sampling_network
from reinforge.inference.engine import Engine
from reinforge.insight.memory import Load
from reinforge.learner.microbatch import plan_memory
from reinforge.learner.optimizer import SETTING_8BIT
from reinforge.learner.schedule import default_learning_rate
from reinforge.learner.update import LocalLearner
from reinforge.loop import Task
from reinforge.model_files import fingerprint_model
from reinforge.policy.device import pick_device, pick_threads, set_arithmetic
from reinforge.policy.model import Policy, load_policy
from reinforge.policy.quantized import bitsandbytes_for
from reinforge.roles import Roles
from reinforge.types import Example, Score

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Recorded:
    """What time or memory decided in the run that is resumed, to be repeated."""

    accidents: Mapping[str, Score] = field(default_factory=dict)
    """Scores to give again (grading/replay.py)."""
    tokens: Mapping[int, int] = field(default_factory=dict)
    """First step -> most tokens of a micro-batch (run_store/microbatches.py)."""


@dataclass(frozen=True)
class LocalRun:
    """Everything a run needs, built."""

    task: Task
    roles: Roles
    grader: RewardFunctionGrader
    policy: Policy
    fingerprints: dict[str, str]
    """sha256 of what the run was built from: a resume with other data or another model is refused."""
    tokens_per_microbatch: int
    """As planned."""

    def close(self) -> None:
        self.grader.close()


def build(
    config: GRPOConfig,
    base_dir: Path,
    grader: RewardFunctionGrader,
    *,
    started: datetime.datetime,
    tell: Tell,
    rows: Rows | None = None,
    recorded: Recorded | None = None,
) -> LocalRun:
    """Load data and model, the cheap first, so that mistakes show early. The grader is closed with the result, or here
    if anything fails.

    `started` is the date chat templates print; `rows` are used instead of `config.data.path`; `recorded` is what a
    resumed run must repeat.
    """
    recorded = recorded or Recorded()
    try:
        if config.optim == "adamw_8bit":
            bitsandbytes_for(SETTING_8BIT)
        train_examples, heldout_examples = load_data(config.data, base_dir, config.seed, rows, tell)
        _check_columns(grader, train_examples[0])
        _tell_warnings(grader, config, train_examples, tell)
        for line in grader.access_lines():
            tell(line)
        set_arithmetic(pick_device(config.device), deterministic=config.deterministic)
        policy = load_policy(
            config.base_model,
            config.lora,
            seed=config.seed,
            dtype=config.dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            load_in_4bit=config.load_in_4bit,
        )
        trainable, total = policy.parameter_counts()
        torch.set_num_threads(_threads(config, total))
        tell(f"{config.base_model}: {total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})")
        for note in policy.notes:
            tell(note)
        renderer = Renderer.from_folder(policy.folder, today=started)
        task = make_task(config, renderer, policy, train_examples, heldout_examples, tell)
        tell(f"{len(task.train_prompts):,} prompts to train on, {len(task.heldout_prompts):,} held out")
        sampler = make_sampler(policy, renderer, config.sampling_params, task.max_tokens, config.slots, tell=tell)
        learning_rate = _learning_rate(config, total - trainable, tell)
        learner = _make_learner(policy, task, learning_rate, recorded.tokens, tell)
    except BaseException:
        grader.close()
        raise
    fingerprints = {
        "data": fingerprint([*train_examples, *heldout_examples]),
        "base_model": fingerprint_model(policy.folder),
    }
    judge = ReplayingGrader(grader, recorded.accidents) if recorded.accidents else grader

    def figures() -> dict[str, float]:
        return {**grader.take_figures(), **sampler.take_figures()}

    roles = Roles(sampler, judge, learner, figures)
    return LocalRun(task, roles, grader, policy, fingerprints, learner.tokens_per_microbatch)


def make_sampler(
    policy: Policy,
    renderer: Renderer,
    params: SamplingParams,
    max_tokens: int,
    slots: int,
    keep_bytes: int = 0,
    tell: Tell | None = None,
) -> Engine:
    """A sampler on a copy of the policy that shares the base's tensors. With `keep_bytes` it remembers what it computed
    from call to call, which a run that is to be resumed bitwise must not. `tell` is told what makes it slower than the
    policy's own notes say."""
    own = sampling_copy(policy.model)
    slower: list[str] = []
    network = sampling_network(own.model, policy.shares_prefix, slower.append)
    if tell is not None:
        for note in set(slower) - set(policy.notes):
            tell(note)
    return Engine(
        own.model,
        sampling_params=params,
        max_tokens=max_tokens,
        eos_ids=renderer.eos_ids,
        decode=renderer.decode,
        slots=slots,
        shared_prefix=policy.shares_prefix,
        load_weights=own.load,
        network=network,
        keep_bytes=keep_bytes,
    )


def make_shared_sampler(
    policy: Policy,
    renderer: Renderer,
    params: SamplingParams,
    max_tokens: int,
    slots: int,
    keep_bytes: int = 0,
) -> Engine:
    """A sampler on the policy's base, for requests that each name an adapter added to it, or none."""
    model = base_copy(policy.model)
    network = sampling_network(model, policy.shares_prefix)
    return Engine(
        model,
        sampling_params=params,
        max_tokens=max_tokens,
        eos_ids=renderer.eos_ids,
        decode=renderer.decode,
        slots=slots,
        shared_prefix=policy.shares_prefix,
        network=network,
        bank=AdapterBank(model, network),
        keep_bytes=keep_bytes,
    )


def _make_learner(
    policy: Policy, task: Task, learning_rate: float, recorded: Mapping[int, int], tell: Tell
) -> LocalLearner:
    """With micro-batches that fit in memory; `recorded` as in Recorded."""
    return LocalLearner(
        policy,
        task.config,
        max_tokens=task.max_tokens,
        learning_rate=learning_rate,
        tokens_per_microbatch=_planned_tokens(policy, task, recorded, tell),
        recorded_tokens=recorded,
    )


def _planned_tokens(policy: Policy, task: Task, recorded: Mapping[int, int], tell: Tell) -> int | None:
    """Of a micro-batch, with a line that says where memory goes with those that the run has come to; None where the
    model is not known well enough."""
    config, params = task.config, task.config.eval
    evaluated = len(task.heldout_prompts[: params.max_prompts])
    load = Load(
        prompts_per_step=config.prompts_per_step,
        num_generations=config.num_generations,
        longest_prompt=max(prompt.num_tokens for prompt in (*task.train_prompts, *task.heldout_prompts)),
        longest_completion=task.max_tokens,
        slots=config.slots,
        longest_evaluation=evaluated * (params.samples_per_prompt + params.greedy),
        lag=config.max_policy_lag,
    )
    plan = plan_memory(policy, config, load, recorded.get(0))
    if plan is None:
        return recorded.get(0)
    now = plan_memory(policy, config, load, recorded[max(recorded)]) if recorded else plan
    tell((now or plan).in_words())
    return plan.tokens_per_microbatch


def _threads(config: GRPOConfig, num_parameters: int) -> int:
    """Of each pool: with a policy lag there are two, which share the cores unless the config says otherwise."""
    picked = pick_threads(config.threads, num_parameters)
    return max(1, picked // 2) if config.max_policy_lag and config.threads is None else picked


def _check_columns(grader: RewardFunctionGrader, example: Example) -> None:
    """Functions that name columns as parameters need those columns."""
    for name, missing in columns_needed(grader.functions, example.columns).items():
        raise RewardError(
            f"reward function {name} needs the column {missing[0]!r}, which the data does not have.",
            hint=f"Its columns are {', '.join(example.columns) or 'none'}.",
        )


def _tell_warnings(grader: RewardFunctionGrader, config: GRPOConfig, examples: Sequence[Example], tell: Tell) -> None:
    """What the texts of the reward functions show before they run."""
    rewards = config.reward_fns
    for warning in lint_functions(grader.functions, rewards.runtime, rewards.settings, column_types(examples)):
        tell(f"warning  {warning}")


def _learning_rate(config: GRPOConfig, base_parameters: int, tell: Tell) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    rate, reason = default_learning_rate(base_parameters, config.lora.rank, config.lora.lora_alpha)
    tell(reason)
    return rate
