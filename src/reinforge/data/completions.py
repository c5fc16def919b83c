"""Data sets of completions that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reinforge.config import DataConfig
from reinforge.data.dataset import load_examples
from reinforge.data.template import nearest_name
from reinforge.errors import DataError


def completion_rows(data: str, prompt_column: str, completion_column: str, base_dir: Path) -> list[dict[str, Any]]:
    """The rows of a data set of completions, with `prompt` and `completion`. DataError without such a column."""
    rows = []
    for example in load_examples(DataConfig(path=data, prompt_column=prompt_column), base_dir):
        columns = dict(example.columns)
        if completion_column not in columns:
            found, near = ", ".join(columns) or "none", nearest_name(completion_column, columns)
            hint = f"Did you mean --completion-column {near}?" if near else "Name the one: --completion-column NAME."
            raise DataError(f'{data} has no column "{completion_column}" (other columns: {found}).', hint=hint)
        rows.append({**columns, "prompt": example.prompt, "completion": columns[completion_column]})
    return rows
