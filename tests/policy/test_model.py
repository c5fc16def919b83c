"""Loading models and adapters: what is accepted, what is refused and how."""

import json
import shutil

import pytest
import torch
from builders import make_batch, make_learner, make_policy
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from reinforge.config import LoraParams
from reinforge.errors import ModelError, UsageError
from reinforge.policy import attention
from reinforge.policy.model import load_adapter_folder, load_policy
from reinforge.policy.subject import find_subject
from reinforge.types import Adapter

LORA = LoraParams(rank=4)


def load(folder, lora=LORA, **options):
    return load_policy(str(folder), lora, seed=0, device="cpu", **options)


def test_large_logits_round_more_and_still_share_the_prefix(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_output_embeddings().weight.data.mul_(2000)
    model.save_pretrained(tmp_path)
    assert load(tmp_path).shares_prefix


def test_shared_prefix_attention_is_the_models_own(tiny_model):
    policy = load(tiny_model)
    assert policy.shares_prefix
    assert policy.notes == ()
    assert attention.prefix_path_gap(policy.model) < 1e-5


def test_the_fresh_policy_is_the_base_and_the_adapter_repeats_with_the_seed(tiny_model):
    one, same, other = (load_policy(str(tiny_model), LORA, seed=seed, device="cpu").adapter(0) for seed in (1, 1, 2))
    assert all(torch.equal(one.weights[n], same.weights[n]) for n in one.weights)
    assert any(not torch.equal(one.weights[n], other.weights[n]) for n in one.weights)
    assert all(not w.any() for n, w in one.weights.items() if "lora_B" in n)


def test_all_linear_layers_but_the_head_are_adapted_by_default(tiny_model):
    policy = load(tiny_model)
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in policy.trainable()}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trainable, total = policy.parameter_counts()
    assert 0 < trainable < total


def test_chosen_target_modules_and_unknown_ones(tiny_qwen2):
    policy = load(tiny_qwen2, LoraParams(rank=2, target_modules=("q_proj", "v_proj")))
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in policy.trainable()} == {"q_proj", "v_proj"}
    with pytest.raises(ModelError, match=r"\['qproj'\].*q_proj"):
        load(tiny_qwen2, LoraParams(target_modules=("qproj",)))


def test_the_reference_is_the_base_model(tiny_model):
    policy = make_policy(tiny_model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    attention.use_plain_attention(policy.model)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert not torch.allclose(policy.model(ids).logits, base(ids).logits, atol=1e-3)
        with policy.reference():
            torch.testing.assert_close(policy.model(ids).logits, base(ids).logits, atol=1e-6, rtol=0)
        assert not torch.allclose(policy.model(ids).logits, base(ids).logits, atol=1e-3)
    assert all(p.requires_grad for p in policy.trainable().values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_folder_loads_in_peft_and_here(tiny_qwen2, tmp_path):
    policy = make_policy(tiny_qwen2)
    policy.save_adapter(tmp_path)
    attention.use_plain_attention(policy.model)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_qwen2), tmp_path)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, policy.model(ids).logits, atol=1e-6, rtol=0)
    base, lora, weights = load_adapter_folder(tmp_path)
    again = load_policy(base, lora, seed=5, device="cpu")
    again.load_weights(weights)
    assert all(torch.equal(again.adapter(0).weights[n], w) for n, w in policy.adapter(0).weights.items())
    assert find_subject(str(tmp_path)).load(device="cpu").adapter(0).weights.keys() == weights.keys()


def test_an_adapter_of_another_shape_is_refused(tiny_qwen2):
    policy, other = make_policy(tiny_qwen2), make_policy(tiny_qwen2, rank=2)
    with pytest.raises(ModelError, match="does not fit"):
        policy.load_weights(other.adapter(0).weights)
    with pytest.raises(ModelError, match="does not fit"):
        policy.load_weights(Adapter(0, {"strange": torch.zeros(1)}).weights)


def test_another_architecture_runs_too(tmp_path):
    """GPT-2: other names, transposed weights, learned positions."""
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    policy = load(tmp_path)
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in policy.trainable()} == {"c_attn", "c_proj", "c_fc"}
    learner = make_learner(policy)
    metrics = learner.update(make_batch([4, 2], [[3, 5], [2, 4]], vocabulary=64)).metrics
    assert metrics["policy/grad_norm"] > 0


def test_a_sliding_window_takes_the_plain_path(tiny_qwen2, tmp_path):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "sliding")
    config = json.loads((folder / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    policy = load(folder)
    assert not policy.shares_prefix
    assert "sliding_window" in policy.notes[0]


def test_weights_that_are_not_safetensors_are_refused(tiny_qwen2, tmp_path):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        load(folder)


def test_remote_code_runs_only_when_asked_for(tiny_qwen2, tmp_path):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="trust_remote_code = true"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_missing_and_broken_folders(tmp_path):
    with pytest.raises(ModelError, match="There is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="could not be fetched from the hub"):
        load("nobody/nothing")


def test_a_damaged_weights_file_is_a_model_error(tiny_qwen2, tmp_path):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_runs_without_a_checkpoint_have_no_adapter(tmp_path):
    from reinforge.run_store import Run

    Run.create(tmp_path, "fresh", {"base_model": "x"}, {}).close()
    with pytest.raises(UsageError, match="no adapter yet"):
        find_subject(str(tmp_path / "fresh"))
    with pytest.raises(UsageError, match="no step"):
        find_subject(f"{tmp_path / 'fresh'}@last")


def test_a_missing_tensor_is_not_filled_with_random_numbers(tiny_qwen2, tmp_path):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lacks 1 of the model's tensors, the first is model\.layers\.1\.mlp\.up_proj"
    ):
        load(folder)


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 2}}, {"bias": "all"}])
def test_an_adapter_that_is_not_plain_lora_is_refused(tiny_qwen2, tmp_path, change):
    make_policy(tiny_qwen2).save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match="would be computed wrongly"):
        load_adapter_folder(tmp_path)


@pytest.mark.parametrize("change", [{"r": None}, {"target_modules": None}, {"lora_alpha": 0}])
def test_a_broken_adapter_config_is_a_model_error(tiny_qwen2, tmp_path, change):
    make_policy(tiny_qwen2).save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match="not a readable LoRA adapter"):
        load_adapter_folder(tmp_path)
