"""What may be changed of a run when it is resumed: how judges are asked, and how much memory it takes.

Neither says what is learned. A change of the second kind makes a run round in another way from there on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from reinforge.config import JudgeConfig
from reinforge.config_file import machine_with
from reinforge.errors import UsageError
from reinforge.reward_updates import changed_judge
from reinforge.run_store import Event, Run, latest_checkpoint
from reinforge.run_store.microbatches import asked_for

TOKENS = "tokens_per_microbatch"
MACHINE = ("gradient_checkpointing", "slots", TOKENS)
"""Settings of the config that say how a run computes."""
JUDGE = "reward_fns.judge."
MACHINE_CHANGED = "machine_changed"
"""Kind of the event of such a change, but for micro-batches, which have their own."""


def change_run(run: Run, overrides: Sequence[str], tell: Callable[[str], None]) -> None:
    """Take overrides (`slots=64`, `reward_fns.judge.budget_tokens=9000`) over into a run, before it goes on from its
    newest checkpoint. UsageError and ConfigError before anything is changed."""
    of_machine, of_judge = _apart(overrides)
    config = run.config()
    judge = changed_judge(config, of_judge) if of_judge else None
    machine = machine_with(config, of_machine)
    if judge is not None:
        run.change_judge(judge)
    if not machine:
        return
    step = _steps_kept(run, tell) + 1
    tokens = machine.pop(TOKENS, None)
    events = [_changed(step, name, config[name], new) for name, new in machine.items() if new != config[name]]
    events += [] if tokens is None else [asked_for(step, tokens)]
    if machine:
        run.change_machine(machine)
    for event in events:
        run.record_event(event)
        tell(event.message)


def machine_changes_after(run: Run, step: int) -> list[str]:
    """What was changed from a later step on. Computed again, this one may round in another way."""
    events = (event for event in run.events(limit=-1) if event.kind == MACHINE_CHANGED)
    return [event.message for event in events if int(event.data["step"]) > step]


def _apart(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(of the machine, of the judge); UsageError for others."""
    of_machine: list[str] = []
    of_judge: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key not in MACHINE and not key.startswith(JUDGE):
            keys = f"{', '.join(MACHINE)}, or {JUDGE}KEY with KEY one of {', '.join(JudgeConfig.model_fields)}"
            message = f"-o {override}: only how judges are asked and how much memory is taken can be changed of a run."
            raise UsageError(message, hint=f"Change {keys}; for anything else begin a new run.")
        (of_machine if key in MACHINE else of_judge).append(override)
    return of_machine, of_judge


def _changed(step: int, name: str, before: object, now: object) -> Event:
    """
    >>> _changed(7, "slots", 256, 64).message
    'slots = 64 instead of 256 from step 7 on, as asked'
    """
    message = f"{name} = {json.dumps(now)} instead of {json.dumps(before)} from step {step} on, as asked"
    return Event(MACHINE_CHANGED, message, data={"step": step, name: now})


def _steps_kept(run: Run, tell: Callable[[str], None]) -> int:
    """Of the checkpoint a resume begins with."""
    checkpoint, events = latest_checkpoint(run.path)
    for event in events:
        tell(event.message)
        run.record_event(event)
    return checkpoint.step if checkpoint is not None else 0
