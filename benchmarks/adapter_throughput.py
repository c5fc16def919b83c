"""Completion tokens per CPU second, and CPU seconds to the first token, of one sampler that serves several adapters on
one base: our engine against PEFT's mixed batches (`generate` with `adapter_names`), for one adapter and for eight.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from decode_throughput import generation_config
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from reinforge_worker import force_lengths
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor
from trl_worker import ForcedLengths
from vs_trl import Reply, about, tell
from workload import END, LORA_ALPHA, LORA_RANK, Job, ModelSize, Shape, prompts, write_model

from reinforge.cluster.local import make_sampler, make_shared_sampler
from reinforge.config import LoraParams, SamplingParams
from reinforge.data.render import Renderer
from reinforge.inference.engine import Engine
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Adapter, Completion, Example, Prompt, SampleRequest

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


@dataclass
class Drawing:
    """What one draw of all requests tells."""

    began: float = field(default_factory=time.process_time)
    first_token_s: list[float] = field(default_factory=list)
    """CPU seconds from the beginning to the first token of each request."""
    completions: dict[int, Completion] = field(default_factory=dict)
    """Ours, by request."""
    num_tokens: int = 0

    def note_first(self, count: int = 1) -> None:
        self.first_token_s += [time.process_time() - self.began] * count


Draw = Callable[[Drawing], None]


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
            self._note_firsts(engine)
        self.adapters, self.prompts = adapters, requests
        self._drawing = Drawing()

    def _note_firsts(self, engine: Engine) -> None:
        inner = engine._completion

        def completion(row: Any) -> Completion | None:
            if len(row.token_ids) == 1:
                self._drawing.note_first()
            return inner(row)

        engine._completion = completion  # type: ignore[method-assign]

    def _draw(self, engine: Engine, drawing: Drawing, names: Mapping[int, str | None]) -> None:
        """One call for the requests at these places."""
        self._drawing, places = drawing, list(names)
        requests = [SampleRequest(self.prompts[i], 1, (0, 0, i), adapter=names[i]) for i in places]
        for index, completion in engine.sample(requests):
            drawing.completions[places[index]] = completion
            drawing.num_tokens += completion.num_tokens

    def together(self, names: Sequence[str | None]) -> Draw:
        """Request i with the adapter i modulo their number, all in one call."""
        asked = {place: names[place % len(names)] for place in range(len(self.prompts))}
        return lambda drawing: self._draw(self.shared, drawing, asked)

    def in_turn(self, names: Sequence[str]) -> Draw:
        """The same requests with adapters added into the weights: a call for each adapter."""

        def draw(drawing: Drawing) -> None:
            for place, name in enumerate(names):
                self.merged.load(self.adapters[name])
                self._draw(self.merged, drawing, dict.fromkeys(range(place, len(self.prompts), len(names))))

        return draw


class NoteFirst(LogitsProcessor):
    """Tells when the first tokens of a batch are about to be drawn."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.drawing.first_token_s:
            self.drawing.note_first(len(input_ids))
        return scores


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

    def draw(drawing: Drawing) -> None:
        output_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=generation_config(SHAPE.max_tokens, END),
            logits_processor=[NoteFirst(drawing), ForcedLengths(lengths, ids_BT.shape[1])],
            **(own if len(names) > 1 else {}),
        )
        drawing.num_tokens = output_BT[:, ids_BT.shape[1] :].numel()

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


def measure(size: ModelSize, repeats: int) -> Reply:
    """Medians of each, taken in turns after one draw of each that is not counted."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in LABELS}
    drawings: dict[str, Drawing] = {}
    with tempfile.TemporaryDirectory(prefix="adapters_") as name:
        folder = Path(name) / "model"
        write_model(folder, size)
        draws = make_draws(folder, size)
        for repeat in range(repeats + 1):
            for side, draw in draws.items():
                drawings[side], taken = _timed(draw, side)
                seconds[side] += [taken] if repeat else []
                tell(f"  {side}: {taken:.2f} CPU s")
    return {
        "adapters": NUM_ADAPTERS,
        "requests": NUM_REQUESTS,
        "max_logprob_difference": logprob_difference(drawings["eight"].completions, drawings["in_turn"].completions),
        "sides": summary(seconds, drawings),
    }


def _timed(draw: Draw, side: str) -> tuple[Drawing, float]:
    drawing, wanted = Drawing(), NUM_REQUESTS * SHAPE.max_tokens
    draw(drawing)
    taken = time.process_time() - drawing.began
    if drawing.num_tokens != wanted:
        raise SystemExit(f"{side} drew {drawing.num_tokens} completion tokens, there are {wanted} to draw")
    return drawing, taken


def summary(seconds: Mapping[str, Sequence[float]], drawings: Mapping[str, Drawing]) -> list[Reply]:
    """`ratio`: seconds over those of our eight adapters in one batch. First tokens: of the last draw."""
    ours = statistics.median(seconds["eight"])
    tokens = NUM_REQUESTS * SHAPE.max_tokens
    rows = []
    for name, taken in seconds.items():
        s, firsts = statistics.median(taken), drawings[name].first_token_s
        row = {"name": name, "s": s, "tokens_per_s": tokens / s, "ratio": s / ours}
        rows.append(row | {"first_token_mean_s": statistics.mean(firsts), "first_token_max_s": max(firsts)})
    return rows


def logprob_difference(one: Mapping[int, Completion], other: Mapping[int, Completion]) -> float:
    """Largest, as long as both drew the same tokens; they draw with the same random numbers."""
    gaps = [0.0]
    for place, completion in one.items():
        theirs = other[place]
        for i, (ours, their) in enumerate(zip(completion.token_ids, theirs.token_ids, strict=True)):
            if ours != their:
                break
            gaps.append(abs(completion.logprobs[i] - theirs.logprobs[i]))
    return max(gaps)


def table(found: Reply) -> str:
    """For people."""
    lines = [f"{'':47}{'CPU s':>7}{'tokens/s':>10}{'times our eight':>17}{'first token s, mean':>21}{'last':>7}"]
    for row in found["sides"]:
        ratio = f"{row['ratio']:.2f}x"
        lines.append(
            f"{LABELS[row['name']]:47}{row['s']:7.2f}{row['tokens_per_s']:10.0f}{ratio:>17}"
            f"{row['first_token_mean_s']:21.3f}{row['first_token_max_s']:7.3f}"
        )
    lines.append(
        f"largest logprob difference of our eight, in one batch and in turn: {found['max_logprob_difference']:.0e}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    facts = about()
    result = measure(ModelSize(), arguments.repeats) | facts
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(result))


if __name__ == "__main__":
    main()
