"""The user's stored consent to run reward functions without isolation on this machine."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from reinforge.errors import SetupError
from reinforge.sandbox.home import home_folder
from reinforge.sandbox.ownership import check_ours

KEY = "run_without_sandbox"


@dataclass(frozen=True, slots=True)
class Consent:
    """Where and when it was given; it holds for the machine of that name only."""

    path: Path
    given: str


def consent_path() -> Path:
    """`consent.json` in the folder REINFORGE_HOME, else in ~/.reinforge."""
    return home_folder() / "consent.json"


def stored_consent() -> Consent | None:
    """The consent that was given for this machine, if any."""
    path = consent_path()
    try:
        entry = _read(path).get(KEY)
    except FileNotFoundError:
        return None
    if not isinstance(entry, dict) or entry.get("machine") != platform.node():
        return None
    return Consent(path, str(entry.get("given", "at an unknown time")))


def give_consent() -> Consent:
    """Store it."""
    path = consent_path()
    given = time.strftime("%Y-%m-%d %H:%M:%S %z")
    _write(path, {KEY: {"machine": platform.node(), "given": given}})
    return Consent(path, given)


def withdraw_consent() -> bool:
    """Remove it; whether there was one."""
    had = stored_consent() is not None
    if had:
        _write(consent_path(), {KEY: None})
    return had


def _read(path: Path) -> dict[str, object]:
    """FileNotFoundError when it is not there; SetupError when it is damaged, or when others may write it: only the user
    gives consent."""
    check_ours(path, [path])
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError("it is no JSON object")
        return entries
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"{path} cannot be read: {error}.", hint="Correct or remove it.") from None


def _write(path: Path, changes: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = (_read(path) if path.exists() else {}) | changes
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}, indent=2) + "\n")
    new.chmod(0o600)
    new.replace(path)
