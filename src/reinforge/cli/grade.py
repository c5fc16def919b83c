"""`reinforge grade`: score completions that exist already. No model, no GPU: check a reward function on real rows."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import no_sandbox_option, package_option
from reinforge.cli.progress import shown_progress
from reinforge.cli.text import figure, fitted, say, shortened, table, visible
from reinforge.errors import DataError

if TYPE_CHECKING:
    from reinforge.types import Grade, Score

MAX_TEXT = 60
"""Characters of a completion, and of the reasons for its scores, in the table; --json has all."""
MAX_CAUSES = 5
"""Of failed calls that are told; each is a function and the first line of its message."""


@click.command("grade")
@click.argument("rewards")
@click.option("--data", required=True, metavar="PATH", help="Rows with a prompt, a completion and any other columns.")
@click.option("--prompt-column", default="prompt", show_default=True, help="Column with the prompt.")
@click.option("--completion-column", default="completion", show_default=True, help="Column with the completion.")
@click.option("--rows", "num_rows", type=click.IntRange(min=0), default=10, show_default=True, help="Rows to list.")
@package_option
@no_sandbox_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, with every score.")
@click.pass_context
def grade_command(
    context: click.Context,
    rewards: str,
    data: str,
    prompt_column: str,
    completion_column: str,
    num_rows: int,
    packages: tuple[str, ...],
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Score the completions of a data set with REWARDS.

    REWARDS is rewards.py (every reward function in it), rewards.py:function, a grader (grader.json or the name of a
    built-in), or a config file (its functions, with their weights). Neighbouring rows that differ only in their
    completion are judged together, as one group. Exit code 3 if a function failed on a completion, 4 if
    there was nobody to judge at all (a judge that is down, workers that do not start).
    """
    from reinforge import api

    try:
        with shown_progress() as progress:
            graded = api.grade(
                rewards,
                data,
                prompt_column=prompt_column,
                completion_column=completion_column,
                unsafe_no_sandbox=unsafe_no_sandbox,
                packages=packages,
                tell=say,
                progress=progress,
            )
    except DataError as error:
        raise DataError(error.message, hint=error.hint.replace("data.prompt_column: ", "--prompt-column ")) from None
    rows, grades = [row for row, _ in graded], [grade for _, grade in graded]
    functions = [_summary(score.name, grades) for score in grades[0].scores]
    if as_json:
        told = [_json_row(i, grade) for i, grade in enumerate(grades)]
        click.echo(json.dumps({"functions": functions, "reward": _reward_summary(grades), "rows": told}))
    else:
        click.echo(_summary_text(functions, grades))
        click.echo("\n" + _rows_text(rows[:num_rows], grades) if num_rows else "", nl=bool(num_rows))
    _tell_faults(grades)
    nobody_answered = any(function["masked"] == len(grades) for function in functions)
    context.exit(3 if any(function["errors"] for function in functions) else 4 if nobody_answered else 0)


def _summary(name: str, grades: Sequence[Grade]) -> dict[str, Any]:
    scores = [score for grade in grades for score in grade.scores if score.name == name]
    values = [score.value for score in scores if score.value is not None]
    return {
        "name": name,
        "weight": scores[0].weight,
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "errors": sum(score.state == "error" for score in scores),
        "masked": sum(score.state == "masked" for score in scores),
        "not_applicable": sum(score.state == "ok" and score.value is None for score in scores),
        "ms": 1000 * statistics.fmean(score.latency_s for score in scores),
    }


def _summary_text(functions: Sequence[Mapping[str, Any]], grades: Sequence[Grade]) -> str:
    header = ["function", "weight", "mean", "std", "min", "max", "errors", "masked", "not applicable", "ms a call"]
    rows = [
        [
            function["name"],
            f"{function['weight']:g}",
            *(figure(function[key]) for key in ("mean", "std", "min", "max")),
            *(str(function[key]) for key in ("errors", "masked", "not_applicable")),
            f"{function['ms']:.1f}",
        ]
        for function in functions
    ]
    reward = _reward_summary(grades)
    words = {"errors": "with failed calls", "masked": "masked"}
    lost = [f"{reward[what]} {said}" for what, said in words.items() if reward[what]]
    left_out = f" of {reward['num_valid']} ({', '.join(lost)} left out)" if lost else ""
    return f"{fitted(header, rows)}\n\n{len(grades)} completions, mean reward {figure(reward['mean'])}{left_out}"


def _reward_summary(grades: Sequence[Grade]) -> dict[str, Any]:
    """The mean over completions whose every call answered, or has what stands in for it; how many did not."""
    failed = [any(s.state == "error" and s.stand_in is None for s in grade.scores) for grade in grades]
    valid = [g.reward for g, bad in zip(grades, failed, strict=True) if g.reward is not None and not bad]
    masked = sum(grade.reward is None for grade in grades)
    return {
        "mean": statistics.fmean(valid) if valid else None,
        "num_valid": len(valid),
        "errors": len(grades) - len(valid) - masked,
        "masked": masked,
    }


def _rows_text(rows: Sequence[Mapping[str, Any]], grades: Sequence[Grade]) -> str:
    names = [score.name for score in grades[0].scores]
    shown = list(zip(rows, grades, strict=False))
    reasons = [_reason(grade) for _, grade in shown]
    has_reasons = any(reasons)
    lines = [
        [
            str(i + 1),
            figure(grade.reward),
            *map(_score_text, grade.scores),
            *([shortened(reason, MAX_TEXT)] if has_reasons else []),
            shortened(row["completion"], MAX_TEXT),
        ]
        for i, ((row, grade), reason) in enumerate(zip(shown, reasons, strict=True))
    ]
    return table(["row", "reward", *names, *(["reason"] if has_reasons else []), "completion"], lines)


def _reason(grade: Grade) -> str:
    """What the functions said of their scores. Why a call failed is told below the table."""
    said = [(score.name, score.message.strip()) for score in grade.scores if score.state == "ok" and score.message]
    return "; ".join(f"{name}: {reason}" if len(grade.scores) > 1 else reason for name, reason in said)


def _score_text(score: Score) -> str:
    return figure(score.value) if score.state == "ok" else score.state


def _json_row(index: int, grade: Grade) -> dict[str, Any]:
    return {"row": index + 1, "reward": grade.reward, "scores": [asdict(score) for score in grade.scores]}


def _tell_faults(grades: Sequence[Grade]) -> None:
    """The causes of failed calls, the most frequent first, each as its first call told it."""
    causes: dict[tuple[str, str, str], list[tuple[int, Score]]] = {}
    for row, grade in enumerate(grades, start=1):
        for score in grade.scores:
            if score.state != "ok":
                cause = (score.name, score.kind, score.message.strip().partition("\n")[0])
                causes.setdefault(cause, []).append((row, score))
    for calls in sorted(causes.values(), key=len, reverse=True)[:MAX_CAUSES]:
        row, score = calls[0]
        failed = f"{score.name} {score.kind} on {len(calls)} of {len(grades)} completions (first: row {row})"
        say(visible(f"{failed}: {score.message.strip()}").replace("\n", "\n  "))
        if score.prints:
            say("  it printed: " + visible(score.prints.strip()).replace("\n", "\n  "))
    if len(causes) > MAX_CAUSES:
        say(f"... and {len(causes) - MAX_CAUSES} more causes; --json lists every call.")
    notes = {(score.name, score.note): None for grade in grades for score in grade.scores if score.note}
    for name, note in notes:
        say(visible(f"{name}: its worker was replaced, which costs a process start each time: {note}", one_line=True))
