"""Rows of JSONL and CSV files, read line by line so that every fault names its line.

What is accepted and refused (each answer is tested):

    UTF-8 byte order mark     accepted, dropped
    CRLF line ends            accepted
    blank lines               skipped; they count as lines, not as rows
    empty file                refused
    UTF-16, UTF-32, bad UTF-8 refused, with the command that converts
    a line over 16 MiB        refused without reading on: the file ends there for us
    JSON: not an object       refused
    JSON: a key twice         refused (Python would keep the last one silently)
    JSON: NaN, Infinity, 1e999, lone surrogates, NUL    refused
    CSV: values               stay text, "007" is not 7
    CSV: too few or many fields, an open quote, a column name twice or empty    refused
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from reinforge.data.faults import Faults
from reinforge.data.values import NotFinite, values_fit
from reinforge.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is no row of text but a mistake (or an attack): it is refused unread."""

_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands."""

    place: str
    """`train.jsonl:17` (a line, from 1) or `train.parquet row 17` (from 0): how errors name it."""
    values: dict[str, Any]


class _Stop(Exception):
    """The rest of the file cannot be read; the fault is noted."""


def read_jsonl(path: Path, name: str, faults: Faults) -> Iterator[Row]:
    """The objects of a JSON Lines file. Faulty lines are noted in `faults` and left out."""
    for number, line in _lines(path, name, faults):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        values = _json_object(line, place, faults)
        if values is not None and values_fit(values, place, faults):
            yield Row(place, values)


def read_csv(path: Path, name: str, faults: Faults) -> Iterator[Row]:
    """The records of a CSV file with a header line (tabs instead of commas in a `.tsv` file)."""
    # The limit is the process's, and is only ever raised; its default would refuse prompts above 128 KiB.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    start = 0  # line where the record being read begins; 0 between records

    def lines() -> Iterator[str]:
        nonlocal start
        for number, line in _lines(path, name, faults):
            start = start or number
            yield line

    header: list[str] | None = None
    try:
        records = csv.reader(lines(), strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for record in records:
            place, start = f"{name}:{start}", 0
            if not record:
                continue
            if header is None:
                header = record
                if not _header_fits(header, place, faults):
                    return
            elif len(record) != len(header):
                fault = f"has {len(record)} fields, the header has {len(header)}"
                faults.add(place, fault, 'Put a field that contains a comma between double quotes: "a, b".')
            else:
                values = dict(zip(header, record, strict=True))
                if values_fit(values, place, faults):
                    yield Row(place, values)
    except csv.Error as error:
        hint = 'Close each quoted field, and write a quote inside one twice: "say ""hi""".'
        faults.add(f"{name}:{start}", f"starts a record that is not CSV: {error}", hint)


def _header_fits(header: list[str], place: str, faults: Faults) -> bool:
    fits = True
    for column in dict.fromkeys(header):
        if not column.strip():
            faults.add(place, "has a column without a name", "The first line must name every column.")
            fits = False
        elif header.count(column) > 1:
            faults.add(place, f'names the column "{column}" {header.count(column)} times', "Rename or remove one.")
            fits = False
    return fits


def _json_object(line: str, place: str, faults: Faults) -> dict[str, Any] | None:
    repeated: list[str] = []

    def pairs_to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.append(counts.most_common(1)[0][0])
        return result

    hint = "Each line must be one JSON object (jq -c '.[]' IN > OUT makes lines of an array)."
    try:
        values = json.loads(line.rstrip("\r\n"), object_pairs_hook=pairs_to_object, parse_constant=NotFinite)
    except json.JSONDecodeError as error:
        faults.add(place, f"is not JSON at character {error.pos + 1}: {error.msg}", hint)
    except RecursionError:
        faults.add(place, "is nested too deep", "Store such a value as a JSON text.")
    except ValueError:  # the only other one: Python's cap of 4300 digits
        faults.add(place, "has a whole number with thousands of digits", "Store such a number as text.")
    else:
        if repeated:
            faults.add(place, f'has the key "{repeated[0]}" twice in one object', "Remove or rename one of them.")
        elif not isinstance(values, dict):
            kind = "a JSON array" if isinstance(values, list) else "a single JSON value"
            faults.add(place, f"is {kind}, not an object", hint)
        else:
            return values
    return None


def _lines(path: Path, name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """(line number, text) of a UTF-8 file; line ends are kept. Notes what it cannot read."""
    try:
        with path.open("rb") as file:
            yield from _decoded_lines(file, name, faults)
    except _Stop:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error


def _decoded_lines(file: BinaryIO, name: str, faults: Faults) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        place = f"{name}:{number}"
        if number == 1:
            line = _without_mark(line, place, faults)
        if len(line) > MAX_LINE_BYTES:
            fault = f"is longer than {MAX_LINE_BYTES // 2**20} MiB; nothing after it was read"
            faults.add(place, fault, "Split it: one row per line.")
            raise _Stop
        if b"\0" in line:
            hint = "Remove NUL bytes. One beside each letter means UTF-16: iconv -f UTF-16 -t UTF-8 IN > OUT."
            faults.add(place, f"has a NUL byte at byte {line.index(0) + 1}", hint)
            continue
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            faults.add(place, f"is not UTF-8 at byte {error.start + 1}", "Convert: iconv -f LATIN1 -t UTF-8 IN > OUT.")


def _without_mark(line: bytes, place: str, faults: Faults) -> bytes:
    for mark, encoding in _ENCODINGS:
        if line.startswith(mark):
            faults.add(place, f"is {encoding}, not UTF-8", f"Convert: iconv -f {encoding} -t UTF-8 IN > OUT.")
            raise _Stop
    return line.removeprefix(codecs.BOM_UTF8)
