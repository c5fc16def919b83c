"""`reinforge runs` and `reinforge verify`: what runs there are, what happened in one, going on, checking."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import find_run, runs_dir_option
from reinforge.cli.text import duration, figure, fitted, say, shortened, table, visible
from reinforge.errors import ReinforgeError, UsageError

if TYPE_CHECKING:
    from reinforge.run_store import Run

MAX_PRINTED = 400
"""Characters shown of what a reward function said about one completion; `--json` has all that was kept."""


@click.group("runs")
def runs_command() -> None:
    """List runs, show or draw what happened in one, go on with one."""


@runs_command.command("list")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def list_command(runs_dir: Path, as_json: bool) -> None:
    """All runs of a folder, the newest first."""
    from reinforge.run_store import Run, list_runs

    summaries = []
    for path in list_runs(runs_dir):
        try:
            with Run.open(path) as run:
                summaries.append(run.summary())
        except ReinforgeError as damage:  # one damaged run must not hide the others
            say(f"{visible(path.name)}: {visible(str(damage))}")
    if as_json:
        click.echo(json.dumps(summaries))
    elif summaries:
        header = ["name", "status", "step", "reward", "held-out", "time", "started"]
        click.echo(fitted(header, [_list_row(summary) for summary in summaries]))
    else:
        click.echo(f"No runs in {runs_dir}/. Begin one with reinforge train or reinforge demo.", err=True)


def _list_row(summary: dict[str, Any]) -> list[str]:
    before, after = summary["heldout_before"], summary["heldout_after"]
    return [
        summary["name"],
        summary["status"],
        f"{summary['step']}/{summary['steps']}",
        figure(summary["reward_mean"]),
        figure(before) if after is None else f"{figure(before)} -> {figure(after)}",
        duration(summary["duration_s"]),
        summary["started"].replace("T", " ").removesuffix("+00:00"),
    ]


@runs_command.command("show")
@click.argument("run", required=False)
@runs_dir_option
@click.option("--steps", "num_steps", type=click.IntRange(min=0), default=10, show_default=True, help="Latest steps.")
@click.option(
    "--completions",
    "num_completions",
    type=click.IntRange(min=0),
    default=0,
    help="Completions of the last step, and what functions printed.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def show_command(run: str | None, runs_dir: Path, num_steps: int, num_completions: int, as_json: bool) -> None:
    """What happened in RUN (a name or a folder); the newest if none is named."""
    from reinforge.run_store import Run

    with Run.open(find_run(run, runs_dir)) as opened:
        if as_json:
            click.echo(json.dumps(_story(opened, num_steps, num_completions)))
        else:
            click.echo(_story_text(opened, num_steps, num_completions))


@runs_command.command("plot")
@click.argument("run", required=False)
@runs_dir_option
@click.option("--out", type=click.Path(path_type=Path), help="Picture to write: .png, .svg or .pdf.  [RUN/curves.png]")
def plot_command(run: str | None, runs_dir: Path, out: Path | None) -> None:
    """Draw rewards, held-out score, lengths and groups of RUN (a name or a folder; the newest if none is named).

    Also while it trains. The picture's place goes to stdout.
    """
    from reinforge.plot import plot_run

    path = find_run(run, runs_dir)
    click.echo(plot_run(path, out or path / "curves.png"))


@runs_command.command("resume")
@click.argument("run")
@click.option(
    "-o",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change how judges are asked from now on, e.g. -o reward_fns.judge.budget_tokens=2000000, or how much memory "
    "is taken: slots, tokens_per_microbatch, gradient_checkpointing.",
)
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout, one a step, the last one the run.")
def resume_command(run: str, overrides: tuple[str, ...], runs_dir: Path, as_json: bool) -> None:
    """Go on with RUN (a name or a folder) from its newest checkpoint.

    The result is bitwise the same as if the run had never been interrupted, unless -o changes how
    much memory it takes: then it rounds in another way from there on.
    """
    from reinforge import api
    from reinforge.cli.live import open_display
    from reinforge.cli.train import tell_run
    from reinforge.run_store import Run

    path = find_run(run, runs_dir)
    with Run.open(path) as stored:
        num_steps = int(stored.config()["train_steps"])
    display = open_display(num_steps, as_json=as_json)
    try:
        api.resume(path, display, overrides=overrides)
    finally:
        display.close()
    tell_run(path, as_json)


def _story(run: Run, num_steps: int, num_completions: int) -> dict[str, Any]:
    from reinforge.run_store.control import REWARDS, pending_requests

    last = run.last_step()
    steps = run.steps(first=max(1, last - num_steps + 1)) if num_steps else []
    return {
        **run.summary(),
        "about": run.about,
        "config": run.config(),
        "evaluations": run.evaluations(),
        "judge": _judge(run),
        "functions": [asdict(row) for row in run.functions()],
        "right_completions": _right_completions(run),
        "waiting_reward_updates": [request.id for request in pending_requests(run.path, REWARDS)],
        "latest_steps": [{"step": row.step, "metrics": row.metrics} for row in steps],
        "completions": _completions(run, num_completions),
        "events": [asdict(row) for row in run.events()],
    }


def _right_completions(run: Run) -> dict[str, Any] | None:
    """The newest check of right completions: how many scores differ from the start, and the means."""
    for row in reversed(run.steps()):
        if "gold/changed" in row.metrics:
            means = {match[1]: v for k, v in row.metrics.items() if (match := re.fullmatch("gold/(.+)/mean", k))}
            return {"after_step": row.step - 1, "changed": int(row.metrics["gold/changed"]), "means": means}
    return None


def _right_completions_text(check: dict[str, Any] | None) -> str:
    if check is None:
        return ""
    means = ", ".join(f"{name} {figure(mean)}" for name, mean in check["means"].items())
    changed = check["changed"]
    told = (
        f"{changed} scores are not what they were at the start" if changed else "all score what they did at the start"
    )
    return f"right completions after step {check['after_step']}: {means}; {told}"


def _judge(run: Run) -> dict[str, Any]:
    """What judges took over the whole run, evaluations and repeated steps included; empty where none was asked."""
    from reinforge.grading.judges.meter import cost_of
    from reinforge.reward_updates import judge_of
    from reinforge.run_store.judgements import read_judgements

    usages, note = read_judgements(run.path)
    if not usages and note is None:
        return {}
    config = judge_of(run.config())
    costs = [cost_of(usage, config.prices) for usage in usages]
    return {
        "calls": sum(usage.calls for usage in usages),
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "cost": None if None in costs else sum(cost for cost in costs if cost is not None),
        "models": [asdict(usage) for usage in usages],
        "budget_tokens": config.budget_tokens,
        "budget_cost": config.budget_cost,
        "note": None if note is None else asdict(note),
    }


def _completions(run: Run, limit: int) -> list[dict[str, Any]]:
    rows = run.completions(step=run.last_step(), limit=limit) if limit else []
    scores = run.scores(row.id for row in rows)
    prompts = run.prompts([row.example for row in rows])
    return [
        {**asdict(row), "prompt": prompts[row.example].text, "scores": [asdict(score) for score in scores[row.id]]}
        for row in rows
    ]


def _story_text(run: Run, num_steps: int, num_completions: int) -> str:
    story = _story(run, num_steps, num_completions)
    parts = [_head(story), _evaluations_text(story["evaluations"]), _functions_text(story["functions"])]
    parts.append(_right_completions_text(story["right_completions"]))
    parts.append(_judge_text(story["judge"], story["status"]))
    functions = story["config"].get("reward_fns", {}).get("functions", {})
    parts += [_steps_text(story["latest_steps"], functions), *map(_completion_text, story["completions"])]
    parts.append("\n".join(f"{row['level']:8}step {row['step']}  {visible(row['message'])}" for row in story["events"]))
    return visible("\n\n".join(part for part in parts if part))  # a run may come from anywhere


def _head(story: dict[str, Any]) -> str:
    reason = f" ({visible(story['reason'])})" if story["reason"] else ""
    first = f"{story['name']}  {story['status']}{reason}  step {story['step']}/{story['steps']}  "
    first += f"{duration(story['duration_s'])} trained"
    go_on = "" if story["status"] in ("succeeded", "running") else f"\ngo on: reinforge runs resume {story['path']}"
    num_waiting = len(story["waiting_reward_updates"])
    tier = story["about"].get("sandbox", {}).get("tier", "unknown")
    waiting = f"\nwaiting to be taken: {num_waiting} update(s) of the reward functions" if num_waiting else ""
    packages = story["about"].get("packages")
    brought = f"\npackages {shortened(' '.join(packages), 110)}" if packages else ""
    model = f"model {story['config']['base_model']}  folder {story['path']}  sandbox {tier}"
    return f"{first}\n{model}{brought}{go_on}{waiting}"


def _evaluations_text(evaluations: Sequence[dict[str, Any]]) -> str:
    rows = []
    for evaluation in evaluations:
        low, high = evaluation.get("ci95") or (None, None)
        interval = "-" if low is None else f"{low:.3f} .. {high:.3f}"
        names = ("pass_at_1", "greedy_pass_at_1", "reward_mean", "truncated_share")
        figures = [figure(evaluation.get(name)) for name in names]
        lost = [str(sum(evaluation.get("errors", {}).values())), str(evaluation.get("num_left_out", "-"))]
        rows.append([str(evaluation.get("step", "-")), figures[0], interval, *figures[1:], *lost])
    header = ["held-out at step", "pass@1", "95 % interval", "greedy", "reward", "cut off", "errors", "left out"]
    return fitted(header, rows) if rows else ""


def _functions_text(functions: Sequence[dict[str, Any]]) -> str:
    counts = ("num_ok", "num_error", "num_masked", "num_inapplicable")
    rows = [
        [
            row["version"],
            f"{row['weight']:g}",
            figure(row["mean"]),
            *(str(row[name]) for name in counts),
            f"{1000 * row['latency_mean_s']:.1f}",
            f"{row['first_step']}-{row['last_step']}",
        ]
        for row in functions
    ]
    header = ["reward function", "weight", "mean", "ok", "errors", "masked", "not applicable", "ms", "steps"]
    return fitted(header, rows) if rows else ""


def _judge_text(judge: dict[str, Any], status: str) -> str:
    if not judge:
        return ""
    tokens = judge["prompt_tokens"] + judge["completion_tokens"]
    of_tokens = f" of {judge['budget_tokens']:,}" if judge["budget_tokens"] is not None else ""
    of_cost = f" of {judge['budget_cost']:g}" if judge["budget_cost"] is not None else ""
    cost = "" if judge["cost"] is None else f", cost {judge['cost']:.4g}{of_cost}"
    text = f"judges: {judge['calls']:,} requests, {tokens:,}{of_tokens} tokens{cost}"
    if judge["note"] is not None and status == "running":
        at = datetime.fromtimestamp(judge["note"]["at"]).strftime("%H:%M:%S")
        text += f"\n{at}  {judge['note']['text']}"
    return text


def _steps_text(steps: Sequence[dict[str, Any]], functions: Iterable[str]) -> str:
    from reinforge.cli.live import Columns, column_names

    lines = [Columns.values(row["metrics"], functions) for row in steps]
    names = column_names(lines)
    rows = [
        [str(row["step"]), *(line.get(name, "-") for name in names)] for row, line in zip(steps, lines, strict=True)
    ]
    return fitted(["step", *names], rows) if rows else ""


def _completion_text(row: dict[str, Any]) -> str:
    scores = ", ".join(f"{score['name']} {figure(score['value'], '.3g')}" for score in row["scores"])
    title = (
        f"-- example {row['example']}, completion {row['generation']}: reward {figure(row['reward'], '.3g')} ({scores})"
    )
    told = [f"{visible(title)}\n{visible(row['prompt'])} ▸ {visible(row['text'])}", *map(_told_by, row["scores"])]
    return "\n".join(part for part in told if part)


def _told_by(score: dict[str, Any]) -> str:
    """Why a call failed and what it printed, indented so that neither poses as ours; empty if there is neither."""
    told = []
    if score["state"] != "ok":
        told.append(f"{score['name']} {score['state']} ({score['kind']}): {shortened(score['message'], MAX_PRINTED)}")
    if score["prints"]:
        told.append(f"{score['name']} printed: {shortened(score['prints'].strip(), MAX_PRINTED)}")
    return "\n".join("  " + visible(text).replace("\n", "\n    ") for text in told)


@click.command("verify")
@click.argument("step", metavar="RUN@STEP")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def verify_command(context: click.Context, step: str, runs_dir: Path, as_json: bool) -> None:
    """Compute one step of a run again from its stored state and compare every bit.

    Works in a copy; the run stays as it is. Exit code 1 if anything differs.
    """
    from reinforge.verification import verify

    name, at, number = step.rpartition("@")
    if not at or not number.isdecimal():
        raise UsageError(f"{step} names no step of a run.", hint="Write RUN@STEP, for instance my-run@20.")
    found = verify(find_run(name, runs_dir), int(number))
    if as_json:
        click.echo(json.dumps({**asdict(found), "equal": found.equal}))
    else:
        rows = [[what, *_hashes_text(found.stored[what], found.again[what])] for what in found.stored]
        click.echo(table(["hash of", "stored", "again"], rows))
        verdict = "equal" if found.equal else "DIFFERENT"
        click.echo(f"step {found.step}, computed again from the checkpoint at step {found.from_step}: {verdict}")
        for change in () if found.equal else found.changed_since:
            click.echo(f"all of it was computed as the run does now: {visible(change)}")
    context.exit(0 if found.equal else 1)


def _hashes_text(stored: str, again: str) -> tuple[str, str]:
    """Equal ones by their beginning; the whole of two that differ."""
    return (stored[:12], again[:12]) if stored == again else (stored, again)
