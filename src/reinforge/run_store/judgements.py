"""`judgements.db`: what the judges of a run have answered, and what that took.

The same question to the same model is asked once, also by a run that was stopped or killed and goes on: its scores are
then those it had, and a budget counts what the whole run has used. It lies beside `run.db` and not in it because
answers arrive in many threads in the middle of a step, whose rows are one transaction.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from reinforge.errors import CheckpointError
from reinforge.run_store.database import SCHEMA_VERSION, close_writer, disk_errors, open_reader

FILE_NAME = "judgements.db"
_BUSY_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT NOT NULL, content TEXT NOT NULL, at REAL NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (model TEXT PRIMARY KEY, calls INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, at REAL NOT NULL, text TEXT NOT NULL);   -- down, up again
"""
_USAGE = "SELECT model, calls, prompt_tokens, completion_tokens FROM usage ORDER BY model"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one model was asked."""

    model: str
    calls: int
    """Requests sent, answered or not."""
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Judgements:
    """Open for writing. Several threads may use it."""

    def __init__(self, folder: Path | None = None) -> None:
        """In memory without a folder."""
        self._lock = threading.Lock()
        self._closed = False
        self._path = Path(":memory:") if folder is None else folder / FILE_NAME
        with disk_errors(self._path):
            try:
                self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=_BUSY_S)
                self._db.execute("PRAGMA journal_mode = WAL").fetchone()
                # A power cut may cost the last answers, never the file: they are asked for again.
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(f"{SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                raise CheckpointError(
                    f"{self._path} is damaged: {error}.",
                    hint="Put back a copy of it, or move it away: judges are then asked again, budgets begin at zero.",
                ) from None

    def reply(self, key: str) -> str | None:
        """The text a judge answered a question with, if it did."""
        with self._lock:
            if self._closed:
                return None
            row = self._db.execute("SELECT content FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def keep_reply(self, key: str, model: str, content: str) -> None:
        """Keep the text a judge answered a question with (valid Unicode)."""
        self._write("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?)", (key, model, content, time.time()))

    def count_call(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Add one request to what the model was asked."""
        self._write(
            "INSERT INTO usage VALUES (?, 1, ?, ?) ON CONFLICT (model) DO UPDATE SET calls = calls + 1,"
            " prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens",
            (model, prompt_tokens, completion_tokens),
        )

    def note(self, text: str) -> None:
        """Keep, for those who look on, that the judge is down or up again."""
        self._write("INSERT INTO notes (at, text) VALUES (?, ?)", (time.time(), text))

    def usage(self) -> tuple[Usage, ...]:
        """By model, in the order of their names."""
        with self._lock:
            return _usages(self._db.execute(_USAGE))

    def close(self) -> None:
        """Leave a single file behind. What arrives later is not kept."""
        with self._lock:
            if not self._closed:
                close_writer(self._db)
            self._closed = True

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._lock, disk_errors(self._path):
            if not self._closed:
                self._db.execute(statement, values)


@dataclass(frozen=True, slots=True)
class Note:
    """What became of a judge."""

    at: float
    """Seconds since 1970."""
    text: str


def read_judgements(folder: Path) -> tuple[tuple[Usage, ...], Note | None]:
    """What the judges of a run took so far, and the latest note; nothing when it has none."""
    path = folder / FILE_NAME
    if not path.is_file():
        return (), None
    db = open_reader(path)
    try:
        note = db.execute("SELECT at, text FROM notes ORDER BY id DESC LIMIT 1").fetchone()
        return _usages(db.execute(_USAGE)), None if note is None else Note(*note)
    finally:
        db.close()


def copy_judgements(folder: Path, target: Path) -> None:
    """Copy what a run's judges have answered to another folder, also while it trains; nothing where there is none."""
    if (folder / FILE_NAME).is_file():
        source, copy = open_reader(folder / FILE_NAME), sqlite3.connect(target / FILE_NAME)
        source.backup(copy)
        copy.close()
        source.close()


def _usages(rows: Iterable[tuple[str, int, int, int]]) -> tuple[Usage, ...]:
    return tuple(Usage(*row) for row in rows)
