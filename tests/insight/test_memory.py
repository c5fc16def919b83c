"""The memory an update needs, as estimated and as measured."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import make_policy
from torch.autograd.graph import saved_tensors_hooks
from transformers import Qwen2Config, Qwen2ForCausalLM

from reinforge.config import LoraParams
from reinforge.insight.host_memory import host_bytes
from reinforge.insight.memory import (
    MIN_TOKENS,
    SPARE_SHARE,
    Load,
    ModelShape,
    Pass,
    kept_per_token,
    memory_plan,
    update_bytes,
)
from reinforge.policy import attention
from reinforge.policy.model import load_policy

SHAPE = ModelShape(
    hidden_size=256, num_layers=6, num_heads=8, num_kv_heads=2, head_size=32, mlp_size=704, vocabulary=2000
)
LOAD = Load(prompts_per_step=4, num_generations=16, longest_prompt=100, longest_completion=200, slots=256)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A model with wider layers than the tiny ones: there, tensors of one number per token weigh too much."""
    folder = tmp_path_factory.mktemp("small_qwen2")
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def bytes_kept(work) -> int:
    """Of all storages that autograd keeps during the work, each once."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(storage.nbytes() for storage in kept.values())


def kept_for_each_more_token(policy, *, recompute: bool = False) -> float:
    """The slope, so that weights, which are kept whatever the tokens, do not count."""
    prefix_of_B, prompt = torch.zeros(8, dtype=torch.long), (torch.randint(300, (1, 16)), torch.tensor([16]))

    def run(ids_BT):
        if policy.network is None:
            prefix = attention.prefix_pass(policy.model, *prompt).as_leaves()
            with policy.dropout_keys.of(ids_BT):
                return bytes_kept(lambda: attention.completion_pass(policy.model, ids_BT, prefix, prefix_of_B))
        prefix = policy.network.prefix_pass(*prompt).as_leaves()
        arguments = (ids_BT, ids_BT >= 0, prefix, prefix_of_B)
        return bytes_kept(lambda: policy.network.completion_pass(*arguments, recompute=recompute))

    sizes = [run(torch.randint(300, (8, length))) for length in (64, 128)]
    return (sizes[1] - sizes[0]) / (8 * 64)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_our_network_keeps_is_known(model_folder, recompute):
    policy = make_policy(model_folder)
    shape = ModelShape.of_config(policy.model.config.to_dict())
    estimate = kept_per_token(shape, Pass(own_network=True, recomputes=recompute))
    # Beside the layers, the last norm keeps its input.
    assert kept_for_each_more_token(policy, recompute=recompute) == pytest.approx(estimate + 4 * 128, rel=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_modules_keep_is_not_underestimated_nor_by_far_overestimated(model_folder, dropout):
    policy = replace(make_policy(model_folder, dropout=dropout), network=None)
    shape = ModelShape.of_config(policy.model.config.to_dict())
    estimate = kept_per_token(shape, Pass(own_network=False, has_dropout=dropout > 0))
    measured = kept_for_each_more_token(policy)
    assert measured <= estimate <= 1.6 * measured


@pytest.mark.parametrize("length", [256, 512])
def test_masks_and_copied_prompts_of_modules_are_counted(model_folder, length):
    """What the kernel keeps of them grows with the product of both lengths."""
    policy = replace(make_policy(model_folder), network=None)
    shape = ModelShape.of_config(policy.model.config.to_dict())
    load = Load(1, 8, longest_prompt=length + 1, longest_completion=length, slots=8)
    prefix = attention.prefix_pass(policy.model, torch.randint(300, (1, length)), torch.tensor([length])).as_leaves()
    ids_BT, prefix_of_B = torch.randint(300, (8, length)), torch.zeros(8, dtype=torch.long)
    with policy.dropout_keys.of(ids_BT):
        measured = bytes_kept(lambda: attention.completion_pass(policy.model, ids_BT, prefix, prefix_of_B))
    estimate = update_bytes(shape, Pass(own_network=False), load, 8 * length, 0)
    assert measured <= estimate <= 2 * measured


def test_more_tokens_longer_prompts_and_no_recomputation_need_more():
    def needed(how: Pass, rows: int, prompts: int) -> int:
        return update_bytes(SHAPE, how, LOAD, rows, prompts)

    how = Pass(own_network=True)
    base = needed(how, 1024, 1024)
    assert base < needed(how, 2048, 1024)
    assert base < needed(how, 1024, 2048)
    assert base < needed(Pass(own_network=False), 1024, 1024)
    assert base > needed(Pass(own_network=True, recomputes=True), 1024, 1024)


def plan(total_bytes=None, load=LOAD, **changes):
    return memory_plan(SHAPE, Pass(own_network=True), load, rank=16, total_bytes=total_bytes, **changes)


def test_the_plan_fits_with_room_to_spare():
    needed = plan().peak / (1 - SPARE_SHARE)
    assert plan().tokens_per_microbatch == plan(int(needed) + 1).tokens_per_microbatch == 2048
    less = plan(int(needed) - 1)
    assert less.tokens_per_microbatch == 1024
    assert less.peak <= needed * (1 - SPARE_SHARE)
    assert plan(0).tokens_per_microbatch == MIN_TOKENS


def test_what_was_asked_for_is_planned_whether_it_fits_or_not():
    asked = plan(1000, tokens_per_microbatch=5000)
    assert asked.tokens_per_microbatch == 5000
    assert asked.in_words().endswith("that is more than there is")


def test_a_step_never_needs_more_than_it_has_and_a_long_completion_counts_whole():
    few = replace(LOAD, prompts_per_step=1, num_generations=2)
    assert plan(load=few).update < plan().update
    assert plan(load=few).update == plan(load=few, tokens_per_microbatch=10**6).update
    long = replace(LOAD, longest_completion=10_000)
    assert plan(load=long, tokens_per_microbatch=128).update > 5 * plan(load=LOAD, tokens_per_microbatch=128).update


def test_the_parts_are_the_peak():
    for lag in (0, 1):
        for load in (LOAD, replace(LOAD, longest_prompt=4000, longest_completion=1)):
            found = plan(load=replace(load, lag=lag))
            assert sum(found.parts().values()) == found.peak
    assert plan(load=replace(LOAD, lag=1)).peak > plan().peak


@pytest.mark.parametrize("modules", [None, ("q_proj", "down_proj")])
def test_parameters_are_counted_from_the_config_alone(tiny_model, modules):
    lora = LoraParams(rank=3, target_modules=modules or "all-linear")
    policy = load_policy(str(tiny_model), lora, seed=0, device="cpu")
    shape = ModelShape.of_config(policy.model.config.to_dict())
    trainable, total = policy.parameter_counts()
    matrices = {id(p): p.numel() for name, p in policy.model.named_parameters() if p.dim() == 2 and "lora" not in name}
    assert shape.num_parameters() == sum(matrices.values())
    assert shape.num_parameters() > 0.95 * (total - trainable)
    assert shape.adapted(3, modules)[0] == trainable


def test_fewer_bits_need_less():
    whole, bf16 = Pass(own_network=False, value_bytes=4), Pass(own_network=False, value_bytes=2)
    in_4bit = replace(bf16, in_4bit=True)
    plans = [memory_plan(SHAPE, how, LOAD, rank=16) for how in (whole, bf16, in_4bit)]
    assert plans[0].base == 2 * plans[1].base > 2.5 * plans[2].base
    assert plans[0].sampler_copy > plans[1].sampler_copy == plans[2].sampler_copy
    assert plans[2].adapter > memory_plan(SHAPE, in_4bit, LOAD, rank=16, optimizer_8bit=True).adapter


@pytest.mark.parametrize(("version", "expected"), [("1", 3 << 30), ("2", 2 << 30), ("none", 8 << 30)])
def test_memory_of_a_machine_and_of_the_groups_around_a_process(tmp_path, version, expected):
    files = {
        "proc/meminfo": "MemTotal:        8388608 kB\nMemFree: 1 kB\n",
        "proc/self/cgroup": "4:cpu,memory:/a/b\n0::/c/d\n" if version != "none" else "",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{3 << 30}\n",
        "sys/fs/cgroup/c/d/memory.max": "max\n",
        "sys/fs/cgroup/c/memory.max": f"{2 << 30}\n" if version == "2" else "max\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_bytes(tmp_path) == expected


def test_nobody_says_how_much_memory_there_is(tmp_path):
    assert host_bytes(tmp_path) is None


PEAK = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
from builders import make_batch, make_learner, make_policy
from reinforge.insight.memory import Load, ModelShape, Pass, logits_bytes, update_bytes
policy = make_policy(Path({folder!r}), rank=16)
learner = make_learner(policy, max_tokens=512, tokens_per_microbatch={tokens})
learner.update(make_batch([4], [[3, 4]]))
batch = make_batch([{prompt}] * 2, [[256] * {rows}] * 2)
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
learner.update(batch)
measured = memory("VmHWM") - before
shape = ModelShape.of_config(policy.model.config.to_dict())
load, how = Load(2, {rows}, {prompt}, 256, 256), Pass(own_network=True)
print(measured, update_bytes(shape, how, load, {tokens}, {tokens}) + logits_bytes(shape, how, {tokens}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak since a moment")
def test_the_peak_of_a_process_is_near_the_estimate(model_folder):
    tests = str(Path(__file__).resolve().parents[1])
    code = PEAK.format(tests=tests, folder=str(model_folder), tokens=4096, prompt=2048, rows=16)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured, estimate = map(int, result.stdout.split())
    assert 0.6 * estimate < measured < 1.1 * estimate, (measured, estimate)
