"""A training run whose reward functions are all attacks: it ends well, and learns from the honest one only."""

from __future__ import annotations

import pytest
from processes import new_marker, processes_with, wait_until

import reinforge
from reinforge.run_store.run import Run
from reinforge.sandbox import tiers

REWARDS = """
import gc, json, os, re, socket, subprocess, sys, threading, time

def honest(prompt, completion, example): return len(completion) / 100

def bomb(prompt, completion, example):
    for _ in range(6):
        if os.fork() == 0 and os.fork() == 0: os.execv("/bin/sleep", ["sleep", "MARKER"])

def daemon(prompt, completion, example):
    if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        os.execv("/bin/sleep", ["sleep", "MARKER"])
    return 999.0

def forger(prompts, completions, **columns):
    runner = next(o for o in gc.get_objects() if type(o).__name__ == "Runner")
    frame = json.dumps({"nonce": "", "value": [999.0] * len(completions), "latency_s": 0.1}).encode()
    for descriptor in [1, 2, runner.channel]: os.write(descriptor, len(frame).to_bytes(4, "big") + frame)
    return [0.0] * len(completions)

def thief(prompt, completion, example):
    open("SECRET").read()

def caller(prompt, completion, example):
    socket.create_connection(("127.0.0.1", 9), 1)

def leaver(prompt, completion, example): os._exit(0)

def hang(prompts, completions, **columns): re.match(r"(a+)+$", "a" * 60 + "b")

def loud(prompt, completion, example):
    for _ in range(50): print("x" * 10**6)
    return float("nan")

def greedy(prompt, completion, example): return len(b"x" * (100 << 30))
"""
NAMES = ("honest", "bomb", "daemon", "forger", "thief", "caller", "leaver", "hang", "loud", "greedy")


@pytest.mark.slow
def test_a_run_of_attacks_ends_well(tiny_qwen2, tmp_path, monkeypatch, isolating_tier):
    monkeypatch.setenv(tiers.VARIABLE, isolating_tier.name)
    marker, secret = new_marker(), tmp_path / "secret.txt"
    secret.write_text("hunter2")
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARDS.replace("MARKER", marker).replace("SECRET", str(secret)))
    config = reinforge.GRPOConfig.model_validate(
        {
            "base_model": str(tiny_qwen2),
            "reward_fns": {
                "functions": {name: f"{rewards}:{name}" for name in NAMES},
                "max_error_rate": 1.0,
                "runtime": {"timeout_s": 2.0},
            },
            "train_steps": 1,
            "prompts_per_step": 2,
            "num_generations": 2,
            "learning_rate": 1e-3,
            "lora": {"rank": 2},
            "sampling_params": {"max_tokens": 8},
            "eval": {"max_prompts": 1, "samples_per_prompt": 1, "greedy": False},
            "data": {"heldout": 1},
        }
    )
    path = reinforge.train(config, [{"prompt": f"count to {i}"} for i in range(5)], runs_dir=tmp_path, name="attacked")
    assert wait_until(lambda: not processes_with(marker), 1.0)
    with Run.open(path) as run:
        assert run.status() == ("succeeded", "")
        completions = list(run.completions(step=1))
        scores = run.scores(c.id for c in completions)
    assert len(completions) == 4
    by_name = {name: [s for c in completions for s in scores[c.id] if s.name == name] for name in NAMES}
    assert [s.value for s in by_name["honest"]] == [len(c.text) / 100 for c in completions]
    values = {name: {s.value for s in of_one} for name, of_one in by_name.items()}
    assert all(values[name] == {None} for name in NAMES if name not in ("honest", "daemon"))
    kinds = {name: {s.kind for s in of_one} for name, of_one in by_name.items()}
    assert kinds["leaver"] == {"exited"}
    assert kinds["hang"] == {"timeout"}
    assert kinds["greedy"] == {"out_of_memory"}
    assert kinds["thief"] == kinds["caller"] == {"raised"}
    assert secret.read_text() == "hunter2"
