"""The rows of a run: what it trains on, what it holds out, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reinforge.config import DataConfig
from reinforge.data.dataset import examples_from_rows, load_examples
from reinforge.data.split import split_examples
from reinforge.errors import ConfigError
from reinforge.types import Example


def load_data(
    data: DataConfig,
    base_dir: Path,
    seed: int,
    rows: Iterable[Mapping[str, Any]] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[Example], list[Example]]:
    """(train, held-out) as a config says; `rows` are used instead of `data.path`. Columns with gaps are told."""
    if rows is None and data.path is None:
        raise ConfigError("data.path is not set, so there is nothing to train on.", hint="Set it, or use --data PATH.")
    examples = load_examples(data, base_dir) if rows is None else examples_from_rows(rows, data)
    for column, count in _gaps(examples).items():
        tell(f'column "{column}" has no value in {count} of {len(examples)} rows (reward functions see None)')
    if data.heldout_path is None:
        return split_examples(examples, data.heldout, data.stratify_column, seed)
    apart = DataConfig.model_validate(data.model_dump() | {"path": data.heldout_path, "heldout_path": None})
    return examples, load_examples(apart, base_dir)


def fingerprint(examples: Sequence[Example]) -> str:
    """sha256 of all that a run reads of its rows, in their order."""
    digest = hashlib.sha256()
    for example in examples:
        row = [example.index, example.prompt, dict(example.columns), example.tools]
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _gaps(examples: Sequence[Example]) -> Counter[str]:
    """Columns that lack a value in some rows, and in how many."""
    return Counter(name for example in examples for name, value in example.columns.items() if value is None)
