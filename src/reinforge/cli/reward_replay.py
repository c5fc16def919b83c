"""`reinforge rewards replay`: what other reward functions would make of a run's completions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reinforge.cli.options import find_run, no_sandbox_option, runs_dir_option
from reinforge.cli.progress import shown_progress
from reinforge.cli.text import figure, fitted, shortened, table, visible
from reinforge.errors import UsageError

if TYPE_CHECKING:
    from reinforge.insight.replay import FunctionShift, ReplayedCompletion, ReplayReport
    from reinforge.types import Grade

MAX_PROMPT, MAX_TEXT = 80, 200
"""Last characters of a prompt and first ones of a completion that are shown; --json has all of a completion."""


@click.command("replay")
@click.argument("run")
@click.option("--with", "changes", multiple=True, metavar="FILE | NAME=FILE:FUNCTION", help="New text of functions.")
@click.option("--weight", "weights", multiple=True, metavar="NAME=WEIGHT", help="New weight of a function.")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="Judge without this function.")
@click.option("--last", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
              help="Completions of the last N steps, since the last change.")  # fmt: skip
@click.option("--show", "num_shown", type=click.IntRange(min=0), default=5, show_default=True,
              help="Most changed completions to list.")  # fmt: skip
@runs_dir_option
@no_sandbox_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def replay_command(
    run: str,
    changes: tuple[str, ...],
    weights: tuple[str, ...],
    removed: tuple[str, ...],
    last: int,
    num_shown: int,
    runs_dir: Path,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """What changed reward functions would make of the completions that RUN (a name or a folder) has stored.

    The changes are named as in `reinforge rewards update`: --with FILE brings new texts for the functions of the run
    that it has. Nothing is applied, and the run may be training. Shows the shift of each function's scores, rank
    changes within groups, groups that would fall silent or begin to teach, advantages, and the most changed
    completions.
    """
    from reinforge.cli.rewards import changed_texts, changed_weights
    from reinforge.grading.versions import RewardUpdate, apply_update
    from reinforge.reward_replay import replay
    from reinforge.reward_updates import latest_functions, needed_functions, run_limits
    from reinforge.run_store import Run

    path = find_run(run, runs_dir)
    with Run.open(path) as opened:
        functions = latest_functions(opened)
        limits = run_limits(opened, functions)
        limits = replace(limits, unsafe_no_sandbox=limits.unsafe_no_sandbox or unsafe_no_sandbox)
        texts = changed_texts(changes, {function.name: function for function in functions}, limits)
        update = RewardUpdate(texts, changed_weights(weights), removed)
        if not texts and not weights and not removed:
            raise UsageError("Nothing is to be changed.", hint="Name a file: --with FILE.")
        after = apply_update(functions, update, needed=needed_functions(opened.config()), limits=limits)
        with shown_progress() as progress:
            found = replay(
                opened, after, last, num_most_changed=num_shown, unsafe_no_sandbox=unsafe_no_sandbox, progress=progress
            )
        prompts = opened.prompts([completion.example for completion in found.most_changed])
    if as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        click.echo(_text(found, {example: prompt.text for example, prompt in prompts.items()}))


def _text(found: ReplayReport, prompts: Mapping[int, str]) -> str:
    steps = f"steps {found.first_step} to {found.last_step}"
    head = f"{found.num_completions} completions in {found.num_groups} groups, {steps}; nothing is applied"
    parts = [head, _functions_table(found), _figures_table(found)]
    if found.most_changed:
        parts += ["most changed:", *(_completion_text(one, prompts) for one in found.most_changed)]
    return "\n\n".join(parts)


def _functions_table(found: ReplayReport) -> str:
    header = ["function", "weight", "mean before", "after", "shift", "largest", "changed", "errors before", "after"]
    rows = [
        [
            _versions(function),
            _weights(function),
            figure(function.mean_before),
            figure(function.mean_after),
            figure(function.shift, ".3f"),
            figure(function.largest, ".3f"),
            f"{function.num_changed}/{function.num_compared}",
            str(function.errors_before),
            str(function.errors_after),
        ]
        for function in found.functions
    ]
    return fitted(header, rows)


def _versions(function: FunctionShift) -> str:
    before = ", ".join(function.versions_before) or "new"
    after = function.version_after or "removed"
    return before if before == after else f"{before} -> {after}"


def _weights(function: FunctionShift) -> str:
    before, after = figure(function.weight_before, "g"), figure(function.weight_after, "g")
    return before if before == after else f"{before} -> {after}"


def _figures_table(found: ReplayReport) -> str:
    groups = found.num_groups
    rows = [
        ["reward, mean", figure(found.reward_mean_before), figure(found.reward_mean_after)],
        ["reward, std", figure(found.reward_std_before), figure(found.reward_std_after)],
        ["zero-variance groups", f"{found.zero_variance_before:.1%}", f"{found.zero_variance_after:.1%}"],
    ]
    told = [
        ["groups that fall silent", f"{found.num_silenced}/{groups}"],
        ["groups that begin to teach", f"{found.num_woken}/{groups}"],
        ["groups with another order", f"{found.num_reordered}/{groups}"],
        ["groups with another best completion", f"{found.num_other_best}/{groups}"],
        ["pairs turned round", figure(found.pairs_turned, ".1%")],
        ["pairs made equal", figure(found.pairs_tied, ".1%")],
        ["advantage, mean change", figure(found.advantage_shift_mean)],
        ["advantage, largest change", figure(found.advantage_shift_max)],
        ["advantages of the opposite sign", f"{found.advantage_sign_flips:.1%}"],
        ["correlation of the advantages", figure(found.advantage_correlation)],
    ]
    return f"{table(['', 'before', 'after'], rows)}\n\n{table(['change', 'value'], told)}"


def _completion_text(one: ReplayedCompletion, prompts: Mapping[int, str]) -> str:
    head = (
        f"-- step {one.step}, example {one.example}, completion {one.generation}: reward"
        f" {figure(one.before.reward, '.3g')} -> {figure(one.after.reward, '.3g')}, advantage"
        f" {one.advantage_before:.3f} -> {one.advantage_after:.3f}"
    )
    lines = [f"   {_scores(one.before)}  ->  {_scores(one.after)}"]
    lines.append(f"   ...{prompts[one.example].rstrip()[-MAX_PROMPT:]} ▸ {shortened(one.text, MAX_TEXT)}")
    return "\n".join(visible(line, one_line=True) for line in (head, *lines))


def _scores(grade: Grade) -> str:
    return ", ".join(
        f"{score.version} {figure(score.value, '.3g') if score.state == 'ok' else f'{score.state} ({score.kind})'}"
        for score in grade.scores
    )
