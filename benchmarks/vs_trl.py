"""Whole GRPO steps: TRL's GRPOTrainer against Reinforge, in separate processes that take turns on one thread.

    python benchmarks/vs_trl.py --quick            all shapes, P = 2, a few minutes
    python benchmarks/vs_trl.py --out results.json P = 4
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

from machine import commit, machine, versions
from workload import SHAPES, Job, ModelSize, Shape, completion_lengths

HERE = Path(__file__).resolve().parent
WARM_UP = 1
"""Steps of each side that are not counted."""
TRL_ROWS = 8
"""TRL's default, and within 4 % of its fastest on every shape (README.md)."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

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
                tell(f"  step {step} {side}: {replies[side][-1]['total_s']:.1f} s")
    finally:
        for worker in workers.values():
            worker.stop()
    exact = Worker("exactness.py", job_file)
    compared = exact.hear()
    exact.stop()
    return summary(job, replies, idle) | compared


def summary(job: Job, replies: dict[str, list[Reply]], idle: dict[str, int]) -> Reply:
    """Medians of the counted steps of both sides, and their ratios (TRL / Reinforge: above 1, Reinforge needs less)."""
    tokens = sum(completion_lengths(job.shape, job.num_rows))
    row: Reply = {"name": job.shape.name, "prompt_tokens": job.shape.prompt_tokens, "completion_tokens": tokens}
    row |= {"prompts_per_step": job.prompts_per_step, "num_generations": job.num_generations}
    row["counted_steps"] = len(replies["trl"]) - WARM_UP
    for side, told in replies.items():
        wrong = [reply["completion_tokens"] for reply in told if reply["completion_tokens"] != tokens]
        if wrong:
            raise SystemExit(f"{side} drew {wrong[0]} completion tokens on {job.shape.name}, the job has {tokens}")
        counted = told[WARM_UP:]
        for name in ("rollout", "reward", "update", "cpu"):
            row[f"{side}_{name}_s"] = statistics.median(reply[f"{name}_s"] for reply in counted)
        row[f"{side}_s"] = statistics.median(reply["total_s"] for reply in counted)
        row[f"{side}_step_s"] = [reply["total_s"] for reply in counted]
        row[f"{side}_tokens_per_s"] = tokens / row[f"{side}_s"]
        row[f"{side}_idle_bytes"], row[f"{side}_peak_bytes"] = idle[side], max(reply["peak_bytes"] for reply in told)
    for name, quantity in (("", "s"), ("rollout_", "rollout_s"), ("update_", "update_s"), ("cpu_", "cpu_s")):
        row[f"{name}ratio"] = row[f"trl_{quantity}"] / row[f"reinforge_{quantity}"]
    row["memory_ratio"] = row["trl_peak_bytes"] / row["reinforge_peak_bytes"]
    return row


def table(rows: Sequence[Reply]) -> str:
    """For people; wall seconds of the median step."""
    lines = [
        f"{'':35}{'rollout':>9}{'reward':>8}{'update':>9}{'step s':>9}{'CPU s':>8}{'tokens/s':>10}{'peak MB':>9}",
    ]
    for row in rows:
        what = f"{row['name']} P={row['prompts_per_step']} G={row['num_generations']}"
        for side, label in (("trl", "TRL"), ("reinforge", "Reinforge")):
            lines.append(
                f"{what:25}{label:10}{row[f'{side}_rollout_s']:9.2f}{row[f'{side}_reward_s']:8.3f}"
                f"{row[f'{side}_update_s']:9.2f}{row[f'{side}_s']:9.2f}{row[f'{side}_cpu_s']:8.2f}"
                f"{row[f'{side}_tokens_per_s']:10.0f}{row[f'{side}_peak_bytes'] / 1e6:9.0f}"
            )
            what = ""
        lines.append(
            f"{'':25}{'ratio':10}{row['rollout_ratio']:8.1f}x{'':8}{row['update_ratio']:8.1f}x{row['ratio']:8.1f}x"
            f"{row['cpu_ratio']:7.1f}x{'':10}{row['memory_ratio']:8.1f}x"
        )
        lines.append(
            f"{'':25}same completions: max |logprob difference| {row['max_logprob_difference']:.0e}, "
            f"1 - gradient cosine {1 - row['gradient_cosine']:.0e}"
        )
        lines.append(
            f"{'':25}gradient of {TRL_ROWS} of them, CPU s: TRL {row['gradient_trl_s']:.2f}, our plain padded pass "
            f"{row['gradient_plain_s']:.2f}, shared prefix {row['gradient_reinforge_s']:.2f}"
        )
    return "\n".join(lines)


def measure(
    shapes: Sequence[Shape],
    *,
    prompts_per_step: int,
    counted_steps: int,
    budget_s: float,
    num_generations: int = 16,
    trl_rows: int = TRL_ROWS,
    size: ModelSize | None = None,
) -> Reply:
    """Every shape, and what it was measured on."""
    about = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    rows: list[Reply] = []
    with tempfile.TemporaryDirectory(prefix="vs_trl_") as name:
        folder = Path(name)
        for shape in shapes:
            steps = WARM_UP + counted_steps
            job = Job(shape, name, prompts_per_step, num_generations, steps, trl_rows, size or ModelSize())
            if not rows:
                job.write(folder / "model.json")
                command = [sys.executable, str(HERE / "workload.py"), str(folder / "model.json")]
                subprocess.run(command, check=True, env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL)
            tell(f"{shape.name} ...")
            rows.append(run_shape(job, folder, budget_s))
    return {"shapes": rows, **about}


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="P = 2 and at most two counted steps of each side")
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="only this one; can be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    shapes = [SHAPES[name] for name in arguments.shape or SHAPES]
    if arguments.quick:
        result = measure(shapes, prompts_per_step=2, counted_steps=2, budget_s=80)
    else:
        result = measure(shapes, prompts_per_step=4, counted_steps=3, budget_s=300)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(result["shapes"]))


if __name__ == "__main__":
    main()
