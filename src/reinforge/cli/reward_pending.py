"""`reinforge rewards pending`: updates that the trainer of a run has not taken yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import find_run, runs_dir_option
from reinforge.cli.text import say, table
from reinforge.errors import RewardError, UsageError

if TYPE_CHECKING:
    from reinforge.run_store.control import Request


@click.command("pending")
@click.argument("run")
@click.option("--withdraw", metavar="ID", help="Take this update back; `all` for every one.")
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def pending_command(run: str, withdraw: str | None, runs_dir: Path, as_json: bool) -> None:
    """Updates of the reward functions of RUN (a name or a folder) that its trainer has not taken yet."""
    from reinforge.run_store.control import REWARDS, pending_requests, remove_request

    path = find_run(run, runs_dir)
    waiting = pending_requests(path, REWARDS)
    if withdraw is not None:
        chosen = [request for request in waiting if withdraw in ("all", request.id)]
        if withdraw != "all" and not chosen:
            known = ", ".join(request.id for request in waiting) or "none"
            hint = f"reinforge runs show {path} says what became of it."
            raise UsageError(f"No update {withdraw} waits (waiting: {known}).", hint=hint)
        for request in chosen:
            remove_request(request)
            say(f"withdrawn: {request.id}")
        waiting = [request for request in waiting if request not in chosen]
    rows = [_told(request) for request in waiting]
    if as_json:
        click.echo(json.dumps(rows))
    elif rows:
        click.echo(table(["update", "what"], [[row["request"], row["what"]] for row in rows]))
    elif withdraw is None:
        say("No update waits.")


def _told(request: Request) -> dict[str, Any]:
    """What a request asks for."""
    from reinforge.grading.versions import RewardUpdate

    try:
        update = RewardUpdate.from_json(request.text)
    except RewardError as fault:
        return {"request": request.id, "what": f"cannot be read: {fault.message}", "at_step": None}
    parts = [f"new text of {name}" for name in update.texts]
    parts += [f"weight of {name} {weight:g}" for name, weight in update.weights.items()]
    parts += [f"without {name}" for name in update.remove]
    parts += [f"not before step {update.at_step}"] if update.at_step else []
    return {"request": request.id, "what": ", ".join(parts), "at_step": update.at_step}
