"""A picture of a run: what moved, and what it cost. Needs matplotlib (extra `train`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reinforge.errors import SetupError, UsageError
from reinforge.run_store import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHING = 0.8
"""Weight of the past in the smoothed line; the raw one stays visible behind it."""

_FORMATS = (".png", ".svg", ".pdf")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito: told apart by colour-blind eyes too."""


def plot_run(run_path: Path, target: Path) -> Path:
    """Draw rewards, held-out score, lengths and what the groups taught into `target` (.png, .svg or .pdf)."""
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(f"{target}: a picture's name ends in {', '.join(_FORMATS)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise SetupError("Pictures need matplotlib.", hint="pip install 'reinforge[train]'") from fault
    with Run.open(run_path) as run:
        steps = [(row.step, row.metrics) for row in run.steps() if "reward/mean" in row.metrics]
        evaluations = run.evaluations()
        weights = {function["name"]: function["weight"] for function in run.about.get("functions", [])}
        updates = [update.step for update in run.reward_updates()]
    if not steps:
        raise UsageError(f"{run_path} has no step with rewards yet.", hint="Wait for its first step.")
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    figure.suptitle(f"{run_path.name}: {steps[-1][0]} steps")
    (reward, heldout), (length, groups) = figure.subplots(2, 2)
    _draw_rewards(reward, steps, weights)
    _mark(reward, updates)
    _draw_heldout(heldout, evaluations)
    _draw_lengths(length, steps)
    _draw_groups(groups, steps)
    try:
        figure.savefig(target, dpi=120)
    except OSError as fault:
        raise SetupError(f"{target} could not be written: {fault.strerror}.", hint="Name another place.") from fault
    return target


Steps = Sequence[tuple[int, Mapping[str, float]]]


def _draw_rewards(axes: Axes, steps: Steps, weights: Mapping[str, float]) -> None:
    _line(axes, steps, "reward/mean", "reward", _COLOURS[0])
    for name, colour in zip(weights, _COLOURS[1:], strict=False):
        _line(axes, steps, f"reward/{name}/mean", f"{name} (weight {weights[name]:g})", colour, dashes=(4, 2))
    _finish(axes, "Rewards in training (smoothed)", "mean over the step's completions")


def _mark(axes: Axes, updates: Sequence[int]) -> None:
    """A line where the reward functions were changed: means before and after are not of the same functions."""
    for place, step in enumerate(updates):
        label = "reward functions changed" if place == 0 else None
        axes.axvline(step + 0.5, color="black", linestyle=":", linewidth=1, label=label)
    if updates:
        axes.legend(fontsize=8, loc="best")


def _draw_heldout(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> None:
    scored = [e for e in evaluations if e.get("score") is not None]
    if scored:
        at, score = [e["step"] for e in scored], [e["score"] for e in scored]
        bounds = [e.get("ci95") or (e["score"], e["score"]) for e in scored]
        low = [s - b[0] for s, b in zip(score, bounds, strict=True)]
        high = [b[1] - s for s, b in zip(score, bounds, strict=True)]
        axes.errorbar(at, score, yerr=[low, high], marker="o", capsize=4, color=_COLOURS[0], label="sampled pass@1")
    greedy = [(e["step"], e["greedy_pass_at_1"]) for e in evaluations if e.get("greedy_pass_at_1") is not None]
    if greedy:
        # A dot inside the sampled marker where both figures agree: neither hides the other.
        line = axes.plot(*zip(*greedy, strict=True), marker="s", markersize=2.5, linestyle=":", label="greedy")[0]
        line.set(color=_COLOURS[1], linewidth=1, zorder=3)
    axes.set_ylim(0, 1)
    _finish(axes, "Held-out prompts", "share correct, with 95 % interval")


def _draw_lengths(axes: Axes, steps: Steps) -> None:
    _line(axes, steps, "completion/tokens_mean", "mean", _COLOURS[0])
    _line(axes, steps, "completion/tokens_p90", "90th percentile", _COLOURS[1], dashes=(4, 2))
    _finish(axes, "Length of completions (smoothed)", "tokens")


def _draw_groups(axes: Axes, steps: Steps) -> None:
    names = ("learning", "all_right", "all_wrong", "all_truncated", "all_error", "all_equal")
    shares = [[metrics.get(f"group/{name}_share", 0.0) for _, metrics in steps] for name in names]
    shown = [(name, share) for name, share in zip(names, shares, strict=True) if any(share)]
    axes.stackplot(
        [step for step, _ in steps],
        [share for _, share in shown],
        labels=[name.replace("_", " ") for name, _ in shown],
        colors=_COLOURS,
        alpha=0.8,
    )
    axes.set_ylim(0, 1)
    _finish(axes, "What the groups taught", "share of groups")


def _line(
    axes: Axes, steps: Steps, metric: str, label: str, colour: str, dashes: tuple[int, int] | None = None
) -> None:
    points = [(step, metrics[metric]) for step, metrics in steps if metric in metrics]
    if not points:
        return
    at, raw = zip(*points, strict=True)
    axes.plot(at, raw, color=colour, alpha=0.25, linewidth=1)
    smooth = axes.plot(at, smoothed(raw), color=colour, label=label, linewidth=2)[0]
    if dashes:
        smooth.set_dashes(dashes)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its start.

    >>> [round(x, 3) for x in smoothed([1.0, 1.0, 0.0])]
    [1.0, 1.0, 0.59]
    """
    average, weight, result = 0.0, 0.0, []
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(average / weight)
    return result


def _finish(axes: Axes, title: str, unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit, fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="best")
