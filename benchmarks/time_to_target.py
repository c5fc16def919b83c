"""Seconds until the Countdown demo's model gives 45 % right answers to held-out problems: TRL's GRPOTrainer against
Reinforge, in separate processes that take turns step by step, one thread each.

    python benchmarks/time_to_target.py                     three seeds
    python benchmarks/time_to_target.py --quick             one seed
    python benchmarks/time_to_target.py --out results.json  also write the JSON; --json prints it

What is compared and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from countdown import HeldOut, Job
from vs_trl import Reply, Worker, about, held, tell

TARGET = 0.45
"""Sampled correctness on held-out problems."""
RATIO_TARGET = 3.0
"""Least ratio of wall seconds, TRL / Reinforge, that this project set itself."""
SEEDS = (0, 1, 2)
EVALUATE_EVERY = 3
"""Steps. A side's time is known to this many of its steps."""
TRL_ROWS = 32
SIDES = ("trl", "reinforge")


@dataclass
class Course:
    """One side's way to the target; seconds are those of its steps alone."""

    steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    completion_tokens: int = 0
    curve: list[Reply] = field(default_factory=list)
    """Each adapter that was judged, the first before training."""

    def add(self, reply: Reply) -> None:
        """A step. CPU seconds are those of the process and of the ones it started (the reward functions' worker)."""
        self.steps += 1
        self.wall_s += reply["wall_s"]
        self.cpu_s += reply["cpu_s"] + reply["children_s"]
        self.completion_tokens += reply["completion_tokens"]

    def judged(self, found: Reply) -> None:
        self.curve.append({"step": self.steps, "wall_s": self.wall_s, "cpu_s": self.cpu_s, **found})

    def has_reached(self, target: float) -> bool:
        return self.curve[-1]["correct"] >= target

    def summary(self, target: float) -> Reply:
        last = self.curve[-1]
        return {
            "s": last["wall_s"],
            "cpu_s": last["cpu_s"],
            "steps": last["step"],
            "reached": self.has_reached(target),
            "completion_tokens": self.completion_tokens,
            "curve": self.curve,
        }


def run_seed(job: Job, held_out: HeldOut, target: float = TARGET) -> Reply:
    """Let the two take turns until each has reached the target or made all its steps."""
    config = job.config()
    job_file = Path(job.folder) / f"seed{config.seed}.json"
    job.write(job_file)
    before = held_out.judge(None)
    courses = {side: Course() for side in SIDES}
    workers = {side: Worker(f"countdown_{side}.py", job_file) for side in SIDES}
    try:
        for side, worker in workers.items():
            worker.hear()
            courses[side].judged(before)
        for _ in range(config.train_steps):
            for side in [side for side in SIDES if not courses[side].has_reached(target)]:
                _take_turn(side, workers[side], courses[side], held_out)
    finally:
        for worker in workers.values():
            worker.stop()
    return seed_summary(config.seed, courses, target)


def _take_turn(side: str, worker: Worker, course: Course, held_out: HeldOut) -> None:
    reply = worker.step()
    course.add(reply)
    if "adapter" in reply:
        found = held_out.judge(Path(reply["adapter"]))
        course.judged(found)
        tell(f"  {side} step {course.steps}: {course.wall_s:.1f} s ({course.cpu_s:.1f} CPU), {found['correct']:.3f}")


def seed_summary(seed: int, courses: dict[str, Course], target: float) -> Reply:
    """Seconds of both sides and their ratios; where TRL did not reach the target these are the least they can be, and
    where Reinforge did not there are none."""
    row: Reply = {"seed": seed}
    for side, course in courses.items():
        row |= {f"{side}_{name}": value for name, value in course.summary(target).items()}
    reached = row["reinforge_reached"]
    row["ratio"] = row["trl_s"] / row["reinforge_s"] if reached else None
    row["cpu_ratio"] = row["trl_cpu_s"] / row["reinforge_cpu_s"] if reached else None
    for side in SIDES:
        row[f"{side}_step_s"] = row[f"{side}_cpu_s"] / row[f"{side}_steps"]
    return row


def total(rows: Sequence[Reply]) -> Reply:
    """Mean seconds over the seeds, and their ratios as in `seed_summary`."""
    whole: Reply = {"target": RATIO_TARGET}
    for side in SIDES:
        for name in ("s", "cpu_s", "steps"):
            whole[f"{side}_{name}"] = sum(row[f"{side}_{name}"] for row in rows) / len(rows)
        whole[f"{side}_reached"] = all(row[f"{side}_reached"] for row in rows)
    reached = whole["reinforge_reached"]
    whole["ratio"] = whole["trl_s"] / whole["reinforge_s"] if reached else None
    whole["cpu_ratio"] = whole["trl_cpu_s"] / whole["reinforge_cpu_s"] if reached else None
    return whole


def table(rows: Sequence[Reply], whole: Reply) -> str:
    """For people: a side that did not get there has a > before its seconds."""
    lines = [f"{'':10}{'':12}{'wall s':>9}{'CPU s':>9}{'steps':>7}{'CPU s/step':>12}   correct at step"]
    for row in rows:
        for side, label in (("trl", "TRL"), ("reinforge", "Reinforge")):
            sign = "" if row[f"{side}_reached"] else ">"
            curve = "  ".join(f"{point['step']}: {point['correct']:.2f}" for point in row[f"{side}_curve"])
            seed = f"seed {row['seed']}" if side == "trl" else ""
            wall, cpu = f"{sign}{row[f'{side}_s']:.1f}", f"{sign}{row[f'{side}_cpu_s']:.1f}"
            lines.append(
                f"{seed:10}{label:12}{wall:>9}{cpu:>9}{row[f'{side}_steps']:>7}{row[f'{side}_step_s']:>12.2f}   {curve}"
            )
        lines.append(f"{'':10}{'ratio':12}{_ratio(row, 'ratio'):>9}{_ratio(row, 'cpu_ratio'):>9}")
    lines.append(
        f"{'mean':10}{'ratio':12}{_ratio(whole, 'ratio'):>9}{_ratio(whole, 'cpu_ratio'):>9}   wall: {_verdict(whole)}"
    )
    return "\n".join(lines)


def _ratio(row: Reply, name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{'' if row['trl_reached'] else '>'}{row[name]:.1f}x"


def _verdict(whole: Reply) -> str:
    return "Reinforge did not get there, MISSED" if whole["ratio"] is None else held(whole["ratio"], RATIO_TARGET)


def measure(seeds: Sequence[int], *, trl_generate_batch: bool) -> list[Reply]:
    """Every seed, one after the other."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="time_to_target_") as folder:
        jobs = [Job(folder, EVALUATE_EVERY, TRL_ROWS, (f"seed={seed}",), trl_generate_batch) for seed in seeds]
        for job in jobs:
            with HeldOut(job) as held_out:
                tell(f"{job.overrides[-1]} ...")
                rows.append(run_seed(job, held_out))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--trl-generate",
        action="store_true",
        help="TRL draws with generate, its default; continuous batching is faster",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    facts = about()
    rows = measure(SEEDS[:1] if arguments.quick else SEEDS, trl_generate_batch=not arguments.trl_generate)
    whole = total(rows)
    facts["trl_generate_batch"] = not arguments.trl_generate
    result = {"correct": TARGET, "seeds": rows, **whole, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(rows, whole))


if __name__ == "__main__":
    main()
