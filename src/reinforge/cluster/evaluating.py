"""Builds what an evaluation needs, in this process: a policy without a learner, and the prompts to try it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from reinforge.cluster.local import Rows, make_sampler
from reinforge.cluster.task import Tell, make_task
from reinforge.config import GRPOConfig
from reinforge.data.dataset import load_examples
from reinforge.data.load import load_data
from reinforge.data.render import Renderer
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.inference.engine import Engine
from reinforge.policy.device import pick_device, pick_threads, set_arithmetic
from reinforge.policy.subject import Subject
from reinforge.types import Prompt


@dataclass(frozen=True)
class LocalEvaluation:
    """Everything an evaluation needs, built."""

    prompts: Sequence[Prompt]
    sampler: Engine
    grader: RewardFunctionGrader


@contextmanager
def evaluation(
    config: GRPOConfig,
    base_dir: Path,
    grader: RewardFunctionGrader,
    subject: Subject,
    *,
    data: str | None,
    tell: Tell,
    rows: Rows | None = None,
) -> Iterator[LocalEvaluation]:
    """A policy and the prompts to score it on: all rows of `data`, or those the config holds out."""
    with closing(grader):
        if data is not None:
            examples = load_examples(config.data.model_copy(update={"path": data}), base_dir)
        else:
            _, examples = load_data(config.data, base_dir, config.seed, rows, tell)
        set_arithmetic(pick_device(config.device), deterministic=config.deterministic)
        policy = subject.load(
            dtype=config.dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            load_in_4bit=config.load_in_4bit,
        )
        torch.set_num_threads(pick_threads(config.threads, policy.parameter_counts()[1]))
        renderer = Renderer.from_folder(policy.folder)
        task = make_task(config, renderer, policy, [], examples, tell)
        sampler = make_sampler(policy, renderer, config.sampling_params, task.max_tokens, config.slots)
        sampler.load(policy.adapter(0))
        yield LocalEvaluation(task.heldout_prompts, sampler, grader)
