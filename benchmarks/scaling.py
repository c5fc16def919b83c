"""Our step over completions per prompt, prompt length and model size: CPU seconds of rollout and update, and peak
memory, beside the floor of the arithmetic.

    python benchmarks/scaling.py                                          table
    python benchmarks/scaling.py --out results.json --picture scaling.png also write the JSON and the curves
    python benchmarks/scaling.py --json                                   one JSON object on stdout

What is measured and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from floor import measure_rates, step_floor
from vs_trl import HERE, ONE_THREAD, WARM_UP, Reply, Worker, about, tell
from workload import FOR_GPUS, SIZES, Job, ModelSize, Shape

TINY = ModelSize(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=352)


@dataclass(frozen=True)
class Point:
    """One place on one of the curves."""

    curve: str
    """What varies: G, prompt tokens, or model."""
    value: str
    shape: Shape
    num_generations: int = 16
    size: ModelSize = SIZES["5M"]


MODELS = {"1M": TINY} | {name: size for name, size in SIZES.items() if name not in FOR_GPUS}
POINTS = (
    *(Point("G", str(G), Shape("short", 64, 64), num_generations=G) for G in (4, 8, 16, 32)),
    *(Point("prompt tokens", str(length), Shape("prompt", length, 64)) for length in (64, 256, 1024, 2048)),
    *(Point("model", name, Shape("short", 64, 64), size=s) for name, s in MODELS.items()),
)


def measure_point(point: Point, prompts: int, counted_steps: int) -> Reply:
    """Median of the counted steps of a process of its own."""
    with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
        steps = WARM_UP + counted_steps
        job = Job(point.shape, folder, prompts, point.num_generations, steps, trl_rows=1, size=point.size)
        job_file = Path(folder) / "job.json"
        job.write(job_file)
        command = [sys.executable, str(HERE / "workload.py"), str(job_file)]
        subprocess.run(command, check=True, env=os.environ | ONE_THREAD, stderr=subprocess.DEVNULL)
        worker = Worker("reinforge_worker.py", job_file)
        try:
            idle = worker.hear()["idle_bytes"]
            replies = [worker.step() for _ in range(steps)]
        finally:
            worker.stop()
    return summary(point, job, idle, replies)


def summary(point: Point, job: Job, idle: int, replies: Sequence[Reply]) -> Reply:
    """With the floor, whose rates are measured now."""
    counted = replies[WARM_UP:]
    row: Reply = {"curve": point.curve, "value": point.value, "prompts_per_step": job.prompts_per_step}
    row |= {"num_generations": job.num_generations, "prompt_tokens": job.shape.prompt_tokens}
    row["completion_tokens"] = replies[0]["completion_tokens"]
    for name in ("rollout_s", "update_s", "cpu_s", "wall_s"):
        row[name] = statistics.median(reply[name] for reply in counted)
    floor = step_floor(job, measure_rates(job.size, job.num_rows))
    row |= {"floor_rollout_s": floor.prefill_s + floor.decode_s, "floor_update_s": floor.update_s}
    row["floor_s"] = floor.total_s
    row |= {"idle_bytes": idle, "peak_bytes": max(reply["peak_bytes"] for reply in replies)}
    return row


def table(rows: Sequence[Reply]) -> str:
    """For people; CPU seconds of a step, of the floor in brackets."""
    lines = [f"{'':22}{'rollout':>16}{'update':>16}{'step s':>16}{'of floor':>10}{'tokens/s':>10}{'peak MB':>9}"]
    for row in rows:
        pairs = ((row["rollout_s"], row["floor_rollout_s"]), (row["update_s"], row["floor_update_s"]))
        cells = [f"{s:.2f} ({floor:.2f})" for s, floor in (*pairs, (row["cpu_s"], row["floor_s"]))]
        what = f"{row['curve']} {row['value']}"
        lines.append(
            f"{what:22}{cells[0]:>16}{cells[1]:>16}{cells[2]:>16}{row['cpu_s'] / row['floor_s']:9.1f}x"
            f"{row['completion_tokens'] / row['cpu_s']:10.0f}{row['peak_bytes'] / 1e6:9.0f}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Reply], path: Path) -> None:
    """Seconds above, on an axis that doubles, and memory below; a column for each curve."""
    from matplotlib.figure import Figure

    curves = list(dict.fromkeys(row["curve"] for row in rows))
    figure = Figure(figsize=(3.6 * len(curves), 6.2), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharey="row")
    for column, curve in enumerate(curves):
        points = [row for row in rows if row["curve"] == curve]
        _draw_seconds(axes[0][column], points)
        _draw_memory(axes[1][column], points)
        axes[1][column].set_xlabel({"G": "completions per prompt (G)", "model": "parameters"}.get(curve, curve))
    axes[0][0].set_ylabel("CPU seconds of a step")
    axes[1][0].set_ylabel("peak memory, MB")
    axes[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
"""Okabe and Ito: told apart by colour-blind eyes too."""
SERIES = {
    "step": ("cpu_s", BLUE, "-"),
    "rollout": ("rollout_s", RED, "-"),
    "update": ("update_s", GREEN, "-"),
    "floor of the step": ("floor_s", BLUE, ":"),
    "floor of the rollout": ("floor_rollout_s", RED, ":"),
    "floor of the update": ("floor_update_s", GREEN, ":"),
}
"""Label -> figure, colour, line."""


def _draw_seconds(axes: Any, points: Sequence[Reply]) -> None:
    places = range(len(points))
    for label, (name, colour, line) in SERIES.items():
        axes.plot(places, [row[name] for row in points], line, color=colour, marker="o", markersize=3, label=label)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(places, [row["value"] for row in points])
    axes.grid(axis="y", alpha=0.3)


def _draw_memory(axes: Any, points: Sequence[Reply]) -> None:
    places = range(len(points))
    axes.bar(places, [row["peak_bytes"] / 1e6 for row in points], width=0.6, color=BLUE)
    axes.bar(places, [row["idle_bytes"] / 1e6 for row in points], width=0.6, color="0.75")
    axes.set_xticks(places, [row["value"] for row in points])
    axes.set_title("grey: before the first step", fontsize="small")


def measure(points: Sequence[Point], *, prompts: int, counted_steps: int) -> list[Reply]:
    """Every point, one after the other."""
    rows = []
    for point in points:
        rows.append(measure_point(point, prompts, counted_steps))
        tell(table(rows[-1:]).splitlines()[1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=2, help="P, prompts in a step")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--picture", type=Path, help="also draw the curves into this file (matplotlib, extra `train`)")
    arguments = parser.parse_args()
    facts = about()
    rows = measure(POINTS, prompts=arguments.prompts, counted_steps=3)
    result = {"points": rows, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.picture:
        draw(rows, arguments.picture)
    print(json.dumps(result) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
