"""Sampling with guessed tokens in the tail (`sampling_params.speculation`) against sampling without.

One process, one thread; the two alternate on the same requests, and every pair must draw the same tokens. CPU seconds,
the least of the repeats of each call, summed; ratios are off / on: above 1 guessing is faster.

    python benchmarks/speculation.py --repeats 3
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from reinforge_worker import force_lengths
from workload import SHAPES, SIZES, ModelSize, completion_lengths, write_model

from reinforge.cluster.local import make_sampler
from reinforge.config import LoraParams, SamplingParams
from reinforge.data.render import Renderer
from reinforge.inference.engine import Engine
from reinforge.policy.model import Policy, load_policy
from reinforge.policy.network import Network
from reinforge.policy.slots import NetworkSlots
from reinforge.types import Completion, Example, Prompt, SampleRequest

torch.set_num_threads(1)
Requests = Sequence[SampleRequest]
Case = tuple[dict[bool, Engine], list[Requests]]


def load(folder: Path) -> Policy:
    return load_policy(str(folder), LoraParams(), seed=0, dtype="float32", device="cpu")


def engines(policy: Policy, max_tokens: int, **params: Any) -> dict[bool, Engine]:
    """Without speculation and with."""
    renderer = Renderer.from_folder(policy.folder, today=datetime.datetime(2026, 1, 1))
    return {
        on: make_sampler(policy, renderer, SamplingParams(speculation=on, **params), max_tokens, 256)
        for on in (False, True)
    }


def compare(pair: Mapping[bool, Engine], calls: Sequence[Requests], repeats: int) -> dict[str, float]:
    """Every call with both, in turns."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    list(pair[False].sample(calls[0])), list(pair[True].sample(calls[0]))
    pair[True].take_figures()
    num_different = num_completions = 0
    for number, requests in enumerate(calls):
        best = {False: float("inf"), True: float("inf")}
        for repeat in range(repeats):
            drawn: dict[bool, dict[tuple[int, int], Completion]] = {}
            for on in (False, True) if (number + repeat) % 2 else (True, False):
                started = time.process_time()
                drawn[on] = {(place, c.generation): c for place, c in pair[on].sample(requests)}
                best[on] = min(best[on], time.process_time() - started)
        num_completions += len(drawn[True])
        num_different += sum(c.token_ids != drawn[False][key].token_ids for key, c in drawn[True].items())
        for on, least in best.items():
            seconds[on].append(least)
    off_s, on_s = sum(seconds[False]), sum(seconds[True])
    figures = {"off_s": off_s, "on_s": on_s, "ratio": off_s / on_s, **pair[True].take_figures()}
    return figures | {"completions": num_completions, "rounded_apart": num_different}


def countdown(num_calls: int, num_generations: int, *, greedy: bool = False, **params: Any) -> Case:
    """Steps of the demo, from its base."""
    folder = Path(str(files("reinforge.recipes") / "countdown"))
    policy = load(folder / "base")
    renderer = Renderer.from_folder(policy.folder, today=datetime.datetime(2026, 1, 1))
    rows = [json.loads(line) for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    prompts = [renderer.prompt(Example(i, row["prompt"], row)) for i, row in enumerate(rows[: 16 * num_calls])]
    calls = [
        [SampleRequest(prompts[16 * call + i], num_generations, (0, call, i), greedy=greedy) for i in range(16)]
        for call in range(num_calls)
    ]
    return engines(policy, 320, **params), calls


def random_weights(num_calls: int, size: ModelSize, folder: Path, temperature: float) -> Case:
    """`long_completion` of vs_trl.py with forced lengths: nothing can be guessed at temperature 1; near 0 the model
    falls into loops, and nearly everything can."""
    shape = SHAPES["long_completion"]
    write_model(folder / "model", size)
    pair = engines(load(folder / "model"), shape.max_tokens, temperature=temperature)
    for engine in pair.values():
        force_lengths(engine, completion_lengths(shape, 64), 16)
    generator = torch.Generator().manual_seed(0)
    calls = []
    for call in range(num_calls):
        ids = torch.randint(2, size.vocab_size, (4, shape.prompt_tokens), generator=generator).tolist()
        prompts = [Prompt(Example(i, ""), "", tuple(row)) for i, row in enumerate(ids)]
        calls.append([SampleRequest(prompt, 16, (0, call, i)) for i, prompt in enumerate(prompts)])
    return pair, calls


@torch.inference_mode()
def pass_costs(folder: Path) -> dict[str, list[float]]:
    """Rows -> cost of a pass of 1, 2, 3, 5, 9 and 13 tokens for each, in passes of one token, behind 200 tokens."""
    policy = load(folder)
    network = Network.of(policy.model)
    assert network is not None
    network.adopt_weights()
    costs = {}
    for num_rows in (1, 2, 4):
        slots, lengths_B = NetworkSlots(network, num_rows), torch.arange(num_rows) + 200
        least = []
        for num_tokens in (1, 2, 3, 5, 9, 13):
            ids = torch.randint(2, 300, (num_rows, num_tokens))
            least.append(min(seconds(partial(slots.extend, ids, lengths_B)) for _ in range(30)))
        costs[str(num_rows)] = [round(value / least[0], 2) for value in least]
    return costs


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    for _ in range(10):
        work()
    return (time.process_time() - started) / 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        cases: dict[str, Callable[[], Case]] = {
            "countdown": lambda: countdown(options.calls, 8),
            "countdown, greedy": lambda: countdown(options.calls, 1, greedy=True),
            "countdown, temperature 0.3": lambda: countdown(options.calls, 8, temperature=0.3),
            "long_completion 5M, random": lambda: random_weights(1, SIZES["5M"], folder, 1.0),
            "long_completion 5M, loops": lambda: random_weights(1, SIZES["5M"], folder, 0.01),
        }
        for name, make in cases.items():
            figures = compare(*make(), options.repeats)
            told = "  ".join(f"{key} {value:.3f}" for key, value in figures.items())
            print(f"{name:28}  {told}", flush=True)
        for name, base in (
            ("countdown", Path(str(files("reinforge.recipes") / "countdown" / "base"))),
            ("5M", folder / "model"),
        ):
            print(f"pass of 1, 2, 3, 5, 9, 13 tokens, {name}: {pass_costs(base)}", flush=True)


if __name__ == "__main__":
    main()
