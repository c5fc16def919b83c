"""A run: one directory that tells its whole story without any server.

    <run>/run.json        id, name, created, config hash, versions: written once
    <run>/config.yaml     the resolved config
    <run>/run.db          steps, completions, scores, events (database.py)
    <run>/judgements.db   what judges have answered and what that took; none where no judge was asked
    <run>/network.jsonl   connections that reward functions asked for (network_log.py); none where there were none
    <run>/judge.json      settings of the judge that a resume has changed
    <run>/machine.json    settings of how it computes that a resume has changed
    <run>/checkpoints/    resumable states (checkpoints.py)
    <run>/adapter/        the published final adapter
    <run>/control/        requests to the trainer, each a file that was renamed into place
    <run>/evaluations/    held-out evaluations, one JSON file each
    <run>/rewards/        source text of each reward function version
    <run>/golds.json      right completions that are judged every reward_fns.recheck.every_steps; none where it is off
    <run>/dataset.json    rows that a Python program handed in; none where the config names the data
    <run>/curves.png      the picture of `reinforge demo` and `reinforge runs plot`
    <run>/lock            who trains it now

Everything but `control/` and `curves.png` is written by the one trainer that holds the lock. `control/stop`, with a
reason in it, asks for a stop after the step under way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import yaml

from reinforge.errors import CheckpointError, UsageError
from reinforge.run_store import rows
from reinforge.run_store.database import close_writer, create_database, disk_errors, open_reader, open_writer
from reinforge.run_store.failpoint import failpoint
from reinforge.run_store.files import replace_durably
from reinforge.run_store.lock import RunLock, is_locked
from reinforge.run_store.reading import RowReader
from reinforge.run_store.records import Event, RewardUpdateRow, Status, StepRecord
from reinforge.types import Score

_FOLDERS = ("checkpoints", "adapter", "control", "evaluations", "rewards")
_JUDGE, _MACHINE = "judge.json", "machine.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Run(RowReader):
    """An open run directory; a context manager. Reading needs no right to write and disturbs nobody."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: RunLock | None) -> None:
        super().__init__(db)
        self.path = path
        self.about: dict[str, Any] = _read_json(path / "run.json")
        self._lock = lock
        self._session: int | None = None
        self._opened_at = time.monotonic()

    @classmethod
    def create(
        cls,
        parent: Path,
        name: str | None,
        config: Mapping[str, Any],
        about: Mapping[str, Any],
        files: Mapping[str, str] | None = None,
    ) -> Run:
        """Make the directory of a new run under `parent` and become its trainer.

        `config` is the resolved config as plain values; `about` names versions and whatever else should be known;
        `files` (path in the directory -> text) are what a resume cannot do without: a run never exists without them.
        """
        created = datetime.now(UTC)
        run_id = f"{created:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        path = parent / (run_id if name is None else _checked_name(name))
        with disk_errors(path):
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                raise _exists(path) from None
        identity = {"id": run_id, "name": path.name, "created": created.isoformat(timespec="seconds")}
        try:
            with disk_errors(path):
                about = {**about, **identity, "config_hash": config_hash(config)}
                run = cls._lay_out(path, config, about, files or {})
            run._begin_session()
        except BaseException:
            shutil.rmtree(path)
            raise
        return run

    @classmethod
    def _lay_out(cls, path: Path, config: Mapping[str, Any], about: Mapping[str, Any], files: Mapping[str, str]) -> Run:
        lock = RunLock(path / "lock")
        for folder in _FOLDERS:
            (path / folder).mkdir()
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        replace_durably(path / "config.yaml", text.encode())
        for file, content in files.items():
            replace_durably(path / file, content.encode("utf-8", "surrogatepass"))
        db = create_database(path / "run.db")
        # Last: a folder with this file is a run.
        replace_durably(path / "run.json", json.dumps(dict(about), indent=2, allow_nan=False).encode())
        return cls(path, db, lock)

    @staticmethod
    def check_place(parent: Path, name: str | None) -> None:
        """UsageError if a run of this name cannot be created: to know before a model is loaded."""
        if name is not None and (parent / _checked_name(name)).exists():
            raise _exists(parent / name)
        existing = next(folder for folder in (parent, *parent.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UsageError(f"No run can be made in {parent}: {existing} cannot be written to.")

    @classmethod
    def open(cls, path: Path, writable: bool = False) -> Run:
        """Open a run, to read it or (`writable`) to go on training it. Reading never creates a file in it."""
        if not (path / "run.json").is_file():
            raise UsageError(f"{path} is not a run: it has no run.json.", hint="`reinforge runs list` shows the runs.")
        if not writable:
            return cls(path, open_reader(path / "run.db"), None)
        lock = RunLock(path / "lock")
        try:
            with disk_errors(path / "run.db"):
                run = cls(path, open_writer(path / "run.db"), lock)
            run._begin_session()
        except BaseException:
            lock.release()
            raise
        return run

    # --- writing: the trainer only ---

    def record_step(self, record: StepRecord, keep_tokens_steps: int = 50) -> None:
        """Store a step in one transaction, and forget the tokens of completions older than `keep_tokens_steps`."""
        with self._transaction("rows"):
            rows.insert_step(self._db, record, time.time())
            rows.drop_tokens(self._db, record.step - keep_tokens_steps)
            self._db.execute(
                "UPDATE sessions SET duration_s = ? WHERE id = ?", (time.monotonic() - self._opened_at, self._session)
            )

    def record_event(self, event: Event) -> None:
        """Store an event of the process, not of training: it has no part in `row_hash` and outlives a rewind."""
        with self._transaction("event"):
            rows.insert_event(self._db, self.last_step(), event, time.time(), of_step=False)

    def record_reward_update(self, update: RewardUpdateRow) -> None:
        """Store a change of the reward functions. From here on it has happened, whatever becomes of the process."""
        with self._transaction("update"):
            rows.insert_reward_update(self._db, update)

    def rewind(self, step: int) -> None:
        """Delete every row that a step after `step` wrote, in one transaction, and later evaluations: where a resume
        begins."""
        last = self.last_step()
        if step > last:
            raise CheckpointError(
                f"The checkpoint is at step {step}, but the rows in {self.path / 'run.db'} end at step {last}.",
                hint="The checkpoint and run.db come from different copies of the run: put the matching one back.",
            )
        for evaluation in (self.path / "evaluations").glob("*.json"):
            if json.loads(evaluation.read_bytes()).get("step", 0) > step:
                evaluation.unlink()
        with self._transaction("rewind"):
            rows.delete_after(self._db, step)

    def finish(self, status: Status, reason: str = "") -> None:
        """State how the run ended and leave run.db as a single file. The run can be opened again to go on.

        Closes in any case: a run whose last word could not be written reads as interrupted."""
        try:
            with self._transaction("finish"):
                self._set_status(status, reason)
        finally:
            self.close()

    def save_evaluation(self, name: str, evaluation: Mapping[str, Any]) -> Path:
        """Write `evaluations/<name>.json`; it should hold `step` and `score`, the headline figure."""
        path = self.path / "evaluations" / f"{_checked_name(name)}.json"
        replace_durably(path, json.dumps(dict(evaluation), indent=2, allow_nan=False).encode())
        return path

    def save_reward_source(self, version: str, source: str, suffix: str = ".py") -> Path:
        """Write the text of one version of a reward function."""
        path = self.path / reward_file(version, suffix)
        replace_durably(path, source.encode("utf-8", "surrogatepass"))
        return path

    def read_reward_source(self, version: str) -> str:
        """The text that `save_reward_source` wrote."""
        return self.reward_source(version).read_bytes().decode("utf-8", "surrogatepass")

    def reward_source(self, version: str) -> Path:
        """Where the text of one version of a reward function lies."""
        grader = self.path / reward_file(version, ".json")
        return grader if grader.exists() else self.path / reward_file(version)

    def take_stop_request(self) -> str | None:
        """The reason in `control/stop`, if someone asked for a stop; the request is then used up."""
        path = self.path / "control" / "stop"
        try:
            reason = path.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None
        path.unlink()
        return reason or "stop requested"

    # --- reading ---

    def status(self) -> tuple[Status, str]:
        """How the run stands, with the reason. A run whose trainer vanished is `interrupted`."""
        meta = dict(self._db.execute("SELECT key, value FROM meta WHERE key IN ('status', 'reason')").fetchall())
        status, reason = meta.get("status", "running"), meta.get("reason", "")
        if status == "running" and self._lock is None and not is_locked(self.path / "lock"):
            return "interrupted", "process ended"
        return status, reason

    def config(self) -> dict[str, Any]:
        """The resolved config as plain values, with what a resume has changed of it."""
        path = self.path / "config.yaml"
        try:
            config = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
            if (self.path / _JUDGE).exists():
                config["reward_fns"]["judge"] = _read_json(self.path / _JUDGE)
            return config | (_read_json(self.path / _MACHINE) if (self.path / _MACHINE).exists() else {})
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError, RecursionError) as fault:
            raise CheckpointError(f"{path} is damaged: {fault}.") from fault

    def change_judge(self, settings: Mapping[str, Any]) -> None:
        """Ask judges by these settings (all of `reward_fns.judge`) from now on. They say where and how fast, not what:
        equal questions have the answers they had."""
        replace_durably(self.path / _JUDGE, json.dumps(dict(settings), indent=2, allow_nan=False).encode())

    def change_machine(self, settings: Mapping[str, Any]) -> None:
        """Compute with these settings from now on: they say how, not what. Those changed before stay changed."""
        before = _read_json(self.path / _MACHINE) if (self.path / _MACHINE).exists() else {}
        replace_durably(self.path / _MACHINE, json.dumps({**before, **settings}, allow_nan=False).encode())

    def evaluations(self) -> list[dict[str, Any]]:
        """Every held-out evaluation, by step."""
        found = [_read_json(path) for path in (self.path / "evaluations").glob("*.json")]
        return sorted(found, key=lambda evaluation: evaluation.get("step", 0))

    def duration_s(self) -> float:
        """Seconds trained, over all processes, up to the newest step."""
        (seconds,) = self._db.execute("SELECT coalesce(sum(duration_s), 0.0) FROM sessions").fetchone()
        return float(seconds)

    def accidents(self) -> dict[str, Score]:
        """Scores that time decided, by key, rewound steps included."""
        found = self._db.execute("SELECT key, score FROM accidents").fetchall()
        return {key: Score(**json.loads(score)) for key, score in found}

    def row_hash(self, step: int) -> str:
        """sha256 over all rows of a step but wall time: equal for a resumed and an uninterrupted run."""
        return rows.hash_step(self._db, step)

    def copy_rows(self, path: Path) -> None:
        """Write the rows as they are now into a database of their own, also while the trainer goes on."""
        copy = sqlite3.connect(path)
        try:
            self._db.backup(copy)
        finally:
            copy.close()

    def summary(self) -> dict[str, Any]:
        """One line of `reinforge runs list`: plain JSON values."""
        status, reason = self.status()
        last = self.last_step()
        latest = self.steps(first=max(1, last + 1 - self.config().get("num_iterations", 1)))
        rewards = [row.metrics["reward/mean"] for row in latest if "reward/mean" in row.metrics]
        evaluations = [evaluation for evaluation in self.evaluations() if "score" in evaluation]
        return {
            "id": self.about["id"],
            "name": self.path.name,
            "status": status,
            "reason": reason,
            "step": last,
            "steps": self.config().get("train_steps"),
            "reward_mean": rewards[-1] if rewards else None,
            "heldout_before": evaluations[0]["score"] if evaluations else None,
            "heldout_after": evaluations[-1]["score"] if len(evaluations) > 1 else None,
            "started": self.about["created"],
            "duration_s": self.duration_s(),
            "path": str(self.path),
        }

    def close(self) -> None:
        """Close the database and let another trainer in. Twice is fine. A run closed without `finish` reads as
        interrupted."""
        if self._lock is None:
            self._db.close()
            return
        if self._session is not None:
            self._session = None
            close_writer(self._db)
        self._lock.release()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_session(self) -> None:
        self.take_stop_request()  # One that the trainer before did not live to see is not meant for us.
        with self._transaction("session"):
            self._set_status("running", "")
            self._session = self._db.execute(
                "INSERT INTO sessions (from_step, started_at, duration_s) VALUES (?, ?, 0.0)",
                (self.last_step(), time.time()),
            ).lastrowid

    def _set_status(self, status: Status, reason: str) -> None:
        query = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
        self._db.executemany(query, [("status", status), ("reason", reason)])

    @contextmanager
    def _transaction(self, name: str) -> Iterator[None]:
        if self._lock is None:
            raise UsageError(f"{self.path} was opened for reading.", hint="Open it with writable=True.")
        with disk_errors(self.path / "run.db"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                failpoint(f"{name}:before_commit")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        failpoint(f"{name}:after_commit")


def reward_file(version: str, suffix: str = ".py") -> str:
    """Path of a reward function's text in the run's directory; a grader's ends in .json.

    >>> reward_file("format/strict_v1")
    'rewards/format%2Fstrict_v1.py'
    """
    return f"rewards/{quote(version, safe=' ')}{suffix}"


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of a config's values, whatever order they are written in."""
    text = json.dumps(config, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def list_runs(parent: Path) -> list[Path]:
    """The runs in a folder, newest first; other folders in it are passed over."""
    found = [path.parent for path in parent.glob("*/run.json")]
    return sorted(found, key=lambda path: (_created(path), path.name), reverse=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(f"{path} is damaged: {fault}.") from fault
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object.")
    return document


def _created(path: Path) -> str:
    """When a run was made; empty for one whose run.json is damaged."""
    try:
        return str(json.loads((path / "run.json").read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _exists(path: Path) -> UsageError:
    hint = "Choose another name, or go on with `reinforge runs resume`."
    return UsageError(f"{path} exists already.", hint=hint)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a folder or file of a run.",
            hint="Use up to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )
    return name
