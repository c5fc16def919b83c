"""Copies to sample from: exact, and the base is never written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from reinforge.config import LoraParams
from reinforge.errors import ModelError
from reinforge.inference.adapters import MergedCopy, UnmergedCopy, sampling_copy
from reinforge.policy.attention import output_head, pad, plain_logits, use_plain_attention
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Adapter

ROWS = [[5, 6, 7, 8], [9, 10]]


def make_policy(folder: Path, **lora) -> Policy:
    return load_policy(str(folder), LoraParams(**({"rank": 4, "lora_alpha": 12} | lora)), seed=1)


def random_adapter(policy: Policy, seed: int) -> Adapter:
    """B is not zero, so that the adapter acts."""
    generator = torch.Generator().manual_seed(seed)
    weights = policy.adapter(0).weights
    return Adapter(seed, {name: 0.2 * torch.randn(w.shape, generator=generator) for name, w in weights.items()})


def logits(model) -> torch.Tensor:
    use_plain_attention(model)
    with torch.no_grad():
        return plain_logits(model, *pad(ROWS, "cpu"))


@pytest.mark.parametrize("copy_class", [MergedCopy, UnmergedCopy])
def test_copy_computes_what_the_policy_does(tiny_model: Path, copy_class):
    policy = make_policy(tiny_model)
    sampled = copy_class(policy.model)
    base = logits(policy.model)
    torch.testing.assert_close(logits(sampled.model), base, atol=1e-5, rtol=0)
    for version in (1, 2):
        adapter = random_adapter(policy, version)
        sampled.load(adapter)
        torch.testing.assert_close(logits(policy.model), base, atol=0, rtol=0)
        policy.load_weights(adapter.weights)
        expected = logits(policy.model)
        assert (expected - base).abs().max() > 0.1
        torch.testing.assert_close(logits(sampled.model), expected, atol=1e-4, rtol=1e-5)
        policy.load_weights({name: torch.zeros_like(w) for name, w in adapter.weights.items()})


@pytest.mark.parametrize("copy_class", [MergedCopy, UnmergedCopy])
def test_base_is_bit_identical_and_shared_after_loads(tiny_qwen2: Path, copy_class):
    policy = make_policy(tiny_qwen2)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    sampled = copy_class(policy.model)
    for version in range(5):
        sampled.load(random_adapter(policy, version))
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    own = {p.data_ptr() for p in sampled.model.parameters()} - {p.data_ptr() for p in policy.model.parameters()}
    adapted = sum(isinstance(m, torch.nn.Linear) for m in sampled.model.modules()) - 1  # the output head is not adapted
    assert len(own) == adapted if copy_class is MergedCopy else len(own) == 2 * 14
    assert sampled.model.get_input_embeddings().weight is policy.model.get_input_embeddings().weight
    assert output_head(sampled.model).weight is policy.model.get_input_embeddings().weight


def test_loading_twice_leaves_nothing_of_the_first(tiny_llama: Path):
    policy = make_policy(tiny_llama)
    once, twice = MergedCopy(policy.model), MergedCopy(policy.model)
    twice.load(random_adapter(policy, 1))
    for sampled in (once, twice):
        sampled.load(random_adapter(policy, 2))
    assert torch.equal(logits(once.model), logits(twice.model))


def test_learner_may_train_and_drop_while_the_copy_samples(tiny_qwen2: Path):
    policy = make_policy(tiny_qwen2, lora_dropout=0.5)
    policy.load_weights(random_adapter(policy, 1).weights)
    for sampled in (MergedCopy(policy.model), UnmergedCopy(policy.model)):
        expected = logits(sampled.model)
        policy.peft_model.train()
        with policy.dropout_keys.of(torch.zeros(2, 4, dtype=torch.int64)):
            assert torch.equal(logits(sampled.model), expected)


def test_which_copy_is_taken(tiny_qwen2: Path):
    policy = make_policy(tiny_qwen2)
    assert isinstance(sampling_copy(policy.model), MergedCopy)
    policy = load_policy(str(tiny_qwen2), LoraParams(rank=4), seed=1, dtype="bfloat16")
    sampled = sampling_copy(policy.model)
    assert isinstance(sampled, UnmergedCopy)
    policy.load_weights(random_adapter(policy, 1).weights)
    sampled.load(random_adapter(policy, 1))
    assert torch.equal(logits(sampled.model), logits(policy.model))


@pytest.mark.parametrize("copy_class", [MergedCopy, UnmergedCopy])
def test_a_foreign_adapter_is_refused(tiny_qwen2: Path, copy_class):
    sampled = copy_class(make_policy(tiny_qwen2, target_modules=("q_proj",)).model)
    wider = make_policy(tiny_qwen2, target_modules=("q_proj", "v_proj"))
    with pytest.raises(ModelError, match=r"4 tensors differ, the first is .*layers\.0\.self_attn\.v_proj\.lora_A"):
        sampled.load(wider.adapter(1))
    higher = make_policy(tiny_qwen2, target_modules=("q_proj",), rank=8)
    with pytest.raises(ModelError, match="4 tensors differ"):
        sampled.load(higher.adapter(1))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's advice about merging
def test_an_adapted_output_head_leaves_the_tied_embeddings_alone(tiny_qwen2: Path):
    policy = make_policy(tiny_qwen2, target_modules=("lm_head", "q_proj"))
    sampled, embeddings = MergedCopy(policy.model), policy.model.get_input_embeddings().weight.detach().clone()
    generator = torch.Generator().manual_seed(1)
    weights = get_peft_model_state_dict(policy.peft_model, save_embedding_layers=False)
    weights = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    sampled.load(Adapter(1, weights))
    set_peft_model_state_dict(policy.peft_model, weights)
    torch.testing.assert_close(logits(sampled.model), logits(policy.model), atol=1e-3, rtol=1e-5)
    assert torch.equal(sampled.model.get_input_embeddings().weight, embeddings)
