"""Completion tokens per CPU second of one sampler that serves several adapters on one base: our engine against PEFT's
mixed batches (`generate` with `adapter_names`), for one adapter and for eight.

    python benchmarks/adapter_throughput.py                     the table
    python benchmarks/adapter_throughput.py --out results.json  also write the JSON; --json prints it

What is compared and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from decode_throughput import generation_config
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from reinforge_worker import force_lengths
from transformers import AutoModelForCausalLM
from trl_worker import ForcedLengths
from vs_trl import Reply, about, tell
from workload import END, LORA_ALPHA, LORA_RANK, Job, ModelSize, Shape, prompts, write_model

from reinforge.cluster.local import make_sampler, make_shared_sampler
from reinforge.config import LoraParams, SamplingParams
from reinforge.data.render import Renderer
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Adapter, Example, Prompt, SampleRequest

NUM_ADAPTERS = 8
NUM_REQUESTS = 32
SHAPE = Shape("requests", 64, 64)
LORA = LoraParams(rank=LORA_RANK, lora_alpha=LORA_ALPHA)
LABELS = {
    "merged": "Reinforge, one adapter added into the weights",
    "base": "Reinforge, adapters held but none asked for",
    "one": "Reinforge, one adapter held apart",
    "eight": "Reinforge, eight adapters in one batch",
    "in_turn": "Reinforge, eight adapters one after the other",
    "peft_one": "PEFT, one adapter",
    "peft_eight": "PEFT, eight adapters in one batch",
}

Adapters = Mapping[str, Adapter]
Draw = Callable[[], int]


def make_adapters(policy: Policy, count: int) -> dict[str, Adapter]:
    """Random ones, B included."""
    generator = torch.Generator().manual_seed(4)
    shapes = {name: tensor.shape for name, tensor in policy.adapter(0).weights.items()}
    return {
        f"adapter{i}": Adapter(i, {n: 0.05 * torch.randn(s, generator=generator) for n, s in shapes.items()})
        for i in range(count)
    }


class Ours:
    """Our two samplers: adapters added into the weights one at a time, and held apart from the base."""

    def __init__(self, policy: Policy, adapters: Adapters, requests: Sequence[Prompt]) -> None:
        renderer, tokens = Renderer.from_folder(policy.folder), SHAPE.max_tokens
        options = {"params": SamplingParams(), "max_tokens": tokens, "slots": len(requests)}
        self.merged = make_sampler(policy, renderer, **options)  # type: ignore[arg-type]
        self.shared = make_shared_sampler(policy, renderer, **options)  # type: ignore[arg-type]
        for name, adapter in adapters.items():
            self.shared.add_adapter(name, adapter, LORA)
        for engine in (self.merged, self.shared):
            force_lengths(engine, [tokens] * len(requests), 1)
        self.adapters, self.prompts = adapters, requests

    def together(self, names: Sequence[str | None]) -> Draw:
        """Request i with the adapter i modulo their number, all in one call."""
        requests = [
            SampleRequest(prompt, 1, (0, 0, place), adapter=names[place % len(names)])
            for place, prompt in enumerate(self.prompts)
        ]
        return lambda: sum(completion.num_tokens for _, completion in self.shared.sample(requests))

    def in_turn(self, names: Sequence[str]) -> Draw:
        """The same requests with adapters added into the weights: a call for each adapter."""

        def draw() -> int:
            total = 0
            for place, name in enumerate(names):
                self.merged.load(self.adapters[name])
                own = self.prompts[place :: len(names)]
                requests = [SampleRequest(prompt, 1, (0, 0, i)) for i, prompt in enumerate(own)]
                total += sum(completion.num_tokens for _, completion in self.merged.sample(requests))
            return total

        return draw


def with_peft(folder: Path, adapters: Adapters, requests: Sequence[Prompt], names: Sequence[str]) -> Draw:
    """PEFT's model with these adapters; request i has the adapter i modulo their number."""
    config = LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for a property that transformers 5 has renamed
        model = get_peft_model(base, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
    for name in names:
        set_peft_model_state_dict(model, dict(adapters[name].weights), adapter_name=name)
    model.eval()
    ids_BT = torch.tensor([prompt.token_ids for prompt in requests])
    lengths = [SHAPE.max_tokens] * len(requests)
    own: dict[str, Any] = {"adapter_names": [names[i % len(names)] for i in range(len(requests))]}

    def draw() -> int:
        output_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=generation_config(SHAPE.max_tokens, END),
            logits_processor=[ForcedLengths(lengths, ids_BT.shape[1])],
            **(own if len(names) > 1 else {}),
        )
        return int(output_BT[:, ids_BT.shape[1] :].numel())

    return draw


def make_draws(folder: Path, size: ModelSize) -> dict[str, Draw]:
    """Everything that is measured, by its name in LABELS."""
    policy = load_policy(str(folder), LORA, seed=0, dtype="float32", device="cpu")
    renderer = Renderer.from_folder(folder)
    job = Job(SHAPE, str(folder.parent), NUM_REQUESTS, 1, steps=1, trl_rows=1, size=size)
    requests = [renderer.prompt(Example(i, text)) for i, text in enumerate(prompts(job))]
    adapters = make_adapters(policy, NUM_ADAPTERS)
    names, ours = list(adapters), Ours(policy, adapters, requests)
    return {
        "merged": ours.in_turn(names[:1]),
        "base": ours.together([None]),
        "one": ours.together(names[:1]),
        "eight": ours.together(names),
        "in_turn": ours.in_turn(names),
        "peft_one": with_peft(folder, adapters, requests, names[:1]),
        "peft_eight": with_peft(folder, adapters, requests, names),
    }


def measure(size: ModelSize, repeats: int) -> list[Reply]:
    """Median CPU seconds of each, taken in turns after one draw of each that is not counted."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in LABELS}
    with tempfile.TemporaryDirectory(prefix="adapters_") as name:
        folder = Path(name) / "model"
        write_model(folder, size)
        draws = make_draws(folder, size)
        for repeat in range(repeats + 1):
            for side, draw in draws.items():
                taken = _cpu_seconds(draw, side)
                seconds[side] += [taken] if repeat else []
                tell(f"  {side}: {taken:.2f} CPU s")
    return summary(seconds)


def _cpu_seconds(draw: Draw, side: str) -> float:
    began = time.process_time()
    drawn, wanted = draw(), NUM_REQUESTS * SHAPE.max_tokens
    if drawn != wanted:
        raise SystemExit(f"{side} drew {drawn} completion tokens, there are {wanted} to draw")
    return time.process_time() - began


def summary(seconds: Mapping[str, Sequence[float]]) -> list[Reply]:
    """`ratio`: seconds over those of our eight adapters in one batch."""
    ours = statistics.median(seconds["eight"])
    tokens = NUM_REQUESTS * SHAPE.max_tokens
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [{"name": name, "s": s, "tokens_per_s": tokens / s, "ratio": s / ours} for name, s in medians.items()]


def table(rows: Sequence[Reply]) -> str:
    """For people."""
    lines = [f"{'':50}{'CPU s':>9}{'tokens/s':>10}{'CPU s, times our eight':>24}"]
    for row in rows:
        ratio = f"{row['ratio']:.2f}x"
        lines.append(f"{LABELS[row['name']]:50}{row['s']:9.2f}{row['tokens_per_s']:10.0f}{ratio:>24}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    facts = about()
    rows = measure(ModelSize(), arguments.repeats)
    result = {"adapters": NUM_ADAPTERS, "requests": NUM_REQUESTS, "sides": rows, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
