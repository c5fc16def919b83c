"""Whole GRPO steps: TRL's GRPOTrainer against Reinforge, in separate processes that take turns on one thread.

    python benchmarks/vs_trl.py --quick            all shapes, P = 2, a few minutes
    python benchmarks/vs_trl.py --out results.json P = 4, with 16 and with 8 completions for each prompt
    python benchmarks/vs_trl.py --size 50M         a model ten times as large, P = 1
    python benchmarks/vs_trl.py --size 0.5B --device cuda   on a GPU, in bfloat16
    python benchmarks/vs_trl.py --json             one JSON object on stdout, progress on stderr

What is compared and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from floor import measure_rates, step_floor
from machine import commit, machine, versions
from workload import FOR_GPUS, SHAPES, SIZES, Job, ModelSize, Shape, completion_lengths

HERE = Path(__file__).resolve().parent
WARM_UP = 1
"""Steps of each side that are not counted."""
TRL_ROWS = 8
"""TRL's default. Of 2, 4, 8 and 16 it was the fastest on `short` and `long_prompt`; on `long_completion` it was about
6 % behind 2 (README.md)."""
TARGETS = {"short": 2.5, "long_prompt": 8.0, "long_completion": 4.0}
"""Least ratio of a whole step, TRL / Reinforge, that this project set itself."""
MEMORY_TARGETS = {"long_prompt": 2.0}
FURTHER_UPDATE, FURTHER_STEP = 1.8, 1.2
"""How much larger the ratios of update and step have to be when half of the groups teach nothing."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

SIDES = ("trl", "reinforge")

Reply = dict[str, Any]


class Worker:
    """A worker process: one JSON object per line from it, "go" to it."""

    def __init__(self, script: str, job_file: Path) -> None:
        self.script = script
        self.log = job_file.with_suffix(f".{script}.log")
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / script), str(job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env=os.environ | ONE_THREAD,
            )

    def hear(self) -> Reply:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.script} ended early:\n{self.log.read_text()[-3000:]}")
        reply: Reply = json.loads(line)
        return reply

    def step(self) -> Reply:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        return self.hear()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # a worker that waits for its next step ends here
        self._process.wait()
        self._process.stdout.close()


def run_shape(job: Job, folder: Path, budget_s: float) -> Reply:
    """Let the two take turns until the job's steps are done, or the budget is spent and each has a counted step."""
    job_file = folder / f"{job.shape.name}.json"
    job.write(job_file)
    replies: dict[str, list[Reply]] = {"trl": [], "reinforge": []}
    workers = {side: Worker(f"{side}_worker.py", job_file) for side in replies}
    try:
        idle = {side: worker.hear()["idle_bytes"] for side, worker in workers.items()}
        began = time.monotonic()
        for step in range(job.steps):
            if step > WARM_UP and time.monotonic() - began > budget_s:
                break
            for side, worker in workers.items():
                replies[side].append(worker.step())
                tell(f"  step {step} {side}: {replies[side][-1]['cpu_s']:.1f} CPU s")
    finally:
        for worker in workers.values():
            worker.stop()
    compared: Reply = {}
    if job.device == "cpu" and not job.shape.equal_share and not job.shape.beta:  # others: the same, other rewards
        exact = Worker("exactness.py", job_file)
        compared = exact.hear()
        exact.stop()
    row = summary(job, replies, idle) | compared
    return row if job.device == "cpu" else row | shares_of_floor(job, row)


def summary(job: Job, replies: dict[str, list[Reply]], idle: dict[str, int]) -> Reply:
    """Medians of the counted steps of both sides, and their ratios (TRL / Reinforge: above 1, Reinforge needs less). In
    CPU seconds of the process, whose one thread does all of it but the scoring of completions (see StepClock)."""
    tokens = sum(completion_lengths(job.shape, job.num_rows))
    row: Reply = {"name": job.shape.name, "prompt_tokens": job.shape.prompt_tokens, "completion_tokens": tokens}
    row |= {"prompts_per_step": job.prompts_per_step, "num_generations": job.num_generations}
    row["counted_steps"] = len(replies["trl"]) - WARM_UP
    for side, told in replies.items():
        wrong = [reply["completion_tokens"] for reply in told if reply["completion_tokens"] != tokens]
        if wrong:
            raise SystemExit(f"{side} drew {wrong[0]} completion tokens on {job.shape.name}, the job has {tokens}")
        counted = told[WARM_UP:]
        for name in ("rollout", "update", "wall"):
            row[f"{side}_{name}_s"] = statistics.median(reply[f"{name}_s"] for reply in counted)
        row[f"{side}_s"] = statistics.median(reply["cpu_s"] for reply in counted)
        row[f"{side}_step_s"] = [reply["cpu_s"] for reply in counted]
        row[f"{side}_tokens_per_s"] = tokens / row[f"{side}_s"]
        row[f"{side}_idle_bytes"], row[f"{side}_peak_bytes"] = idle[side], max(reply["peak_bytes"] for reply in told)
    row["reinforge_reward_wait_s"] = statistics.median(r["reward_wait_s"] for r in replies["reinforge"][WARM_UP:])
    for name, quantity in (("", "s"), ("rollout_", "rollout_s"), ("update_", "update_s"), ("wall_", "wall_s")):
        row[f"{name}ratio"] = row[f"trl_{quantity}"] / row[f"reinforge_{quantity}"]
    row["memory_ratio"] = row["trl_peak_bytes"] / row["reinforge_peak_bytes"]
    if job.num_generations == 16 and job.size == ModelSize():
        row["target"], row["memory_target"] = TARGETS.get(job.shape.name), MEMORY_TARGETS.get(job.shape.name)
    return row


def shares_of_floor(job: Job, row: Reply) -> Reply:
    """What the arithmetic alone would take (floor.py), as a share of the time it took: of the update, its FLOPs over
    those of this GPU's own products of that size; of the rollout, its tokens per second over the most possible."""
    floor = step_floor(job, measure_rates(job.size, job.num_rows, job.device))
    rollout_s = floor.prefill_s + floor.decode_s
    return {
        f"{side}_{name}_floor_share": seconds / row[f"{side}_{name}_s"]
        for side in SIDES
        for name, seconds in (("rollout", rollout_s), ("update", floor.update_s))
    }


def table(rows: Sequence[Reply]) -> str:
    """For people; the median step, in CPU seconds but for the column that says wall."""
    lines = [f"{'':38}{'rollout':>9}{'update':>9}{'step s':>9}{'wall s':>9}{'tokens/s':>10}{'peak MB':>9}"]
    for row in rows:
        what = f"{row['name']} P={row['prompts_per_step']} G={row['num_generations']}"
        for side, label in (("trl", "TRL"), ("reinforge", "Reinforge")):
            lines.append(
                f"{what:28}{label:10}{row[f'{side}_rollout_s']:9.2f}{row[f'{side}_update_s']:9.2f}"
                f"{row[f'{side}_s']:9.2f}{row[f'{side}_wall_s']:9.2f}"
                f"{row[f'{side}_tokens_per_s']:10.0f}{row[f'{side}_peak_bytes'] / 1e6:9.0f}"
            )
            what = ""
        lines.append(
            f"{'':28}{'ratio':10}{row['rollout_ratio']:8.1f}x{row['update_ratio']:8.1f}x{row['ratio']:8.1f}x"
            f"{row['wall_ratio']:8.1f}x{'':10}{row['memory_ratio']:8.1f}x"
        )
        lines += _against_targets(row, rows)
        if "trl_update_floor_share" in row:
            shares = [f"{row[f'{side}_{name}_floor_share']:.0%}" for name in ("rollout", "update") for side in SIDES]
            lines.append(
                f"{'':28}floor: TRL {shares[0]}, Reinforge {shares[1]} of the rollout; {shares[2]}, {shares[3]} of the "
                "update"
            )
        if "gradient_cosine" in row:
            lines += [
                f"{'':28}same completions: max |logprob difference| {row['max_logprob_difference']:.0e}, "
                f"1 - gradient cosine {1 - row['gradient_cosine']:.0e}",
                f"{'':28}gradient of {TRL_ROWS} of them, CPU s: TRL {row['gradient_trl_s']:.2f}, our plain padded pass "
                f"{row['gradient_plain_s']:.2f}, shared prefix {row['gradient_reinforge_s']:.2f}",
            ]
    return "\n".join(lines)


def _against_targets(row: Reply, rows: Sequence[Reply]) -> list[str]:
    """Lines that hold a row's ratios against what was aimed at."""
    lines = []
    if row.get("target"):
        lines.append(f"{'':28}target: {held(row['ratio'], row['target'])}")
    if row.get("memory_target"):
        lines[-1] += f", memory {held(row['memory_ratio'], row['memory_target'])}"
    if row["name"] == "short_half_equal":
        same = [
            other for other in rows if other["name"] == "short" and other["num_generations"] == row["num_generations"]
        ]
        for all_teach in same:
            update, step = (row[name] / all_teach[name] for name in ("update_ratio", "ratio"))
            lines.append(
                f"{'':28}further than short: update {held(update, FURTHER_UPDATE)}, step {held(step, FURTHER_STEP)}"
            )
    return lines


def held(ratio: float, target: float) -> str:
    """
    >>> held(2.6, 2.5), held(2.4, 2.5)
    ('2.6x of 2.5x, reached', '2.4x of 2.5x, MISSED')
    """
    return f"{ratio:.1f}x of {target:.1f}x, {'reached' if ratio >= target else 'MISSED'}"


def measure(
    shapes: Sequence[Shape],
    *,
    prompts_per_step: int,
    counted_steps: int,
    budget_s: float,
    num_generations: int = 16,
    trl_rows: int = TRL_ROWS,
    size: ModelSize | None = None,
    device: str = "cpu",
) -> list[Reply]:
    """Every shape, one after the other."""
    rows: list[Reply] = []
    with tempfile.TemporaryDirectory(prefix="vs_trl_") as name:
        folder = Path(name)
        for shape in shapes:
            steps = WARM_UP + counted_steps
            job = Job(shape, name, prompts_per_step, num_generations, steps, trl_rows, size or ModelSize(), device)
            if not rows:
                job.write(folder / "model.json")
                command = [sys.executable, str(HERE / "workload.py"), str(folder / "model.json")]
                subprocess.run(command, check=True, env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL)
            tell(f"{shape.name} G={num_generations} ...")
            rows.append(run_shape(job, folder, budget_s))
    return rows


def check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA GPU. Leave out --device, or install a torch with CUDA.")


def about() -> Reply:
    """What everything was measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="P = 2 and at most two counted steps of each side")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="only this one; can be repeated")
    parser.add_argument("--size", choices=list(SIZES), default="5M", help="of the model; 50M takes P = 1 and one step")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: bfloat16, wall seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    shapes, facts = [SHAPES[name] for name in arguments.shape or SHAPES], about()
    if arguments.device == "cuda":
        check_gpu()
        rows = measure(
            shapes, prompts_per_step=4, counted_steps=3, budget_s=600, size=SIZES[arguments.size], device="cuda"
        )
    elif arguments.size in FOR_GPUS:
        parser.error(f"--size {arguments.size} takes hours on a CPU; it is for --device cuda")
    elif arguments.size == "50M":
        rows = measure(shapes, prompts_per_step=1, counted_steps=1, budget_s=0, size=SIZES["50M"])
    elif arguments.quick:
        rows = measure(shapes, prompts_per_step=2, counted_steps=2, budget_s=45)
    else:
        rows = measure(shapes, prompts_per_step=4, counted_steps=3, budget_s=200)
        small = [shape for shape in shapes if shape.name in TARGETS]
        rows += measure(small, prompts_per_step=4, counted_steps=3, budget_s=60, num_generations=8)
    result = {"shapes": rows, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
