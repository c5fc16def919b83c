"""Python environments with the packages of reward functions: one per set of versions, beside ours, never in it.

They lie in `environments/` of the home folder (home.py):

    <key>/            an environment, named by a hash of Python, platform and versions; environment.json describes it
    requests/         which versions were found for which entries of a config: the second start asks no index
    downloads/        uv's cache; files of environments are links into it
    making/           the one that is being made, moved to its name when it is complete
    lock              held by whoever makes or removes one

Only wheels are installed, and nothing of a package runs outside a worker: uv unpacks files, our own Python compiles
them, and the environment's Python is first started inside the sandbox.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import ConfigError, RewardError, SetupError, UsageError
from reinforge.requirements import check_pins, read_requirements
from reinforge.sandbox.home import home_folder
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.ownership import all_in, check_ours

Tell = Callable[[str], None]
DESCRIPTION = "environment.json"
HALF_MADE = "making"
_held: dict[Path, int] = {}
"""Environments this process uses, with the descriptor that keeps them from being removed."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that is there."""

    key: str
    packages: tuple[str, ...]
    """`name==version` of all that is in it, sorted."""
    requirements: tuple[str, ...]
    """What was asked for when it was made."""
    num_bytes: int
    made: str


@dataclass(frozen=True, slots=True)
class Locked:
    """The versions found for some requirements."""

    packages: tuple[str, ...]
    """`name==version`, sorted."""
    notes: tuple[str, ...] = ()
    """What people must know about them."""


def environments_folder() -> Path:
    return home_folder() / "environments"


def environment_folder(packages: Sequence[str]) -> Path:
    """Where the environment with these versions lies, or would lie, for this Python."""
    return environments_folder() / _key(packages)


def environment_python(packages: Sequence[str]) -> Path:
    """Its interpreter. Only workers start it: a package can have code run whenever it starts."""
    return environment_folder(packages) / "bin" / "python"


def _key(parts: Sequence[str]) -> str:
    python = (sys.implementation.cache_tag, sys.version.split()[0], sysconfig.get_platform(), sys.base_prefix)
    return hashlib.sha256(json.dumps([python, list(parts)]).encode()).hexdigest()[:16]


def silent(text: str) -> None:
    """Nobody wants to know."""


def lock_packages(runtime: RewardFunctionsRuntimeConfig, tell: Tell = silent) -> tuple[str, ...]:
    """The versions of a config's packages, installed and ready: what was found at the first start is kept.

    () without packages. ConfigError when they cannot be had together, SetupError when this machine fails.
    """
    if not runtime.packages:
        return ()
    check_folder(environments_folder())
    locked = _known(runtime.packages)
    if locked is None or not _is_ready(locked.packages):
        from reinforge.sandbox.make_environment import Maker

        with Maker(environments_folder(), runtime, tell) as maker:
            locked = _known(runtime.packages) or maker.find_versions(runtime.packages)
            if not _is_ready(locked.packages):  # nobody else made it while we waited
                maker.make(environment_folder(locked.packages), locked.packages, runtime.packages)
            _remember(runtime.packages, locked)
    for note in locked.notes:
        tell(note)
    _use(locked.packages, tell)
    return locked.packages


def worker_limits(
    runtime: RewardFunctionsRuntimeConfig,
    tell: Tell = silent,
    settings: Mapping[str, RewardFunctionSettings] | None = None,
) -> Limits:
    """What a config allows the workers of its functions, with the packages they see: see `lock_packages`."""
    return replace(Limits.from_config(runtime, settings), packages=lock_packages(runtime, tell))


def runtime_with(packages: Sequence[str], settings: Mapping[str, Any]) -> RewardFunctionsRuntimeConfig:
    """These settings with packages that somebody named outside a config; ConfigError when they are none."""
    try:
        read = read_requirements(packages)
    except ValueError as error:
        raise ConfigError(f"{error}.", hint="Write a name with version specifiers.") from None
    return RewardFunctionsRuntimeConfig.model_validate({**settings, "packages": read})


def provide(packages: Sequence[str], runtime: RewardFunctionsRuntimeConfig | None = None, tell: Tell = silent) -> None:
    """See that the environment with these versions is there, as a run recorded them. Quick when it is.

    RewardError for anything but `name==version`."""
    if not packages or environment_folder(packages) in _held:
        return
    checked_pins(packages)
    check_folder(environments_folder())
    if not _is_ready(packages):
        from reinforge.sandbox.make_environment import Maker

        with Maker(environments_folder(), runtime or RewardFunctionsRuntimeConfig(), tell) as maker:
            if not _is_ready(packages):
                maker.make(environment_folder(packages), packages, packages)
    _use(packages, tell)


def checked_pins(packages: Sequence[str]) -> tuple[str, ...]:
    """The packages, if each is `name==version`; RewardError if not."""
    try:
        return check_pins(packages)
    except ValueError as error:
        hint = "Only versions that a run found are installed again."
        raise RewardError(f"packages of a reward function: {error}.", hint=hint) from None


def check_folder(root: Path) -> None:
    """SetupError when others may write what decides which code runs in workers."""
    check_ours(root, [root, root / "lock", root / "requests", root / "downloads"])


def _is_ready(packages: Sequence[str]) -> bool:
    folder = environment_folder(packages)
    return (folder / DESCRIPTION).is_file() and (folder / "bin" / "python").exists()


def _use(packages: Sequence[str], tell: Tell) -> None:
    """Hold it until this process ends; SetupError when somebody else made it, or could have changed it."""
    folder = environment_folder(packages)
    if folder in _held:
        return
    check_ours(environments_folder(), all_in(folder))
    descriptor = os.open(folder / DESCRIPTION, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[folder] = descriptor
    found = _describe(folder)
    tell(f"reward functions run with {counted(found.packages)} ({megabytes(found.num_bytes)}) in {folder}")


def _request_file(requirements: Sequence[str]) -> Path:
    return environments_folder() / "requests" / f"{_key(requirements)}.json"


def _known(requirements: Sequence[str]) -> Locked | None:
    try:
        fields = json.loads(_request_file(requirements).read_text(encoding="utf-8"))
        return Locked(tuple(map(str, fields["packages"])), tuple(map(str, fields["notes"])))
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: it is found again
        return None


def _remember(requirements: Sequence[str], locked: Locked) -> None:
    file = _request_file(requirements)
    file.parent.mkdir(mode=0o755, exist_ok=True)
    new = file.with_suffix(".new")  # there is one writer: it holds the lock
    new.write_text(json.dumps({"requirements": list(requirements), **asdict(locked)}, indent=2) + "\n")
    new.replace(file)


def list_environments() -> tuple[Environment, ...]:
    """All that are there, the oldest first."""
    files = environments_folder().glob(f"*/{DESCRIPTION}")
    found = [_describe(file.parent) for file in files if file.parent.name != HALF_MADE]
    return tuple(sorted(found, key=lambda environment: environment.made))


def _describe(folder: Path) -> Environment:
    try:
        fields = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        packages, requirements = tuple(fields["packages"]), tuple(fields["requirements"])
        return Environment(folder.name, packages, requirements, int(fields["num_bytes"]), str(fields["made"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"Remove it (rm -r {folder}): it is made again when a run needs it."
        raise SetupError(f"the environment {folder} is damaged: {error!r}.", hint=hint) from None


def remove_environments(keys: Sequence[str]) -> int:
    """Remove them, with what only they needed; the bytes that became free. UsageError when a process uses one."""
    from reinforge.sandbox.make_environment import Maker, disk_usage

    root = environments_folder()
    if not keys:
        return 0
    with Maker(root, RewardFunctionsRuntimeConfig(), silent) as maker:
        before = disk_usage([root])
        for key in keys:
            folder = root / key
            with open(folder / DESCRIPTION, encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(f"{folder} is in use.", hint="Remove it when its run has ended.") from None
                packages = tuple(json.load(file)["packages"])
                folder.rename(maker.half_made)
                shutil.rmtree(maker.half_made)
            _forget(root, packages)
        if not list_environments():
            shutil.rmtree(maker.downloads, ignore_errors=True)
        return before - disk_usage([root])


def _forget(root: Path, packages: tuple[str, ...]) -> None:
    """The requests these versions were found for: the next start looks for newer ones."""
    for file in (root / "requests").glob("*.json"):
        try:
            known = tuple(json.loads(file.read_text(encoding="utf-8"))["packages"])
        except (ValueError, KeyError, TypeError):
            known = packages  # damaged
        if known == packages:
            file.unlink()


def counted(packages: Sequence[str]) -> str:
    """
    >>> counted(["numpy==2.2.4"])
    '1 package'
    """
    return f"{len(packages)} package{'s' * (len(packages) != 1)}"


def megabytes(num_bytes: int) -> str:
    """
    >>> megabytes(683_000_000), megabytes(30_000)
    ('683 MB', '0.03 MB')
    """
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.3g} GB"


__all__ = [
    "Environment",
    "Tell",
    "counted",
    "environment_folder",
    "environment_python",
    "environments_folder",
    "list_environments",
    "lock_packages",
    "megabytes",
    "provide",
    "remove_environments",
    "runtime_with",
    "silent",
    "worker_limits",
]
