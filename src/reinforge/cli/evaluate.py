"""`reinforge eval`: how good a model, an adapter or a run is on held-out prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reinforge.cli.live import PlainLines
from reinforge.cli.options import find_subject_name, override_option, runs_dir_option, subject_errors
from reinforge.cli.text import figure, table
from reinforge.errors import UsageError

if TYPE_CHECKING:
    from reinforge.insight.evaluation import Evaluation


@click.command("eval")
@click.argument("subject", metavar="MODEL_OR_ADAPTER")
@click.option(
    "--config", "configs", multiple=True, type=click.Path(path_type=Path), help="Config file with rewards and data."
)
@override_option
@click.option("--data", metavar="PATH", help="Evaluate on all rows of this data set instead of the held-out ones.")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def eval_command(
    context: click.Context,
    subject: str,
    configs: tuple[Path, ...],
    overrides: tuple[str, ...],
    data: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Score a model, an adapter or a run on held-out prompts.

    MODEL_OR_ADAPTER is a folder or hub id of a model, an adapter folder, a run (RUN) or a run at a checkpoint
    (RUN@STEP). A run brings its own config; anything else needs --config. Exit code 3 if a reward function failed.
    """
    from reinforge import api
    from reinforge.config_file import load_config

    if overrides and not configs:
        raise UsageError("-o changes a setting of --config, which is not given.", hint="Add --config CONFIG.")
    config = load_config(configs, overrides) if configs else None
    if data is not None and Path(data).exists():
        data = str(Path(data).resolve())  # a run's own paths start where it began
    with subject_errors(subject, runs_dir, config_given=config is not None):
        evaluation = api.evaluate(find_subject_name(subject, runs_dir), config, data=data, watcher=PlainLines(0))
    click.echo(json.dumps({"subject": subject, **asdict(evaluation)}) if as_json else _text(evaluation))
    context.exit(3 if evaluation.errors else 0)


def _text(evaluation: Evaluation) -> str:
    def interval(ends: tuple[float, float] | None) -> str:
        return "-" if ends is None else f"{ends[0]:.3f} .. {ends[1]:.3f}"

    rows = [
        ["pass@1, sampled", figure(evaluation.pass_at_1), interval(evaluation.ci95)],
        ["pass@1, greedy", figure(evaluation.greedy_pass_at_1), interval(evaluation.greedy_ci95)],
        ["reward", figure(evaluation.reward_mean), ""],
        *([f"  {name}", figure(mean), ""] for name, mean in evaluation.function_means.items()),
        *([f"  {name}, failed calls", str(count), ""] for name, count in evaluation.errors.items()),
        ["cut off", figure(evaluation.truncated_share), ""],
    ]
    counted = f"{evaluation.num_prompts} prompts, {evaluation.num_samples} completions"
    if evaluation.num_left_out:
        counted += f"; {evaluation.num_left_out} completions are not in pass@1: no judgement of them"
    return f"{table(['', 'mean', '95 % interval'], rows)}\n{counted}"
