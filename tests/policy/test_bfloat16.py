"""A bfloat16 base with float32 adapters: our own network rounds as transformers and PEFT do."""

import pytest
import torch
from builders import make_policy
from transformers import AutoModelForCausalLM

from reinforge.config import LoraParams
from reinforge.inference.adapters import UnmergedCopy, sampling_copy, sampling_network
from reinforge.policy import attention
from reinforge.policy.logit_gap import is_rounding
from reinforge.policy.model import find_network, load_policy
from reinforge.policy.network import Network, largest_gap
from reinforge.policy.slots import step_gap
from reinforge.policy.stacks import Stack


def bfloat16_policy(folder, adapters="all-linear"):
    lora = LoraParams(rank=4, lora_alpha=8, target_modules=adapters)
    policy = load_policy(str(folder), lora, seed=0, dtype="bfloat16", device="cpu")
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    return policy


def in_float32(policy, folder):
    """The same weights, rounded to bfloat16 as they are, computed in float32."""
    exact = make_policy(folder)
    exact.load_weights(policy.adapter(0).weights)
    own = dict(policy.model.named_parameters())
    for name, parameter in exact.model.named_parameters():
        parameter.data.copy_(own[name].data)
    return exact


def hidden_and_gradients(policy, own_network):
    """Hidden states of five rows behind three prefixes, and the gradients of a weighted sum of them."""
    generator = torch.Generator().manual_seed(1)
    prefix_NL = torch.randint(200, (3, 7), generator=generator)
    rows_BT = torch.randint(200, (5, 6), generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([[6], [2], [1], [5], [3]])
    weights = torch.randn(5, 6, 64, generator=generator)[mask_BT]
    lengths_N, prefix_of_B = torch.tensor([7, 0, 3]), torch.tensor([0, 0, 2, 1, 2])
    if own_network:
        prefix = policy.network.prefix_pass(prefix_NL, lengths_N)
        hidden = policy.network.completion_pass(rows_BT, mask_BT, prefix, prefix_of_B)
    else:
        prefix = attention.prefix_pass(policy.model, prefix_NL, lengths_N)
        hidden = attention.completion_pass(policy.model, rows_BT, prefix, prefix_of_B)[mask_BT]
    gradients = torch.autograd.grad((hidden.float() * weights).sum(), list(policy.trainable().values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    return hidden.detach().float(), torch.cat([gradient.flatten() for gradient in gradients])


def test_values_and_gradients_are_as_near_to_float32_as_the_models_own(tiny_model):
    policy = bfloat16_policy(tiny_model)
    assert policy.network is not None
    exact = hidden_and_gradients(in_float32(policy, tiny_model), own_network=True)
    theirs, ours = (hidden_and_gradients(policy, own_network) for own_network in (False, True))
    for right, their, our in zip(exact, theirs, ours, strict=True):
        assert 0 < (our - right).norm() < 1.25 * (their - right).norm() < 0.06 * right.norm()


@pytest.mark.parametrize("adapters", ["all-linear", ("k_proj", "up_proj")])
def test_a_stack_rounds_as_pefts_layers(tiny_qwen2, adapters):
    layer = bfloat16_policy(tiny_qwen2, adapters).model.model.layers[0]
    for parts in ([getattr(layer.self_attn, f"{x}_proj") for x in "qkv"], [layer.mlp.gate_proj, layer.mlp.up_proj]):
        stack = Stack(parts)
        for adopt in (False, True):
            if adopt:
                stack.adopt()
            x = torch.randn(9, 64, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
            theirs = torch.cat([part(x) for part in parts], dim=1)
            torch.testing.assert_close(stack.product(x.detach()), theirs, atol=1e-6, rtol=2**-7)
            grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
            expected = torch.autograd.grad(theirs, [x, *stack.matrices()], grad)
            found = [stack.input_gradient(grad), *stack.matrix_gradients(x.detach(), grad)]
            for their, our in zip(expected, found, strict=True):
                assert (our.float() - their.float()).norm() <= 0.01 * their.float().norm()


def test_an_adapter_smaller_than_the_rounding_of_the_weights_is_not_lost(tiny_qwen2):
    layer = bfloat16_policy(tiny_qwen2).model.model.layers[0].mlp.down_proj
    layer.lora_B["default"].weight.data.mul_(1e-3)
    layer.get_base_layer().weight.data.fill_(1.0)
    base, A, B = layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    change = 2 * B @ A
    assert torch.equal((base + change).bfloat16(), base)
    stack = Stack([layer])
    (change_of_A, change_of_B) = stack.matrix_gradients(
        torch.ones(3, base.shape[1]).bfloat16(), torch.ones(3, 64).bfloat16()
    )
    assert change_of_A.abs().max() > 0 < change_of_B.abs().max()
    x = torch.zeros(1, base.shape[1]).bfloat16()
    x[0, 0] = 1
    base.data.zero_()
    torch.testing.assert_close(stack.product(x)[0].float(), change[:, 0], atol=0, rtol=2**-8)


def test_policy_and_sampler_share_one_copy_of_the_base(tiny_qwen2):
    policy = bfloat16_policy(tiny_qwen2)
    own = sampling_copy(policy.model)
    assert isinstance(own, UnmergedCopy)
    network = sampling_network(own.model, shares_prefix=True)
    assert network is not None
    for ours, theirs in zip(network.layers, policy.network.layers, strict=True):
        for name in ("qkv", "out", "gate_up", "down"):
            assert getattr(ours, name).weight().data_ptr() == getattr(theirs, name).weight().data_ptr()
    before = step_gap(network, own.model)
    own.load(policy.adapter(1))
    assert is_rounding(before, network.dtype)
    assert is_rounding(step_gap(network, own.model), network.dtype)


def test_a_network_that_computes_something_else_is_not_used(tiny_qwen2):
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.bfloat16).requires_grad_(False)
    attention.use_shared_prefix_attention(model)
    network = Network.of(model)
    assert is_rounding(largest_gap(network, model), network.dtype)
    assert find_network(model) is not None
    network.layers[1].norm_2.weight_E.neg_()  # the model's own tensor
    assert is_rounding(largest_gap(network, model), network.dtype)
    network.rotation._frequencies.fill_(1.0)
    assert not is_rounding(largest_gap(network, model), network.dtype)
