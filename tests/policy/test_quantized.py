"""A base in 4 bits: what is quantized, and that gradients, samples and adapters are its dequantized weights'."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import gradients, make_batch, make_learner, relative_difference
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from reinforge.config import LoraParams
from reinforge.errors import ModelError, SetupError
from reinforge.inference.adapters import UnmergedCopy, sampling_copy
from reinforge.policy import attention, quantized
from reinforge.policy.model import Policy, load_adapter_folder, load_policy

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'reinforge[dev]'")

LORA = LoraParams(rank=4, lora_alpha=8)
SHAPES = ([4, 9, 3], [[5, 2, 7], [3, 6, 1], [4, 4, 4]])


def load(folder: Path, **options) -> Policy:
    """A policy whose adapter acts: B is not zero, and the same with every base of a shape."""
    policy = load_policy(str(folder), LORA, seed=0, device="cpu", **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2, generator=generator)
    return policy


def layers_of(of: Policy | UnmergedCopy) -> dict[str, nn.Module]:
    modules = of.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, bitsandbytes.nn.Linear4bit)}


def base_bytes(policy: Policy) -> dict[str, bytes]:
    """Everything that belongs to the base, bit by bit: packed weights, their scales, and what is not quantized."""
    kept = {}
    for name, parameter in policy.model.named_parameters():
        if "lora_" not in name:
            state = quantized.quant_state_of(parameter)
            parts = [parameter] if state is None else [parameter, state.absmax, state.state2.absmax, state.offset]
            kept[name] = b"".join(part.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)
    return kept


def dequantized_folder(policy: Policy, source: Path, target: Path) -> Path:
    """The model that the 4-bit one stands for, in float32."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, layer in layers_of(policy).items():
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        model.get_submodule(name.removesuffix(".base_layer")).weight.data = weight.float()
    model.save_pretrained(target)
    for file in source.glob("*token*"):
        shutil.copy(file, target)
    return target


def logits(model, grad: bool = False) -> torch.Tensor:
    attention.use_plain_attention(model)
    with torch.set_grad_enabled(grad):
        return attention.plain_logits(model, *attention.pad([[5, 6, 7, 8], [9, 10]], "cpu"))


def test_all_linear_layers_but_the_head_are_in_4_bits_and_the_adapter_is_float32(tiny_model):
    policy, plain = load(tiny_model, load_in_4bit=True), load(tiny_model)
    assert len(layers_of(policy)) == 2 * 7
    assert {layer.weight.quant_state.quant_type for layer in layers_of(policy).values()} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers_of(policy).values())
    assert type(attention.output_head(policy.model)) is nn.Linear
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    assert policy.parameter_counts() == plain.parameter_counts()
    assert policy.notes[0].startswith("14 linear layers in 4 bits: ")
    assert policy.shares_prefix
    assert policy.network is None
    assert policy.notes[1].endswith(" is run by transformers' modules, more slowly: its base is quantized.")
    assert (logits(policy.model) - logits(plain.model)).abs().max() > 0.1, "nothing was rounded"


def test_gradients_are_those_of_the_dequantized_weights(tiny_model, tmp_path):
    policy = load(tiny_model, load_in_4bit=True)
    same = load(dequantized_folder(policy, tiny_model, tmp_path / "dequantized"))
    batch = make_batch(*SHAPES)
    for beta in (0.0, 0.1):
        expected = gradients(make_learner(same, beta=beta), batch)
        assert relative_difference(gradients(make_learner(policy, beta=beta), batch), expected) < 2e-6
    rounded = gradients(make_learner(load(tiny_model)), batch)
    assert relative_difference(gradients(make_learner(policy), batch), rounded) > 1e-3, "nothing was rounded"


def test_checkpointed_layers_give_the_same_gradients(tiny_qwen2):
    policy, batch = load(tiny_qwen2, load_in_4bit=True), make_batch(*SHAPES)
    plain = gradients(make_learner(policy), batch)
    again = gradients(make_learner(policy, gradient_checkpointing=True), batch)
    assert relative_difference(again, plain) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_is_never_written_and_passes_without_a_gradient_compute_the_same(tiny_qwen2, dtype):
    """On processors with bfloat16 arithmetic, bitsandbytes alone does neither (see quantized.compute_in)."""
    policy, batch = load(tiny_qwen2, load_in_4bit=True, dtype=dtype), make_batch(*SHAPES)
    before = base_bytes(policy)
    with_gradient = logits(policy.model, grad=True)
    assert torch.equal(logits(policy.model), with_gradient)
    attention.use_shared_prefix_attention(policy.model)
    first = gradients(make_learner(policy), batch)
    learner = make_learner(policy)
    learner.update(batch)
    assert base_bytes(policy) == before
    assert set(first) == set(policy.trainable())
    assert all(gradient.any() for gradient in first.values())


def test_the_sampler_shares_the_base_and_applies_the_adapter_apart(tiny_qwen2):
    policy = load(tiny_qwen2, load_in_4bit=True)
    expected = logits(policy.model)
    sampled = sampling_copy(policy.model)
    assert isinstance(sampled, UnmergedCopy)
    for own, theirs in zip(layers_of(policy).values(), layers_of(sampled).values(), strict=True):
        assert own.weight is theirs.weight
        assert own.quant_state is theirs.quant_state
    sampled.load(policy.adapter(1))
    for parameter in policy.trainable().values():
        parameter.data.zero_()
    assert torch.equal(logits(sampled.model), expected)
    assert not torch.equal(logits(policy.model), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_its_adapter_is_an_ordinary_one(tiny_qwen2, tmp_path):
    policy = load(tiny_qwen2, load_in_4bit=True)
    policy.save_adapter(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert load_adapter_folder(tmp_path / "adapter")[1].rank == 4
    stands_for = dequantized_folder(policy, tiny_qwen2, tmp_path / "dequantized")
    base = AutoModelForCausalLM.from_pretrained(stands_for, attn_implementation="sdpa")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").base_model.model
    torch.testing.assert_close(logits(theirs), logits(policy.model), atol=2e-5, rtol=0)


def test_a_model_stored_in_4_bits_is_loaded_as_it_is(tiny_qwen2, tmp_path):
    policy = load(tiny_qwen2, load_in_4bit=True)
    stored = AutoModelForCausalLM.from_pretrained(
        tiny_qwen2, **quantized.load_options({}, torch.device("cpu"), wanted=True)
    )
    stored.save_pretrained(tmp_path)
    for wanted in (True, False):
        assert torch.equal(logits(load(tmp_path, load_in_4bit=wanted).model), logits(policy.model))


def test_what_cannot_be_in_4_bits_is_refused(tiny_qwen2, tmp_path, monkeypatch):
    with pytest.raises(SetupError, match=r"load_in_4bit runs on cpu and cuda, not on mps\. Set device = cpu"):
        quantized.load_options({}, torch.device("mps"), wanted=True)
    folder = shutil.copytree(tiny_qwen2, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match=r"quantized already \(quant_method = gptq\)"):
        load(folder, load_in_4bit=True)
    with pytest.raises(ModelError, match="finds no linear layer in Embedding"):
        quantized.compute_in(nn.Embedding(4, 4), torch.float32)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SetupError, match=r"load_in_4bit needs the package bitsandbytes\. pip install 'reinforge\["):
        load(tiny_qwen2, load_in_4bit=True)
    assert quantized.import_bitsandbytes() is None


@pytest.mark.slow
def test_importing_it_fetches_no_code_and_says_nothing(tmp_path):
    """bitsandbytes alone lets `kernels` fetch from the hub, and complains on stderr where that fails."""
    (tmp_path / "kernels.py").write_text(f"def get_kernel(*args, **options): open({str(tmp_path / 'ran')!r}, 'w')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import reinforge.inference.adapters, bitsandbytes"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()
