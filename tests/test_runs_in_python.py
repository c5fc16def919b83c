"""Whole runs through the Python API: real model, real sampler, real reward processes."""

import datetime
import json
import shutil
import threading
import zlib

import pytest
from safetensors.torch import load_file, save_file

import reinforge
from reinforge.api import SilentWatcher
from reinforge.errors import CheckpointError, ConfigError, DataError, RewardError, UsageError
from reinforge.run_store import Run, list_checkpoints

REWARDS = '''
import os, sys, time, zlib

def raises(prompt, completion, example):
    """Raises on one completion in ten."""
    if zlib.crc32(completion.encode()) % 10 == 0:
        raise KeyError("answer")
    return 0.1 * (len(completion) % 7)

def hangs(prompt, completion, example):
    """Hangs on one row."""
    if example["number"] == "3":
        while True:
            time.sleep(1)
    return 1.0

def leaves(prompt, completion, example):
    """Calls sys.exit(0) on another."""
    if example["number"] == "4":
        sys.exit(0)
    print("row", example["number"])
    return 0.5

def slow_once(prompt, completion, example):
    """Hangs in the first call there ever was."""
    if not os.path.exists(FLAG):
        open(FLAG, "w").close()
        time.sleep(60)
    return len(completion) / 20
'''


@pytest.fixture
def rewards_file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(REWARDS.replace("FLAG", repr(str(tmp_path / "flag"))))
    return path


def make_config(model, rewards_file, *functions, timeout_s=1.0, reward_fns=None, **changes):
    values = {
        "base_model": str(model),
        "reward_fns": reward_fns
        or {
            "functions": {name: f"{rewards_file}:{name}" for name in functions},
            "runtime": {"timeout_s": timeout_s},
        },
        "train_steps": 3,
        "prompts_per_step": 4,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "lora": {"rank": 2},
        "sampling_params": {"max_tokens": 8},
        "eval": {"max_prompts": 1, "samples_per_prompt": 1},
        "data": {"heldout": 2},
        "save_every": 1,
    }
    return reinforge.GRPOConfig.model_validate(values | changes)


ROWS = [{"prompt": f"count to {number}", "number": number} for number in range(14)]


@pytest.mark.slow
def test_reward_functions_that_fail_cannot_stop_a_run_and_are_counted(tiny_qwen2, tmp_path, rewards_file):
    notes = []

    class Watcher(SilentWatcher):
        def note(self, text):
            notes.append(text)

    config = make_config(tiny_qwen2, rewards_file, "raises", "hangs", "leaves")
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="faults", watcher=Watcher())
    with Run.open(path) as run:
        assert run.status() == ("succeeded", "")
        completions = [c for step in (1, 2, 3) for c in run.completions(step=step)]
        scores = run.scores(c.id for c in completions)
        numbers = {p: row.text for p, row in run.prompts(sorted({c.example for c in completions})).items()}
        totals = {f.name: f for f in run.functions()}
    assert len(completions) == 3 * 4 * 4
    kinds = {
        name: [s.kind for c in completions for s in scores[c.id] if s.name == name and s.state == "error"]
        for name in totals
    }
    expected = sum(zlib.crc32(c.text.encode()) % 10 == 0 for c in completions)
    assert kinds["raises"] == ["raised"] * expected
    assert expected > 0
    for name, number, kind in (("hangs", 3, "timeout"), ("leaves", 4, "exited")):
        of_row = [
            c for c in completions if f"count to {number}" in numbers[c.example].split("<|end|>")[0].split("\n")[0]
        ]
        assert kinds[name] == [kind] * len(of_row)
        assert totals[name].num_error == len(of_row)
    assert any("raises raised on" in note and "KeyError" in note for note in notes)
    assert all(s.value is None for c in completions for s in scores[c.id] if s.state == "error")


def test_a_deadline_hit_is_recorded_and_given_again(tiny_qwen2, tmp_path, rewards_file, monkeypatch):
    monkeypatch.setenv("REINFORGE_SANDBOX", "plain")  # only there it can leave a file for a later call
    config = make_config(tiny_qwen2, rewards_file, "slow_once", timeout_s=0.5, data={"heldout": 0})
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="deadline")
    with Run.open(path) as run:
        errors = {
            step: [s.kind for c in run.completions(step=step) for s in run.scores([c.id])[c.id] if s.kind]
            for step in (1, 2, 3)
        }
    (step,) = [step for step, kinds in errors.items() if kinds]
    assert set(errors[step]) == {"timeout"}
    assert (tmp_path / "flag").exists()  # from now on it would answer in time
    assert reinforge.verify(path, step).equal


def test_a_finished_run_cannot_be_resumed_and_keeps_its_status(tiny_qwen2, tmp_path, rewards_file):
    path = reinforge.train(make_config(tiny_qwen2, rewards_file, "raises"), ROWS, runs_dir=tmp_path, name="done")
    with pytest.raises(UsageError, match="has done all 3 steps"):
        reinforge.resume(path)
    with Run.open(path) as run:
        assert run.status()[0] == "succeeded"
    assert (path / "adapter" / "adapter_model.safetensors").is_file()


def test_other_data_or_another_model_under_a_run_are_refused(tiny_qwen2, tmp_path, rewards_file):
    path = reinforge.train(make_config(tiny_qwen2, rewards_file, "raises"), ROWS, runs_dir=tmp_path, name="data")
    rows = json.loads((path / "dataset.json").read_text())
    rows[0]["number"] = 99
    (path / "dataset.json").write_text(json.dumps(rows))
    with pytest.raises(CheckpointError, match=r"The data of .* is not what the run began with"):
        reinforge.verify(path, 2)


def test_a_resume_uses_the_reward_source_the_run_began_with(tiny_qwen2, tmp_path, rewards_file):
    path = reinforge.train(make_config(tiny_qwen2, rewards_file, "raises"), ROWS, runs_dir=tmp_path, name="source")
    rewards_file.write_text("def raises(prompt, completion, example):\n    return 0.0\n")
    assert reinforge.verify(path, 3).equal


def test_functions_of_a_program_are_rewards_too(tiny_qwen2, tmp_path):
    def brief(prompt, completion, example):
        return 1.0 / (1 + len(completion))

    config = make_config(tiny_qwen2, tmp_path, reward_fns={"functions": {"brief": brief}})
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="callable")
    assert "def brief" in Run.open(path).reward_source("brief_v1").read_text()
    assert reinforge.verify(path, 2).equal


def test_runs_in_a_thread_work_without_signals(tiny_qwen2, tmp_path, rewards_file):
    config = make_config(tiny_qwen2, rewards_file, "raises", train_steps=1)
    thread = threading.Thread(target=lambda: reinforge.train(config, ROWS, runs_dir=tmp_path, name="thread"))
    thread.start()
    thread.join()
    assert Run.open(tmp_path / "thread").status()[0] == "succeeded"


def test_checkpoints_kept_are_the_last_two_and_the_best_three(tiny_qwen2, tmp_path, rewards_file):
    config = make_config(tiny_qwen2, rewards_file, "raises", train_steps=8)
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="kept")
    assert [c.step for c in list_checkpoints(path)] == [7, 8]


def test_mistakes_show_before_anything_is_made(tiny_qwen2, tmp_path, rewards_file):
    with pytest.raises(ConfigError, match="nothing to train on"):
        reinforge.train(make_config(tiny_qwen2, rewards_file, "raises"), runs_dir=tmp_path / "runs")
    with pytest.raises(RewardError, match="missing"):
        reinforge.train(make_config(tiny_qwen2, rewards_file, "missing"), ROWS, runs_dir=tmp_path / "runs")
    with pytest.raises(DataError, match="prompt"):
        reinforge.train(
            make_config(tiny_qwen2, rewards_file, "raises"), [{"question": "?"}], runs_dir=tmp_path / "runs"
        )
    with pytest.raises(ConfigError, match="no room for a prompt"):
        long = make_config(tiny_qwen2, rewards_file, "raises", sampling_params={"max_tokens": 100_000})
        reinforge.train(long, ROWS, runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_failed_calls_show_in_an_evaluation(tiny_qwen2, tmp_path, rewards_file):
    notes = []

    class Watcher(SilentWatcher):
        def note(self, text):
            notes.append(text)

    functions = {name: f"{rewards_file}:{name}" for name in ("broken", "vowel")}
    reward_fns = {"functions": functions, "max_error_rate": 1.0}  # else the run stops
    config = make_config(tiny_qwen2, rewards_file, reward_fns=reward_fns, train_steps=1, eval={"max_prompts": 2})
    rewards_file.write_text(
        "def broken(prompt, completion, example):\n    return example['nope']\n\n"
        "def vowel(prompt, completion, example):\n    return 'a' in completion\n"
    )
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="broken", watcher=Watcher())
    evaluation = reinforge.evaluate(path, watcher=Watcher())
    assert evaluation.errors == {"broken": 8}
    assert list(evaluation.function_means) == ["vowel"]
    assert Run.open(path).evaluations()[0]["errors"] == {"broken": 8}
    assert any(note.startswith("held-out: broken raised on 8 of 8") and "'nope'" in note for note in notes)


def test_a_run_that_cannot_be_made_is_refused_before_anything_is_loaded(tmp_path, rewards_file):
    config = make_config(tmp_path / "no model", rewards_file, "raises")
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="taken")
    with pytest.raises(UsageError, match="cannot name a folder"):
        reinforge.train(config, ROWS, runs_dir=tmp_path, name="../up")


def test_the_sampler_and_the_learner_agree_on_every_token(tiny_model, tmp_path, rewards_file):
    config = make_config(tiny_model, rewards_file, "raises", learning_rate=1e-2, sampling_params={"max_tokens": 24})
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="gap")
    with Run.open(path) as run:
        gaps = [row.metrics["policy/logprob_gap_max"] for row in run.steps()]
    assert 0 < max(gaps) < 1e-4


def test_evaluating_a_run_repeats_its_last_evaluation(tiny_qwen2, tmp_path, rewards_file):
    config = make_config(
        tiny_qwen2, rewards_file, "raises", eval={"max_prompts": 2, "samples_per_prompt": 2, "greedy": False}
    )
    path = reinforge.train(config, ROWS, runs_dir=tmp_path, name="evaluated")
    again = reinforge.evaluate(str(path), data=None)
    stored = Run.open(path).evaluations()[-1]
    assert again.reward_mean == pytest.approx(stored["reward_mean"], abs=1e-9)
    at_first = reinforge.evaluate(f"{path}@2")
    assert at_first.num_samples == 4


def test_rows_are_what_a_resumed_run_reads(tiny_qwen2, tmp_path, rewards_file):
    rewards_file.write_text(
        "def seen(prompt, completion, example):\n    print(sorted(example.items()))\n    return len(completion) / 9\n"
    )
    rows = [{**row, "table": {1: row["number"]}, "day": datetime.date(2026, 1, 2)} for row in ROWS]
    path = reinforge.train(make_config(tiny_qwen2, rewards_file, "seen"), rows, runs_dir=tmp_path, name="rows")
    assert reinforge.verify(path, 2).equal
    with pytest.raises(DataError, match="row 1 holds what JSON cannot: a object"):
        reinforge.train(
            make_config(tiny_qwen2, rewards_file, "seen"), [{"prompt": "a", "x": object()}], runs_dir=tmp_path
        )


def test_paths_start_at_base_dir_also_in_a_resumed_run(tiny_qwen2, tmp_path, rewards_file):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    shutil.copytree(tiny_qwen2, tmp_path / "model")
    config = make_config("model", rewards_file, "raises", data={"path": "rows.jsonl"})
    config = config.model_copy(update={"reward_fns": make_config("model", "rewards.py", "raises").reward_fns})
    path = reinforge.train(config, base_dir=tmp_path, runs_dir=tmp_path, name="based")
    assert reinforge.verify(path, 2).equal


def test_another_model_of_the_same_shape_is_refused(tiny_qwen2, tmp_path, rewards_file):
    folder = shutil.copytree(tiny_qwen2, tmp_path / "model")
    path = reinforge.train(make_config(folder, rewards_file, "raises"), ROWS, runs_dir=tmp_path, name="model-run")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"The base_model of .* is not what the run began with"):
        reinforge.verify(path, 2)


def test_a_column_that_a_function_names_must_be_there(tiny_qwen2, tmp_path, rewards_file):
    rewards_file.write_text("def exact(prompts, completions, gold):\n    return [0.0 for _ in completions]\n")
    with pytest.raises(RewardError, match="exact needs the column 'gold', which the data does not have"):
        reinforge.train(make_config(tiny_qwen2, rewards_file, "exact"), ROWS, runs_dir=tmp_path)
