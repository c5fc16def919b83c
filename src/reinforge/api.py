"""The public functions: what the command line calls, and what a Python program calls.

import reinforge
run = reinforge.train(reinforge.GRPOConfig(...), dataset=[{"prompt": ..., "answer": ...}, ...])
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from reinforge.errors import CheckpointError, ReinforgeError, UsageError

if TYPE_CHECKING:
    from reinforge.cluster.local import LocalRun
    from reinforge.config import GRPOConfig
    from reinforge.insight.evaluation import Evaluation
    from reinforge.loop import StopRequest, Watcher
    from reinforge.run_store import Run
    from reinforge.types import Group, TrainState

_PACKAGES = ("reinforge", "torch", "transformers", "peft", "tokenizers")


class SilentWatcher:
    """Looks away."""

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None: ...

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None: ...

    def note(self, text: str) -> None: ...


def train(
    config: GRPOConfig,
    dataset: Iterable[Mapping[str, Any]] | None = None,
    *,
    base_dir: Path | None = None,
    runs_dir: Path | str = "runs",
    name: str | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Train an adapter and return the run's directory.

    `dataset` are rows (dicts, or a `datasets.Dataset`) to use instead of `config.data.path`; they are kept in the run's
    directory. Relative paths in the config start at `base_dir`, by default the current folder.

    Raises Interrupted or StoppedByGuard after a checkpoint; `resume` goes on from there.
    """
    from reinforge.cluster import local
    from reinforge.run_store import Run

    watcher = watcher or SilentWatcher()
    started = datetime.datetime.now().replace(microsecond=0)
    rows = None if dataset is None else [dict(row) for row in dataset]
    built = local.build(config, base_dir or Path.cwd(), started=started, tell=watcher.note, rows=rows)
    try:
        about = _about(built, started)
        with Run.create(Path(runs_dir), name, _stored(config), about) as run:
            if rows is not None:
                (run.path / "dataset.json").write_text(json.dumps(rows), encoding="utf-8")
            for function in built.grader.describe():
                run.save_reward_source(function["version"], function["source"])
            _run_to_end(built, run, watcher, None)
            return run.path
    finally:
        built.close()


def resume(run_path: Path | str, watcher: Watcher | None = None) -> Path:
    """Go on with a run from its newest intact checkpoint, or from the start if there is none. Rows after it are deleted
    and made again, bitwise equal to those of a run that was never interrupted."""
    from reinforge.run_store import Run

    watcher = watcher or SilentWatcher()
    path = Path(run_path)
    with Run.open(path, writable=True) as run:
        built = _rebuild(run, watcher)
        try:
            state = _restore(built, run, watcher)
            if state.step >= built.task.config.train_steps:
                run.finish("succeeded")
                raise UsageError(f"{path} has done all {state.step} steps.", hint="There is nothing to resume.")
            _run_to_end(built, run, watcher, state)
        finally:
            built.close()
    return path


@dataclass(frozen=True)
class Verification:
    """A step, as it was stored and as it came out again."""

    step: int
    from_step: int
    """The checkpoint it was computed from."""
    stored: dict[str, str]
    """`state` (weights and optimizer) and `rows` hashes."""
    again: dict[str, str]

    @property
    def equal(self) -> bool:
        return self.stored == self.again


def verify(run_path: Path | str, step: int, watcher: Watcher | None = None) -> Verification:
    """Re-execute one step of a run from its stored state, in a copy, and compare every bit."""
    from reinforge import loop
    from reinforge.run_store import Run, list_checkpoints

    watcher, path = watcher or SilentWatcher(), Path(run_path)
    with Run.open(path) as run:
        if not 1 <= step <= run.last_step():
            raise UsageError(f"{path} has steps 1 to {run.last_step()}, not {step}.")
        stored = _hashes(run, step)
    earlier = [checkpoint for checkpoint in list_checkpoints(path) if checkpoint.step < step]
    with tempfile.TemporaryDirectory() as folder:
        copy = _copy_of_run(path, Path(folder) / path.name, [checkpoint.path for checkpoint in earlier[-1:]])
        with Run.open(copy, writable=True) as run:
            built = _rebuild(run, watcher)
            try:
                state = _restore(built, run, watcher)
                loop.train(built.task, built.roles, run, watcher, state, until_step=step)
                return Verification(step, state.step, stored, _hashes(run, step))
            finally:
                built.close()


def _run_to_end(built: LocalRun, run: Run, watcher: Watcher, state: TrainState | None) -> None:
    """The loop, and how it ended in the run's record."""
    from reinforge import loop
    from reinforge.errors import Interrupted, StoppedByGuard

    try:
        with _stop_signals() as stop:
            loop.train(built.task, built.roles, run, watcher, state, stop)
        _publish_adapter(run)
        run.finish("succeeded")
    except (Interrupted, StoppedByGuard):
        raise
    except BaseException as fault:
        run.finish("failed", f"{type(fault).__name__}: {fault}")
        raise


@contextmanager
def _stop_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask the loop to stop after its step; a second one ends the process at once."""
    from reinforge.loop import StopRequest

    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only: there, whoever runs us decides
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal, stop.exit_code = signal.Signals(number).name, 128 + number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rebuild(run: Run, watcher: Watcher) -> LocalRun:
    """The roles of a stored run: its config, and the reward sources it stored, not what the files say now."""
    from reinforge.cluster import local
    from reinforge.config import GRPOConfig

    values = run.config()
    values["reward_fns"]["functions"] = {
        function[
            "name"
        ]: f"{run.path.resolve() / 'rewards' / (function['version'] + '.py')}:{function['function_name']}"
        for function in run.about["functions"]
    }
    config = GRPOConfig.model_validate(values)
    rows_file = run.path / "dataset.json"
    rows = json.loads(rows_file.read_text(encoding="utf-8")) if rows_file.exists() else None
    started = datetime.datetime.fromisoformat(run.about["started"])
    built = local.build(config, Path(run.about["base_dir"]), started=started, tell=watcher.note, rows=rows)
    for what, fingerprint in built.fingerprints.items():
        if run.about["fingerprints"][what] != fingerprint:
            built.close()
            raise CheckpointError(
                f"The {what} of {run.path} is not what the run began with (its hash differs).",
                hint="Put it back as it was, or start a new run.",
            )
    return built


def _restore(built: LocalRun, run: Run, watcher: Watcher) -> TrainState:
    """Take the newest intact checkpoint and drop the rows after it."""
    from reinforge.run_store import decode_state, latest_checkpoint
    from reinforge.types import TrainState

    checkpoint, events = latest_checkpoint(run.path)
    for event in events:
        watcher.note(event.message)
        run.record_event(event)
    if checkpoint is None:
        run.rewind(0)
        return TrainState()
    built.roles.learner.restore(checkpoint.path)
    state = decode_state((checkpoint.path / "state.json").read_text(encoding="utf-8"))
    run.rewind(state.step)
    watcher.note(f"going on after step {state.step}")
    return state


def _publish_adapter(run: Run) -> None:
    """The last checkpoint's adapter becomes the run's."""
    from reinforge.run_store import list_checkpoints

    newest = list_checkpoints(run.path)[-1]
    writing = run.path / ".adapter"
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(newest.path / "adapter", writing)
    shutil.rmtree(run.path / "adapter")
    writing.rename(run.path / "adapter")


def _copy_of_run(path: Path, target: Path, checkpoints: Sequence[Path]) -> Path:
    target.mkdir()
    for name in ("run.json", "config.yaml", "dataset.json"):
        if (path / name).exists():
            shutil.copy2(path / name, target / name)
    for name in ("rewards", "evaluations"):
        shutil.copytree(path / name, target / name)
    (target / "control").mkdir()
    (target / "checkpoints").mkdir()
    for checkpoint in checkpoints:
        shutil.copytree(checkpoint, target / "checkpoints" / checkpoint.name)
    source = sqlite3.connect(f"file:{path / 'run.db'}?mode=ro", uri=True)
    with sqlite3.connect(target / "run.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    return target


def _hashes(run: Run, step: int) -> dict[str, str]:
    (row,) = run.steps(first=step, last=step)
    return {"state": row.state_hash, "rows": run.row_hash(step)}


def _stored(config: GRPOConfig) -> dict[str, Any]:
    import yaml

    from reinforge.config_file import to_yaml

    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return values


def _about(built: LocalRun, started: datetime.datetime) -> dict[str, Any]:
    functions = [{k: v for k, v in function.items() if k != "source"} for function in built.grader.describe()]
    return {
        "started": started.isoformat(),
        "base_dir": str(Path.cwd()),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "functions": functions,
        "fingerprints": built.fingerprints,
        "max_tokens": built.task.max_tokens,
    }


__all__ = ["ReinforgeError", "SilentWatcher", "Verification", "resume", "train", "verify"]
