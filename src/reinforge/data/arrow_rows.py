"""Rows of Parquet files and of what the `datasets` library holds: folders it saved, data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reinforge.data.faults import Faults
from reinforge.data.text_rows import Row
from reinforge.data.values import plain_value, values_fit
from reinforge.errors import DataError, SetupError

_BATCH_ROWS = 1024


def read_parquet(path: Path, name: str, faults: Faults) -> Iterator[Row]:
    """The rows of a Parquet file, a thousand at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise _missing("pyarrow", "Parquet files") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                faults.add(name, f"has several columns named {', '.join(repeated)}", "Rename or remove one of them.")
                return
            batches = (batch.to_pylist() for batch in file.iter_batches(_BATCH_ROWS))
            yield from typed_rows((row for batch in batches for row in batch), name, faults)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name} is not a readable Parquet file: {detail}.", hint="Write it again.") from error


def read_saved_folder(folder: Path, name: str, split: str, faults: Faults) -> Iterator[Row]:
    """The rows of a folder written by `datasets.save_to_disk`: one data set, or one per split."""
    datasets = _datasets()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} cannot be read by datasets.load_from_disk: {error}.", hint="Save it again.") from error
    if isinstance(loaded, Mapping):
        if split not in loaded:
            raise DataError(f'{name} has no split "{split}".', hint=f"Set data.split to one of: {', '.join(loaded)}.")
        loaded = loaded[split]
    return typed_rows(loaded, name, faults)


def read_hub(name: str, subset: str | None, split: str, faults: Faults) -> Iterator[Row]:
    """The rows of a data set of the Hugging Face hub, downloaded once and then cached."""
    datasets = _datasets()
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fault = f'There is no file or folder "{name}", and as a hub data set it cannot be loaded: {detail.rstrip(".")}.'
        hint = "Check name, data.subset, data.split and the network, or set data.path to a local copy."
        raise DataError(fault, hint=hint) from error
    return typed_rows(loaded, name, faults)


def typed_rows(rows: Iterable[Mapping[str, Any]], name: str, faults: Faults) -> Iterator[Row]:
    """Rows that hold Python values already, checked and brought to JSON's types."""
    for number, row in enumerate(rows):
        place = f"{name} row {number}"
        if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
            faults.add(place, f"is no object with text keys but {type(row).__name__}", "Give rows as dicts.")
            continue
        values = {column: plain_value(value) for column, value in row.items()}
        if values_fit(values, place, faults):
            yield Row(place, values)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise _missing("datasets", "data sets of the hub and saved folders") from error
    return datasets


def _missing(package: str, what: str) -> SetupError:
    return SetupError(f"{what} need the package {package}.", hint="pip install 'reinforge[train]'")
