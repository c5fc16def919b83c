"""Kills training runs and resumes them; prints what came out as JSON. A program: `python kill_loop.py --help`.

In every run the reward functions are changed after step 3, between two updates on one batch, and right completions are
judged each second step.

Each run is a forked child of one process that has imported everything, so that a hundred kills take minutes, not hours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import reinforge.cluster.local  # noqa: F401 - what a run imports, before the fork
from reinforge import api
from reinforge.config import GRPOConfig
from reinforge.grading.reward_function import SourceText
from reinforge.grading.versions import RewardUpdate
from reinforge.run_store import FAILPOINTS, UPDATE_FAILPOINTS, Run
from reinforge.run_store.control import REWARDS as REWARD_REQUESTS
from reinforge.run_store.control import pending_requests, write_request
from reinforge.run_store.failpoint import VARIABLE

REWARDS = """
def vowels(prompt, completion, example):
    print(example["number"])
    return sum(c in "aeiou" for c in completion) / (1 + len(completion))

def brief(prompts, completions, number, **kwargs):
    return [None if int(n) % 5 == 0 else 1.0 / (1 + len(c)) for c, n in zip(completions, number)]
"""


CHANGED = """
def vowels(prompt, completion, example):
    return sum(c in "aeiouy" for c in completion) / 10

def spaces(prompt, completion, example):
    return completion.count(" ")
"""


class Editor(api.SilentWatcher):
    """Asks for new reward functions when step 1 is done, and again whenever it is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, step: int, metrics: object, groups: object) -> None:
        if step == 1:
            texts = {name: SourceText(CHANGED, "changed.py", name) for name in ("vowels", "spaces")}
            update = RewardUpdate(texts, {"brief": 0.25}, base={"vowels": "vowels_v1"}, at_step=3)
            write_request(self.path, REWARD_REQUESTS, update.to_json(), request_id="edit")


GUESSING = {"slots": 4, "sampling_params": {"max_tokens": 24, "temperature": 0.1}}
AHEAD = {"max_policy_lag": 1, "dynamic_sampling": {"max_rounds": 1}, "adaptive_groups": {"start": 2}}


def make_config(model: Path, folder: Path, changes: Mapping[str, object]) -> GRPOConfig:
    """Several updates per rollout and a checkpoint after each step, so half of them lie between two updates."""
    (folder / "rewards.py").write_text(REWARDS)
    functions = {name: f"{folder / 'rewards.py'}:{name}" for name in ("vowels", "brief")}
    recheck = {"every_steps": 2, "rows": 3, "answer_column": "number", "template": "{answer}"}
    return GRPOConfig.model_validate(
        {
            "base_model": str(model),
            "reward_fns": {"functions": functions, "weights": {"brief": 0.5}, "recheck": recheck},
            "train_steps": 6,
            "prompts_per_step": 3,
            "num_generations": 4,
            "num_iterations": 2,
            "beta": 0.01,
            "lora": {"rank": 4, "lora_dropout": 0.1},
            "learning_rate": 5e-3,
            "sampling_params": {"max_tokens": 12, "top_p": 0.95},
            "save_every": 1,
            "eval": {"every_steps": 2, "max_prompts": 2, "samples_per_prompt": 2},
            "seed": 3,
            **changes,
        }
    )


def in_child(
    work: Callable[[], object],
    failpoint: str | None = None,
    kill_after_s: float | None = None,
    counted_from: Path | None = None,
) -> int:
    """Run `work` in a fork -> its exit status as `os.waitpid` gives it. A kill comes so many seconds after the fork, or
    after the file `counted_from` is there."""
    child = os.fork()
    if child == 0:
        try:
            if failpoint is not None:
                os.environ[VARIABLE] = failpoint
            os.setpgid(0, 0)
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must never come back
            traceback.print_exc()
            os._exit(1)
    if kill_after_s is not None:
        while counted_from is not None and not counted_from.exists():
            time.sleep(0.01)
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def story(path: Path) -> dict[str, object]:
    """Everything of a finished run that must be equal, bit for bit."""
    with Run.open(path) as run:
        steps = [(row.step, row.state_hash, run.row_hash(row.step)) for row in run.steps()]
        evaluations = [{k: v for k, v in e.items() if not k.startswith("time")} for e in run.evaluations()]
        status = run.status()[0]
        updates = [(row.request, row.step, row.message) for row in run.reward_updates()]
        versions = [(row.version, row.first_step, row.last_step, row.num_ok, row.mean) for row in run.functions()]
    adapter = (path / "adapter" / "adapter_model.safetensors").read_bytes().hex()
    requests = [request.id for request in pending_requests(path, REWARD_REQUESTS)]
    sources = {source.name: source.read_text() for source in (path / "rewards").glob("*.py")}
    rewards = {"updates": updates, "versions": versions, "requests": requests, "sources": sources}
    return {"status": status, "steps": steps, "evaluations": evaluations, "adapter": adapter, "rewards": rewards}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--every-failpoint", action="store_true")
    parser.add_argument("--failpoints", nargs="*", default=[])
    parser.add_argument("--random-kills", type=int, default=0)
    parser.add_argument("--ahead", action="store_true", help="rollouts beside the learner, in rounds")
    parser.add_argument("--guessing", action="store_true", help="completions of which tokens can be guessed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = (AHEAD if options.ahead else {}) | (GUESSING if options.guessing else {})
    loop = KillLoop(options.model, options.folder, changes)
    for failpoint in options.failpoints or (every_failpoint() if options.every_failpoint else []):
        loop.at_failpoint(failpoint)
    draw = random.Random(0)
    for _ in range(options.random_kills):
        loop.at_random(draw)
    found = {"kills": loop.kills, "wrong": loop.wrong, "straight_s": loop.straight_s, "guessed": loop.guessed}
    json.dump(found, sys.stdout)


def every_failpoint() -> list[str]:
    """Each named point of a step the first and the sixth time it is passed: in the first step and, but for
    `after_file`, which every checkpoint passes several times, in the last one. Six checkpoints are pruned twice. Those
    of an update the only time."""
    names = [name for name in FAILPOINTS if not name.startswith("rewind")]
    of_steps = [f"{name}={count}" for name in names for count in (1, 2 if name == "checkpoint:during_prune" else 6)]
    return [*of_steps, *UPDATE_FAILPOINTS]


class KillLoop:
    def __init__(self, model: Path, folder: Path, changes: Mapping[str, object]) -> None:
        self.folder = folder
        self.config = make_config(model, folder, changes)
        self.rows = [{"prompt": f"count to {number}", "number": number} for number in range(24)]
        self.kills = 0
        self.wrong: list[str] = []
        started = time.monotonic()
        if in_child(lambda: self.train("straight")) != 0:
            raise SystemExit("the uninterrupted run failed")
        self.straight_s = time.monotonic() - started
        self.expected = story(folder / "straight")
        versions = [row[:3] for row in self.expected["rewards"]["versions"]]  # type: ignore[index]
        assert versions == [
            ("vowels_v1", 1, 3), ("brief_v1", 1, 3), ("vowels_v2", 5, 5), ("brief_v2", 5, 5), ("spaces_v1", 5, 5)
        ], versions  # fmt: skip
        with Run.open(folder / "straight") as run:
            self.trained_s = run.duration_s()
            shares = [row.metrics.get("speed/guessed_share") for row in run.steps()]
            self.guessed = [share for share in shares if share is not None]

    def train(self, name: str) -> None:
        watcher = Editor(self.folder / name)
        api.train(self.config, dataset=self.rows, runs_dir=self.folder, name=name, watcher=watcher)

    def resume(self) -> None:
        api.resume(self.folder / "killed", Editor(self.folder / "killed"))

    def at_failpoint(self, failpoint: str) -> None:
        """Kill at a named point; kill the first resume too, before and after it has deleted rows."""
        status = in_child(lambda: self.train("killed"), failpoint=failpoint)
        if not os.WIFSIGNALED(status):
            self.wrong.append(f"{failpoint}: never passed")
        for again in ("rewind:before_commit", "rewind:after_commit"):
            in_child(self.resume, failpoint=again)
            self.kills += 1
        self.finish(failpoint)

    def at_random(self, draw: random.Random) -> None:
        """Kill at a random time, and the resumed run again."""
        killed = self.folder / "killed"
        moment = draw.uniform(0.0, self.trained_s)
        in_child(lambda: self.train("killed"), kill_after_s=moment, counted_from=killed / "run.json")
        if not self.is_done():
            in_child(self.resume, kill_after_s=draw.uniform(0.0, self.straight_s))
            self.kills += 1
        self.finish(f"at {moment:.3f} s")

    def is_done(self) -> bool:
        with Run.open(self.folder / "killed") as run:
            return run.status()[0] == "succeeded"

    def finish(self, what: str) -> None:
        """Resume to the end and compare with the uninterrupted run."""
        path = self.folder / "killed"
        self.kills += 1
        if not self.is_done() and in_child(self.resume) != 0:
            self.wrong.append(f"{what}: resume failed")
        elif story(path) != self.expected:
            self.wrong.append(f"{what}: differs")
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
