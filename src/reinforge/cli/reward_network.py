"""`reinforge rewards network`: which hosts the reward functions of a run connected to, and which they were refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from reinforge.cli.options import find_run, runs_dir_option
from reinforge.cli.text import say, shortened, table, visible

HEADER = ("function", "host", "verdict", "connections", "sent", "received")
MAX_HOST = 60


@click.command("network")
@click.argument("run", required=False)
@runs_dir_option
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout, one a connection, the oldest first.")
def network_command(run: str | None, runs_dir: Path, as_json: bool) -> None:
    """The connections that reward functions of RUN asked for, by function, host and verdict, with their bytes.

    allowed; refused: by reward_fns.runtime.allowed_hosts; failed: allowed, but nobody answered; cut: ended at a limit.
    The newest run if none is named.
    """
    from reinforge.run_store.network_log import read_network_log

    path = find_run(run, runs_dir)
    if as_json:
        for entry in read_network_log(path):
            click.echo(json.dumps(entry))
        return
    rows, reasons = _summed(read_network_log(path))
    if not rows:
        say(f"The reward functions of {path.name} asked for no connections.")
        return
    click.echo(table(HEADER, rows))
    for reason in reasons:
        click.echo(visible(reason, one_line=True))


def _summed(entries: Iterable[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """(rows of the table, distinct reasons why connections were not simply made)."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    reasons: dict[str, None] = {}
    for entry in entries:
        if entry.get("full"):
            reasons["network.jsonl is full: later connections are in the metrics only"] = None
            continue
        key = (str(entry.get("function")), shortened(str(entry.get("host")), MAX_HOST), str(entry.get("verdict")))
        of_key = sums.setdefault(key, [0, 0, 0])
        for place, value in enumerate((1, entry.get("sent_bytes"), entry.get("received_bytes"))):
            of_key[place] += value if isinstance(value, int) else 0
        if entry.get("reason"):
            reasons[str(entry["reason"])] = None
    return [[*key, *map(str, values)] for key, values in sorted(sums.items())], list(reasons)
