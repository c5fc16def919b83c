"""Do both trainers compute the same thing? One group as large as one of TRL's micro-batches, with the same completions,
rewards and adapter, float32: the logprobs
of every token and the gradient of every LoRA matrix, TRL's against ours. And is TRL held back here? Its time for this
gradient beside that of our own plain pass, which repeats the prompt for each completion and pads as TRL does.

Started by vs_trl.py, once for each shape.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import gemm_gflops
from protocol import Channel
from reinforge_worker import make_config
from torch import Tensor
from trl_worker import make_trainer
from workload import END, LEARNING_RATE, LORA_ALPHA, LORA_RANK, Job, completion_lengths

from reinforge.config import LoraParams
from reinforge.learner.advantage import advantages
from reinforge.learner.update import LocalLearner
from reinforge.policy import attention
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Batch, Completion, Example, Grade, Group, Prompt, Score

Gradients = dict[str, Tensor]
Ids = list[int]


def make_rollouts(job: Job) -> tuple[Ids, list[Ids], list[float]]:
    """A prompt, one micro-batch of completions and their rewards, drawn at random."""
    draw = random.Random(2)

    def ids(count: int) -> Ids:
        return [draw.randrange(END + 1, job.size.vocab_size) for _ in range(count)]

    lengths = completion_lengths(job.shape, job.trl_rows)
    return ids(job.shape.prompt_tokens), [[*ids(n - 1), END] for n in lengths], [draw.random() for _ in lengths]


def set_adapter(model: torch.nn.Module) -> None:
    """Weights for every LoRA matrix, B included: it starts at 0, and then A has no gradient."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def ask_trl(job: Job, rollouts: tuple[Ids, list[Ids], list[float]]) -> tuple[list[Tensor], Gradients, float]:
    """Logprobs [T] of each completion, the gradients, and the seconds of forward and backward."""
    prompt_ids, completion_ids, rewards = rollouts
    num_rows = len(completion_ids)
    trainer = make_trainer(
        job,
        Path(job.folder) / "trl",
        settings={"gradient_accumulation_steps": 1, "num_generations": num_rows},
        reward=lambda completions, **_: rewards,
        rollout_func=lambda _prompts, _trainer: {
            "prompt_ids": [prompt_ids] * num_rows,
            "completion_ids": completion_ids,
            "logprobs": None,
        },
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # set by its training loop, which is not used here
    set_adapter(trainer.model)
    seen: list[Tensor] = []
    compute = trainer._get_per_token_logps_and_entropies

    def remember(*args: Any, **kwargs: Any) -> Any:
        outputs = compute(*args, **kwargs)
        seen.append(outputs[0].detach())
        return outputs

    trainer._get_per_token_logps_and_entropies = remember
    inputs = trainer._generate_and_score_completions([{"prompt": "w2"}] * num_rows)
    seconds = _seconds(lambda: trainer.compute_loss(trainer.model, inputs).backward())
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return [row_T[: len(ids)] for row_T, ids in zip(seen[-1], completion_ids, strict=True)], gradients, seconds


def ask_reinforge(
    job: Job, rollouts: tuple[Ids, list[Ids], list[float]], *, shared_prefix: bool = True
) -> tuple[list[Tensor], Gradients, float]:
    """The same from our learner; `shared_prefix` off is the plain pass."""
    policy = _policy(job, shared_prefix)
    config = make_config(job, num_iterations=2, max_grad_norm=1e9)  # the second update is what asks for logprobs
    learner = LocalLearner(policy, config, max_tokens=job.shape.max_tokens, learning_rate=LEARNING_RATE)
    batch = _batch(rollouts)
    told: list[Any] = []
    seconds = _seconds(lambda: told.append(learner.update(batch)))
    gradients = {n: p.grad for n, p in policy.trainable().items() if p.grad is not None}
    return [torch.tensor(row) for row in told[0].old_logprobs_PGT[0]], gradients, seconds


def compare(job: Job) -> dict[str, float]:
    """Largest |logprob difference| in nats, the cosine of the two gradients, and the seconds of the three ways."""
    rollouts = make_rollouts(job)
    trl_logprobs, trl_gradients, trl_s = ask_trl(job, rollouts)
    our_logprobs, our_gradients, our_s = ask_reinforge(job, rollouts)
    _, _, plain_s = ask_reinforge(job, rollouts, shared_prefix=False)
    if trl_gradients.keys() != our_gradients.keys():
        raise SystemExit(f"different matrices are trained: {sorted(trl_gradients.keys() ^ our_gradients.keys())[:3]}")
    gaps = [float((t - o).abs().max()) for t, o in zip(trl_logprobs, our_logprobs, strict=True)]
    trl, ours = (torch.cat([g[n].double().flatten() for n in sorted(g)]) for g in (trl_gradients, our_gradients))
    return {
        "max_logprob_difference": max(gaps),
        "gradient_cosine": float(torch.nn.functional.cosine_similarity(trl, ours, dim=0)),
        "gradient_trl_s": trl_s,
        "gradient_plain_s": plain_s,
        "gradient_reinforge_s": our_s,
    }


def _policy(job: Job, shared_prefix: bool) -> Policy:
    lora = LoraParams(rank=LORA_RANK, lora_alpha=LORA_ALPHA)
    policy = load_policy(str(Path(job.folder) / "model"), lora, seed=0, dtype="float32", device="cpu")
    set_adapter(policy.peft_model)
    if not shared_prefix:
        attention.use_plain_attention(policy.model)
        policy = replace(policy, shares_prefix=False)
    return policy


def _batch(rollouts: tuple[Ids, list[Ids], list[float]]) -> Batch:
    prompt_ids, completion_ids, rewards = rollouts
    completions = tuple(
        Completion(g, tuple(ids), "", "stop", (0.0,) * len(ids), (0.0,) * len(ids), policy_version=0)
        for g, ids in enumerate(completion_ids)
    )
    grades = tuple(Grade((Score("noise", "noise_v1", reward),)) for reward in rewards)
    group = Group(Prompt(Example(0, ""), "", tuple(prompt_ids)), epoch=0, completions=completions, grades=grades)
    return Batch((group,), advantages([group.rewards_G], "group"))


def _seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the one thread: other processes on the machine hardly change them."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    channel = Channel()
    torch.set_num_threads(1)
    channel.tell(**compare(Job.read(Path(sys.argv[1]))), gemm_gflops=gemm_gflops())


if __name__ == "__main__":
    main()
