"""`reinforge rewards logs`: every score of a run, and what became of its reward functions meanwhile."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import find_run, runs_dir_option
from reinforge.cli.text import figure, visible
from reinforge.errors import UsageError

if TYPE_CHECKING:
    from reinforge.run_store.records import EventRow, LogRow

PAGE = 1000
OVERLONG = "overlong"
"""The length penalty: a score of no function."""
EVENTS = {"reward_update": 1, "reward_update_refused": 0, "worker_replaced": 0}
"""Kind of event that is shown among the scores -> 1 when it stands before those of its step, 0 when behind them."""


@click.command("logs")
@click.argument("run", required=False)
@runs_dir_option
@click.option("--function", "functions", multiple=True, metavar="NAME", help="Only this function; may be repeated.")
@click.option("--version", "versions", multiple=True, metavar="NAME_vN", help="Only this version; may be repeated.")
@click.option("--step", metavar="N or N-M", help="Only these steps.")
@click.option("--state", type=click.Choice(["ok", "error", "masked"]), help="Only scores in this state.")
@click.option("--grep", metavar="PATTERN", help="Only where the message or the prints match (a regular expression).")
@click.option("--follow", is_flag=True, help="Go on with new scores until the run ends.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout, one a score.")
def logs_command(
    run: str | None,
    runs_dir: Path,
    functions: tuple[str, ...],
    versions: tuple[str, ...],
    step: str | None,
    state: str | None,
    grep: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Every score in RUN with its version, step, epoch, latency, prints and errors; the newest run if none is named.

    Changes of the functions and replaced workers stand between the scores. A traceback is shown where it first appears.
    """
    first, last = _steps(step)
    wanted = {"functions": functions, "versions": versions, "first": first, "last": last, "state": state}
    pattern = _pattern(grep)
    with_events = not (as_json or functions or versions or step or state or grep)
    tracebacks: set[str] = set()
    path = find_run(run, runs_dir)
    _check_names(path, functions, versions)
    for row in _log(path, wanted, follow, with_events=with_events):
        if isinstance(row, str):
            click.echo(row)
        elif pattern is None or pattern.search(row.message) or pattern.search(row.prints):
            click.echo(json.dumps(asdict(row)) if as_json else _log_text(row, tracebacks))


def _log(path: Path, wanted: Mapping[str, Any], follow: bool, *, with_events: bool = False) -> Iterator[LogRow | str]:
    """Page after page, lines of events between the scores. The run is opened anew for each look, so that nobody waits
    for us."""
    from reinforge.run_store import Run

    after = after_event = 0
    waiting: list[EventRow] = []
    while True:
        with Run.open(path) as run:
            ended = run.status()[0] != "running"  # asked first: what is read then is all there is
            page = run.score_log(**wanted, after=after, limit=PAGE)
            if not page:
                after = min(after, run.last_completion())  # a resumed run writes its last steps again
            if with_events:
                events = run.events(after_event, limit=-1)
                after_event = events[-1].id if events else after_event
                waiting += [event for event in events if event.kind in EVENTS]
        for row in page:
            while waiting and waiting[0].step < row.step + EVENTS[waiting[0].kind]:
                yield _event_text(waiting.pop(0))
            yield row
        if page:
            after = page[-1].completion
            continue
        yield from map(_event_text, waiting)
        waiting.clear()
        if not follow or ended:
            return
        time.sleep(0.5)


def _check_names(path: Path, functions: Sequence[str], versions: Sequence[str]) -> None:
    """UsageError for a function or version that the run never had: no lines would look like no errors."""
    from reinforge.run_store import Run

    with Run.open(path) as run:
        records = [*run.about["functions"], *(record for update in run.reward_updates() for record in update.functions)]
    for option, asked, of_record in (("function", functions, "name"), ("version", versions, "version")):
        known = dict.fromkeys([*(record[of_record] for record in records), OVERLONG])
        unknown = [name for name in asked if name not in known]
        if unknown:
            shown = ", ".join(name for name in known if name != OVERLONG)
            raise UsageError(f"{path} has no {option} {unknown[0]} (there are: {shown}).", hint="Correct the name.")


def _steps(text: str | None) -> tuple[int, int | None]:
    if text is None:
        return 1, None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match:
        raise UsageError(f"--step {text} names no steps.", hint="Write 20 or 20-30.")
    return int(match[1]), int(match[2] or match[1])


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"--grep {text} is no regular expression: {error}.") from None


def _event_text(event: EventRow) -> str:
    return visible(f"-- step {event.step}  {event.message}", one_line=True)


def _log_text(row: LogRow, tracebacks: set[str]) -> str:
    """One line, and what was printed and went wrong below it; a message of `tracebacks`, which is added to, is only
    named.

    >>> from reinforge.run_store.records import LogRow
    >>> row = LogRow(9, 3, 0, 7, 1, "f", "f_v2", 1.0, None, "error", "raised", "KeyError: 'x'\\n  in f", "hi", 0.5)
    >>> seen = set()
    >>> print(_log_text(row, seen))
    step 3  epoch 0  example 7 #1  f_v2  error (raised)  500.0 ms
        KeyError: 'x'
          in f
        | hi
    >>> print(_log_text(row, seen))
    step 3  epoch 0  example 7 #1  f_v2  error (raised)  500.0 ms
        KeyError: 'x' (as above)
        | hi
    """
    outcome = f"{figure(row.value)}" if row.state == "ok" else f"{row.state} ({row.kind})"
    if row.stand_in is not None:
        outcome += f", {figure(row.stand_in)} instead"
    head = f"step {row.step}  epoch {row.epoch}  example {row.example} #{row.generation}  {row.version}  {outcome}"
    lines = [f"{head}  {1000 * row.latency_s:.1f} ms"]
    lines += [f"    {name} {value:g}" for name, value in row.metrics.items()]
    lines += [f"    {line}" for line in _message_lines(row, tracebacks)]
    lines += [f"    | {line}" for line in row.prints.strip("\n").splitlines()]
    return "\n".join(visible(line, one_line=True) for line in lines)


def _message_lines(row: LogRow, tracebacks: set[str]) -> Sequence[str]:
    lines = row.message.strip().splitlines()
    known = row.version + row.message
    if row.state == "ok" or len(lines) < 2:
        return lines
    if known in tracebacks:
        return [f"{lines[0]} (as above)"]
    tracebacks.add(known)
    return lines
