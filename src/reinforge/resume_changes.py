"""What may be changed of a run when it is resumed: how judges are asked, and how much memory it takes.

Neither says what is learned. A change of the second kind makes a run round in another way from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from reinforge.config_file import machine_with
from reinforge.reward_updates import changed_judge
from reinforge.run_store import Run, latest_checkpoint
from reinforge.run_store.microbatches import asked_for

TOKENS = "tokens_per_microbatch"
MACHINE = ("gradient_checkpointing", "slots", TOKENS)
"""Settings of the config that say how a run computes."""


def change_run(run: Run, overrides: Sequence[str], tell: Callable[[str], None]) -> None:
    """Take overrides (`slots=64`, `reward_fns.judge.budget_tokens=9000`) over into a run, before it goes on from its
    newest checkpoint. UsageError and ConfigError before anything is changed."""
    of_machine = [override for override in overrides if override.partition("=")[0].strip() in MACHINE]
    of_judge = [override for override in overrides if override not in of_machine]
    judge = changed_judge(run.config(), of_judge) if of_judge else None
    machine = machine_with(run.config(), of_machine)
    if judge is not None:
        run.change_judge(judge)
    tokens = machine.pop(TOKENS, None)
    if machine:
        run.change_machine(machine)
    if tokens is not None:
        event = asked_for(_steps_kept(run, tell) + 1, tokens)
        run.record_event(event)
        tell(event.message)


def _steps_kept(run: Run, tell: Callable[[str], None]) -> int:
    """Of the checkpoint a resume begins with."""
    checkpoint, events = latest_checkpoint(run.path)
    for event in events:
        tell(event.message)
        run.record_event(event)
    return checkpoint.step if checkpoint is not None else 0
