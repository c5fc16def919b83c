"""`reinforge train`: a config file becomes a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reinforge.cli.live import open_display
from reinforge.cli.text import duration, figure, say

if TYPE_CHECKING:
    from reinforge.config import GRPOConfig


@click.command("train")
@click.argument("configs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CONFIG...")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. -o lora.rank=8.")
@click.option("--data", metavar="PATH", help="Data set: a file, a folder or a hub id (data.path).")
@click.option("--model", metavar="PATH", help="Model: a folder or a hub id (base_model).")
@click.option("--name", help="Name of the run's folder; made from the config's name and a number otherwise.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs live.")
@click.option("--dry-run", is_flag=True, help="Print the whole resolved config and stop.")
@click.option("--smoke", is_flag=True, help="Run 2 small steps: does everything fit together?")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout, one a step, the last one the run.")
def train_command(
    configs: tuple[Path, ...],
    overrides: tuple[str, ...],
    data: str | None,
    model: str | None,
    name: str | None,
    runs_dir: Path,
    dry_run: bool,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train an adapter as a config file says.

    Several files are merged from left to right. The run's folder holds all of it: config,
    database, checkpoints, adapter.
    """
    config = _resolve(configs, overrides, data, model, smoke)
    if dry_run:
        _print_config(config, as_json)
        return
    from reinforge import api

    display = open_display(config.train_steps, as_json=as_json)
    try:
        path = api.train(config, runs_dir=runs_dir, name=name, watcher=display)
    finally:
        display.close()
    tell_run(path, as_json)


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
