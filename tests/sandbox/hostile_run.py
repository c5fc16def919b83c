"""Trains twice in one process, first with honest reward functions, then with attacks beside them; tells its peak memory
after each as JSON. A program: `python hostile_run.py MODEL FOLDER OUTSIDE`, where OUTSIDE is JSON of what the attacks
must not reach."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import reinforge

REWARDS = """
import builtins, gc, json, math, os, re, secrets, socket, subprocess, sys, threading, time, urllib.request

OUTSIDE = json.loads(OUTSIDE_JSON)
MARKER = OUTSIDE["marker"]

def honest(prompt, completion, example): return len(completion) / 100

def honest_group(prompts, completions, **columns): return [len(c) / 100 for c in completions]

def fork_bomb(prompt, completion, example):
    for _ in range(300):
        if os.fork() == 0: os.execv("/bin/sleep", ["sleep", MARKER])

def doubling_forks(prompt, completion, example):
    for _ in range(9): os.fork()
    os.execv("/bin/sleep", ["sleep", MARKER])

def double_fork(prompt, completion, example):
    for _ in range(6):
        if os.fork() == 0 and os.fork() == 0: os.execv("/bin/sleep", ["sleep", MARKER])
    return 0.0

def setsid_child(prompt, completion, example):
    if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        os.execv("/bin/sleep", ["sleep", MARKER])
    return 0.0

def thread_bomb(prompt, completion, example):
    for _ in range(500): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

def loud(prompt, completion, example):
    for _ in range(1000): print("x" * 10**6)
    return float("nan")

def memory_bomb(prompt, completion, example):
    kept = []
    while True: kept.append(b"x" * 20_000_000)

def hang(prompts, completions, **columns): re.match(r"(a+)+$", "a" * 60 + "b")

def leaver(prompt, completion, example): os._exit(0)

def closer(prompt, completion, example): os.closerange(0, 4096)

def forger(prompts, completions, **columns):
    runner = next(o for o in gc.get_objects() if type(o).__name__ == "Runner")
    frame = sys._getframe()
    while frame and "request" not in frame.f_locals: frame = frame.f_back
    for nonce in ("", "0" * 16, secrets.token_hex(8), frame.f_locals["request"]["nonce"]):
        reply = {"nonce": nonce, "value": [999.0] * len(completions), "latency_s": 0.1}
        data = json.dumps(reply | {"kind": "", "prints": "", "left": ""}).encode()
        for descriptor in {*range(64), runner.channel}:
            try: os.write(descriptor, (len(data).to_bytes(4, "big") + data) * 10)
            except OSError: pass
    return [0.0] * len(completions)

class Hook:
    def find_spec(self, name, path=None, target=None): raise ImportError("hooked")

def patcher(prompt, completion, example):
    main = sys.modules["__main__"]
    main.Runner.outcome = lambda self, arguments: {"value": 999.0}
    json.dumps = json.loads = json.JSONEncoder.encode = lambda *a, **k: '{"value": 999.0}'
    builtins.float = builtins.len = builtins.print = lambda *a: 999.0
    math.isfinite = time.perf_counter = time.monotonic = lambda *a: 999.0
    sys.meta_path.insert(0, Hook()); sys.path_hooks.clear(); sys.modules.pop("json")
    return 0.0

def worked(attempts):
    done = []
    for name, attempt in attempts.items():
        try: attempt()
        except Exception: continue
        done.append(name)
    return {"score": len(done), "reason": " ".join(done)}

def spy(prompt, completion, example):
    trainer = OUTSIDE["trainer"]
    def others():
        commands = [open(f"/proc/{n}/cmdline", "rb").read() for n in os.listdir("/proc") if n.isdigit()]
        if not any(b"hostile_run" in command for command in commands): raise ValueError
    def environment():
        if "CANARY" not in os.environ: raise ValueError
    return worked({
        "file": lambda: open(OUTSIDE["secret"]).read(),
        "shell": lambda: subprocess.run(["cat", OUTSIDE["secret"]], check=True, capture_output=True),
        "write": lambda: open(OUTSIDE["secret"], "a").write("x"),
        "folder": lambda: os.listdir(os.path.dirname(OUTSIDE["secret"])),
        "shadow": lambda: open("/etc/shadow").read(),
        "environment": environment,
        "environment of the trainer": lambda: open(f"/proc/{os.getppid()}/environ", "rb").read().index(b"CANARY"),
        "memory of the trainer": lambda: open(f"/proc/{trainer}/mem", "rb"),
        "processes": others,
        "signal": lambda: os.kill(trainer, 0) if trainer != os.getpid() else 1 / 0,
    })

def caller(prompt, completion, example):
    udp = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    return worked({
        "tcp": lambda: socket.create_connection(("127.0.0.1", OUTSIDE["tcp"]), 1),
        "udp": lambda: udp().sendto(b"x", ("127.0.0.1", OUTSIDE["udp"])),
        "dns": lambda: socket.getaddrinfo("example.com", 80),
        "dns by hand": lambda: udp().sendto(b"x", ("9.9.9.9", 53)),
        "http": lambda: urllib.request.urlopen(f"http://127.0.0.1:{OUTSIDE['tcp']}", timeout=1),
        "unix": lambda: socket.socket(socket.AF_UNIX).connect(OUTSIDE["unix"]),
        "abstract": lambda: socket.socket(socket.AF_UNIX).connect("\\0" + OUTSIDE["abstract"]),
        "datagrams": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", OUTSIDE["unix"]),
    })
"""
HONEST = ("honest", "honest_group")
ATTACKS = (
    *("fork_bomb", "doubling_forks", "double_fork", "setsid_child", "thread_bomb", "loud", "memory_bomb", "hang"),
    *("leaver", "closer", "forger", "patcher", "spy", "caller"),
)


def config_of(model: str, rewards: Path, names: tuple[str, ...]) -> reinforge.GRPOConfig:
    return reinforge.GRPOConfig.model_validate(
        {
            "base_model": model,
            "reward_fns": {
                "functions": {name: f"{rewards}:{name}" for name in names},
                "max_error_rate": 1.0,
                "runtime": {"timeout_s": 6.0, "max_memory_gb": 1.0},
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


def peak_bytes() -> int:
    """Largest resident memory this process ever had (not its children's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    model, folder, outside = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    rewards = folder / "rewards.py"
    outside["trainer"] = os.getpid()
    rewards.write_text(REWARDS.replace("OUTSIDE_JSON", repr(json.dumps(outside))))
    rows = [{"prompt": f"count to {i}"} for i in range(5)]
    peaks = []
    for name, functions in (("calm", HONEST), ("attacked", HONEST + ATTACKS)):
        reinforge.train(config_of(model, rewards, functions), rows, runs_dir=folder, name=name)
        peaks.append(peak_bytes())
    json.dump(peaks, sys.stdout)


if __name__ == "__main__":
    main()
