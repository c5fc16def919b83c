"""What `data.path` means: a file, a folder of files, a folder saved by `datasets`, or a hub id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from reinforge.config import DataConfig
from reinforge.data.arrow_rows import read_hub, read_parquet, read_saved_folder
from reinforge.data.faults import Faults
from reinforge.data.text_rows import Row, read_csv, read_jsonl
from reinforge.errors import ConfigError, DataError

_READERS: dict[str, Callable[[Path, str, Faults], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json")
"""Descriptions that the hub's tools put beside the data."""
_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval")
"""Words in file names that tell splits apart, as the hub's data sets use them."""


def read_source(config: DataConfig, base_dir: Path, faults: Faults) -> Iterator[Row]:
    """All rows of the data set in order; faulty ones are noted in `faults` and left out.

    Relative paths start at `base_dir`.
    """
    if config.path is None:
        raise ConfigError("data.path is not set.", hint="Set it to a JSONL, CSV or Parquet file, a folder or a hub id.")
    path = base_dir / Path(config.path).expanduser()
    if path.is_dir():
        return _folder(path, config, faults)
    if path.is_file():
        return _file(path, config.path, faults)
    if _HUB_ID.fullmatch(config.path) and path.suffix.lower() not in _READERS:
        return read_hub(config.path, config.subset, config.split, faults)
    raise DataError(f"There is no file or folder {path}.", hint=_nearest_file(path))


def _file(path: Path, name: str, faults: Faults) -> Iterator[Row]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f'{name}: "{path.suffix}" is no known kind of data file.', hint=f"Use one of: {known}.")
    return reader(path, name, faults)


def _folder(folder: Path, config: DataConfig, faults: Faults) -> Iterator[Row]:
    if config.subset is not None and (folder / config.subset).is_dir():
        folder = folder / config.subset
    elif config.subset is not None and not any(map(_is_data_file, folder.iterdir())):
        # Files right in the folder are a local copy of one subset: the setting, meant for the hub, may stay.
        raise DataError(f'{folder} has no subset folder "{config.subset}".', hint="Correct or unset data.subset.")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return read_saved_folder(folder, str(config.path), config.split, faults)
    found = sorted(filter(_is_data_file, folder.rglob("*")))
    files = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise DataError(f"{folder} holds no data files.", hint=f"Put files there that end in {', '.join(_READERS)}.")
    chosen = _of_split(files, folder, config.split)
    return chain.from_iterable(_file(path, str(path.relative_to(folder)), faults) for path in chosen)


def _is_data_file(path: Path) -> bool:
    return path.suffix.lower() in _READERS and path.name not in _NOT_DATA and path.is_file()


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """The files whose name or subfolder says `split` (`train.jsonl`, `data/train-00001.parquet`); all of them when no
    name says any split."""
    words = {path: _words(str(path.relative_to(folder))) for path in files}
    chosen = [path for path in files if _words(split) <= words[path]]
    if chosen:
        return chosen
    present = [name for name in _SPLIT_NAMES if any(name in words[path] for path in files)]
    if present:
        raise DataError(
            f'{folder} has no file of the split "{split}".', hint=f"Set data.split to one of: {', '.join(present)}."
        )
    return files


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", text.lower()))


def _nearest_file(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"Nor is there a folder {parent}."
    others = sorted(parent.iterdir(), key=lambda other: other.suffix == path.suffix)
    names = {other.stem: other.name for other in others}  # `.jsonl` alone makes no two names alike
    near = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.7)
    return f"Did you mean {names[near[0]]}?" if near else "Relative paths start at the folder of the config file."
