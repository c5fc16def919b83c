"""What a run remembers of its micro-batches' size: planned before its first step, then changed when memory ran out or
when someone asked for it at a resume.

How a step is split decides how it rounds. So each change is an event of its step that no rewind deletes, and a resume
from before it makes it again at the same step.
"""

from __future__ import annotations

from collections.abc import Iterable

from reinforge.run_store.records import Event, EventRow
from reinforge.run_store.run import Run

CHANGED = "microbatches_changed"


def memory_ran_out(step: int, tokens: int) -> Event:
    """
    >>> memory_ran_out(7, 512).message
    'memory ran out in step 7: micro-batches of up to 512 tokens from there on'
    """
    message = f"memory ran out in step {step}: micro-batches of up to {tokens} token{'s' * (tokens != 1)} from there on"
    return Event(CHANGED, message, level="warning", data={"step": step, "tokens": tokens})


def asked_for(step: int, tokens: int) -> Event:
    """A change by people, from a step on.

    >>> asked_for(13, 1).message
    'micro-batches of up to 1 token from step 13 on, as asked'
    """
    message = f"micro-batches of up to {tokens} token{'s' * (tokens != 1)} from step {step} on, as asked"
    return Event(CHANGED, message, data={"step": step, "tokens": tokens})


def recorded_tokens(run: Run) -> dict[int, int]:
    """First step -> tokens of a micro-batch from there on; what was planned stands at 0."""
    planned = run.about.get("tokens_per_microbatch")  # older runs do not tell
    return _in_force(planned, (event for event in run.events(limit=-1) if event.kind == CHANGED))


def _in_force(planned: int | None, events: Iterable[EventRow]) -> dict[int, int]:
    """A change takes the place of those of the same and later steps that were recorded before: a run that was taken
    back behind them has gone another way since."""
    tokens = {} if planned is None else {0: planned}
    for event in events:
        step = int(event.data["step"])
        tokens = {first: size for first, size in tokens.items() if first < step} | {step: int(event.data["tokens"])}
    return tokens
