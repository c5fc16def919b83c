"""`reinforge rewards test` and `new`: reward functions on completions whose worth is known, and some to begin with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reinforge.cli.options import no_sandbox_option, package_option
from reinforge.cli.progress import shown_progress
from reinforge.cli.text import figure, is_rich_terminal, say, visible
from reinforge.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from reinforge.insight.findings import Evidence, Finding
    from reinforge.lab.examine import LabReport

MAX_SHOWN = 3
"""Completions told of a finding; --json has more."""
MAX_TEXT = 90
PLAIN_WIDTH = 120
"""Columns where no terminal says how many it has."""
NARROW = 100
"""Columns below which the table drops what it can."""
COLOURS = {"blocking": "bold red", "warning": "yellow", "info": "dim"}


@click.command("test")
@click.argument("rewards")
@click.option("--data", metavar="PATH", help="Rows with a prompt, an answer, and whatever the functions need.")
@click.option("--prompt-column", metavar="NAME", help="Column with the prompt.  [prompt, or the config's]")
@click.option("--answer-column", metavar="NAME", help="Column with the right answer.  [found by its name]")
@click.option("--gold-template", metavar="TEXT", help="A right completion: '<answer>{answer}</answer>'; see below.")
@click.option("--cases", type=click.Path(path_type=Path), help="Golden cases.  [rewards.cases.jsonl beside rewards.py]")
@click.option("--config", metavar="CONFIG", help="A config whose reward_fns.judge and reward_fns.runtime hold here.")
@click.option("--rows", "num_rows", type=click.IntRange(min=1), help="Rows that get all probes.  [40; 5 with a judge]")
@click.option("--timeout-s", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
              help="Longest that a call may take here.")  # fmt: skip
@click.option("--ignore", "accepted", multiple=True, metavar="ID[:FUNCTION]", help="A finding you know of: G03:brief.")
@package_option
@no_sandbox_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def test_command(
    context: click.Context,
    rewards: str,
    data: str | None,
    prompt_column: str | None,
    answer_column: str | None,
    gold_template: str | None,
    cases: Path | None,
    config: str | None,
    num_rows: int | None,
    timeout_s: float,
    accepted: tuple[str, ...],
    packages: tuple[str, ...],
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Try REWARDS on right, wrong, worthless and odd completions before a model is trained on them.

    REWARDS is rewards.py (every reward function in it), rewards.py:function, a grader (grader.json, or the name of a
    built-in one), or a config file (its functions, weights and data).

    Right completions come from a function gold(example) in the reward file, from --gold-template, or are inferred; what
    was assumed is told. In the template {answer} is the answer (behind #### where there is one), {answer_json} the same
    as JSON, {reasoning} some text, and any other {column} that column of the row.

    Exit code 3 on a blocking finding.
    """
    from reinforge.lab.subject import Request, examine_request

    with shown_progress() as progress:
        request = Request(
            subject=rewards,
            data=data,
            prompt_column=prompt_column,
            answer_column=answer_column,
            gold_template=gold_template,
            config=config,
            cases=cases,
            num_rows=num_rows,
            timeout_s=timeout_s,
            accepted=accepted,
            unsafe_no_sandbox=unsafe_no_sandbox,
            packages=packages,
            tell=say,
            progress=progress,
        )
        report = examine_request(request)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        _show(report)
    context.exit(3 if report.verdict == "blocking" else 0)


@click.command("new")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", metavar="PATH", help="Rows to write it for; without, for a text column `answer`.")
@click.option("--prompt-column", default="prompt", show_default=True, metavar="NAME", help="Column with the prompt.")
@click.option("--answer-column", metavar="NAME", help="Column with the right answer.  [found by its name]")
@click.option("--force", is_flag=True, help="Write over files that are there.")
def new_command(file: Path, data: str | None, prompt_column: str, answer_column: str | None, force: bool) -> None:
    """Write a commented reward FILE to begin with, and golden cases beside it.

    It has a function about form and one about content, made for the columns of the data, and passes `reinforge rewards
    test` on that data as it is.
    """
    from reinforge.config import DataConfig
    from reinforge.data.dataset import load_examples
    from reinforge.data.template import nearest_name
    from reinforge.lab.cases import cases_beside
    from reinforge.lab.starter import make_starter

    if file.suffix != ".py":
        raise UsageError(f"{file} is no Python file.", hint=f"Name it {file.with_suffix('.py')}.")
    cases = cases_beside(file)
    for path in (file, cases):
        if path.exists() and not force:
            raise UsageError(f"{path} is there already.", hint="Choose another name, or write over it with --force.")
    examples = []
    if data is not None:
        config = DataConfig(path=data, prompt_column=prompt_column)
        try:
            examples = load_examples(config, Path.cwd())
        except DataError as error:
            hint = error.hint.replace("data.prompt_column: ", "--prompt-column ")
            raise DataError(error.message, hint=hint) from None
        if answer_column is not None and answer_column not in examples[0].columns:
            found = ", ".join(examples[0].columns) or "none"
            near = nearest_name(answer_column, examples[0].columns)
            hint = f"Did you mean --answer-column {near}?" if near else "Name another: --answer-column NAME."
            raise UsageError(f'There is no column "{answer_column}" (found: {found}).', hint=hint)
    options = f" --data {data}" if data else ""
    options += f" --prompt-column {prompt_column}" if prompt_column != "prompt" else ""
    starter = make_starter(examples, file, options, answer_column)
    for path, text in ((file, starter.source), (cases, starter.cases)):
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as fault:
            raise UsageError(f"{path} cannot be written: {fault}.") from fault
    answers = f"answers: {starter.kind}, column {starter.column}" if starter.column else "no answers"
    say(f"written: {file} and {cases} ({answers})")
    if not starter.column:
        found = ", ".join(examples[0].columns) or "none"
        say(f"Only form is judged: no column looks like the answer (found: {found}). --answer-column NAME names one.")
    say(f"try:     reinforge rewards test {file}{options}")


def _show(report: LabReport) -> None:
    from rich.console import Console

    rich = is_rich_terminal(sys.stdout)
    width = None if rich else int(os.environ.get("COLUMNS", PLAIN_WIDTH))
    console = Console(file=sys.stdout, width=width, no_color=not rich, highlight=False)
    with console.capture() as drawn:
        for assumption in report.assumptions:
            console.print(_text(assumption))
        console.print(_functions_table(report, is_narrow=console.width < NARROW))
        console.print()
        if report.findings:
            console.print(_findings_table(report))
        counts = [sum(found.verdict == verdict for found in report.findings) for verdict in COLOURS]
        rows = f"{len(report.trials.trials)} completions of {report.trials.num_rows} rows"
        console.print(_text(f"{counts[0]} blocking, {counts[1]} warnings, {counts[2]} notes; {rows}"))
    click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()), color=rich or None)


def _functions_table(report: LabReport, *, is_narrow: bool) -> Table:
    """One line per function; narrow ones spare the range, which findings name where it matters."""
    from rich.table import Table

    figures_of = {"right": "gold", "half right": "partial", "wrong": "wrong", "worthless": "garbage", "trick": "hack"}
    figures_of |= {} if is_narrow else {"lowest": "low", "highest": "high"}
    columns, titles = figures_of.values(), ("weight", *figures_of, "failed", "ms")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("function", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for line in report.functions:
        failed = f"{line['num_failed']}/{line['num_calls']}" if line["num_calls"] else "-"
        figures = [figure(line[column], ".3g") for column in columns]
        table.add_row(
            _text(line["name"]), figure(line["weight"], "g"), *figures, failed, figure(line["median_ms"], ".2f")
        )
    return table


def _findings_table(report: LabReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for no_wrap in (True, True, False, False):
        table.add_column(no_wrap=no_wrap)
    for found in report.findings:
        verdict = Text(found.verdict, style=COLOURS[found.verdict])
        table.add_row(verdict, found.id, _text(found.function or "reward"), _finding_text(found))
    return table


def _finding_text(found: Finding) -> Text:
    from rich.text import Text

    parts: list[Any] = [visible(found.message, one_line=True)]
    if found.threshold:
        parts.append((f" (should be: {found.threshold})", "dim"))
    for evidence in found.evidence[:MAX_SHOWN]:
        parts.append("\n" + visible(_evidence_text(evidence), one_line=True))
    if found.num_evidence > MAX_SHOWN:
        parts.append((f"\n... {found.num_evidence - MAX_SHOWN} more", "dim"))
    if found.fix:
        parts.append((f"\n{visible(found.fix, one_line=True)}", "italic"))
    return Text.assemble(*parts)


def _evidence_text(evidence: Evidence) -> str:
    value = "" if evidence.value is None else f" {evidence.value:.3g}"
    note = f" ({evidence.note})" if evidence.note else ""
    text = f": {_both_ends(evidence.text)}" if evidence.text else ""
    return f"row {evidence.row}, {evidence.probe}{value}{note}{text}"


def _both_ends(text: str) -> str:
    """The answer stands at the end of most completions, so the middle is what is left out."""
    half = MAX_TEXT // 2
    return text if len(text) <= MAX_TEXT else f"{text[:half]} ... {text[-half:]}"


def _text(text: str) -> Text:
    from rich.text import Text

    return Text(visible(text, one_line=True))  # Text, never markup: nothing in it acts
