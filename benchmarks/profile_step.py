"""Where one Reinforge step spends its time, stage by stage and operator by operator, beside the floor.

    python benchmarks/profile_step.py --shape long_prompt [--prompts 4]

Stages are CPU seconds of the one thread, taken without the profiler; shares of operators come from a second step under
torch's profiler, whose own cost makes small operators look larger than they are.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from floor import Floor, measure_rates, step_floor
from reinforge_worker import build
from torch.profiler import ProfilerActivity, profile
from workload import SHAPES, Job, write_model

from reinforge.cluster.local import LocalRun
from reinforge.data.order import PromptOrder
from reinforge.inference import decoders, engine
from reinforge.learner import update
from reinforge.learner.advantage import advantages
from reinforge.policy import network, slots
from reinforge.rollout.collect import collect
from reinforge.types import Batch, Group, SampleRequest

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"),
    "attention kernel": ("aten::_scaled_dot_product", "aten::_flash_attention"),
    "copies, gathers, fills": (
        *("aten::copy_", "aten::cat", "aten::index", "aten::_index_put", "aten::fill_", "aten::zero_", "aten::gather"),
        *("aten::scatter", "aten::masked_", "aten::slice_backward", "aten::embedding"),
    ),
    "allocation": ("aten::empty", "aten::resize", "aten::clone", "aten::new_"),
    "elementwise, sums, softmax": (
        *("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::silu", "aten::pow", "aten::mean", "aten::rsqrt"),
        *("aten::neg", "aten::sum", "aten::exp", "aten::log", "aten::_softmax", "aten::_log_softmax", "aten::cumsum"),
        *("aten::cos", "aten::sin", "aten::where", "aten::max", "aten::_foreach", "aten::_fused", "aten::linalg_"),
    ),
}
"""Operators by what they do, by the beginning of their names; the rest is views and dispatch."""


class Stopwatch:
    """CPU seconds of named stages, each without the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.process_time()

    def _switch(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return call


def watch(stopwatch: Stopwatch) -> None:
    """Put the stopwatch around the functions that make up a step; call before anything is built."""
    places: list[tuple[Any, str, str]] = [
        (decoders.NetworkRows, "prefill", "prefill"),
        (slots.NetworkSlots, "place", "prompts into slots"),
        (slots.NetworkSlots, "step", "decode: layers"),
        (slots._OwnPart, "write", "decode: cache writes"),
        (slots, "attend_part", "decode: attention kernel"),
        (slots._Groups, "add_prefixes", "decode: own tokens and prompt joined"),
        (network.Network, "logits", "decode: output head"),
        (engine, "draw", "decode: drawing tokens"),
        (engine, "uniform", "decode: drawing tokens"),
        (engine.Engine, "_leave", "decode: Python per row"),
        (update, "token_logprobs", "update: logprobs from hidden states"),
        (update, "policy_loss", "update: loss"),
        (network.Network, "completion_pass", "update: completions forward"),
        (network, "attend", "attention forward, prompts and rows"),
        (torch.Tensor, "backward", "update: completions backward"),
        (update, "_backward_through", "update: prompts backward"),
        (update.LocalLearner, "_run_prefixes", "update: prompts forward"),
        (update.LocalLearner, "_optimizer_step", "update: optimizer"),
        (engine.Engine, "load", "update: new weights to the sampler"),
    ]
    for owner, name, stage in places:
        setattr(owner, name, stopwatch.timed(stage, getattr(owner, name)))


def rollout(built: LocalRun, step: int) -> tuple[Group, ...]:
    config, prompts = built.task.config, built.task.train_prompts
    order, first = PromptOrder(len(prompts), config.seed), step * config.prompts_per_step
    requests = [
        SampleRequest(prompts[order.at(first + place)[0]], config.num_generations, (config.seed, step, place))
        for place in range(config.prompts_per_step)
    ]
    return collect(requests, [0] * len(requests), built.roles.sampler, built.roles.grader).groups


def learn(built: LocalRun, groups: Sequence[Group]) -> None:
    batch = Batch(tuple(groups), advantages([group.rewards_G for group in groups], "group"))
    built.roles.learner.update(batch)
    built.roles.sampler.load(built.roles.learner.publish())


def operator_shares(work: Callable[[], object]) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Share of the profiled time by kind of operator, and the ten largest operators; the rest is Python. The profiler
    takes wall time, so its total must be wall time too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        began = time.perf_counter()
        work()
        total = time.perf_counter() - began
    shares: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = {}
    for event in profiled.key_averages():
        share = event.self_cpu_time_total / 1e6 / total
        operators[event.key] = share
        shares[_kind(event.key)] += share
    shares["Python between operators"] = max(0.0, 1 - sum(shares.values()))
    return dict(shares), sorted(operators.items(), key=lambda entry: -entry[1])[:10]


def _kind(operator: str) -> str:
    found = [kind for kind, names in KINDS.items() if operator.startswith(names)]
    return found[0] if found else "views, dispatch and other operators"


def report(name: str, total: float, stages: dict[str, float], floor_s: float, shares: Any, largest: Any) -> None:
    print(f"\n{name}: {total:.2f} CPU s, floor {floor_s:.2f} s ({floor_s / total:.0%})")
    for stage, seconds in sorted(stages.items(), key=lambda entry: -entry[1]):
        print(f"  {stage:40}{seconds:8.3f} s {seconds / total:6.1%}")
    print(f"  {'everything else':40}{total - sum(stages.values()):8.3f} s {1 - sum(stages.values()) / total:6.1%}")
    print(
        "  by kind of operator (profiled): " + ", ".join(f"{k} {v:.0%}" for k, v in sorted(shares.items(), key=_down))
    )
    print("  largest: " + ", ".join(f"{k.removeprefix('aten::')} {v:.0%}" for k, v in largest))


def _down(entry: tuple[str, float]) -> float:
    return -entry[1]


def run(job: Job) -> None:
    stopwatch = Stopwatch()
    watch(stopwatch)
    write_model(Path(job.folder) / "model", job.size)
    rates = measure_rates(job.size, job.num_rows)
    print(
        f"{job.shape.name}, P = {job.prompts_per_step}, G = {job.num_generations}. One thread: "
        f"{rates.wide_flops / 1e9:.0f} GFLOP/s with 2048 rows, {rates.narrow_flops / 1e9:.0f} with {job.num_rows}, "
        f"reads {rates.read_bytes / 1e9:.1f} GB/s."
    )
    floor: Floor = step_floor(job, rates)
    built = build(job)
    try:
        built.roles.sampler.load(built.roles.learner.publish())
        learn(built, rollout(built, 0))  # warm-up
        measured = []
        groups: tuple[Group, ...] = ()
        for half in ("rollout", "update"):
            stopwatch.seconds.clear()
            began = time.process_time()
            if half == "rollout":
                groups = rollout(built, 1)
            else:
                learn(built, groups)
            measured.append((time.process_time() - began, dict(stopwatch.seconds)))
        for (total, stages), name, floor_s, work in (
            (measured[0], "rollout", floor.prefill_s + floor.decode_s, lambda: rollout(built, 2)),
            (measured[1], "update", floor.update_s, lambda: learn(built, groups)),
        ):
            report(name, total, stages, floor_s, *operator_shares(work))
        print(f"\nfloor: prefill {floor.prefill_s:.3f} s, decode {floor.decode_s:.3f} s, update {floor.update_s:.3f} s")
    finally:
        built.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=list(SHAPES), default="short")
    parser.add_argument("--prompts", type=int, default=4, help="P, prompts in a step")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="profile_") as folder:
        run(Job(SHAPES[arguments.shape], folder, arguments.prompts, 16, steps=2, trl_rows=8))


if __name__ == "__main__":
    main()
