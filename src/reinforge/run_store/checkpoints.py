"""Checkpoints: folders that are there whole, verified, or not at all.

A checkpoint is written into a temporary sibling; every file is fsynced and hashed; `manifest.json`, written last, holds
sizes and hashes; one rename makes it visible. Whatever moment the process dies at, the newest checkpoint that verifies
is whole. Only the trainer may call anything here but `list_checkpoints`.
Step 0 needs none: a run without a checkpoint begins again from its config, to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinforge.errors import CheckpointError, SetupError
from reinforge.run_store.failpoint import failpoint
from reinforge.run_store.files import fsync_path, replace_durably, sha256_of_file, write_durably
from reinforge.run_store.records import Event

KEEP_LAST = 2
KEEP_BEST = 3

_MANIFEST = "manifest.json"
_PREFIX = "step-"
_WRITING, _REMOVING = ".writing-", ".removing-"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    path: Path
    step: int
    score: float | None
    """Held-out score at this step, if it was evaluated; higher is better."""


def save_checkpoint(run_dir: Path, step: int, write: Callable[[Path], None], score: float | None = None) -> Path:
    """Let `write` fill a folder, make it the checkpoint of `step`, and prune older ones.

    A checkpoint of this step that verifies is left as it is: the state after a step is a function of the step.
    On an error of the disk the older checkpoints are untouched.
    """
    folder = run_dir / "checkpoints"
    target = folder / f"{_PREFIX}{step:08d}"
    writing = folder / f"{_WRITING}{target.name}"
    try:
        if target.exists():
            if _damage(target) is None:
                return target
            _set_aside(target)
        _remove(writing)
        _write(writing, step, write, score)
        failpoint("checkpoint:before_rename")
        os.rename(writing, target)
        failpoint("checkpoint:after_rename")
        fsync_path(folder)
        _prune(folder)
    except OSError as error:
        raise SetupError(
            f"The checkpoint of step {step} could not be written: {error}. Earlier ones are untouched.",
            hint=f"Make room on the disk of {folder}, then `reinforge runs resume {run_dir}`.",
        ) from error
    finally:
        # After an error its space is given back; after a success it has its final name.
        shutil.rmtree(writing, ignore_errors=True)
    return target


def score_checkpoint(run_dir: Path, step: int, score: float | None) -> None:
    """State the held-out score of a checkpoint that was written before its policy was evaluated."""
    path = run_dir / "checkpoints" / f"{_PREFIX}{step:08d}" / _MANIFEST
    manifest = {**_read_manifest(path.parent), "score": score}
    replace_durably(path, json.dumps({**manifest, "sha256": _digest(manifest)}, indent=2, allow_nan=False).encode())


def latest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, tuple[Event, ...]]:
    """The newest checkpoint that verifies, and what had to be done to find it: damaged ones are set aside, leftovers
    of interrupted writes are removed. For the trainer only, before it goes on."""
    folder = run_dir / "checkpoints"
    if not folder.is_dir():  # a run that has none yet has it empty: without it, all rows would look superfluous
        what = "is no folder" if folder.exists() else "is missing"
        raise CheckpointError(f"{folder} {what}.", hint="Put back the folder of this run's checkpoints.")
    for leftover in (*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_REMOVING}*")):
        _remove(leftover)
    events: list[Event] = []
    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        damage = _damage(path)
        if damage is None:
            manifest = _read_manifest(path)
            return Checkpoint(path, manifest["step"], manifest["score"]), tuple(events)
        aside = _set_aside(path)
        message = f"Checkpoint {path.name} is damaged ({damage}); kept as {aside.name}, the one before is used."
        events.append(Event("checkpoint_damaged", message, level="warning", data={"checkpoint": path.name}))
    return None, tuple(events)


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Every checkpoint with a readable manifest, oldest first; files are not verified. Changes nothing."""
    found: list[Checkpoint] = []
    for path in sorted((run_dir / "checkpoints").glob(f"{_PREFIX}*")):
        try:
            manifest = _read_manifest(path)
        except (OSError, ValueError):  # Damaged, or pruned while we look.
            continue
        found.append(Checkpoint(path, manifest["step"], manifest["score"]))
    return found


def verify_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless every file is as it was written."""
    damage = _damage(path)
    if damage is not None:
        raise CheckpointError(
            f"{path} is damaged: {damage}.", hint="Resume without naming a step to use the newest good one."
        )


def _write(folder: Path, step: int, write: Callable[[Path], None], score: float | None) -> None:
    os.mkdir(folder)
    write(folder)
    failpoint("checkpoint:after_write")
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        fsync_path(path)
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            failpoint("checkpoint:after_file")
    manifest = {"format": 1, "step": step, "score": score, "files": files}
    failpoint("checkpoint:before_manifest")
    document = {**manifest, "sha256": _digest(manifest)}
    write_durably(folder / _MANIFEST, json.dumps(document, indent=2, allow_nan=False).encode())
    failpoint("checkpoint:after_manifest")
    fsync_path(folder)


def _prune(folder: Path) -> None:
    """Keep the last KEEP_LAST and the KEEP_BEST with the highest held-out score (of equals the newest)."""
    checkpoints = list_checkpoints(folder.parent)
    scored = [checkpoint for checkpoint in checkpoints if checkpoint.score is not None]
    best = sorted(scored, key=lambda checkpoint: (checkpoint.score, checkpoint.step), reverse=True)[:KEEP_BEST]
    keep = {checkpoint.path for checkpoint in (*checkpoints[-KEEP_LAST:], *best)}
    for checkpoint in checkpoints:
        if checkpoint.path not in keep:
            _remove(checkpoint.path)
    failpoint("checkpoint:after_prune")


def _remove(path: Path) -> None:
    """Remove a folder if it is there. It loses its name first: one that is half removed must not look damaged."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    removing = path
    if not path.name.startswith((_WRITING, _REMOVING)):
        removing = path.with_name(f"{_REMOVING}{path.name}")
        os.rename(path, removing)
        failpoint("checkpoint:during_prune")
    shutil.rmtree(removing)


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"damaged-{path.name}-{number}")).exists():
        number += 1
    os.rename(path, aside)
    return aside


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None. An unreadable disk is an error, not damage."""
    try:
        manifest = _read_manifest(path)
    except FileNotFoundError:
        return f"no {_MANIFEST}"
    except NotADirectoryError:
        return "it is a file"
    except IsADirectoryError:
        return f"{_MANIFEST} is a folder"
    except ValueError as error:
        return f"{_MANIFEST}: {error}"
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
        if sha256_of_file(file) != expected["sha256"]:
            return f"{name} has changed"
    return None


def _read_manifest(path: Path) -> dict[str, Any]:
    document = json.loads((path / _MANIFEST).read_bytes())
    if not isinstance(document, dict):
        raise ValueError("not an object")
    recorded = document.pop("sha256", None)
    if recorded != _digest(document):
        raise ValueError("its content does not fit its own hash")
    return document


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
