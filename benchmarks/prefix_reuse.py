"""What it saves to compute the common beginnings of prompts once: among the prompts of a rollout, over the turns of a
conversation, and among the prompts of an update. CPU seconds of one thread; both ways alternate in one process on the
benchmark's model of 5.3M parameters. The update's peak memory is that of a process for each way.

    python benchmarks/prefix_reuse.py --repeats 5 --out results.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from machine import commit, machine, versions
from protocol import peak_bytes
from workload import LORA_ALPHA, LORA_RANK, ModelSize, write_model

if TYPE_CHECKING:
    from reinforge.inference.engine import Engine
    from reinforge.policy.model import Policy
    from reinforge.types import Completion, SampleRequest

NUM_PROMPTS, NUM_GENERATIONS, COMPLETION_TOKENS, OWN_TOKENS = 8, 8, 64, 100
ROLLOUT_SYSTEM_TOKENS = (1000, 250, 64)
TURNS, SYSTEM_TOKENS, MESSAGE_TOKENS, ANSWER_TOKENS = 10, 200, 50, 100
KEEP_BYTES = 2**30

Ways = dict[str, Callable[[], Any]]


def make_policy(folder: Path) -> Policy:
    """The benchmark's model with an adapter that does something."""
    import torch

    from reinforge.config import LoraParams
    from reinforge.policy.model import load_policy

    torch.set_num_threads(1)
    write_model(folder / "model", ModelSize())
    lora = LoraParams(rank=LORA_RANK, lora_alpha=LORA_ALPHA)
    return load_policy(str(folder / "model"), lora, seed=0, dtype="float32", device="cpu")


def make_engine(policy: Policy, max_tokens: int, keep_bytes: int = 0) -> Engine:
    """As a run has it; completions end at their length only."""
    from reinforge.config import SamplingParams
    from reinforge.inference.adapters import sampling_copy, sampling_network
    from reinforge.inference.engine import Engine

    own = sampling_copy(policy.model)
    return Engine(
        own.model,
        sampling_params=SamplingParams(),
        max_tokens=max_tokens,
        eos_ids=frozenset(),
        decode=lambda ids: "",
        slots=256,
        shared_prefix=True,
        load_weights=own.load,
        network=sampling_network(own.model, shares_prefix=True),
        keep_bytes=keep_bytes,
    )


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    import torch

    drawn = torch.randint(2, ModelSize().vocab_size, (count,), generator=torch.Generator().manual_seed(seed))
    return tuple(drawn.tolist())


def request(token_ids: Sequence[int], place: int, num_generations: int) -> SampleRequest:
    from reinforge.types import Example, Prompt, SampleRequest

    return SampleRequest(Prompt(Example(place, ""), "", tuple(token_ids)), num_generations, (0, place))


@contextmanager
def nothing_shared() -> Iterator[None]:
    """Every prompt is run on its own."""
    from reinforge.inference import prefill

    original = prefill.prompt_parts
    prefill.prompt_parts = partial(original, min_saved=10**9)
    try:
        yield
    finally:
        prefill.prompt_parts = original


def rollouts(policy: Policy, system_tokens: int, max_tokens: int) -> Ways:
    """The completions of a step whose prompts begin with one system prompt."""
    engine, system = make_engine(policy, max_tokens), random_ids(system_tokens, 0)
    requests = [
        request(system + random_ids(OWN_TOKENS, 1 + place), place, NUM_GENERATIONS) for place in range(NUM_PROMPTS)
    ]

    def apart() -> list[tuple[int, Completion]]:
        with nothing_shared():
            return list(engine.sample(requests))

    return {"apart_s": apart, "reuse_s": lambda: list(engine.sample(requests))}


def conversation(policy: Policy, answer_tokens: int) -> Ways:
    """Turns of a conversation, each with all that was said before it."""
    engines = {
        name: make_engine(policy, answer_tokens, bytes_) for name, bytes_ in (("apart_s", 0), ("reuse_s", KEEP_BYTES))
    }

    def talk(engine: Engine) -> None:
        engine.load(policy.adapter(0))  # forgets the conversation before
        said = random_ids(SYSTEM_TOKENS, 0)
        for turn in range(TURNS):
            said += random_ids(MESSAGE_TOKENS, 1 + turn)
            ((_, completion),) = engine.sample([request(said, turn, 1)])
            said += completion.token_ids

    return {name: partial(talk, engine) for name, engine in engines.items()}


def updates(policy: Policy, system_tokens: int) -> Ways:
    """One optimizer step on the completions of such a rollout."""
    from reinforge.config import GRPOConfig
    from reinforge.learner import batch as batching
    from reinforge.learner.update import LocalLearner
    from reinforge.types import Batch, Completion, Example, Group, Prompt

    draw, system = random.Random(0), random_ids(system_tokens, 0)
    groups = []
    for place in range(NUM_PROMPTS):
        logprobs = (-8.0,) * COMPLETION_TOKENS
        completions = [
            Completion(g, random_ids(COMPLETION_TOKENS, 100 * place + g), "", "length", logprobs, logprobs, 0)
            for g in range(NUM_GENERATIONS)
        ]
        prompt = Prompt(Example(place, ""), "", system + random_ids(OWN_TOKENS, 1 + place))
        groups.append(Group(prompt, 0, tuple(completions), ()))
    advantages = tuple(tuple(draw.uniform(-1, 1) for _ in range(NUM_GENERATIONS)) for _ in groups)
    batch = Batch(tuple(groups), advantages)
    rewards = {"functions": {"unused": "unused.py:unused"}}
    config = GRPOConfig.model_validate({"base_model": "unused", "reward_fns": rewards, "beta": 0.0})
    learner = LocalLearner(policy, config, max_tokens=COMPLETION_TOKENS, learning_rate=0.0)

    def apart() -> None:
        original, batching.MIN_SAVED_TOKENS = batching.MIN_SAVED_TOKENS, 10**9
        try:
            learner.update(batch)
        finally:
            batching.MIN_SAVED_TOKENS = original

    return {"apart_s": apart, "reuse_s": lambda: learner.update(batch)}


def peak_megabytes(way: str) -> float:
    """Largest memory of a process that takes two updates, less what it had before."""
    with tempfile.TemporaryDirectory() as folder:
        ways = updates(make_policy(Path(folder)), ROLLOUT_SYSTEM_TOKENS[0])
        before = peak_bytes()
        for _ in range(2):
            ways[way]()
    return (peak_bytes() - before) / 2**20


def measure(ways: Ways, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each way after one warm-up, in turns, and their ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeats):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    return {**medians, "ratio": medians["apart_s"] / medians["reuse_s"]}


def cases(policy: Policy) -> dict[str, Ways]:
    """By name; those with one token are all but the prefill alone."""
    found: dict[str, Ways] = {}
    for system_tokens in ROLLOUT_SYSTEM_TOKENS:
        found[f"rollout, system prompt of {system_tokens}"] = rollouts(policy, system_tokens, COMPLETION_TOKENS)
        found[f"rollout, system prompt of {system_tokens}, one token"] = rollouts(policy, system_tokens, 1)
        found[f"update, system prompt of {system_tokens}"] = updates(policy, system_tokens)
    found[f"chat of {TURNS} turns"] = conversation(policy, ANSWER_TOKENS)
    found[f"chat of {TURNS} turns, one token each"] = conversation(policy, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_megabytes(options.peak))
        return
    peaks = {}
    for way in ("apart_s", "reuse_s"):
        told = subprocess.run([sys.executable, __file__, "--peak", way], check=True, capture_output=True, text=True)
        peaks[way.replace("_s", "_mb")] = float(told.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: measure(ways, options.repeats) for name, ways in cases(make_policy(Path(folder))).items()}
    figures[f"update, system prompt of {ROLLOUT_SYSTEM_TOKENS[0]}, peak"] = peaks
    result = {"cases": figures, "machine": machine(), "versions": versions(), "commit": commit()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    for name, found in figures.items():
        print(f"{name:45}" + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
