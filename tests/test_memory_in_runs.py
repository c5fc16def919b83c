"""Runs for which memory is scarce: what they plan, what they record, and how they go on."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_runs_in_python import ROWS, make_config

import reinforge
from reinforge.api import SilentWatcher, rebuild
from reinforge.errors import ConfigError, SetupError, UsageError
from reinforge.inference.engine import Engine
from reinforge.learner import microbatch
from reinforge.learner.update import LocalLearner
from reinforge.run_store import Run
from reinforge.verification import verify

REWARDS = "def odd(prompt, completion, example):\n    return (len(completion) * 7 % 5) / 5\n"


class Notes(SilentWatcher):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def config(tiny_qwen2, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)

    def make(**changes):
        return make_config(tiny_qwen2, tmp_path / "rewards.py", "odd", **{"save_every": 2, "train_steps": 4, **changes})

    return make


def ration(monkeypatch, max_tokens: int, from_step: int) -> None:
    """From a step on the learner finds no memory for passes of more tokens, as torch tells it; for none at all with
    max_tokens = 0, unless layers are recomputed."""
    real = LocalLearner._hidden

    def hidden(self, chunk, rows, *arguments):
        too_large = not self.config.gradient_checkpointing if max_tokens == 0 else False
        too_large |= max_tokens > 0 and sum(row.length for row in rows) > max_tokens
        if self.steps_done + 1 >= from_step and too_large:
            torch.empty(1 << 60)
        return real(self, chunk, rows, *arguments)

    monkeypatch.setattr(LocalLearner, "_hidden", hidden)


def tokens_of(path: Path) -> list[float]:
    with Run.open(path) as run:
        return [row.metrics["policy/microbatch_tokens"] for row in run.steps()]


def test_what_memory_left_of_a_micro_batch_is_recorded_and_repeated(config, tmp_path, monkeypatch):
    watcher = Notes()
    with monkeypatch.context() as scarce:
        ration(scarce, 40, from_step=3)
        path = reinforge.train(config(), ROWS, runs_dir=tmp_path, name="run", watcher=watcher)
    first, second, third, fourth = tokens_of(path)
    assert first == second == 2048
    assert third == fourth <= 40
    told = f"memory ran out in step 3: micro-batches of up to {third:.0f} tokens from there on"
    assert told in watcher.texts
    with Run.open(path) as run:
        assert [event.data for event in run.events() if event.message == told] == [{"step": 3, "tokens": int(third)}]
    assert verify(path, 3).equal
    with sqlite3.connect(path / "run.db") as db:  # had it not been recorded, the step would round in another way
        db.execute("DELETE FROM events WHERE kind = 'microbatches_changed'")
    db.close()
    assert not verify(path, 3).equal


def test_a_run_keeps_what_was_planned_wherever_it_goes_on(config, tmp_path, monkeypatch):
    watcher = Notes()
    with monkeypatch.context() as scarce:
        scarce.setattr(microbatch, "device_bytes", lambda device: 1 << 20)
        path = reinforge.train(config(train_steps=1), ROWS, runs_dir=tmp_path, name="run", watcher=watcher)
    (line,) = (text for text in watcher.texts if text.startswith("memory: about"))
    assert line.endswith("micro-batches of up to 128 tokens; that is more than there is")
    with Run.open(path) as run:
        assert run.about["tokens_per_microbatch"] == 128
        built = rebuild(run, SilentWatcher())
    built.close()
    assert built.tokens_per_microbatch == 128


def test_when_nothing_fits_the_run_ends_at_a_checkpoint_and_goes_on_with_less(config, tmp_path, monkeypatch):
    ration(monkeypatch, 0, from_step=3)
    with pytest.raises(SetupError, match=r"ran out in step 3.*allocate.*resume RUN -o gradient_checkpointing") as told:
        reinforge.train(config(), ROWS, runs_dir=tmp_path, name="run")
    assert told.value.exit_code == 4
    path = tmp_path / "run"
    with Run.open(path) as run:
        assert run.status()[0] == "failed"
        assert run.last_step() == 2
    for wrong, rule in (("slots=0", "at least 1"), ("tokens_per_microbatch=many", "a whole number")):
        with pytest.raises(ConfigError, match=rf"^-o {wrong}  {wrong.split('=')[0]} = .*, but it must be {rule}"):
            reinforge.resume(path, overrides=[wrong])
    with pytest.raises(UsageError, match=r"learning_rate.*how much memory.*slots"):
        reinforge.resume(path, overrides=["learning_rate=1"])
    less = ["gradient_checkpointing=true", "tokens_per_microbatch=64", "slots=8"]
    watcher = Notes()
    reinforge.resume(path, watcher, overrides=less)
    assert tokens_of(path) == [2048, 2048, 64, 64]
    told = {
        "gradient_checkpointing = true instead of false from step 3 on, as asked",
        "slots = 8 instead of 256 from step 3 on, as asked",
    }
    assert told < set(watcher.texts)
    (line,) = (text for text in watcher.texts if text.startswith("memory: about"))
    assert line.endswith("micro-batches of up to 64 tokens")
    assert set(verify(path, 2).changed_since) == told
    assert not verify(path, 3).changed_since
    with Run.open(path) as run:
        assert told < {event.message for event in run.events()}
        assert run.status()[0] == "succeeded"
        stored = run.config()
    assert (stored["gradient_checkpointing"], stored["slots"], stored["tokens_per_microbatch"]) == (True, 8, None)
    assert verify(path, 3).equal


def test_recomputing_layers_rounds_as_keeping_them_does(config, tmp_path):
    hashes = []
    for recomputes in (False, True):
        path = reinforge.train(
            config(train_steps=2, gradient_checkpointing=recomputes), ROWS, runs_dir=tmp_path, name=f"run{recomputes}"
        )
        with Run.open(path) as run:
            hashes.append([(row.state_hash, run.row_hash(row.step)) for row in run.steps()])
    assert hashes[0] == hashes[1]


def test_when_the_sampler_finds_no_memory_people_are_told_what_helps(config, tmp_path, monkeypatch):
    def made(self, num_slots, capacity):
        return torch.empty(1 << 60)

    monkeypatch.setattr(Engine, "_make_decoder", made)
    with pytest.raises(SetupError, match=r"while completions were drawn.*-o slots=N"):
        reinforge.train(config(), ROWS, runs_dir=tmp_path, name="run")


PEAK = """
import sys
import torch
torch.set_num_threads(1)
import reinforge
from reinforge.api import SilentWatcher
from reinforge.config_file import load_config
class Told(SilentWatcher):
    def note(self, text):
        print(text)
reinforge.train(load_config([sys.argv[1]]), runs_dir=sys.argv[2], name="run", watcher=Told())
# Not ru_maxrss, which begins with the peak of the process that started us.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024)
"""


def wide_model(folder: Path, tokenizer: Path) -> Path:
    """A model of 24M parameters, so that it counts beside Python and its libraries."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, folder)
    for file in tokenizer.glob("*.jinja"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_peak_of_a_whole_run_is_near_the_plan(tiny_qwen2, tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [json.dumps({"prompt": "count to " + "9" * 300, "number": n}) for n in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    model = wide_model(tmp_path / "model", tiny_qwen2)
    config = make_config(
        model,
        tmp_path / "rewards.py",
        "odd",
        train_steps=1,
        prompts_per_step=2,
        num_generations=8,
        sampling_params={"max_tokens": 48},
        threads=1,
        lora={"rank": 16},
        data={"path": str(tmp_path / "data.jsonl"), "heldout": 0},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "config.yaml"), str(tmp_path / "runs")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    planned = next(float(line.split()[2]) * 1e9 for line in lines if line.startswith("memory: about"))
    assert 0.75 * planned < int(lines[-1]) < 1.1 * planned, lines
