"""Re-execute one step of a run and compare every bit with what was stored."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reinforge.api import SilentWatcher, rebuild, restore
from reinforge.errors import UsageError
from reinforge.resume_changes import machine_changes_after
from reinforge.reward_updates import RewardUpdates
from reinforge.run_store import Run, list_checkpoints
from reinforge.run_store.judgements import copy_judgements

if TYPE_CHECKING:
    from reinforge.loop import Watcher


@dataclass(frozen=True)
class Verification:
    """A step, as it was stored and as it came out again."""

    step: int
    from_step: int
    """The checkpoint it was computed from."""
    stored: dict[str, str]
    """`state` (weights and optimizer) and `rows` hashes."""
    again: dict[str, str]
    changed_since: tuple[str, ...] = ()
    """How the run computes otherwise since steps after the checkpoint; all was computed again in the later way."""

    @property
    def equal(self) -> bool:
        return self.stored == self.again


def verify(run_path: Path | str, step: int, watcher: Watcher | None = None) -> Verification:
    """Re-execute one step of a run from its stored state, in a copy, and compare every bit."""
    from reinforge import loop

    watcher, path = watcher or SilentWatcher(), Path(run_path)
    with Run.open(path) as run:
        if not 1 <= step <= run.last_step():
            raise UsageError(f"{path} has steps 1 to {run.last_step()}, not {step}.")
        stored = _hashes(run, step)
    earlier = [checkpoint for checkpoint in list_checkpoints(path) if checkpoint.step < step]
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy_of_run(path, Path(folder) / path.name, [checkpoint.path for checkpoint in earlier[-1:]])
        with Run.open(copy, writable=True) as run:
            built = rebuild(run, watcher)
            try:
                state = restore(built, run, watcher)
                updates = RewardUpdates(run, built.grader)
                steering = loop.Steering(before_step=updates.before_step, until_step=step)
                loop.train(built.task, built.roles, run, watcher, state, steering)
                changes = tuple(machine_changes_after(run, state.step + 1))
                return Verification(step, state.step, stored, _hashes(run, step), changes)
            finally:
                built.close()


def _copy_of_run(path: Path, target: Path, checkpoints: Sequence[Path]) -> Path:
    target.mkdir()
    for name in ("run.json", "config.yaml", "judge.json", "machine.json", "dataset.json", "golds.json"):
        if (path / name).exists():
            shutil.copy2(path / name, target / name)
    for name in ("rewards", "evaluations"):
        shutil.copytree(path / name, target / name)
    (target / "control").mkdir()
    (target / "checkpoints").mkdir()
    for checkpoint in checkpoints:
        shutil.copytree(checkpoint, target / "checkpoints" / checkpoint.name)
    with Run.open(path) as run:
        run.copy_rows(target / "run.db")
    copy_judgements(path, target)
    return target


def _hashes(run: Run, step: int) -> dict[str, str]:
    (row,) = run.steps(first=step, last=step)
    return {"state": row.state_hash, "rows": run.row_hash(step)}
