"""`reinforge grader`: check a grader's JSON, and try it on one completion. No model, no data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from reinforge.cli.options import no_sandbox_option
from reinforge.cli.text import figure, say, table, visible
from reinforge.errors import ConfigError, RewardError, UsageError

MAX_FILE_BYTES = 4 << 20


@click.group("grader")
def grader_command() -> None:
    """Check a grader's JSON, and try it on one completion."""


@grader_command.command("validate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--fix", is_flag=True, help="First write the file with its JSON repaired: line breaks in texts, quotes, commas."
)
@no_sandbox_option
@click.option("--json", "as_json", is_flag=True, help='{"grader": ...} on stdout, normalised.')
def validate_command(file: Path, fix: bool, unsafe_no_sandbox: bool, as_json: bool) -> None:
    """Say everything that is wrong with the grader in FILE (a .json file), each with its line. Exit code 3 if so."""
    from reinforge.grading.language.grader_check import check_grader
    from reinforge.grading.language.grader_json import read_json
    from reinforge.sandbox.limits import Limits

    text = _fixed(file) if fix else _read(file)
    node = read_json(text, str(file))
    check_grader(node, file.stem, Limits(unsafe_no_sandbox=unsafe_no_sandbox))
    if as_json:
        click.echo(json.dumps({"grader": node.to_json()}))
    else:
        say(f"{file} is a grader: {_outline(node)}.")


def _fixed(file: Path) -> str:
    """Repair the file; its text."""
    from reinforge.grading.language.grader_json import repaired_text

    text, defects = repaired_text(_read(file))
    for defect in defects:
        say(visible(f"{file}:{defect.line}: repaired {defect.what}", one_line=True))
    if defects:
        file.write_text(text, encoding="utf-8")
    return text


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise RewardError(f"{file} has more than {MAX_FILE_BYTES:,} bytes: no grader is that long.")
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"There is no file {file}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RewardError(f"{file} cannot be read: {error}.") from None


def _outline(node: Any) -> str:
    """`multi (format: string_check, f1: set_f1)`"""
    parts = ", ".join(f"{name}: {_outline(child)}" for name, child in node.children().items())
    return f"{node.type} ({parts})" if parts else str(node.type)


@grader_command.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--completion", required=True, metavar="TEXT or @FILE", help="What the model wrote.")
@click.option(
    "--row", default="{}", metavar="JSON or @FILE", help="The row it is judged with: what templates call item."
)
@click.option("--config", metavar="CONFIG", help="A config whose reward_fns.judge and reward_fns.runtime hold here.")
@no_sandbox_option
@click.option("--json", "as_json", is_flag=True, help="The whole reply on stdout, as OpenAI's endpoint gives it.")
@click.pass_context
def run_command(
    context: click.Context,
    file: Path,
    completion: str,
    row: str,
    config: str | None,
    unsafe_no_sandbox: bool,
    as_json: bool,
) -> None:
    """Judge one completion by the grader in FILE. Exit code 3 if the grader failed.

    For instance: reinforge grader run check.json --completion "4" --row '{"answer": "4"}'
    """
    from reinforge.config import RewardFunctionsRuntimeConfig
    from reinforge.config_file import load_config
    from reinforge.grading.language.grader_api import run
    from reinforge.grading.language.grader_json import read_json

    grader = read_json(_read(file), str(file)).to_json()
    rewards = load_config([config]).reward_fns if config else None
    runtime = rewards.runtime if rewards else RewardFunctionsRuntimeConfig()
    if unsafe_no_sandbox:
        runtime = runtime.model_copy(update={"unsafe_no_sandbox": True})
    judge = rewards.judge if rewards else None
    try:
        reply = run(grader, _text(completion), _row(row), runtime=runtime, judge=judge, tell=_tell)
    except ConfigError as error:
        hint = error.hint if config else "Name a config that says where it is asked: --config CONFIG."
        raise ConfigError(error.message, hint=hint) from None
    if as_json:
        click.echo(json.dumps(reply))  # in ASCII: a completion may hold half a surrogate pair
    else:
        click.echo(_reply_text(reply))
    context.exit(0 if reply["metadata"]["valid"] else 3)


def _tell(text: str) -> None:
    say(visible(text, one_line=True))


def _text(given: str) -> str:
    return _read(Path(given[1:])) if given.startswith("@") else given


def _row(given: str) -> dict[str, Any]:
    from reinforge.grading.language.grader_json import parse_json

    row = parse_json(_text(given), given[1:] if given.startswith("@") else "--row")
    if not isinstance(row, dict):
        raise UsageError(f"--row must be a JSON object, not {given[:60]}.")
    return row


def _reply_text(reply: dict[str, Any]) -> str:
    """
    >>> told = {"valid": True, "reason": "1 of 2", "logs": "", "errors": {"other_error": False}}
    >>> print(_reply_text({"reward": 0.5, "sub_rewards": {"f1": 0.5}, "metadata": told}))
    reward  0.500
    f1      0.500
    1 of 2
    """
    told = reply["metadata"]
    rows = [["reward", figure(reply["reward"]) if told["valid"] else "error"]]
    rows += [[name, figure(value)] for name, value in reply["sub_rewards"].items()]
    flags = [name for name, value in told["errors"].items() if value is True]
    lines = [table(rows[0], rows[1:]), *flags, told["reason"], *(f"| {line}" for line in told["logs"].splitlines())]
    return visible("\n".join(line for line in lines if line))
