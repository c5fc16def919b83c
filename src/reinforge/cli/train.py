"""`reinforge train`: a config file becomes a run. `reinforge demo`: a run that needs nothing."""

from __future__ import annotations

import json
import secrets
import shutil
import textwrap
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reinforge.cli.live import open_display
from reinforge.cli.options import no_sandbox_option, override_option, runs_dir_option
from reinforge.cli.text import duration, figure, say, table, visible

if TYPE_CHECKING:
    from reinforge.config import GRPOConfig
    from reinforge.demo import Comparison, DemoResult

MAX_COLUMN_LINES = 16
"""Of a completion in the demo's comparison."""


@click.command("train")
@click.argument("configs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CONFIG...")
@override_option
@click.option("--data", metavar="PATH", help="Data set: a file, a folder or a hub id (data.path).")
@click.option("--model", metavar="PATH", help="Model: a folder or a hub id (base_model).")
@click.option("--name", help="Name of the run's folder; a time stamp and random characters otherwise.")
@runs_dir_option
@no_sandbox_option
@click.option("--dry-run", is_flag=True, help="Print the whole resolved config and stop.")
@click.option("--smoke", is_flag=True, help="Run 2 small steps, named smoke-...: does everything fit together?")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout, one a step, the last one the run.")
def train_command(
    configs: tuple[Path, ...],
    overrides: tuple[str, ...],
    data: str | None,
    model: str | None,
    name: str | None,
    runs_dir: Path,
    unsafe_no_sandbox: bool,
    dry_run: bool,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train an adapter as a config file says.

    Several files are merged from left to right. The run's folder holds all of it: config,
    database, checkpoints, adapter.
    """
    trusted = ("reward_fns.runtime.unsafe_no_sandbox=true",) if unsafe_no_sandbox else ()
    config = _resolve(configs, (*overrides, *trusted), data, model, smoke)
    if dry_run:
        _print_config(config, as_json)
        return
    from reinforge import api

    display = open_display(config.train_steps, as_json=as_json)
    try:
        path = api.train(config, runs_dir=runs_dir, name=name or (_smoke_name() if smoke else None), watcher=display)
    finally:
        display.close()
    tell_run(path, as_json)


def _smoke_name() -> str:
    """So that trials are told from runs in every list."""
    return f"smoke-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def tell_run(path: Path, as_json: bool) -> None:
    """What came out of a run that is done, and what to do with it."""
    from reinforge.run_store import Run

    with Run.open(path) as run:
        summary = run.summary()
    if as_json:
        click.echo(json.dumps({"event": "run", **summary}))
        return
    before, after = summary["heldout_before"], summary["heldout_after"]
    heldout = "" if after is None else f", held-out {figure(before)} -> {figure(after)}"
    say(f"done: {summary['step']} steps in {duration(summary['duration_s'])}{heldout}")
    say(f"adapter {path / 'adapter'}\nlook:   reinforge runs show {path}")


def _resolve(
    configs: tuple[Path, ...], overrides: tuple[str, ...], data: str | None, model: str | None, smoke: bool
) -> GRPOConfig:
    from reinforge.config import smoke as small
    from reinforge.config_file import load_config

    # A JSON text is a YAML text: a path called `1.10` or `no` stays a path.
    named = [f"{key}={json.dumps(value)}" for key, value in (("data.path", data), ("base_model", model)) if value]
    config = load_config(configs, [*named, *overrides])
    return small(config) if smoke else config


def _print_config(config: GRPOConfig, as_json: bool) -> None:
    from reinforge.config_file import to_yaml

    click.echo(config.model_dump_json() if as_json else to_yaml(config), nl=as_json)


@click.command("demo")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="All randomness follows from it."
)
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps; as many as the recipe says otherwise.")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout at the end.")
def demo_command(seed: int, steps: int | None, runs_dir: Path, as_json: bool) -> None:
    """Watch a tiny model learn to keep searching, on this machine's CPU.

    Countdown: combine three numbers to reach a target. The model that comes with Reinforge gives up too early; GRPO
    with LoRA teaches it to go on. The same held-out problems are tried before and after.
    """
    from reinforge.config_file import load_config
    from reinforge.demo import recipe_folder, run_demo

    num_steps = steps or load_config([recipe_folder() / "config.yaml"]).train_steps
    display = open_display(num_steps)
    try:
        result = run_demo(display, seed=seed, steps=steps, runs_dir=runs_dir)
    finally:
        display.close()
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        click.echo(_demo_text(result))


def _demo_text(result: DemoResult) -> str:
    width = max(60, min(shutil.get_terminal_size().columns, 140))
    stories = (_comparison_text(comparison, width) for comparison in result.comparisons)
    outcomes = [
        [name.replace("_", " "), f"{share:.0%}", f"{result.outcomes_after[name]:.0%}"]
        for name, share in result.outcomes_before.items()
    ]
    lengths = ["tokens", f"{result.tokens_before:.0f}", f"{result.tokens_after:.0f}"]
    before, after = result.before, result.after
    low, high = after.ci95 or (None, None)
    return "\n".join(
        [
            *stories,
            table(["held-out problems", "before", "after"], [*outcomes, lengths]),
            "",
            f"pass@1 {figure(before.pass_at_1)} -> {figure(after.pass_at_1)}"
            f" (95 % interval {figure(low)} .. {figure(high)}; greedy {figure(before.greedy_pass_at_1)}"
            f" -> {figure(after.greedy_pass_at_1)}), {result.steps} steps in {duration(result.seconds)}",
            f"picture {result.picture}",
            "",
            "next:",
            f"  reinforge runs show {result.run} --completions 4",
            f"  reinforge chat {result.run}",
            "  reinforge train CONFIG        with your own reward functions and data",
        ]
    )


def _comparison_text(comparison: Comparison, width: int) -> str:
    """Two completions of a problem beside each other."""
    column = (width - 3) // 2
    left = _column(f"before: reward {figure(comparison.reward_before, '.3g')}", comparison.before, column)
    right = _column(f"after: reward {figure(comparison.reward_after, '.3g')}", comparison.after, column)
    lines = (f"{one:{column}} | {two}".rstrip() for one, two in zip_longest(left, right, fillvalue=""))
    return "\n".join([visible(comparison.prompt), *lines, ""])


def _column(title: str, text: str, width: int) -> list[str]:
    lines = [
        part
        for line in visible(text).splitlines()
        for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    ]
    cut = [*lines[: MAX_COLUMN_LINES - 1], "..."] if len(lines) > MAX_COLUMN_LINES else lines
    return [title, *cut]
