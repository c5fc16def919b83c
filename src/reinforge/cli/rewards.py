"""`reinforge rewards`: change the reward functions of a run, and read what they did."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reinforge.cli.options import find_run, package_option, runs_dir_option
from reinforge.cli.progress import shown_progress
from reinforge.cli.reward_lab import new_command, test_command
from reinforge.cli.reward_logs import logs_command
from reinforge.cli.reward_network import network_command
from reinforge.cli.reward_packages import packages_command
from reinforge.cli.reward_pending import pending_command
from reinforge.cli.reward_replay import replay_command
from reinforge.cli.text import say, visible
from reinforge.errors import RewardError, UsageError

if TYPE_CHECKING:
    from reinforge.grading.reward_function import RewardFunction, SourceText
    from reinforge.grading.score_shift import ScoreShift
    from reinforge.grading.versions import RewardUpdate
    from reinforge.sandbox.limits import Limits

REPLAY_STEPS = 5
"""As reward_changes.REPLAY_STEPS, which takes long to import."""
APPLY_WAIT_S = 2.0
"""How long `update` looks whether the trainer has taken the request, unless told otherwise."""


@click.group("rewards")
def rewards_command() -> None:
    """Change the reward functions of a run, and read what they did."""


rewards_command.add_command(new_command)
rewards_command.add_command(test_command)
rewards_command.add_command(replay_command)
rewards_command.add_command(pending_command)
rewards_command.add_command(packages_command)
rewards_command.add_command(network_command)
rewards_command.add_command(logs_command)


@rewards_command.command("update")
@click.argument("run")
@click.argument("changes", nargs=-1, metavar="[FILE | NAME=FILE:FUNCTION | NAME=GRADER.json]...")
@click.option("--weight", "weights", multiple=True, metavar="NAME=WEIGHT", help="New weight of a function.")
@click.option("--remove", "removed", multiple=True, metavar="NAME", help="Judge without this function from then on.")
@click.option("--base", "bases", multiple=True, metavar="NAME_vN", help="Only if the run still has this version.")
@package_option
@click.option("--at-step", type=click.IntRange(min=0), default=0, help="Not before this many steps are done.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=APPLY_WAIT_S, show_default=True,
              metavar="SECONDS", help="Wait this long for the trainer's answer.")  # fmt: skip
@click.option("--replay", "num_steps", type=click.IntRange(min=0), default=REPLAY_STEPS, show_default=True, metavar="N",
              help="Try it on the completions of the last N steps first; 0: do not.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Send a large change without asking.")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def update_command(
    run: str,
    changes: tuple[str, ...],
    weights: tuple[str, ...],
    removed: tuple[str, ...],
    bases: tuple[str, ...],
    packages: tuple[str, ...],
    at_step: int,
    wait_s: float,
    num_steps: int,
    yes: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Change the reward functions of RUN (a name or a folder) while it trains, or before it is resumed.

    FILE brings new texts for the functions of the run that it has, under their own name or the run's name for them.
    NAME=FILE:FUNCTION changes or adds one. The trainer takes the change between two steps; each changed function gets
    the next version, format_v2 after format_v1. `reinforge rewards pending RUN` shows what waits, and withdraws it.

    How far the change moves the scores of recent completions is shown first. On a terminal you are asked whether to
    send one that moves them far; elsewhere, and with --yes, it is sent with a warning. Elsewhere a function that fails
    on all of these completions is only sent with --yes; exit code 3.
    """
    from reinforge.grading.versions import RewardUpdate
    from reinforge.reward_updates import latest_functions, lock_for, request_update, run_limits, wait_for_update
    from reinforge.run_store import Run
    from reinforge.sandbox.environments import provide

    path = find_run(run, runs_dir)
    with Run.open(path) as opened:
        current = {function.name: function for function in latest_functions(opened)}
        limits = run_limits(opened, tuple(current.values()))
        locked = lock_for(opened, packages, say) if packages else None
    limits = limits if locked is None else replace(limits, packages=locked)
    provide(limits.packages, tell=say)
    texts = changed_texts(changes, current, limits)
    named = {**texts, **changed_weights(weights), **dict.fromkeys(removed)}
    if not named:
        raise UsageError("Nothing is to be changed.", hint="Name a file, --weight NAME=WEIGHT or --remove NAME.")
    base = {name: current[name].version if name in current else "" for name in named} | _bases(bases)
    if locked is not None and not texts:
        raise UsageError("--package is for functions that are changed.", hint="Name them: NAME=FILE:FUNCTION.")
    update = RewardUpdate(texts, changed_weights(weights), removed, base, at_step, locked)
    shift = _tried(path, update, num_steps, yes)
    request = request_update(path, replace(update, shift=shift))
    taken = wait_for_update(path, request, wait_s)
    if as_json:
        answer = {"request": request, "step": taken and taken.step, "message": taken and taken.message}
        click.echo(json.dumps(answer | {"shift": shift and shift.to_values()}))
    elif taken is not None:
        say(f"changed after step {taken.step}: {taken.message}")
    else:
        say(f"requested ({request}): the trainer takes it between two steps, or when the run is resumed.")
        say(f"look: reinforge runs show {path}")


def _tried(path: Path, update: RewardUpdate, num_steps: int, yes: bool) -> ScoreShift | None:
    """How far an update would move the scores of the last completions, told; None when nobody knows. RewardError when
    the update would be refused or brings a function that only fails; Exit when the user decides against it."""
    from reinforge.reward_changes import try_update

    with shown_progress() as progress:
        trial = try_update(path, update, num_steps, progress)
    warnings = [] if trial.shift is None else trial.shift.warnings()
    if trial.unknown:
        say(visible(f"how far scores move is unknown: {trial.unknown}"))
    if trial.shift is not None:
        say(visible(f"before -> after: {trial.shift.in_words()}", one_line=True))
    for warning in warnings:
        say(visible(f"warning  a large change: {warning}", one_line=True))
    is_asked = sys.stdin.isatty() and not yes
    if trial.broken is not None:
        if not is_asked and not yes:
            raise trial.broken
        say(visible(f"warning  {trial.broken.message}"))
    if is_asked and (warnings or trial.broken) and not click.confirm("Send it all the same?", err=True):
        say("Nothing was sent.")
        raise click.exceptions.Exit(1)
    return trial.shift


def changed_texts(
    changes: Sequence[str], current: Mapping[str, RewardFunction], limits: Limits
) -> dict[str, SourceText]:
    """Display name -> new text. `limits` hold for a file that is loaded to see which functions it has."""
    from reinforge.grading.describe import describe_source
    from reinforge.grading.reward_function import locate

    texts: dict[str, SourceText] = {}
    for change in changes:
        name, equals, reference = change.partition("=")
        if equals and re.fullmatch(r"[^/.]+", name):
            texts[name] = locate(name, reference, Path.cwd())
            continue
        text = locate(Path(change).name, change, Path.cwd())
        if not text.function_name:
            texts |= _grader_texts(change, text, current)
            continue
        facts = [fact for fact in describe_source(text.source, text.file_name, limits) if fact.own]
        found = _matched(text, current, {fact.name for fact in facts})
        if not found:
            known = ", ".join(function.function_name for function in current.values())
            hint = f"To add a new one, name it: NAME={change}:FUNCTION."
            raise RewardError(f"{change} has none of the run's functions ({known}).", hint=hint)
        for name, of_name in found.items():
            say(visible(f"{name}: {change}:{of_name.function_name}", one_line=True))
        texts |= found
    return texts


def _matched(text: SourceText, current: Mapping[str, RewardFunction], defined: set[str]) -> dict[str, SourceText]:
    """Functions of the run -> the text's function with the name theirs had, or else with the run's name for them."""
    found = {}
    for name, function in current.items():
        if function.function_name in defined:
            found[name] = replace(text, function_name=function.function_name)
        elif name in defined:
            found[name] = replace(text, function_name=name)
    return found


def _grader_texts(change: str, text: SourceText, current: Mapping[str, RewardFunction]) -> dict[str, SourceText]:
    """A grader's file is for the functions that came from it."""
    found = {name: text for name, function in current.items() if function.file_name == text.file_name}
    if not found:
        raise RewardError(
            f"{change} is a grader, and no function of the run came from it.",
            hint=f"Name the function it is for: NAME={change}.",
        )
    return found


def changed_weights(pairs: Sequence[str]) -> dict[str, float]:
    weights = {}
    for pair in pairs:
        name, _, weight = pair.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise UsageError(f"--weight {pair}: {weight!r} is no number.", hint="Write NAME=0.5.") from None
    return weights


def _bases(versions: Sequence[str]) -> dict[str, str]:
    for version in versions:
        if not re.fullmatch(r".+_v\d+", version):
            raise UsageError(f"--base {version} is no version.", hint="Write it as `runs show` does: format_v1.")
    return {version.rpartition("_v")[0]: version for version in versions}


@rewards_command.command("helpers")
def helpers_command() -> None:
    """Python functions that read a row's columns back from text, to copy into a reward file.

    For instance: reinforge rewards helpers >> rewards.py
    """
    from reinforge.grading import helpers

    source = Path(helpers.__file__).read_text(encoding="utf-8")
    click.echo(source[source.index("import ast") :], nl=False)
