"""Whole runs with a base in 4 bits, a bfloat16 base and the 8-bit optimizer, through the command line."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reinforge.cli.main import run as reinforge
from reinforge.run_store import Run

RANK = 64
"""So that most of the tiny model's matrices have the 4096 elements from which moments are kept in 8 bits."""
ROUNDING = {"float32": 1e-5, "bfloat16": 0.1}
"""Largest difference of a token's logprob between sampler and learner; the tiny model's logits reach 8, which bfloat16
knows to 0.03, and the differences of two layers add up."""
SMALL = ("load_in_4bit=true", "optim=adamw_8bit")


@pytest.fixture
def config_file(tiny_qwen2: Path, tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(
        "def plain(prompt, completion, example):\n"
        '    """Share of bytes below 128."""\n'
        "    return sum(ord(char) < 128 for char in completion) / max(len(completion), 1)\n"
    )
    rows = [{"prompt": f"number {i}"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "base_model": str(tiny_qwen2),
        "reward_fns": {"functions": {"plain": "rewards.py:plain"}},
        "data": {"path": "rows.jsonl", "heldout": 2},
        "train_steps": 3,
        "prompts_per_step": 3,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "save_every": 1,
        "lora": {"rank": RANK},
        "sampling_params": {"max_tokens": 8},
        "eval": {"samples_per_prompt": 2, "greedy": False},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    return tmp_path / "train.yaml"


def train(config_file: Path, name: str, *changes: str) -> Path:
    runs = config_file.parent / "runs"
    options = [part for change in changes for part in ("-o", change)]
    assert reinforge(["train", str(config_file), "--runs-dir", str(runs), "--name", name, *options, "--json"]) == 0
    return runs / name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [(), SMALL], ids=["whole", "small"])
def test_sampler_and_learner_agree_and_a_step_from_a_checkpoint_is_bitwise_the_same(
    config_file: Path, capsys: pytest.CaptureFixture[str], dtype: str, changes: tuple[str, ...]
):
    if changes:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    path = train(config_file, "one", f"dtype={dtype}", *changes)
    with Run.open(path) as run:
        metrics = [row.metrics for row in run.steps()]
        last = run.evaluations()[-1]
        if changes:
            assert run.about["versions"]["bitsandbytes"] == version("bitsandbytes")
    gaps = [figures["policy/logprob_gap_max"] for figures in metrics]
    assert 0 < max(gaps) < ROUNDING[dtype]
    assert all(figures["policy/grad_norm"] > 0 for figures in metrics)
    capsys.readouterr()
    assert reinforge(["verify", f"{path}@3", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert (verified["equal"], verified["from_step"]) == (True, 2)
    assert reinforge(["eval", str(path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["reward_mean"] == pytest.approx(last["reward_mean"], abs=1e-9)


def test_adapter_and_optimizer_of_a_bfloat16_base_are_float32(config_file: Path):
    path = train(config_file, "bfloat16", "dtype=bfloat16")
    files = [path / "adapter" / "adapter_model.safetensors"]
    files += sorted((path / "checkpoints").glob("*/optimizer.safetensors"))
    assert len(files) >= 3
    for file in files:
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def test_a_run_on_a_4_bit_base_is_talked_to_on_that_base(config_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a setting: the run says how it was trained."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from reinforge.policy.subject import find_subject

    path = train(config_file, "small", *SMALL)
    for name in (str(path), f"{path}@2"):
        assert find_subject(name).load().notes[0].startswith("14 linear layers in 4 bits")
    assert find_subject(str(path / "adapter")).load().notes == ()
    other = train(config_file, "whole")
    assert find_subject(str(other)).load().notes == ()


def test_checkpointed_layers_of_a_4_bit_base_give_the_same_run(config_file: Path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weights = [
        (train(config_file, name, *SMALL, *changes) / "adapter" / "adapter_model.safetensors").read_bytes()
        for name, changes in (("plain", ()), ("again", ("gradient_checkpointing=true",)))
    ]
    assert weights[0] == weights[1]
