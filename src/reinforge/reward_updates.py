"""Changing the reward functions of a run while it trains.

A request lies in the run's `control/` folder until its trainer stands between two steps, or next starts. There the new
text is loaded in a worker and the change is recorded in one transaction: that moment, and no other, makes it happen. A
run that is resumed from an earlier checkpoint makes every recorded change again after the same step, so it stays
bitwise what it was; new requests wait until that history is caught up with.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from reinforge.config import JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.config_file import judge_with
from reinforge.errors import ConfigError, RewardError, SetupError, UsageError
from reinforge.grading.judges.judges import check_judges
from reinforge.grading.reward_function import RewardFunction, text_on_disk
from reinforge.grading.score_shift import ScoreShift
from reinforge.grading.versions import RewardUpdate, apply_update, describe_change
from reinforge.run_store import Event, RewardUpdateRow, Run, failpoint
from reinforge.run_store.control import REWARDS, Request, pending_requests, remove_request, write_request
from reinforge.sandbox.environments import Tell, lock_packages, runtime_with, silent
from reinforge.sandbox.limits import Limits

REFUSED = "reward_update_refused"
"""Kind of the event that says why a request was not carried out."""
POLL_S = 0.2


class ReplaceableGrader(Protocol):
    """A grader whose functions can be changed between two groups."""

    @property
    def functions(self) -> tuple[RewardFunction, ...]: ...

    def replace(self, functions: Sequence[RewardFunction]) -> None: ...


class RewardUpdates:
    """The trainer's side: carries requests out, and repeats what a resumed run did before."""

    def __init__(self, run: Run, grader: ReplaceableGrader) -> None:
        """`grader` judges by the functions the run began with."""
        self._run = run
        self._grader = grader
        self._needed = needed_functions(run.config())
        self._judge = judge_of(run.config())
        self._history = [(row, run_functions(run, row.functions)) for row in run.reward_updates()]
        self._first = grader.functions

    def before_step(self, step: int) -> tuple[Event, ...]:
        """Let the grader judge by what holds after `step` steps; the changes made here, as events of the next step."""
        if all(row.step <= step for row, _ in self._history):
            for request in pending_requests(self._run.path, REWARDS):
                self._carry_out(request, step)
        functions = self._functions_at(step)
        if functions != self._grader.functions:
            self._grader.replace(functions)
        return tuple(_event(row) for row, _ in self._history if row.step == step)

    def _functions_at(self, step: int) -> tuple[RewardFunction, ...]:
        return next((functions for row, functions in reversed(self._history) if row.step <= step), self._first)

    def _carry_out(self, request: Request, step: int) -> None:
        if any(row.request == request.id for row, _ in self._history):
            remove_request(request)  # the trainer before us died between recording it and removing it
            return
        before = self._functions_at(step)
        earlier = [function for _, functions in self._history for function in functions]
        try:
            update = RewardUpdate.from_json(request.text)
            if update.at_step > step:
                return
            limits = run_limits(self._run, before)
            after = apply_update(before, update, [*self._first, *earlier], self._needed, limits)
            check_judges(after, self._judge)
        except (RewardError, ConfigError, SetupError) as error:  # the last two: packages or a judge cannot be had here
            data = {"request": request.id, "reason": str(error)}
            self._run.record_event(Event(REFUSED, f"reward update refused: {error}", level="warning", data=data))
            remove_request(request)
            return
        for function in after:
            if function not in before:
                self._run.save_reward_source(function.version, function.source, function.file_suffix)
        failpoint("update:after_source")
        shift = None if update.shift is None else update.shift.to_values()
        row = RewardUpdateRow(request.id, step, tuple(map(record_of, after)), describe_change(before, after), shift)
        self._run.record_reward_update(row)
        self._history.append((row, after))
        remove_request(request)
        failpoint("update:after_remove")


def _event(row: RewardUpdateRow) -> Event:
    versions = [function["version"] for function in row.functions]
    message = f"reward functions changed after step {row.step}: {row.message}"
    if row.shift is not None:
        message += f"; {ScoreShift.from_values(row.shift).in_words()}"
    return Event("reward_update", message, data={"request": row.request, "versions": versions, "shift": row.shift})


def record_of(function: RewardFunction) -> dict[str, Any]:
    """As it stands in run.json and in recorded updates: everything but the text, which lies in `rewards/`."""
    record = function.to_record()
    del record["source"]
    return record


def run_functions(run: Run, records: Sequence[Mapping[str, Any]] | None = None) -> tuple[RewardFunction, ...]:
    """The functions of these records with their stored texts; by default those the run began with."""
    records = run.about["functions"] if records is None else records
    return tuple(
        RewardFunction.from_record({**record, "source": run.read_reward_source(record["version"])})
        for record in records
    )


def limits_of(config: Mapping[str, Any]) -> Limits:
    """What a run's config allows a worker, its consent to run without a sandbox included."""
    rewards = config.get("reward_fns", {})
    settings = {name: RewardFunctionSettings.model_validate(of) for name, of in rewards.get("settings", {}).items()}
    return Limits.from_config(RewardFunctionsRuntimeConfig.model_validate(rewards.get("runtime", {})), settings)


def judge_of(config: Mapping[str, Any]) -> JudgeConfig:
    """Where a run's judges are asked."""
    return JudgeConfig.model_validate(config.get("reward_fns", {}).get("judge", {}))


def changed_judge(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The judge settings of a run's config after overrides (`reward_fns.judge.budget_tokens=9000`); UsageError for
    those that would change what is judged."""
    before = judge_of(config)
    after = judge_with(before, overrides)
    if after.model != before.model:
        raise UsageError(
            f"reward_fns.judge.model = {after.model}: another judge would make other scores of equal completions.",
            hint="Send the run new graders: reinforge rewards update RUN.",
        )
    return after.model_dump(mode="json")


def run_limits(run: Run, functions: Sequence[RewardFunction]) -> Limits:
    """What a new function of the run is allowed and sees: the packages of those there are."""
    begun_with = tuple(run.about.get("packages", ()))
    packages = next((function.packages for function in functions if function.packages), begun_with)
    return replace(limits_of(run.config()), packages=packages)


def lock_for(run: Run, requirements: Sequence[str], tell: Tell = silent) -> tuple[str, ...]:
    """The versions of other packages for functions of a run, installed; ConfigError when they cannot be had."""
    runtime = run.config().get("reward_fns", {}).get("runtime", {})
    return lock_packages(runtime_with(requirements, runtime), tell)


def needed_functions(config: Mapping[str, Any]) -> dict[str, str]:
    """Functions that a run's settings name, with the setting: they cannot be removed.

    >>> needed_functions({"reward_fns": {"settings": {"judge": {"fallback": "rule"}}}})
    {'rule': 'reward_fns.settings.judge.fallback'}
    """
    settings = config.get("reward_fns", {}).get("settings", {})
    named = {of.get("fallback"): f"reward_fns.settings.{name}.fallback" for name, of in settings.items()}
    named[config.get("eval", {}).get("correct_fn")] = "eval.correct_fn"
    return {name: setting for name, setting in named.items() if name is not None}


def latest_functions(run: Run) -> tuple[RewardFunction, ...]:
    """The functions the run judges by now."""
    updates = run.reward_updates()
    return run_functions(run, updates[-1].functions if updates else None)


def changed_files(run: Run) -> Iterator[str]:
    """For people: files that no longer hold the text by which the run judges, and how to have it judge by them. Not
    those whose new text already waits in a request."""
    waiting = set(_waiting_sources(run.path))
    versions: dict[str, list[str]] = {}
    for function in latest_functions(run):
        now = text_on_disk(function)
        if now is not None and now != function.source and now not in waiting:
            versions.setdefault(function.file_name, []).append(function.version)
    for file, of_file in versions.items():
        yield (
            f"{file} has changed since the run took {', '.join(of_file)} from it. The run judges by the text it took. "
            f"To judge by the new one: reinforge rewards update {shlex.quote(str(run.path))} {shlex.quote(file)}"
        )


def _waiting_sources(run_path: Path) -> Iterator[str]:
    for request in pending_requests(run_path, REWARDS):
        with suppress(RewardError):  # it is refused when its turn comes
            yield from (text.source for text in RewardUpdate.from_json(request.text).texts.values())


def functions_after(run: Run, update: RewardUpdate) -> tuple[RewardFunction, ...]:
    """The functions that would judge after an update; RewardError when it would be refused now."""
    if run.status()[0] == "succeeded":
        raise UsageError(f"{run.path} has done all its steps.", hint="Start a new run with these functions.")
    functions = latest_functions(run)
    needed, limits = needed_functions(run.config()), run_limits(run, functions)
    after = apply_update(functions, update, needed=needed, limits=limits)
    # The key is the trainer's affair: it need not be set where an update is sent from.
    check_judges(after, judge_of(run.config()).model_copy(update={"api_key_env": None}))
    return after


def request_update(run_path: Path, update: RewardUpdate, request_id: str | None = None) -> str:
    """Check an update against the run as it is now, and hand it to the run's trainer; the request's id.

    RewardError when it would be refused already: the functions do not load, or the base is stale.
    """
    with Run.open(run_path) as run:
        functions_after(run, update)
    return write_request(run_path, REWARDS, update.to_json(), request_id)


def wait_for_update(run_path: Path, request_id: str, timeout_s: float) -> RewardUpdateRow | None:
    """What the run's trainer made of a request; None when nothing yet, or when none is alive. RewardError when it was
    refused."""
    deadline = time.monotonic() + timeout_s
    while True:
        with Run.open(run_path) as run:
            for row in run.reward_updates():
                if row.request == request_id:
                    return row
            for event in run.events(limit=-1):
                if event.kind == REFUSED and event.data.get("request") == request_id:
                    raise RewardError(event.data["reason"])
            alive = run.status()[0] == "running"
        if not alive or time.monotonic() >= deadline:
            return None
        time.sleep(POLL_S)
