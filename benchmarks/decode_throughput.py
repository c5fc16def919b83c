"""Completion tokens per CPU second of drawing completions alone: our engine against transformers' `generate` and its
continuous batching (`generate_batch`), beside the floor of the arithmetic.

    python benchmarks/decode_throughput.py                     three shapes
    python benchmarks/decode_throughput.py --out results.json  also write the JSON; --json prints it

What is compared and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from floor import measure_rates, step_floor
from reinforge_worker import build
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from trl_worker import ForcedLengths
from vs_trl import Reply, about, tell
from workload import END, PAD, SHAPES, Job, ModelSize, Shape, completion_lengths, write_model

from reinforge.types import Prompt, SampleRequest

SIDES = {"reinforge": "Reinforge", "generate": "generate", "generate_batch": "generate_batch"}
PAGE_TOKENS = 64
"""Of generate_batch's cache: of 32, 64, 256 (its default) and 1024 the fastest on `long_prompt`."""
MAX_BATCH_TOKENS = 1024
"""Of one forward pass of generate_batch; with its default, taken from free memory, it is several times slower."""


@dataclass(frozen=True)
class Work:
    """Prompts, and how many tokens each of their completions has."""

    prompts: Sequence[Prompt]
    lengths: Sequence[int]
    """In the order of prompts and their completions."""
    num_generations: int

    @property
    def rows(self) -> list[list[int]]:
        """Each completion's prompt."""
        return [list(prompt.token_ids) for prompt in self.prompts for _ in range(self.num_generations)]


Draw = Callable[[Work], int]
"""Draws the completions -> how many tokens they have."""


def with_engine(sampler: Any) -> Draw:
    """Our engine; reinforge_worker.build has forced the lengths."""

    def draw(work: Work) -> int:
        requests = [SampleRequest(p, work.num_generations, (0, 0, place)) for place, p in enumerate(work.prompts)]
        return sum(completion.num_tokens for _, completion in sampler.sample(requests))

    return draw


def generation_config(max_tokens: int, end: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=PAD
    )


def with_generate(model: PreTrainedModel) -> Draw:
    """All completions as one batch with transformers' dynamic cache, as TRL calls it."""

    def draw(work: Work) -> int:
        forced = ForcedLengths(work.lengths, len(work.rows[0]))
        ids_BT = torch.tensor(work.rows)
        output_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            generation_config=generation_config(max(work.lengths), END),
            logits_processor=[forced],
        )
        is_end_BT = output_BT[:, ids_BT.shape[1] :] == END
        return int((is_end_BT.int().argmax(dim=1) + 1).sum())

    return draw


def with_generate_batch(model: PreTrainedModel) -> Draw:
    """transformers' continuous batching. Its pages are as many as the completions need: it attends to all there are."""

    def draw(work: Work) -> int:
        rows, lengths = work.rows, work.lengths
        needed = [-(-(len(row) + length) // PAGE_TOKENS) for row, length in zip(rows, lengths, strict=True)]
        settings = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS, num_blocks=max(sum(needed), 4), max_batch_tokens=MAX_BATCH_TOKENS
        )
        endless = generation_config(max(lengths), -1)
        with model.continuous_batching_context_manager(
            generation_config=endless, continuous_batching_config=settings
        ) as manager:
            for row, length in zip(rows, lengths, strict=True):
                manager.add_request(row, max_new_tokens=length, eos_token_id=-1)
            return sum(len(result.generated_tokens) for result in _finished(manager, len(rows)))

    return draw


def _finished(manager: Any, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            found.append(result)
        elif result is None and not manager.is_running():
            raise SystemExit("generate_batch ended early")
    return found


def measure_shape(job: Job, repeats: int) -> Reply:
    """Median CPU seconds of each side, taken in turns after one draw of each that is not counted."""
    lengths = completion_lengths(job.shape, job.num_rows)
    built = build(job)
    try:
        work = Work(built.task.train_prompts[: job.prompts_per_step], lengths, job.num_generations)
        own_models = [_load(job) for _ in range(2)]  # generate_batch changes how its model attends
        draws: dict[str, Draw] = {
            "reinforge": with_engine(built.roles.sampler),
            "generate": with_generate(own_models[0]),
            "generate_batch": with_generate_batch(own_models[1]),
        }
        seconds: dict[str, list[float]] = {side: [] for side in draws}
        for repeat in range(repeats + 1):
            for side, draw in draws.items():
                taken = _cpu_seconds(draw, work, sum(lengths), side)
                seconds[side] += [taken] if repeat else []
                tell(f"  {job.shape.name} {side}: {taken:.2f} CPU s")
    finally:
        built.close()
    return summary(job, seconds)


def _load(job: Job) -> Any:
    return AutoModelForCausalLM.from_pretrained(Path(job.folder) / "model", dtype=torch.float32).eval()


def _cpu_seconds(draw: Draw, work: Work, expected: int, side: str) -> float:
    began = time.process_time()
    drawn = draw(work)
    taken = time.process_time() - began
    if drawn != expected:
        raise SystemExit(f"{side} drew {drawn} completion tokens, the job has {expected}")
    return taken


def summary(job: Job, seconds: dict[str, list[float]]) -> Reply:
    """With the floor, whose rates are measured now."""
    floor = step_floor(job, measure_rates(job.size, job.num_rows))
    tokens = sum(completion_lengths(job.shape, job.num_rows))
    row: Reply = {"name": job.shape.name, "prompt_tokens": job.shape.prompt_tokens, "completion_tokens": tokens}
    row |= {"prompts_per_step": job.prompts_per_step, "num_generations": job.num_generations}
    for side, taken in seconds.items():
        row[f"{side}_s"] = statistics.median(taken)
        row[f"{side}_tokens_per_s"] = tokens / row[f"{side}_s"]
        row[f"{side}_ratio"] = row[f"{side}_s"] / statistics.median(seconds["reinforge"])
    row["floor_s"] = floor.prefill_s + floor.decode_s
    row["floor_tokens_per_s"] = tokens / row["floor_s"]
    return row


def table(rows: Sequence[Reply]) -> str:
    """For people."""
    lines = [f"{'':30}{'':16}{'CPU s':>9}{'tokens/s':>10}{'CPU s, times ours':>19}"]
    for row in rows:
        what = f"{row['name']} P={row['prompts_per_step']} G={row['num_generations']}"
        for side, label in SIDES.items():
            ratio = f"{row[f'{side}_ratio']:.1f}x"
            lines.append(f"{what:30}{label:16}{row[f'{side}_s']:9.2f}{row[f'{side}_tokens_per_s']:10.0f}{ratio:>19}")
            what = ""
        share = f"{row['floor_s'] / row['reinforge_s']:.2f}x"
        lines.append(f"{'':30}{'floor':16}{row['floor_s']:9.2f}{row['floor_tokens_per_s']:10.0f}{share:>19}")
    return "\n".join(lines)


def measure(
    shapes: Sequence[Shape], *, prompts: int, num_generations: int, repeats: int, size: ModelSize
) -> list[Reply]:
    """Every shape, one after the other."""
    with tempfile.TemporaryDirectory(prefix="decode_") as folder:
        write_model(Path(folder) / "model", size)
        jobs = [Job(shape, folder, prompts, num_generations, steps=1, trl_rows=1, size=size) for shape in shapes]
        return [measure_shape(job, repeats) for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=2, help="P, of 16 completions each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    facts = about()
    shapes = [SHAPES[name] for name in ("short", "long_prompt", "long_completion")]
    rows = measure(shapes, prompts=arguments.prompts, num_generations=16, repeats=arguments.repeats, size=ModelSize())
    result = {"shapes": rows, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
