"""Rows become examples: prompt, tools, and every other column as reward functions will see it.

The system prompt is added here, not in rendering: an example's prompt is then exactly the conversation that the model
sees, for reward functions and pages too. A plain-text prompt with a system prompt becomes two messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from reinforge.config import DataConfig
from reinforge.data.arrow_rows import typed_rows
from reinforge.data.faults import Faults
from reinforge.data.messages import ShapeError, parse_messages, parse_tools
from reinforge.data.source import read_source
from reinforge.data.template import fill_template, nearest_name, template_columns
from reinforge.data.text_rows import Row
from reinforge.errors import DataError
from reinforge.types import Example

_USUAL_PROMPT_COLUMNS = ("prompt", "question", "instruction", "problem", "query", "input", "text")


def load_examples(config: DataConfig, base_dir: Path) -> list[Example]:
    """The examples of `config.path`: a file, a folder, or a hub id. Relative paths start at `base_dir`.

    Raises one DataError that tells all bad rows. Every example has the same columns: where a row lacks one, it is
    None. `Example.index` is the row's number from 0, over all files of a folder; blank lines are no rows.
    """
    faults = Faults()
    return _examples(read_source(config, base_dir, faults), config, faults, str(config.path))


def examples_from_rows(rows: Iterable[Mapping[str, Any]], config: DataConfig, name: str = "dataset") -> list[Example]:
    """The same from rows in memory: dicts, or a data set of the `datasets` library.

    >>> rows = [{"question": "1 + 1?", "answer": 2}]
    >>> example, = examples_from_rows(rows, DataConfig(prompt_column="question"))
    >>> example.prompt, dict(example.columns)
    ('1 + 1?', {'answer': 2})
    """
    faults = Faults()
    return _examples(typed_rows(rows, name, faults), config, faults, name)


def _examples(rows: Iterator[Row], config: DataConfig, faults: Faults, name: str) -> list[Example]:
    examples = []
    for index, row in enumerate(islice(rows, config.max_examples)):
        try:
            examples.append(_example(index, row.values, config))
        except ShapeError as error:
            faults.add(row.place, error.fault, error.hint)
    faults.raise_if_any()
    if not examples:
        raise DataError(f"{name} has no rows.", hint="A data set needs at least one.")
    columns = dict.fromkeys(column for example in examples for column in example.columns)
    return [_with_columns(example, columns) for example in examples]


def _with_columns(example: Example, columns: Iterable[str]) -> Example:
    values = {column: example.columns.get(column) for column in columns}
    return Example(example.index, example.prompt, values, example.tools)


def _example(index: int, values: dict[str, Any], config: DataConfig) -> Example:
    columns = dict(values)
    tools = parse_tools(columns.pop("tools", None))
    if config.prompt_template is not None:
        prompt: str | tuple[Mapping[str, Any], ...] = _from_template(config.prompt_template, values)
    else:
        prompt = _from_column(columns, config.prompt_column)
    if config.system_prompt is not None:
        prompt = _with_system_prompt(prompt, config.system_prompt)
    return Example(index, prompt, columns, tools)


def _from_template(template: str, values: Mapping[str, Any]) -> str:
    """The filled template. Its columns stay columns: the template may use the gold answer's neighbours."""
    for column in template_columns(template):
        if column not in values:
            near = nearest_name(column, values)
            hint = f"Did you mean {{{near}}}?" if near else "Literal braces are written twice: {{ and }}."
            found = ", ".join(values)
            raise ShapeError(f"has no {column!r} for {{{column}}} in data.prompt_template (found: {found})", hint)
        if values[column] is None:
            raise ShapeError(f'has null in "{column}", which data.prompt_template uses', "Fill it or remove the row.")
    text = fill_template(template, values)
    if not text.strip():
        raise ShapeError("has an empty prompt after data.prompt_template", "Remove the row or fill its columns.")
    return text


def _from_column(columns: dict[str, Any], name: str) -> str | tuple[Mapping[str, Any], ...]:
    """Take the prompt out of the columns."""
    if name not in columns:
        if "messages" not in columns:
            raise _no_prompt(columns, name)
        name = "messages"
    value = columns.pop(name)
    if isinstance(value, str) and name != "messages":
        if not value.strip():
            raise ShapeError(f'has an empty "{name}"', "Remove the row or write its prompt.")
        return value
    if not isinstance(value, str | list):
        fault = f'has a "{name}" of type {type(value).__name__}'
        raise ShapeError(fault, "A prompt is a text or a list of chat messages.")
    return parse_messages(value)


def _no_prompt(columns: Mapping[str, Any], name: str) -> ShapeError:
    near = nearest_name(name, columns) or next((usual for usual in _USUAL_PROMPT_COLUMNS if usual in columns), None)
    hint = f"Set data.prompt_column: {near}." if near else "Set data.prompt_column or data.prompt_template."
    return ShapeError(f'has no "{name}" (found: {", ".join(columns)})', hint)


def _with_system_prompt(
    prompt: str | tuple[Mapping[str, Any], ...], system_prompt: str
) -> tuple[Mapping[str, Any], ...]:
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if messages[0]["role"] in ("system", "developer"):
        fault = f"has a {messages[0]['role']} message of its own, and data.system_prompt is set"
        raise ShapeError(fault, "Unset data.system_prompt or remove the message.")
    return ({"role": "system", "content": system_prompt}, *messages)
