"""The 8-bit AdamW: its steps beside AdamW's, what it remembers, and that a checkpoint loses nothing of it."""

import sys

import pytest
import torch
from builders import make_batch, make_config, make_learner, make_policy

from reinforge.config import GRPOConfig
from reinforge.errors import SetupError
from reinforge.learner.optimizer import make_optimizer, state_tensors
from reinforge.learner.update import LocalLearner

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'reinforge[dev]'")

SMALL, LARGE = 4, 64
"""Ranks with which every matrix of the tiny model is below 4096 elements; most are not."""


def learner_after(folder, steps: int, *, rank: int = LARGE, **changes) -> LocalLearner:
    made = make_learner(make_policy(folder, rank=rank), lr_scheduler_type="constant", weight_decay=0.1, **changes)
    for seed in range(steps):
        made.update(make_batch([4, 5], [[3, 6], [2, 7]], seed=seed))
    return made


def flat(learner: LocalLearner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.policy.trainable().values()])


@pytest.mark.parametrize(("rank", "low", "high"), [(SMALL, 0.0, 1e-5), (LARGE, 1e-3, 0.03)])
def test_twenty_steps_go_where_adamws_go(tiny_qwen2, rank, low, high):
    """Over the length of the way: 0.019 where moments are in 8 bits, rounding where all matrices are small."""
    start, ours, theirs = (
        flat(learner_after(tiny_qwen2, steps, rank=rank, optim=optim))
        for steps, optim in ((0, "adamw"), (20, "adamw_8bit"), (20, "adamw"))
    )
    assert low <= float((ours - theirs).norm() / (theirs - start).norm()) < high


def state_bytes(learner: LocalLearner) -> int:
    """Of the optimizer, without its tables of constants."""
    parameters = learner.policy.trainable().values()
    return sum(t.nbytes for p in parameters for t in state_tensors(learner.optimizer, p).values())


def test_large_matrices_take_two_bytes_and_small_ones_eight(tiny_qwen2):
    learner = learner_after(tiny_qwen2, 1, optim="adamw_8bit")
    parameters = learner.policy.trainable().values()
    large = sum(p.numel() for p in parameters if p.numel() >= 4096)
    small = sum(p.numel() for p in parameters if p.numel() < 4096)
    assert large > 2 * small > 0
    scales, counters = 2 * 4 * large // 256, 8 * len(parameters)
    assert state_bytes(learner) == 2 * large + scales + 8 * small + counters
    assert state_bytes(learner_after(tiny_qwen2, 1)) == 8 * (large + small) + counters // 2


@pytest.mark.parametrize("rank", [SMALL, LARGE])
def test_save_and_restore_are_exact(tiny_qwen2, tmp_path, rank):
    straight = learner_after(tiny_qwen2, 2, rank=rank, optim="adamw_8bit")
    straight.save(tmp_path)
    resumed = learner_after(tiny_qwen2, 0, rank=rank, optim="adamw_8bit")
    resumed.restore(tmp_path)
    assert resumed.state_hash() == straight.state_hash()
    for name, parameter in straight.policy.trainable().items():
        theirs = state_tensors(resumed.optimizer, resumed.policy.trainable()[name])
        for key, value in state_tensors(straight.optimizer, parameter).items():
            assert torch.equal(value, theirs[key])
            assert value.dtype == theirs[key].dtype
    for learner in (straight, resumed):
        for seed in (2, 3):
            learner.update(make_batch([4, 5], [[3, 6], [2, 7]], seed=seed))
    assert resumed.state_hash() == straight.state_hash()
    assert straight.state_hash() != learner_after(tiny_qwen2, 3, rank=rank, optim="adamw_8bit").state_hash()


def test_names_of_other_trainers_mean_ours():
    names = {"adamw_torch": "adamw", "adamw_torch_fused": "adamw"}
    names |= dict.fromkeys(("paged_adamw_8bit", "adamw_bnb_8bit", "adamw_8bit"), "adamw_8bit")
    for theirs, ours in names.items():
        assert make_config(optim=theirs).optim == ours
    assert GRPOConfig.model_validate(make_config(optim="paged_adamw_8bit").model_dump()).optim == "adamw_8bit"


def test_without_its_library_the_error_names_the_extra(tiny_qwen2, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SetupError, match=r"adamw_8bit needs the package bitsandbytes\. pip install 'reinforge\[quant"):
        make_optimizer(make_policy(tiny_qwen2).trainable().values(), make_config(optim="adamw_8bit"), 1e-3)
