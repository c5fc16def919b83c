"""Scores per second of a trivial reward function, per tier of the sandbox and dialect: Python in three forms, and a
string_check grader.

    python benchmarks/reward_throughput.py [--workers 2] [--seconds 2] [--completions 8] [--json]

One grader with as many workers as asked for judges groups of completions as a run does: one completion after the other
is handed over, rows and completions travel to the worker processes and scores come back, with the checks after each
call. "start" is the time until a new worker
has answered for the first time; "fresh_process" gives every call a process of its own. Figures depend on what else the
machine does: the load is printed with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections import deque
from pathlib import Path

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import RewardFunction, load_reward_functions
from reinforge.roles import GroupGrading
from reinforge.sandbox import tiers
from reinforge.sandbox.pool import Parameter, Worker
from reinforge.types import Completion, Example, Prompt

FORMS = {
    "predibase": ("prompt, completion, example", "0.5"),
    "openai": ("sample, item", "0.5"),
    "trl": ("prompts, completions, answer", "[0.5] * len(completions)"),
}
GRADER = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "42", "operation": "ilike"}
DIALECTS = (*FORMS, "grader")
NUM_STARTS = 5
QUEUED_PER_WORKER = 2


def function_of(form: str) -> RewardFunction:
    """One that does next to nothing; every score is 0.5, the grader's 0."""
    if form == "grader":
        return load_reward_functions({"reward": GRADER}, {}, Path())[0]
    parameters, result = FORMS[form]
    source = f"def reward({parameters}):\n    return {result}\n"
    facts = tuple(Parameter(name, "positional_or_keyword", False) for name in parameters.split(", "))
    return RewardFunction("reward", "reward_v1", source, "trivial.py", "reward", form, facts)  # type: ignore[arg-type]


def scores_per_second(form: str, workers: int, seconds: float, num_completions: int, *, fresh: bool = False) -> float:
    """Of one grader, with always enough groups queued that no worker waits for the next one."""
    example = Example(0, "What is 6 x 7? " * 8, {"answer": "42"})
    prompt = Prompt(example, str(example.prompt), (1,))
    texts = [f"<think>{'because ' * 20}</think> {i}" for i in range(num_completions)]
    completions = [Completion(i, (1,), text, "stop", (-0.1,), (-0.1,), 0) for i, text in enumerate(texts)]
    runtime = RewardFunctionsRuntimeConfig(workers=workers, fresh_process=fresh)
    grader = RewardFunctionGrader([function_of(form)], runtime)

    def begin() -> GroupGrading:
        grading = grader.begin(prompt, num_completions)
        for completion in completions:
            grading.add(completion)
        return grading

    try:
        begin().grades()
        count, start = 0, time.perf_counter()
        queue: deque[GroupGrading] = deque()
        while time.perf_counter() - start < seconds:
            while len(queue) < workers * QUEUED_PER_WORKER:
                queue.append(begin())
            grades = queue.popleft().grades()
            assert all(grade.scores[0].value == (0.0 if form == "grader" else 0.5) for grade in grades)
            count += len(grades)
        return count / (time.perf_counter() - start)
    finally:
        grader.close()


def start_ms() -> float:
    times = []
    for _ in range(NUM_STARTS):
        start = time.perf_counter()
        worker = Worker("def f(): return 1\n", "start.py")
        worker.call("f", {}, 30.0)
        times.append(time.perf_counter() - start)
        worker.close()
    return statistics.median(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--completions", type=int, default=8, help="in a group")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in tiers.NAMES:
        found = tiers.working(name)
        if isinstance(found, str):
            rows.append({"tier": name, "missing": found})
            continue
        os.environ[tiers.VARIABLE] = name
        row: dict[str, object] = {"tier": name, "start_ms": round(start_ms())}
        for form in DIALECTS:
            row[form] = round(scores_per_second(form, options.workers, options.seconds, options.completions))
        fresh = scores_per_second("predibase", options.workers, options.seconds, options.completions, fresh=True)
        row["fresh_process"] = round(fresh)
        rows.append(row)
    machine = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "workers": options.workers,
        "completions": options.completions,
    }
    if options.json:
        json.dump({"machine": machine, "tiers": rows}, sys.stdout, indent=2)
        print()
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(f"\n| tier | start ms | {' | '.join(f'{form} scores/s' for form in DIALECTS)} | predibase, fresh_process |")
    print("|---|" + "---:|" * (len(DIALECTS) + 2))
    for row in rows:
        if "missing" in row:
            print(f"| {row['tier']} | missing: {row['missing']} |")
        else:
            figures = " | ".join(f"{row[key]:,}" for key in ("start_ms", *DIALECTS, "fresh_process"))
            print(f"| {row['tier']} | {figures} |")


if __name__ == "__main__":
    main()
