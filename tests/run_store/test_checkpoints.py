"""Checkpoints are whole or absent: whatever is killed, whatever the disk refuses, whatever bit flips."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reinforge.errors import CheckpointError, SetupError
from reinforge.run_store import (
    FAILPOINTS,
    Run,
    latest_checkpoint,
    list_checkpoints,
    save_checkpoint,
    score_checkpoint,
    verify_checkpoint,
)

from .conftest import CONFIG, make_record


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path / "run"


def writer(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights.bin").write_bytes(bytes([step % 256]) * 1000)
        (folder / "state.json").write_text(f'{{"step": {step}}}')

    return write


def content(path: Path) -> tuple[bytes, str]:
    return (path / "adapter" / "weights.bin").read_bytes(), (path / "state.json").read_text()


def expected(step: int) -> tuple[bytes, str]:
    return bytes([step % 256]) * 1000, f'{{"step": {step}}}'


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest good checkpoint, whose content is checked."""
    checkpoint, _ = latest_checkpoint(run_dir)
    if checkpoint is None:
        return None
    assert content(checkpoint.path) == expected(checkpoint.step)
    return checkpoint.step


def test_what_was_saved_is_found(run_dir: Path):
    assert latest_checkpoint(run_dir) == (None, ())
    path = save_checkpoint(run_dir, 5, writer(5), score=0.25)
    checkpoint, events = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert (checkpoint.path, checkpoint.step, checkpoint.score, events) == (path, 5, 0.25, ())
    assert content(path) == expected(5)


def test_the_last_two_and_the_best_three_are_kept(run_dir: Path):
    scores = {1: 0.9, 2: 0.1, 3: 0.8, 4: None, 5: 0.8, 6: 0.8, 7: 0.2, 8: None}
    for step, score in scores.items():
        save_checkpoint(run_dir, step, writer(step), score)
    assert [checkpoint.step for checkpoint in list_checkpoints(run_dir)] == [1, 5, 6, 7, 8]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        f"step-{step:08d}" for step in (1, 5, 6, 7, 8)
    ]


def test_every_flipped_bit_is_found(run_dir: Path):
    save_checkpoint(run_dir, 1, writer(1), score=0.5)
    path = save_checkpoint(run_dir, 2, writer(2), score=0.5)
    files = [file for file in path.rglob("*") if file.is_file()]
    rng = random.Random(0)
    for _ in range(300):
        file = rng.choice(files)
        whole = file.read_bytes()
        flipped = bytearray(whole)
        place = rng.randrange(len(flipped))
        flipped[place] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="is damaged"):
            verify_checkpoint(path)
        file.write_bytes(whole)
    verify_checkpoint(path)


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest cut", "manifest missing", "manifest is a list"])
def test_a_damaged_newest_is_set_aside_and_the_one_before_used(run_dir: Path, damage: str):
    save_checkpoint(run_dir, 1, writer(1))
    path = save_checkpoint(run_dir, 2, writer(2))
    file = path / ("manifest.json" if "manifest" in damage else "adapter/weights.bin")
    if "missing" in damage:
        file.unlink()
    elif "cut" in damage:
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.write_text("[]")
    checkpoint, events = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint.step == 1
    assert [event.kind for event in events] == ["checkpoint_damaged"]
    assert "damaged-step-00000002-1" in events[0].message
    assert (run_dir / "checkpoints" / "damaged-step-00000002-1").is_dir()
    save_checkpoint(run_dir, 2, writer(2))
    assert newest_step(run_dir) == 2


def test_a_file_where_a_folder_belongs_is_damage_or_a_clear_error(run_dir: Path):
    folder = run_dir / "checkpoints"
    for step in (1, 2):
        save_checkpoint(run_dir, step, writer(step))
    (folder / "step-00000003").write_text("not a checkpoint")
    (folder / ".writing-step-00000004").write_text("not one either")
    (folder / "step-00000002" / "manifest.json").unlink()
    (folder / "step-00000002" / "manifest.json").mkdir()
    checkpoint, events = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint.step == 1
    damages = [event.message.partition("(")[2].partition(")")[0] for event in events]
    assert damages == ["it is a file", "manifest.json is a folder"]
    (folder / "step-00000003").write_text("not a checkpoint")
    save_checkpoint(run_dir, 3, writer(3))
    assert newest_step(run_dir) == 3
    folder.rename(run_dir / "elsewhere")
    with pytest.raises(CheckpointError, match=r"checkpoints is missing\. Put back"):
        latest_checkpoint(run_dir)
    folder.write_text("")
    with pytest.raises(CheckpointError, match="checkpoints is no folder"):
        latest_checkpoint(run_dir)


def test_saving_a_step_twice_keeps_the_good_one_and_replaces_a_bad_one(run_dir: Path):
    path = save_checkpoint(run_dir, 1, writer(1))
    before = path.stat().st_ino
    save_checkpoint(run_dir, 1, writer(1))
    assert path.stat().st_ino == before
    (path / "state.json").unlink()
    save_checkpoint(run_dir, 1, writer(1))
    assert newest_step(run_dir) == 1


def test_a_score_is_stated_later_and_the_checkpoint_still_verifies(run_dir: Path):
    for step in (1, 2, 3, 4):
        save_checkpoint(run_dir, step, writer(step))
        score_checkpoint(run_dir, step, 1.0 / step)
    assert [(one.step, one.score) for one in list_checkpoints(run_dir)] == [(n, 1.0 / n) for n in (1, 2, 3, 4)]
    save_checkpoint(run_dir, 5, writer(5))
    assert [one.step for one in list_checkpoints(run_dir)] == [1, 2, 3, 4, 5]  # the best three and the last two
    for one in list_checkpoints(run_dir):
        verify_checkpoint(one.path)


OPERATIONS = ("open", "write", "fsync", "rename", "mkdir", "rmdir", "unlink", "scandir", "stat")


class FailingDisk:
    """Fails the n-th file operation, counted over all of os.*; SQLite's tests do the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, how: str) -> None:
        self.count, self.fail_at, self.how = 0, fail_at, how
        for name in ("write",) if how == "short" else OPERATIONS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **named: object) -> object:
            self.count += 1
            if self.count != self.fail_at:
                return real(*arguments, **named)
            if self.how == "short":
                return real(arguments[0], arguments[1][:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return operation


def saves(run_dir: Path, step: int) -> bool:
    """Whether a checkpoint can be saved; an error must be the one that is documented."""
    try:
        save_checkpoint(run_dir, step, writer(step))
    except SetupError:
        return False
    return True


@pytest.mark.parametrize("how", ["full", "short"])
def test_any_failing_file_operation_leaves_the_last_good_checkpoint(
    run_dir: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    for step in (1, 2):
        save_checkpoint(run_dir, step, writer(step))
    start = tmp_path / "start"
    shutil.copytree(run_dir, start)
    fail_at, failures = 0, 0
    while True:
        fail_at += 1
        with monkeypatch.context() as patch:
            disk = FailingDisk(patch, fail_at, how)
            failed = not saves(run_dir, 3)
        failures += failed
        assert newest_step(run_dir) in ((2, 3) if failed else (3,))
        save_checkpoint(run_dir, 4, writer(4))
        assert newest_step(run_dir) == 4, "with room again, saving works again"
        if disk.count < fail_at:
            break
        shutil.rmtree(run_dir)
        shutil.copytree(start, run_dir)
    assert (failures == 0 and fail_at >= 2) if how == "short" else failures > 20


TRAINER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_record
from reinforge.errors import SetupError
from reinforge.run_store import Run, latest_checkpoint, save_checkpoint

def write(step):
    def into(folder):
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights.bin").write_bytes(bytes([step % 256]) * 1000)
        (folder / "state.json").write_text('{"step": %d}' % step)
    return into

def train(run):
    found, _ = latest_checkpoint(run.path)
    start = found.step if found else 0
    run.rewind(start)
    for step in range(start + 1, 9):
        run.record_step(make_record(step), keep_tokens_steps=3)
        if step % 2 == 0:
            save_checkpoint(run.path, step, write(step))

try:
    with Run.open(Path(sys.argv[2]), writable=True) as run:
        train(run)
        run.finish("succeeded")
except SetupError as error:
    sys.exit(error.exit_code)
"""


def train(run: Path, failpoint: str = "", largest_file: int | None = None) -> int:
    """Train to step 8 in a process of its own -> its exit status. No file may grow past `largest_file` bytes."""
    environment = {**os.environ, "REINFORGE_FAILPOINT": failpoint} if failpoint else dict(os.environ)

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    command = [sys.executable, "-c", TRAINER, str(Path(__file__).parent), str(run)]
    return subprocess.run(command, env=environment, preexec_fn=limit, check=False).returncode


def assert_as_if_nothing_had_happened(path: Path) -> None:
    """The finished run in `path` equals one that nothing disturbed."""
    with Run.create(path.parent, "straight", CONFIG, {}) as straight:
        for step in range(1, 9):
            straight.record_step(make_record(step), keep_tokens_steps=3)
        expected_hashes = [straight.row_hash(step) for step in range(1, 9)]
        expected_epochs = straight.prompt_epochs()
    with Run.open(path) as run:
        assert run.status() == ("succeeded", "")
        assert [run.row_hash(step) for step in range(1, 9)] == expected_hashes
        assert run.prompt_epochs() == expected_epochs
        assert run._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert newest_step(path) == 8
    assert [checkpoint.step for checkpoint in list_checkpoints(path)] == [6, 8]
    assert not [entry.name for entry in (path / "checkpoints").iterdir() if entry.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "count"),
    [
        *((point, 1 if point.startswith("rewind") else 2) for point in FAILPOINTS),
        *(pytest.param(point, 1, marks=pytest.mark.prove) for point in FAILPOINTS if not point.startswith("rewind")),
    ],
)
def test_killed_at_any_point_and_resumed_equals_never_killed(tmp_path: Path, point: str, count: int):
    Run.create(tmp_path, "killed", CONFIG, {}).close()
    path = tmp_path / "killed"
    if point.startswith("rewind"):
        assert train(path, "checkpoint:after_rename=2") == -signal.SIGKILL
    assert train(path, f"{point}={count}") == -signal.SIGKILL
    with Run.open(path) as run:
        assert [len(run.completions(step=row.step)) for row in run.steps()] == [12] * run.last_step()
        if point.startswith("rows"):
            assert run.last_step() == (count if point == "rows:after_commit" else count - 1)
    assert train(path) == 0
    assert_as_if_nothing_had_happened(path)


@pytest.mark.slow
@pytest.mark.parametrize("largest_file", [500, 20_000, 50_000, 110_000, 170_000])
def test_a_disk_that_takes_no_more_costs_nothing_that_was_stored(tmp_path: Path, largest_file: int):
    Run.create(tmp_path, "full", CONFIG, {}).close()
    path = tmp_path / "full"
    assert train(path, largest_file=largest_file) == SetupError.exit_code
    with Run.open(path) as run:
        last, hashes = run.last_step(), [run.row_hash(step) for step in range(1, run.last_step() + 1)]
        assert run.status()[0] in ("failed", "interrupted")
    assert newest_step(path) in {None, last - last % 2, last - last % 2 - 2}
    assert train(path) == 0
    with Run.open(path) as run:
        assert [run.row_hash(step) for step in range(1, last + 1)] == hashes
    assert_as_if_nothing_had_happened(path)
