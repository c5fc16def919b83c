"""`reinforge demo` on seeds 0..4, one after another; writes docs/proofs/demo-seeds-<date>.md and .json.

Proves: on every seed the held-out share starts near 0.2, ends at 0.45 or more, at least doubles, in at most 150 s of
training on one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prove.page import dated, facts, table, write_page

SEEDS = range(5)
START = (0.15, 0.25)
"""What "about 0.2" means."""
MIN_AFTER, MIN_RATIO, MAX_SECONDS = 0.45, 2.0, 150.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = [{"seed": seed, **run(seed, Path(folder))} for seed in SEEDS]
    for result in results:
        result["broken"] = broken(result)
    dated("demo-seeds", ".json").write_text(json.dumps({"about": facts(), "results": results}, indent=1) + "\n")
    write(results)
    sys.exit(any(result["broken"] for result in results))


def run(seed: int, folder: Path) -> dict[str, Any]:
    """One demo -> its figures, without the paths of a folder that is gone afterwards."""
    command = [sys.executable, "-m", "reinforge", "demo", "--seed", str(seed), "--json"]
    print("$ " + " ".join(command[1:]), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Ends like any command when it fails: a proof without all its seeds is none.
    done = subprocess.run(
        [*command, "--runs-dir", str(folder)], stdout=subprocess.PIPE, env=environment, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    return {key: value for key, value in figures.items() if key not in ("run", "picture")}


def broken(result: dict[str, Any]) -> list[str]:
    """The promises that one seed breaks.

    >>> broken({"before": 0.2, "after": 0.5, "seconds": 99})
    []
    >>> broken({"before": 0.3, "after": 0.5, "seconds": 151})
    ['starts about 0.2', 'at least doubles', 'at most 150 s']
    """
    before, after, seconds = result["before"], result["after"], result["seconds"]
    promises = {
        "starts about 0.2": START[0] <= before <= START[1],
        f"ends at {MIN_AFTER} or more": after >= MIN_AFTER,
        "at least doubles": after >= MIN_RATIO * before,
        f"at most {MAX_SECONDS:.0f} s": seconds <= MAX_SECONDS,
    }
    return [promise for promise, kept in promises.items() if not kept]


def write(results: list[dict[str, Any]]) -> None:
    rows = [
        [
            result["seed"],
            f"{result['before']:.3f}",
            f"{result['after']:.3f}",
            f"{result['ci95'][0]:.3f} .. {result['ci95'][1]:.3f}",
            f"{result['greedy_before']:.3f} -> {result['greedy_after']:.3f}",
            result["steps"],
            f"{result['seconds']:.1f}",
            "; ".join(result["broken"]) or "none",
        ]
        for result in results
    ]
    header = ["seed", "before", "after", "ci95 of after", "greedy", "steps", "seconds", "promises broken"]
    lines = [
        "`reinforge demo --seed N --json`, one after another. `before` and `after`: sampled pass@1 on the same held-out"
        " problems; seconds: training without evaluation.",
        "",
        f"Promised on any seed: from about 0.2 ({START[0]} to {START[1]}) to at least {MIN_AFTER}, at least"
        f" {MIN_RATIO:g} times as much, in at most {MAX_SECONDS:.0f} s of training.",
        "",
        *table(header, rows),
    ]
    write_page("demo-seeds", "The demo on five seeds", lines)


if __name__ == "__main__":
    main()
