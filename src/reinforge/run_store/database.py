"""`run.db`: its tables, and how to open it for the one trainer and for any number of readers.

While a trainer lives the database is in WAL mode, so readers never wait; a finished run goes back to a single file.
Readers create no file in the run's folder. That takes some care, because SQLite makes two side files for any WAL
database it opens, read-only or not:

| beside run.db                 | what it means                     | opened                                |
|-------------------------------|-----------------------------------|---------------------------------------|
| no -wal, rollback journal     | a finished run                    | read-only                             |
| -wal and -shm                 | a trainer lives, or was killed    | read-only, sharing these files        |
| no or empty -wal, WAL mode    | a copy of run.db alone            | read-only and immutable               |
| -wal without -shm             | a copied folder of a live run     | a private copy in a temporary folder  |
| -journal                      | a trainer enters or leaves WAL    | when it is done                       |
|                               | mode, or was killed while it did  | a private copy in a temporary folder  |

BLOBs are compressed: the texts of prompts and completions and what reward functions printed are zlib of UTF-8, token
arrays are packed (packing.py). Python reads them all:

    with reinforge.Run.open(Path("runs/my-run")) as run:
        rows = run.completions(step=run.last_step(), limit=10)        # row.text
        scores = run.scores(row.id for row in rows)                   # scores[row.id][0].prints
        prompts = run.prompts([row.example for row in rows])          # prompts[row.example].text
        tokens = run.tokens(rows[0].id)                               # None once dropped (keep_tokens_steps)
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from reinforge.errors import CheckpointError, SetupError, UsageError
from reinforge.run_store.lock import is_locked

SCHEMA_VERSION = 3

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (   -- one per process that trained this run
    id INTEGER PRIMARY KEY, from_step INTEGER NOT NULL, started_at REAL NOT NULL, duration_s REAL NOT NULL);
CREATE TABLE steps (
    step INTEGER PRIMARY KEY, metrics TEXT NOT NULL, times TEXT NOT NULL, state_hash TEXT NOT NULL,
    num_completions INTEGER NOT NULL, recorded_at REAL NOT NULL);
CREATE TABLE prompts (
    example INTEGER PRIMARY KEY, first_step INTEGER NOT NULL, text BLOB NOT NULL, num_tokens INTEGER NOT NULL);
CREATE TABLE completions (
    id INTEGER PRIMARY KEY, step INTEGER NOT NULL, epoch INTEGER NOT NULL, place INTEGER NOT NULL,
    example INTEGER NOT NULL, generation INTEGER NOT NULL, text BLOB NOT NULL, finish_reason TEXT NOT NULL,
    num_tokens INTEGER NOT NULL, policy_version INTEGER NOT NULL, reward REAL, advantage REAL NOT NULL,
    state TEXT NOT NULL, tokens_digest BLOB NOT NULL);
CREATE INDEX completions_by_step ON completions (step);
CREATE INDEX completions_by_example ON completions (example);
CREATE TABLE tokens (completion INTEGER PRIMARY KEY, packed BLOB NOT NULL);   -- the latest steps only
CREATE TABLE functions (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, weight REAL NOT NULL,
    first_step INTEGER NOT NULL, UNIQUE (name, version, weight));
CREATE TABLE scores (
    completion INTEGER NOT NULL, position INTEGER NOT NULL, function INTEGER NOT NULL, value REAL, state TEXT NOT NULL,
    kind TEXT, message TEXT, prints BLOB, latency_s REAL NOT NULL, stand_in REAL, metrics TEXT,
    PRIMARY KEY (completion, position)) WITHOUT ROWID;
CREATE TABLE function_steps (   -- scores summed up by function and step
    step INTEGER NOT NULL, function INTEGER NOT NULL, num_ok INTEGER NOT NULL, num_error INTEGER NOT NULL,
    num_masked INTEGER NOT NULL, num_inapplicable INTEGER NOT NULL, sum_value REAL NOT NULL,
    sum_latency_s REAL NOT NULL, PRIMARY KEY (step, function)) WITHOUT ROWID;
CREATE TABLE prompt_epochs (   -- completions summed up by example and epoch (Welford)
    example INTEGER NOT NULL, epoch INTEGER NOT NULL, num_completions INTEGER NOT NULL, mean REAL NOT NULL,
    sum_squares REAL NOT NULL, PRIMARY KEY (example, epoch)) WITHOUT ROWID;
CREATE TABLE events (   -- ids are never used twice: readers resume from one
    id INTEGER PRIMARY KEY AUTOINCREMENT, step INTEGER NOT NULL, of_step INTEGER NOT NULL, at REAL NOT NULL,
    kind TEXT NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_by_step ON events (step);
CREATE TABLE accidents (key TEXT PRIMARY KEY, score TEXT NOT NULL) WITHOUT ROWID;   -- never rewound
CREATE TABLE reward_updates (   -- never rewound: a resume repeats each after the same step
    id INTEGER PRIMARY KEY, request TEXT NOT NULL UNIQUE, step INTEGER NOT NULL, functions TEXT NOT NULL,
    message TEXT NOT NULL, shift TEXT);
"""

_DISK_CODES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_BUSY_S = 10.0
_PATIENCE_S = 2.0


def create_database(path: Path) -> sqlite3.Connection:
    """A new database with its tables, open for writing."""
    connection = _connect_writer(path, "rwc")
    connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    return connection


def open_writer(path: Path) -> sqlite3.Connection:
    """Open for the trainer, who must hold the run's lock."""
    connection = _connect_writer(path, "rw")
    _check_version(connection, path)
    return connection


def close_writer(connection: sqlite3.Connection) -> None:
    """Leave one file behind. Where that cannot be (a reader is still in it, the disk is full), the side files stay:
    readers and the next trainer find every row all the same."""
    connection.execute(f"PRAGMA busy_timeout = {int(_PATIENCE_S * 1000)}")
    for statement in ("PRAGMA journal_mode = DELETE", "PRAGMA wal_checkpoint(TRUNCATE)"):
        try:
            connection.execute(statement).fetchone()
            break
        except sqlite3.OperationalError as error:
            if not is_about_the_disk(error):
                raise
    connection.close()


def is_about_the_disk(error: BaseException) -> bool:
    """Whether the machine, not a statement, is at fault: busy, read-only, I/O error, full, cannot open."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in _DISK_CODES


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses while a run is written into an error for people."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, sqlite3.OperationalError) and not is_about_the_disk(error):
            raise
        raise SetupError(
            f"{path} could not be written: {error}. What was stored before is untouched.",
            hint="Make room on its disk, or make it writable; `reinforge runs resume` goes on with a run.",
        ) from error


def open_reader(path: Path) -> sqlite3.Connection:
    """Open for reading while a trainer writes, after it was killed, or in a copied folder; creates no file there."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            connection = _connect_reader(path)
            _check_version(connection, path)
            return connection
        except sqlite3.OperationalError as error:
            # A trainer is just entering or leaving WAL mode.
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"{path} cannot be read: {error}.", hint="Try again when its disk is well and its trainer is done."
                ) from error
            time.sleep(0.02)
        except sqlite3.DatabaseError as error:
            raise CheckpointError(f"{path} is damaged: {error}.", hint="Put back a copy of it.") from error


def _connect_writer(path: Path, mode: str) -> sqlite3.Connection:
    connection = _connect(path, f"mode={mode}")
    connection.execute("PRAGMA journal_mode = WAL").fetchone()
    # A checkpoint may rely on the rows before it: each commit waits for the disk.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _connect_reader(path: Path) -> sqlite3.Connection:
    wal, shm = path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")
    if wal.exists() and shm.exists():
        try:
            return _connect(path, "mode=ro")
        except sqlite3.OperationalError:
            return _connect_private_copy(path, wal)
    if wal.exists() and wal.stat().st_size:
        return _connect_private_copy(path, wal)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():
        if is_locked(path.with_name("lock")):
            raise sqlite3.OperationalError("its trainer is entering or leaving WAL mode")
        return _connect_private_copy(path, journal)
    return _connect(path, "mode=ro&immutable=1" if _is_wal(path) else "mode=ro")


def _is_wal(path: Path) -> bool:
    """Whether the database is marked as WAL. Asked of SQLite itself, which cannot open one without locks; reading
    the header through another file handle would drop the locks this process has on the file."""
    try:
        _connect(path, "mode=ro&nolock=1").close()
    except sqlite3.OperationalError as error:
        if "unable to open" not in str(error):
            raise
        return True
    return False


def _connect_private_copy(path: Path, beside: Path) -> sqlite3.Connection:
    """The database as its side file makes it: committed rows of a -wal in it, what a -journal undoes undone."""
    with tempfile.TemporaryDirectory(prefix="reinforge-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        if beside.exists():
            shutil.copyfile(beside, copy.with_name(beside.name))
        source = _connect(copy, "mode=rw")
        # In memory, so that nothing has to be removed when the reader ends.
        connection = sqlite3.connect(":memory:", isolation_level=None)
        source.backup(connection)
        source.close()
    return connection


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    """Connect and read one page, so that a database which cannot be read fails here."""
    if not path.is_file() and "rwc" not in parameters:
        raise UsageError(f"{path.parent} has no {path.name}, so it is not a run.", hint="See `reinforge runs list`.")
    uri = f"file:{quote(str(path.resolve()))}?{parameters}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_S)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        connection.close()
        raise UsageError(
            f"{path} has format {version}; this version of Reinforge reads format {SCHEMA_VERSION}.",
            hint="Use the version of Reinforge that wrote the run (run.json names it).",
        )
