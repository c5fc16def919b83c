"""Sending a run other reward functions: they are tried on its last completions first, from Python and from the command
line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reinforge.errors import ReinforgeError, RewardError
from reinforge.grading.futures import Progress, no_progress
from reinforge.grading.reward_function import Reference, locate
from reinforge.grading.score_shift import ScoreShift
from reinforge.grading.versions import NO_VERSION, RewardUpdate
from reinforge.insight.replay import ReplayReport
from reinforge.reward_replay import replay, shift_of
from reinforge.reward_updates import functions_after, latest_functions, lock_for, request_update
from reinforge.run_store import Run

REPLAY_STEPS = 5
"""An update is tried on the completions of so many last steps, unless told otherwise."""


@dataclass(frozen=True)
class Trial:
    """What an update would make of a run's last completions."""

    shift: ScoreShift | None = None
    """None when nobody knows."""
    unknown: str = ""
    """Why nobody knows, if something is the matter."""
    broken: RewardError | None = None
    """A function it brings that failed on every one of them."""


def try_update(run_path: Path, update: RewardUpdate, num_steps: int, progress: Progress = no_progress) -> Trial:
    """Judge the completions of the last `num_steps` steps as the update would. RewardError when it would be refused."""
    with Run.open(run_path) as run:
        after = functions_after(run, update)
        if not num_steps or not run.last_step():
            return Trial()
        try:
            found = replay(run, after, num_steps, num_most_changed=0, progress=progress)
        except ReinforgeError as fault:  # the data moved away, say: no reason to refuse an update
            return Trial(unknown=str(fault))
    return Trial(shift_of(found), broken=_broken(found, update.texts))


def _broken(found: ReplayReport, names: Collection[str]) -> RewardError | None:
    """The first of these functions that failed on every completion, as an error with the first call's message."""
    for function in found.functions:
        if function.name in names and function.first_error and function.errors_after == found.num_completions:
            where = f"all {found.num_completions} completions of steps {found.first_step} to {found.last_step}"
            return RewardError(
                f"{function.name} fails on {where}. The first call: {function.first_error}",
                hint="Correct it. Nothing was sent; --yes (even_if_broken=True in Python) sends it all the same.",
            )
    return None


@dataclass
class RunRewards:
    """The reward functions of a run, to be changed and handed to `update_config`.

    Set an entry to change or add a function, delete it to remove one; None leaves it as it is.
    """

    reward_fns: dict[str, Reference | None]
    """Display name -> the function, or where it is: as in `RewardFunctionsConfig.functions`."""
    weights: dict[str, float | None]
    """Display name -> weight."""
    versions: dict[str, str]
    """Display name -> version it had when this was read: what others have changed since is not overwritten."""
    read: tuple[dict[str, Any], dict[str, Any]] = field(default=({}, {}), repr=False)
    """`reward_fns` and `weights` as they were."""
    packages: Sequence[str] | None = None
    """As `RewardFunctionsRuntimeConfig.packages`, for the functions that are set here; None: the packages they have."""


def get_config(run: Path | str) -> RunRewards:
    """The reward functions a run judges by now."""
    with Run.open(Path(run)) as opened:
        functions = latest_functions(opened)
        files = {f.name: f"{opened.reward_source(f.version).resolve()}" for f in functions}
    reward_fns = {f.name: f"{files[f.name]}:{f.function_name}".rstrip(":") for f in functions}
    weights = {f.name: f.weight for f in functions}
    versions = {f.name: f.version for f in functions}
    return RunRewards(dict(reward_fns), dict(weights), versions, (reward_fns, weights))


def update_config(
    run: Path | str,
    config: RunRewards,
    *,
    base_dir: Path | None = None,
    replay_steps: int = REPLAY_STEPS,
    even_if_broken: bool = False,
) -> str:
    """Hand what was changed in `config` to the run's trainer, which takes it between two steps, or when the run is
    resumed; the request's id. RewardError when a function does not load or was changed by somebody else meanwhile, and
    unless `even_if_broken` when it fails on every completion of the last `replay_steps` steps (0: it is not tried)."""
    old_fns, old_weights = config.read
    texts = {
        name: locate(name, reference, base_dir or Path.cwd())
        for name, reference in config.reward_fns.items()
        if reference is not None and reference != old_fns.get(name)
    }
    removed = tuple(name for name in old_fns if name not in config.reward_fns)
    weights = {
        name: weight
        for name, weight in config.weights.items()
        if weight is not None and weight != old_weights.get(name) and name not in removed
    }
    base = {name: config.versions.get(name, NO_VERSION) for name in (*texts, *weights, *removed)}
    packages = None
    if config.packages is not None:
        with Run.open(Path(run)) as opened:
            packages = lock_for(opened, config.packages)
    update = RewardUpdate(texts, weights, removed, base, packages=packages)
    trial = try_update(Path(run), update, replay_steps)
    if trial.broken is not None and not even_if_broken:
        raise trial.broken
    return request_update(Path(run), replace(update, shift=trial.shift))
