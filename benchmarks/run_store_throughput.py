"""What a run's database costs: rows written per second, bytes per completion, and milliseconds of what the command line
asks of it, at 10,000 and at 100,000 completions.

    python benchmarks/run_store_throughput.py                     both sizes
    python benchmarks/run_store_throughput.py --out results.json  also write the JSON; --json prints it

What is written and what the columns mean: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from vs_trl import Reply, about, tell

from reinforge.learner.advantage import advantages
from reinforge.run_store import Run, StepRecord
from reinforge.types import Completion, Example, Grade, Group, Prompt, Score

SIZES = (10_000, 100_000)
PROMPTS, GENERATIONS, EXAMPLES = 16, 8, 1000
PAGE = 1000
"""Rows of a page where everything is read through."""
REPEATS = 7
LENGTHS = (5.0, 0.8, 10, 800)
"""Words of a completion: log-normal (median 148) within 10..800."""
SLOW = ("search completions", "search scores")
"""Questions that read everything."""


class Text:
    """Stretches of this project's own documentation, so that they compress as English does; a word is a token."""

    def __init__(self, root: Path, seed: int) -> None:
        pages = [root / "README.md", *sorted((root / "docs" / "explain").glob("*.md"))]
        self._words = [word for page in pages for word in page.read_text(encoding="utf-8").split()]
        self._ids = {word: number for number, word in enumerate(dict.fromkeys(self._words))}
        self.draw = random.Random(seed)

    def stretch(self) -> tuple[str, tuple[int, ...]]:
        mean, sigma, least, most = LENGTHS
        length = min(max(int(self.draw.lognormvariate(mean, sigma)), least), most)
        start = self.draw.randrange(len(self._words) - length)
        words = self._words[start : start + length]
        return " ".join(words), tuple(self._ids[word] for word in words)


def completion(text: Text, generation: int, step: int) -> Completion:
    words, token_ids = text.stretch()
    logprobs = tuple(-text.draw.expovariate(2.0) for _ in token_ids)
    return Completion(generation, token_ids, words, "stop", logprobs, logprobs, policy_version=step - 1)


def grade(draw: random.Random) -> Grade:
    """Two functions; the first prints something, and fails once in fifty calls."""
    failed = draw.random() < 0.02
    if failed:
        first = Score("right", "right_v1", None, 0.9, "error", "raised", "KeyError: 'answer'", latency_s=0.002)
    else:
        first = Score("right", "right_v1", float(draw.random() < 0.4), 0.9, prints="compared 2 numbers\n")
    return Grade((first, Score("format", "format_v1", draw.random(), 0.1, latency_s=0.0001)))


def records(text: Text, num_completions: int) -> Iterator[StepRecord]:
    """Steps of 16 groups of 8."""
    prompts = [Prompt(Example(i, ""), *text.stretch()) for i in range(EXAMPLES)]
    num_steps = -(-num_completions // (PROMPTS * GENERATIONS))
    for step in range(1, num_steps + 1):
        groups = []
        for place in range(PROMPTS):
            epoch, example = divmod((step - 1) * PROMPTS + place, EXAMPLES)
            completions = tuple(completion(text, generation, step) for generation in range(GENERATIONS))
            grades = tuple(grade(text.draw) for _ in completions)
            groups.append(Group(prompts[example], epoch, completions, grades))
        metrics = {f"part{i}/figure": text.draw.random() for i in range(40)} | {"time/step_s": 1.0}
        advantages_PG = advantages([group.rewards_G for group in groups], "group")
        yield StepRecord(step, metrics, "0" * 64, tuple(groups), tuple(advantages_PG))


def write(folder: Path, num_completions: int, text: Text) -> Reply:
    """A run with so many completions -> what writing it took; making them up does not count."""
    wall: list[float] = []
    cpu: list[float] = []
    num_rows = count = 0
    with Run.create(folder, f"run{num_completions}", {"train_steps": 0}, {}) as run:
        for record in records(text, num_completions):
            began = time.perf_counter(), time.process_time()
            run.record_step(record)
            wall.append(time.perf_counter() - began[0])
            cpu.append(time.process_time() - began[1])
            count += PROMPTS * GENERATIONS
            num_rows += 1 + PROMPTS * GENERATIONS * 4  # the step; a completion, its tokens and two scores
        run.finish("succeeded")
        path = run.path
    return {
        "completions": count,
        "rows": num_rows,
        "write_s": sum(wall),
        "write_cpu_s": sum(cpu),
        "rows_per_s": num_rows / sum(wall),
        "completions_per_s": count / sum(wall),
        "step_ms": 1000 * statistics.median(wall),
        "last_steps_ms": 1000 * statistics.median(wall[-50:]),
        "bytes_per_completion": (path / "run.db").stat().st_size / count,
        "path": str(path),
    }


def questions(run: Run) -> dict[str, Callable[[], Any]]:
    """What is asked of a run, most of it by `reinforge runs show`, `runs list` and `rewards logs`."""
    last = run.last_step()
    middle = (last + 1) // 2

    def one_step() -> Any:
        rows = run.completions(step=middle, limit=-1)
        return rows, run.scores(row.id for row in rows), run.prompts([row.example for row in rows])

    return {
        "runs list": run.summary,
        "first page": lambda: run.completions(limit=100),
        "last page": lambda: run.completions(limit=100, after=run.last_completion() - 100),
        "one step": one_step,
        "one example": lambda: run.completions(example=EXAMPLES // 2, limit=-1),
        "one's tokens": lambda: run.tokens(run.last_completion()),
        "metrics": run.steps,
        "functions": run.functions,
        "prompt epochs": run.prompt_epochs,
        "failed scores": lambda: run.score_log(state="error", limit=100),
        "search completions": lambda: [row.id for row in _all_completions(run) if "policy" in row.text],
        "search scores": lambda: [row.completion for row in _all_scores(run) if re.search("Key.*", row.message)],
    }


def _all_completions(run: Run) -> Iterator[Any]:
    after = 0
    while page := run.completions(limit=PAGE, after=after):
        yield from page
        after = page[-1].id


def _all_scores(run: Run) -> Iterator[Any]:
    after = 0
    while page := run.score_log(limit=PAGE, after=after):
        yield from page
        after = page[-1].completion


def read(path: Path) -> dict[str, float]:
    """Milliseconds of each question, the median of several; with the file in the system's cache."""
    found = {"open": _median_ms(lambda: Run.open(path).close())}
    with Run.open(path) as run:
        for name, ask in questions(run).items():
            found[name] = _median_ms(ask, 1 if name in SLOW else REPEATS)
    return found


def _median_ms(ask: Callable[[], Any], repeats: int = REPEATS) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        ask()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def measure(sizes: Sequence[int], folder: Path) -> list[Reply]:
    """A run of each size, written below the folder, then read and removed."""
    root = Path(__file__).resolve().parents[1]
    rows = []
    with tempfile.TemporaryDirectory(prefix="run_store_", dir=folder) as name:
        for size in sizes:
            tell(f"{size:,} completions ...")
            row = write(Path(name), size, Text(root, seed=0))
            row["read_ms"] = read(Path(row.pop("path")))
            rows.append(row)
    return rows


def table(rows: Sequence[Reply]) -> str:
    """For people: a column for each size."""
    head = f"{'':34}" + "".join(f"{row['completions']:>12,}" for row in rows) + "  completions"
    figures = {
        "rows written per second": ("rows_per_s", "{:,.0f}"),
        "completions written per second": ("completions_per_s", "{:,.0f}"),
        "ms to store a step": ("step_ms", "{:.1f}"),
        "ms to store one of the last 50": ("last_steps_ms", "{:.1f}"),
        "bytes on disk per completion": ("bytes_per_completion", "{:,.0f}"),
    }
    lines = [
        f"{what:34}" + "".join(f"{form.format(row[key]):>12}" for row in rows) for what, (key, form) in figures.items()
    ]
    names = list(dict.fromkeys(chain.from_iterable(row["read_ms"] for row in rows)))
    lines += [f"{'ms: ' + name:34}" + "".join(f"{row['read_ms'][name]:>12.1f}" for row in rows) for name in names]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--completions", type=int, action="append", help="size of a run; can be repeated")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured; the current one")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    arguments = parser.parse_args()
    facts = about()
    rows = measure(arguments.completions or SIZES, arguments.folder)
    result = {"sizes": rows, **facts}
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
