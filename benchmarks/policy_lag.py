"""A step with the next batch sampled beside it (`max_policy_lag: 1`) against one after the other: the Countdown demo.

Runs alternate, each in a process of its own with one compute thread per pool; wall and CPU seconds of a step are
medians after two steps of warm-up. On a machine with other work the wall says little: mind the load that is told.

    python benchmarks/policy_lag.py --steps 8 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

WARM_UP = 2


def measure(lag: int, steps: int) -> dict[str, float]:
    """Medians of one run's steps."""
    from reinforge import api
    from reinforge.config_file import load_config

    class Stopwatch(api.SilentWatcher):
        def __init__(self) -> None:
            self.moments: list[tuple[float, float]] = []
            self.metrics: list[Mapping[str, float]] = []

        def step(self, step: int, metrics: Mapping[str, float], groups: object) -> None:
            used = resource.getrusage(resource.RUSAGE_SELF)
            self.moments.append((time.monotonic(), used.ru_utime + used.ru_stime))
            self.metrics.append(metrics)

    folder = Path(str(files("reinforge.recipes") / "countdown"))
    config = load_config([folder / "config.yaml"])
    config = config.model_copy(update={"max_policy_lag": lag, "train_steps": steps, "learning_rate": 1e-5})
    config = config.model_copy(update={"data": config.data.model_copy(update={"heldout_path": None, "heldout": 0})})
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as runs:
        api.train(config, base_dir=folder, runs_dir=runs, name=f"lag{lag}", watcher=watch)
    # The last step has no sampling beside it.
    pairs = list(zip(watch.moments[WARM_UP - 1 : -2], watch.moments[WARM_UP:-1], strict=True))
    warm = watch.metrics[WARM_UP:-1]
    figures = {
        "wall_s": statistics.median(later[0] - earlier[0] for earlier, later in pairs),
        "cpu_s": statistics.median(later[1] - earlier[1] for earlier, later in pairs),
    }
    for name in ("time/rollout_s", "time/update_s"):
        figures[name] = statistics.median(metrics[name] for metrics in warm)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.steps)))
        return
    for repeat in range(options.repeats):
        for lag in (0, 1):
            command = [sys.executable, __file__, "--one", str(lag), "--steps", str(options.steps)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(told.splitlines()[-1])
            figures = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
            load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
            print(f"repeat {repeat + 1}  lag {lag}  {figures}  {load}", flush=True)


if __name__ == "__main__":
    main()
