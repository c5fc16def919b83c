"""Writes docs/reference/*.md from the code: `make docs`. The house test fails while a page is stale."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reinforge import errors
from reinforge.cli.main import cli
from reinforge.config import GRPOConfig
from reinforge.config_problems import prefix_below, table_of
from reinforge.grading import builtin
from reinforge.grading.language.spec import TYPES
from reinforge.grading.language.spec_base import check_template
from reinforge.insight.metrics import METRICS
from reinforge.run_store import checkpoints, database, records, run

FOLDER = Path(__file__).parent / "reference"
MAX_CODE = 200
HEAD = "<!-- Written by docs/make_reference.py from the code. Change the code, then run `make docs`. -->\n\n"


def config_page() -> str:
    """Every setting with type, default and meaning, one table for each part of the schema."""
    intro = (
        "# Settings\n\n"
        "A run is described by one YAML or TOML file, or by the same objects in Python. Several files are merged from\n"
        "left to right, then `-o key=value`. `reinforge train CONFIG --dry-run` prints all settings with\n"
        "defaults filled in.\n"
    )
    return intro + "".join(_config_tables(GRPOConfig, ""))


def _config_tables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    yield f"\n## {title}\n\n{_plain(inspect.cleandoc(model.__doc__ or ''))}\n\n"
    yield "| setting | type | default | meaning |\n|---|---|---|---|\n"
    for name, info in model.model_fields.items():
        part = table_of(info.annotation)
        default = _default(info) if part is None or info.default is None else "see below"
        yield _row(f"`{prefix}{name}`", _type_words(info), default, _plain(info.description or ""))
    for name, info in model.model_fields.items():
        part = table_of(info.annotation)
        if part is not None:
            yield from _config_tables(part, prefix_below(prefix + name, info.annotation))


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "unset"
    if isinstance(value, tuple | bool | list):
        return f"`{json.dumps(value)}`"
    return "unset" if value is None else f"`{value}`"


def _plain(text: str) -> str:
    """Without the requirement numbers, which mean something to us only: (S0-074..077), (K7), K1: ..."""
    return re.sub(r" \((S\d-[\d.]+(?:, S\d-[\d.]+)*|K\d+)\)|\bK\d+: ", "", text)


def _type_words(info: FieldInfo) -> str:
    words = _annotation_words(info.annotation)
    limits = [
        f"{sign} {getattr(rule, key):g}" for rule in _rules(info) for key, sign in SIGNS.items() if hasattr(rule, key)
    ]
    return f"{words} {', '.join(limits)}".strip()


SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
NAMES = {str: "text", int: "whole number", float: "number", bool: "true/false", type(None): "unset"}


def _rules(info: FieldInfo) -> list[Any]:
    """Limits of the value, also where it may be unset."""
    inner = [arg for arg in typing.get_args(info.annotation) if typing.get_origin(arg) is typing.Annotated]
    nested = [rule for arg in inner for meta in typing.get_args(arg)[1:] for rule in getattr(meta, "metadata", [meta])]
    return [*info.metadata, *nested]


def _annotation_words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is typing.Annotated:
        return _annotation_words(arguments[0])
    if origin is typing.Literal:
        return " / ".join(f"`{option}`" for option in arguments)
    if origin in (typing.Union, UnionType):
        return " or ".join(_annotation_words(option) for option in arguments if option is not type(None))
    if origin is list and typing.get_origin(arguments[0]) is None and arguments[0] not in NAMES:
        return "list of tables"
    if origin in (tuple, list):
        return f"list of {_annotation_words(arguments[0])}s"
    if origin is dict and arguments[1] is Any:
        return "table"
    if origin is dict:
        return f"table of name: {_annotation_words(arguments[1])}"
    if annotation is Callable or origin is typing.get_origin(Callable[..., Any]):
        return "Python function"
    return "table"


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |\n"


HELP_NAMES = cli.context_settings["help_option_names"]


def cli_page() -> str:
    """The help of every command."""
    parts = ["# Commands\n"]
    for path, command, context in _commands(
        cli, click.Context(cli, info_name="reinforge", terminal_width=100, help_option_names=HELP_NAMES)
    ):
        parts.append(f"\n## `{path}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "".join(parts)


def _commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, f"{name} is listed but cannot be loaded"
            below = click.Context(child, info_name=name, parent=context, terminal_width=100)
            yield from _commands(child, below)


def errors_page() -> str:
    """Every error class: code, exit code, meaning."""
    parts = [
        "# Errors and exit codes\n\n",
        "An error is printed as `code  message`, with what to do next below it.\n",
        "Anything that comes with a traceback is a bug.\n\n",
        "| code | exit code | class | meaning |\n|---|---|---|---|\n",
    ]
    for kind in error_classes():
        exit_code = "130 or 143" if kind is errors.Interrupted else str(kind.exit_code)
        parts.append(_row(f"`{kind.code}`", exit_code, f"`{kind.__name__}`", _first_paragraph(kind)))
    codes = (inspect.getdoc(errors) or "").partition("Exit codes:")[2]
    parts.append("\n## Exit codes\n\n| exit code | meaning |\n|---|---|\n")
    parts += [_row(*entry.strip().rstrip(".").split(" ", 1)) for entry in _split_codes(codes)]
    return "".join(parts)


def _first_paragraph(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def _split_codes(text: str) -> list[str]:
    """`0 done, 1 run failed, 3 data, reward ...` at the commas before a number."""
    entries: list[str] = []
    for part in " ".join(text.split()).split(", "):
        if part[:1].isdigit():
            entries.append(part)
        else:
            entries[-1] += f", {part}"
    return entries


def error_classes(kind: type[errors.ReinforgeError] = errors.ReinforgeError) -> list[type[errors.ReinforgeError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in error_classes(child))]


def metrics_page() -> str:
    """Every number a step records."""
    parts = [
        "# Metrics\n\n",
        "One value each per step, stored in `run.db` and shown by `reinforge runs show`. `<function>` stands for the\n",
        "name of a reward function, `<figure>` for that of a further figure it tells. A value that\n",
        "cannot be computed is left out: no metric is ever NaN or infinite.\n",
    ]
    area = ""
    for name, meaning in METRICS.items():
        if name.partition("/")[0] != area:
            area = name.partition("/")[0]
            parts.append(f"\n## {area}\n\n| metric | meaning |\n|---|---|\n")
        parts.append(_row(f"`{name}`", meaning))
    return "".join(parts)


def graders_page() -> str:
    """Every type of grader but the built-in ones, with its fields."""
    parts = [
        "# Graders\n\n",
        "A grader is a table with a `type` ([how to use them](../how-to/graders.md)). A *template* is a text that\n",
        "may hold paths such as `{{item.answer}}`. Every type takes a `name` too: what its score is called in a\n",
        "list of graders. The [built-in graders](builtin_graders.md) are types as well.\n",
    ]
    for name, model in TYPES.items():
        parts.append(f"\n## `{name}`\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n")
        fields = {key: info for key, info in model.model_fields.items() if key not in ("type", "name")}
        parts += [_row(f"`{key}`", _grader_words(i), _default(i), i.description or "") for key, i in fields.items()]
    return "".join(parts)


def _grader_words(info: FieldInfo) -> str:
    is_template = any(getattr(rule, "func", None) is check_template for rule in info.metadata)
    return "template" if is_template else _type_words(info)


def run_directory_page() -> str:
    """What lies in a run's folder, from the docstrings of the modules that write it."""
    layout = inspect.getdoc(run) or ""
    checkpoint_rules = (inspect.getdoc(checkpoints) or "").partition("\n\n")[2]
    states = record_states()
    return (
        "# The run directory\n\n"
        f"{_with_code_block(layout)}\n\n"
        f"## How a run stands\n\n{states}\n\n"
        f"## `checkpoints/`\n\n{checkpoint_rules}\n"
        f"The last {checkpoints.KEEP_LAST} and the best {checkpoints.KEEP_BEST} by held-out score are kept.\n\n"
        f"## `run.db`\n\n{_with_code_block((inspect.getdoc(database) or '').partition(chr(10) * 2)[2])}\n\n"
        f"```sql\n{database.SCHEMA.strip()}\n```\n"
    )


def record_states() -> str:
    """The status words with their meaning: the docstring below `Status`."""
    lines = inspect.getsource(records).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Status = "))
    text = "\n".join(lines[start + 1 :]).split('"""')[1]
    return " ".join(text.split())


def _with_code_block(text: str) -> str:
    """Indented lines as a fenced block."""
    parts = text.split("\n\n")
    return "\n\n".join(f"```text\n{textwrap.dedent(part)}\n```" if part.startswith("    ") else part for part in parts)


def builtin_graders_page() -> str:
    """Every built-in grader: what it does, its parameters, and the cases its tests check."""
    uses = _cases().USES
    names = list(dict.fromkeys(use.grader for use in uses))
    head = (
        f"# Built-in graders\n\n{_plain(_prose(inspect.getdoc(builtin) or '')).partition(chr(10) * 2)[2]}\n\n"
        "The tables below are worked out by hand from what the graders were asked for, and are what the tests check;\n"
        "a case's arguments come beside those named above its table. `error` is a `ValueError`.\n"
        f"\nThe graders: {', '.join(f'[`{name}`](#{name})' for name in names)}.\n"
    )
    return head + "".join(_builtin_grader(name, [use for use in uses if use.grader == name]) for name in names)


def _cases() -> Any:
    path = FOLDER.parents[1] / "tests" / "grading" / "builtin" / "cases.py"
    spec = importlib.util.spec_from_file_location("builtin_cases", path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _builtin_grader(name: str, uses: list[Any]) -> str:
    function = builtin.find(name)
    package = builtin.LIBRARIES.get(name)
    needs = f"Needs the package {package}: `pip install 'reinforge[graders]'`.\n\n" if package else ""
    doc, meanings = _without_parameters(_plain(inspect.getdoc(function) or ""))
    parts = [
        f"\n## {name}\n\n{_prose(doc)}\n\n{needs}",
        "| parameter | type | default | meaning |\n|---|---|---|---|\n",
    ]
    for parameter in inspect.signature(function).parameters.values():
        default = "required" if parameter.default is parameter.empty else _code(json.dumps(parameter.default))
        parts.append(_row(f"`{parameter.name}`", _code(parameter.annotation), default, meanings[parameter.name]))
    for use in uses:
        options = f" With {_arguments(use.options)}." if use.options else ""
        parts.append(
            f"\n**{use.title}** ({use.requirements}).{options}\n\n| case | arguments | score |\n|---|---|---|\n"
        )
        parts += [_row(case.what, _arguments(case.arguments), _score(case.score)) for case in use.cases]
    return "".join(parts)


def _without_parameters(doc: str) -> tuple[str, Mapping[str, str]]:
    """A docstring without its paragraph of "`parameter`: meaning", and those meanings."""
    meanings = {"input": "what is judged; in a grader of a config the completion's text, unless it says otherwise"}
    rest = []
    for paragraph in doc.split("\n\n"):
        if not re.match("`\\w+`[,:]", paragraph):
            rest.append(paragraph)
            continue
        parts = re.split(r"(?:^|\s)((?:`\w+`(?:, )?)+):\s", paragraph)
        for names, meaning in zip(parts[1::2], parts[2::2], strict=True):
            meanings.update(dict.fromkeys(re.findall(r"\w+", names), meaning))
    return "\n\n".join(rest), meanings


def _prose(doc: str) -> str:
    """A docstring as Markdown: its examples and indented parts in code blocks."""
    paragraphs = doc.split("\n\n")
    return "\n\n".join(
        f"```python\n{textwrap.dedent(part)}\n```" if part.startswith((">>>", "    ")) else part for part in paragraphs
    )


def _arguments(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_code(json.dumps(value, ensure_ascii=False))}" for name, value in arguments.items())


def _code(text: str) -> str:
    """A text as code, whatever backticks are in it; of a long one the beginning."""
    text = text if len(text) <= MAX_CODE else f"{text[:MAX_CODE]}..."
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def _score(score: float | str) -> str:
    return "error" if isinstance(score, str) else f"{score:.4g}"


PAGES = {
    "builtin_graders.md": builtin_graders_page,
    "config.md": config_page,
    "cli.md": cli_page,
    "errors.md": errors_page,
    "graders.md": graders_page,
    "metrics.md": metrics_page,
    "run_directory.md": run_directory_page,
}
"""File -> the function that makes its text."""


def page_text(make: Callable[[], str]) -> str:
    return HEAD + make()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(page_text(make), encoding="utf-8")


if __name__ == "__main__":
    main()
