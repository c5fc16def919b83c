"""Our own network computes what transformers' modules compute, forwards and backwards."""

import re
import shutil

import pytest
import torch
from builders import make_policy
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from reinforge.config import LoraParams
from reinforge.demo import recipe_folder
from reinforge.inference import adapters
from reinforge.inference.adapters import sampling_copy
from reinforge.policy import attention, blocks, network, rotation, two_part_attention
from reinforge.policy.blocks import Norm
from reinforge.policy.logit_gap import logit_gap
from reinforge.policy.model import find_network, load_policy
from reinforge.policy.network import Network, largest_gap
from reinforge.policy.packing import Packing
from reinforge.policy.slots import step_gap
from reinforge.policy.stacks import Stack
from reinforge.policy.two_part_attention import Behind

PREFIX_LENGTHS = [7, 0, 3]
PREFIX_OF_ROW = [0, 0, 2, 1, 2]


def passes(policy):
    """(prefix pass, completion pass) of transformers' modules and of our network."""
    model, ours = policy.model, policy.network
    return [
        (
            lambda *a: attention.prefix_pass(model, *a),
            lambda ids, mask, *a: attention.completion_pass(model, ids, *a)[mask],
        ),
        (ours.prefix_pass, ours.completion_pass),
        (
            lambda *a: ours.prefix_pass(*a, recompute=True),
            lambda *a: ours.completion_pass(*a, recompute=True),
        ),
    ]


def hidden_and_gradients(policy, row_lengths, prefix_pass, completion_pass):
    generator = torch.Generator().manual_seed(1)
    prefix_NL = torch.randint(200, (3, 7), generator=generator)
    rows_BT = torch.randint(200, (5, 6), generator=generator)
    mask_BT = torch.arange(6) < torch.tensor([row_lengths]).T
    weights = torch.randn(5, 6, 64, generator=generator)[mask_BT]
    prefix = prefix_pass(prefix_NL, torch.tensor(PREFIX_LENGTHS))
    hidden = completion_pass(rows_BT, mask_BT, prefix, torch.tensor(PREFIX_OF_ROW))
    gradients = torch.autograd.grad((hidden * weights).sum(), list(policy.trainable().values()))
    return hidden.detach(), gradients


def assert_passes_agree(policy, row_lengths=(6, 2, 1, 5, 3)):
    expected, expected_gradients = hidden_and_gradients(policy, row_lengths, *passes(policy)[0])
    norm = torch.sqrt(sum(g.square().sum() for g in expected_gradients))
    for ours in passes(policy)[1:]:
        hidden, gradients = hidden_and_gradients(policy, row_lengths, *ours)
        torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=0)
        gaps = [(a - b).abs().max() for a, b in zip(gradients, expected_gradients, strict=True)]
        assert max(gaps) / norm < 1e-6


def test_hidden_states_and_every_gradient_are_those_of_the_models_passes(tiny_model):
    policy = make_policy(tiny_model)
    assert policy.network is not None
    assert_passes_agree(policy)
    assert_passes_agree(policy, row_lengths=(6,) * 5)


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("down_proj",), ("o_proj", "up_proj")])
def test_any_choice_of_adapted_layers(tiny_qwen2, modules):
    policy = load_policy(str(tiny_qwen2), LoraParams(rank=3, target_modules=modules), seed=0, device="cpu")
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    assert_passes_agree(policy)


def test_the_reference_is_the_network_without_adapters(tiny_model):
    policy = make_policy(tiny_model)
    assert policy.network is not None
    with policy.reference():
        assert policy.network.layers[0].qkv.matrices() == []
        assert largest_gap(policy.network, policy.model) < 2e-5
    base = Network.of(AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False))
    rows = torch.arange(5)[None]
    for on in (True, False):
        with torch.no_grad(), policy.reference() if not on else torch.no_grad():
            both = [
                n.completion_pass(rows, rows >= 0, n.prefix_pass(rows, torch.tensor([5])), torch.tensor([0]))
                for n in (policy.network, base)
            ]
        assert torch.allclose(*both, atol=1e-5) is not on


def test_weights_laid_together_stay_the_layers_own(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    attention.use_shared_prefix_attention(model)
    ours = Network.of(model)
    ours.adopt_weights()
    assert largest_gap(ours, model) < 2e-5
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight.data.mul_(3)
    assert torch.equal(ours.layers[0].gate_up.weight()[96:], mlp.up_proj.weight)
    assert largest_gap(ours, model) < 2e-5


def test_logits_as_large_as_trained_ones_round_more_and_are_still_the_models(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).requires_grad_(False)
    attention.use_shared_prefix_attention(model)
    model.lm_head.weight.mul_(100)
    ours = find_network(model)
    assert ours is not None
    assert step_gap(ours, model) < 2e-5
    assert logit_gap(torch.tensor([4.0, 64.0]), torch.tensor([2.0, 64.0])) == 2**-5


def test_the_demos_base_runs_on_our_own_network():
    assert load_policy(str(recipe_folder() / "base"), LoraParams(), seed=0, device="cpu").network is not None


def changed(folder, target, **config):
    shutil.copytree(folder, target)
    stored = AutoConfig.from_pretrained(folder)
    for name, value in config.items():
        setattr(stored, name, value)
    stored.save_pretrained(target)
    return target


SLOWER = "Qwen2ForCausalLM is run by transformers' modules, more slowly: "


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"hidden_act": "gelu"}, [SLOWER + "its activation is gelu."]),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
            [SLOWER + "its positions are dynamic."],
        ),
        ({"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, []),
    ],
)
def test_a_model_with_an_unknown_part_is_left_to_transformers_and_told(tiny_qwen2, tmp_path, config, told):
    folder = changed(tiny_qwen2, tmp_path / "model", **config)
    policy = load_policy(str(folder), LoraParams(rank=2), seed=0, device="cpu")
    assert policy.network is None
    assert [note for note in policy.notes if "more slowly" in note] == told
    assert policy.notes  # the one with a window is told to be slow before


def test_a_class_it_does_not_know_is_told(tmp_path):
    config = AutoConfig.for_model(
        "qwen2_moe", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), LoraParams(rank=2), seed=0, device="cpu")
    assert policy.shares_prefix
    assert policy.notes == (
        "Qwen2MoeForCausalLM is run by transformers' modules, more slowly: only Qwen2, Qwen3 and Llama run on our own "
        "network.",
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_and_dtypes_it_does_not_compute_are_left_to_transformers(tiny_qwen2):
    for policy, reason in (
        (make_policy(tiny_qwen2, dropout=0.1), "its adapters have dropout."),
        (
            load_policy(str(tiny_qwen2), LoraParams(rank=2), seed=0, dtype="float16", device="cpu"),
            "its weights are float16 and on cpu, not float32 or bfloat16 on one CPU or CUDA GPU.",
        ),
    ):
        assert policy.network is None
        assert policy.notes == (SLOWER + reason,)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2)
    assert Network.of(model) is None  # its own weights are trained
    model.requires_grad_(False)
    assert Network.of(model) is not None
    get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    assert Network.of(model) is None


def test_a_network_that_computes_something_else_is_not_used(tiny_qwen2, monkeypatch):
    policy = make_policy(tiny_qwen2)
    told = []
    assert find_network(policy.model, told.append) is not None
    assert told == []
    monkeypatch.setattr(network, "_norm", lambda module: Norm(module.weight.detach(), 1e-2))
    assert find_network(policy.model, told.append) is None
    assert re.fullmatch(re.escape(SLOWER) + r"logits differ by \S+ of the largest, allowed is 1e-04\.", *told)


def test_a_network_that_draws_other_tokens_is_not_sampled_from(tiny_qwen2, monkeypatch):
    policy = make_policy(tiny_qwen2)
    model, told = sampling_copy(policy.model).model, []
    monkeypatch.setattr(adapters, "step_gap", lambda network, model: 0.5)
    assert adapters.sampling_network(model, policy.shares_prefix, told.append) is None
    assert told == [
        "Qwen2ForCausalLM is sampled from by transformers' modules, more slowly: logits differ by 5.0e-01 of the "
        "largest, allowed is 1e-04."
    ]


def test_linear_positions_and_a_second_table(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(rotation, "_TABLE_STEP", 3)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder = changed(tiny_llama, tmp_path / "model", rope_parameters=rope)
    policy = load_policy(str(folder), LoraParams(rank=2), seed=0, device="cpu")
    assert policy.network is not None
    assert_passes_agree(policy)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.fixture(scope="module")
def double_stacks():
    """(two adapted layers and one plain, one adapted) in float64, with their LoRA matrices as leaves."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(6, 3, bias=False), "c": nn.Linear(6, 5)})
    layers["d"] = nn.Linear(6, 6)
    layers["e"] = nn.Linear(3, 6)
    get_peft_model(layers, LoraConfig(r=2, lora_alpha=3, target_modules=["a", "c", "d", "e"], init_lora_weights=False))
    layers.double()
    return Stack([layers[name] for name in "abc"]), Stack([layers["d"]]), Stack([layers["e"]])


def test_gradients_of_a_stack_pass_gradcheck(double_stacks):
    norm = Norm(double(6, seed=1).detach(), 1e-3)
    for stack, given_norm in ((double_stacks[0], norm), (double_stacks[1], None)):
        matrices = stack.matrices()
        torch.autograd.gradcheck(
            lambda x, *m, n=given_norm, s=stack: blocks._Projected.apply(x, n, s, *m), (double(5, 6), *matrices)
        )


def test_gradients_of_norm_and_mlp_pass_gradcheck(double_stacks):
    norm = Norm(double(6, seed=1).detach(), 1e-3)
    torch.autograd.gradcheck(lambda x: blocks.normed(x, norm), double(2, 3, 6))
    _, gate_up, down = double_stacks
    matrices = [*gate_up.matrices(), *down.matrices()]
    torch.autograd.gradcheck(
        lambda x, *m: blocks._Mlp.apply(x, norm, gate_up, down, *m), (double(4, 6, seed=2), *matrices)
    )


def test_gradients_of_turned_heads_pass_gradcheck():
    turns = rotation.Rotation(torch.tensor([1.0, 0.1]), 1.0).at(torch.tensor([[0, 1, 5], [2, 3, 4]]))
    cos, sin = (turn.double() for turn in turns)
    torch.autograd.gradcheck(lambda heads: rotation.heads_split(heads, cos, sin, 2), double(2, 3, 8, 4))


def attention_inputs():
    """Keys and values of rows and prefixes, whose gradients are all wanted."""
    shapes = [(2, 5, 4, 3, 4), (2, 5, 4, 4), (2, 5, 4, 4), (3, 2, 7, 4), (3, 2, 7, 4)]
    return tuple(double(*shape, seed=seed) for seed, shape in enumerate(shapes))


def test_two_part_attention_is_plain_attention_and_passes_gradcheck():
    query, key, value, prefix_key, prefix_value = inputs = attention_inputs()
    runs = two_part_attention.runs_of(PREFIX_OF_ROW, PREFIX_LENGTHS)
    assert [(run.start, run.stop) for run in runs] == [(0, 2), (2, 3), (4, 5)]
    ours = two_part_attention.attend(query, key, value, [Behind(prefix_key, prefix_value, runs)])
    for row, prefix in enumerate(PREFIX_OF_ROW):
        length = PREFIX_LENGTHS[prefix]
        keys = torch.cat([prefix_key[prefix, :, :length], key[:, row]], dim=1)
        values = torch.cat([prefix_value[prefix, :, :length], value[:, row]], dim=1)
        visible = torch.ones(4, length + 4, dtype=torch.bool).tril(length)
        plain = nn.functional.scaled_dot_product_attention(
            query[:, row].transpose(1, 2), keys[:, None], values[:, None], attn_mask=visible
        )
        torch.testing.assert_close(ours[:, row], plain.transpose(1, 2), atol=1e-12, rtol=0)
    torch.autograd.gradcheck(lambda q, k, v, pk, pv: two_part_attention.attend(q, k, v, [Behind(pk, pv, runs)]), inputs)


def test_three_part_attention_is_plain_attention_and_passes_gradcheck():
    """All rows behind one more prefix, which stands before the others."""
    query, key, value, prefix_key, prefix_value = inputs = attention_inputs()
    common = tuple(double(1, 2, 3, 4, seed=seed) for seed in (7, 8))
    runs, all_rows = two_part_attention.runs_of(PREFIX_OF_ROW, PREFIX_LENGTHS), [two_part_attention.Run(0, 5, 0, 3)]

    def attended(q, k, v, pk, pv, ck, cv):
        return two_part_attention.attend(q, k, v, [Behind(pk, pv, runs), Behind(ck, cv, all_rows)])

    ours = attended(*inputs, *common)
    for row, prefix in enumerate(PREFIX_OF_ROW):
        length = PREFIX_LENGTHS[prefix]
        keys = torch.cat([common[0][0], prefix_key[prefix, :, :length], key[:, row]], dim=1)
        values = torch.cat([common[1][0], prefix_value[prefix, :, :length], value[:, row]], dim=1)
        visible = torch.ones(4, length + 7, dtype=torch.bool).tril(length + 3)
        plain = nn.functional.scaled_dot_product_attention(
            query[:, row].transpose(1, 2), keys[:, None], values[:, None], attn_mask=visible
        )
        torch.testing.assert_close(ours[:, row], plain.transpose(1, 2), atol=1e-12, rtol=0)
    torch.autograd.gradcheck(attended, (*inputs, *common))


def test_steps_of_the_slots_are_the_models_own(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    attention.use_shared_prefix_attention(model)
    ours = Network.of(model)
    assert step_gap(ours, model) < 2e-5
    ours.adopt_weights()
    assert step_gap(ours, model) < 2e-5
    ours.rotation = rotation.Rotation(torch.ones(12 if "qwen3" in tiny_model.name else 8), 1.0)
    assert step_gap(ours, model) > 1e-2


def test_packing_leaves_out_the_padding_and_passes_gradcheck():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    packing, whole = Packing.of(mask), Packing.of(torch.ones(2, 3, dtype=torch.bool))
    padded = double(3, 3, 2)
    assert torch.equal(packing.packed(padded), padded[mask])
    assert torch.equal(packing.padded(padded[mask]), padded * mask[..., None])
    assert torch.equal(whole.padded(whole.packed(padded[:2])), padded[:2])
    torch.autograd.gradcheck(packing.packed, padded)
    torch.autograd.gradcheck(packing.padded, double(6, 2))
