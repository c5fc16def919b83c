"""Makes an environment of environments.py: finds versions, installs them, moves the whole to its name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import ConfigError, SetupError
from reinforge.requirements import SETS
from reinforge.sandbox.environments import (
    DESCRIPTION,
    HALF_MADE,
    Locked,
    Tell,
    check_folder,
    checked_pins,
    counted,
    megabytes,
)
from reinforge.sandbox.misplaced import Contents, brought_by, contents_outside_lib, misplaced
from reinforge.sandbox.ownership import keep_others_out
from reinforge.sandbox.uv_program import Uv, uv_in

TELL_EVERY_S = 10.0
MEASURE_SHARE = 10
"""Measuring the files may take one part in so many of the time."""
NOT_COMPILED = r"[/\\]tests?[/\\]"


class Maker:
    """The one process that makes or removes environments in a folder, while it is entered."""

    def __init__(self, root: Path, runtime: RewardFunctionsRuntimeConfig, tell: Tell) -> None:
        self.half_made = root / HALF_MADE
        self.downloads = root / "downloads"
        self._root = root
        self._tell = tell
        self._timeout_s = runtime.packages_timeout_s
        self._max_bytes = int(runtime.max_packages_gb * 2**30)
        self._lock = -1
        self._uv: Uv | None = None
        self._start = self._next_tell = self._next_measure = 0.0
        self._bytes_before = self._num_bytes = 0

    def __enter__(self) -> Maker:
        with self._disk_faults():
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            check_folder(self._root)
            self._lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._wait_for_lock()
            self._sweep()
        except BaseException:
            os.close(self._lock)
            raise
        self._start = time.monotonic()
        self._next_tell = self._start + TELL_EVERY_S
        self._bytes_before = disk_usage([self.downloads])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweep()
        os.close(self._lock)

    def _wait_for_lock(self) -> None:
        end, told = time.monotonic() + self._timeout_s, False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    self._tell("reward packages: waiting for another process that installs packages")
                    told = True
            if time.monotonic() > end:
                raise SetupError(
                    f"another process holds {self._root / 'lock'} for more than {self._timeout_s:g} s.",
                    hint="Wait for it, or set REINFORGE_HOME to another folder.",
                )
            time.sleep(0.1)

    def _sweep(self) -> None:
        """Remove what a killed process left half-made."""
        shutil.rmtree(self.half_made, ignore_errors=True)
        for unfinished in self.downloads.glob(".tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def find_versions(self, requirements: Sequence[str]) -> Locked:
        """The newest versions of all packages needed that go together and have wheels."""
        self._tell(f"reward packages: looking for {', '.join(requirements)}")
        named = {name: SETS[name] for name in requirements if name in SETS}
        own = [requirement for requirement in requirements if requirement not in SETS]
        try:
            locked = Locked(self._compile([*own, *(pin for pins in named.values() for pin in pins)]))
        except ConfigError:
            if not named:
                raise
            pins, notes = self._near_versions(named)
            locked = Locked(self._compile([*own, *pins]), notes)
        if not locked.packages:
            raise ConfigError(
                f"none of the packages {', '.join(requirements)} applies to this Python (their markers exclude it).",
                hint="Correct reward_fns.runtime.packages.",
            )
        return locked

    def _near_versions(self, named: dict[str, tuple[str, ...]]) -> tuple[list[str], tuple[str, ...]]:
        """The packages of a set: at its version, else at the nearest later one with a wheel, else left out."""
        pins, notes = [], []
        for name, packages in named.items():
            for pin in packages:
                found = self._nearest(pin)
                if found != pin:
                    taken = f"{found} is taken" if found else "no later version has one either: it is left out"
                    notes.append(f"{name}: {pin} has no wheel for this Python and machine; {taken}")
                pins += [found] if found else []
        return pins, tuple(notes)

    def _nearest(self, pin: str) -> str:
        for wanted in (pin, pin.replace("==", ">=")):
            with contextlib.suppress(ConfigError):
                return self._compile([wanted], "--no-deps", "--resolution", "lowest-direct")[0]
        return ""

    def _compile(self, requirements: Sequence[str], *options: str) -> tuple[str, ...]:
        """`name==version` of all packages that the requirements lead to, sorted."""
        uv = self._ready_uv()
        plain = ("--no-header", "--no-annotate", "--quiet", "--python", sys.executable)
        with self._disk_faults():
            self.half_made.mkdir(exist_ok=True)
            file = self.half_made / "wanted.txt"
            file.write_text("".join(f"{requirement}\n" for requirement in requirements), encoding="utf-8")
            printed = uv.run(uv.packages_command("compile", *plain, *options, str(file)), self._look)
        return tuple(sorted(re.findall(r"^([\w.-]+==[^\s;]+)", printed, re.MULTILINE)))

    def make(self, folder: Path, packages: Sequence[str], requirements: Sequence[str]) -> None:
        """Install exactly these versions into `folder`."""
        checked_pins(packages)
        self._tell(f"reward packages: installing {counted(packages)}")
        uv = self._ready_uv()
        with self._disk_faults():
            shutil.rmtree(self.half_made, ignore_errors=True)
            making = str(self.half_made)
            venv = ("venv", "--quiet", "--relocatable", "--no-project", "--python", sys.executable, making)
            uv.run(uv.command(*venv), self._look)
            locked = self.half_made / "packages.txt"
            locked.write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
            before = contents_outside_lib(self.half_made)
            install = ("install", "--no-deps", "--no-compile-bytecode", "--link-mode", "hardlink")
            python = str(self.half_made / "bin" / "python")
            uv.run(uv.packages_command(*install, "--python", python, "--requirements", str(locked)), self._look)
            self._check_places(before)
            # Not by uv, which would start the new environment's Python: outside the sandbox, packages only lie there.
            compiler = [sys.executable, "-I", "-S", "-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED]
            # Files that are no Python of this version, as templates are, stay as they are.
            uv.run([*compiler, str(self.half_made / "lib")], self._look, may_fail=True)
            self._measure()
            self._describe(packages, requirements)
            keep_others_out(self.half_made)
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one
            self.half_made.rename(folder)
        seconds = time.monotonic() - self._start
        self._tell(f"reward packages: {len(packages)} installed in {seconds:.1f} s: {in_words(packages, requirements)}")

    def _check_places(self, before: Contents) -> None:
        """ConfigError when a package has changed the new environment itself."""
        path = misplaced(before, contents_outside_lib(self.half_made))
        if path:
            raise ConfigError(
                f"{brought_by(self.half_made, path)} puts {path} into the environment, where it would change how its "
                "Python starts: an attack, or a package that is no library. It was removed.",
                hint="Take it out of reward_fns.runtime.packages.",
            )

    def _describe(self, packages: Sequence[str], requirements: Sequence[str]) -> None:
        text = {
            "packages": list(packages),
            "requirements": list(requirements),
            "num_bytes": disk_usage([self.half_made]),
            "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "python": sys.version.split()[0],
        }
        with open(self.half_made / DESCRIPTION, "w", encoding="utf-8") as file:
            json.dump(text, file, indent=2)
            file.flush()
            os.fsync(file.fileno())

    def _ready_uv(self) -> Uv:
        if self._uv is None:
            self._uv = uv_in(self._root, self.downloads, self._lock)
        return self._uv

    def _look(self) -> None:
        """End it at a cap, tell how far it is."""
        now = time.monotonic()
        if now - self._start > self._timeout_s:
            raise SetupError(
                f"installing the packages took more than {self._timeout_s:g} s.",
                hint="Raise reward_fns.runtime.packages_timeout_s; what was downloaded is kept.",
            )
        if now >= self._next_measure:
            self._measure()
            self._next_measure = now + max(1.0, MEASURE_SHARE * (time.monotonic() - now))
        if now >= self._next_tell:
            self._tell(f"reward packages: {megabytes(self._num_bytes)} so far, {now - self._start:.0f} s")
            self._next_tell = now + TELL_EVERY_S

    def _measure(self) -> None:
        self._num_bytes = disk_usage([self.downloads, self.half_made]) - self._bytes_before
        if self._num_bytes > self._max_bytes:
            shutil.rmtree(self.downloads, ignore_errors=True)  # else what was too much would stay
            raise SetupError(
                f"the packages take more than {self._max_bytes / 2**30:g} GiB of disk.",
                hint="Raise reward_fns.runtime.max_packages_gb, or name smaller packages.",
            )

    @contextlib.contextmanager
    def _disk_faults(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(
                f"an environment for the packages cannot be made in {self._root}: {error}.",
                hint="Make room there or correct its rights, or set REINFORGE_HOME to another folder.",
            ) from error


def in_words(packages: Sequence[str], requirements: Sequence[str]) -> str:
    """The versions of what was asked for.

    >>> in_words(["numpy==2.2.4", "pandas==2.2.3", "pytz==2026.4"], ["pandas<3"])
    'pandas 2.2.3 and 2 they need'
    """
    wanted = [pin for name in requirements for pin in SETS.get(name, (name,))]
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in wanted}
    asked = [package.replace("==", " ") for package in packages if package.partition("==")[0] in names]
    others = len(packages) - len(asked)
    return ", ".join(asked) + (f" and {others} they need" if others else "")


def disk_usage(folders: Iterable[Path]) -> int:
    """Bytes on disk of all files below, one with several names counted once. Files may go meanwhile."""
    seen: set[tuple[int, int]] = set()
    total, waiting = 0, [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    if (facts.st_dev, facts.st_ino) not in seen:
                        seen.add((facts.st_dev, facts.st_ino))
                        total += facts.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue
    return total


__all__ = ["Maker", "disk_usage"]
