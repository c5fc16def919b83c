"""What the isolating tiers share: what a worker may read, which user it becomes, how it is confined."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from reinforge.sandbox import seccomp
from reinforge.sandbox.environments import environment_folder, environment_python
from reinforge.sandbox.limits import Limits

PACKAGE = Path(__file__).parents[1]
RUNNER = Path(__file__).with_name("runner.py")
CONFINE = Path(__file__).with_name("confine.py")
MAX_OPEN_FILES = 256
PROXY_PORT = 3128
"""Of the proxy in the network of a worker that has one of its own."""
NOBODY = 65534
_FIRST_OWN_ID, _NUM_OWN_IDS = 0x70000000, 1 << 24

SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")


class Tier(Protocol):
    """A way to start a worker process."""

    @property
    def name(self) -> str:
        """bubblewrap, landlock or plain."""
        ...

    @property
    def has_namespace(self) -> bool:
        """Whether the worker has process ids and files of its own; bwrap then reports its first process on `pipe`.
        Where it has none, nothing leaves the process group that is killed."""
        ...

    @property
    def network(self) -> Literal["own", "shared", ""]:
        """How a worker gets to the hosts it is allowed: a network of its own with nothing in it but our proxy; that of
        this machine, where only its environment names the proxy; "": in no way that would hold it to these hosts."""
        ...

    @property
    def uses_pipe(self) -> bool:
        """Whether the worker gets its end of the pipe."""
        ...

    @property
    def uses_cgroup(self) -> bool:
        """Whether the processes go into a cgroup of their own where one can be made."""
        ...

    def user(self) -> int | None:
        """The user that owns the worker's folder; None: ours."""
        ...

    def command(self, runner: Sequence[str], folder: str, limits: Limits, user: int | None, pipe: int) -> list[str]:
        """The command line that starts `runner`, whose last words are the descriptor of its channel and its limits, in
        this tier. `pipe` is the end for writing to us where the tier has
        a namespace, else that for reading: it ends when we do."""
        ...


def interpreter(limits: Limits) -> str:
    """The Python of a worker: ours, or that of the environment with its packages."""
    return str(environment_python(limits.packages)) if limits.packages else sys.executable


def trusted_interpreter() -> str:
    """The Python that ties a worker's hands: the one ours was made from. Packages had no hand in it, and none of the
    environment's files are read before the worker is confined."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def interpreter_paths(limits: Limits) -> tuple[str, ...]:
    """Folders of a worker's Python: the environment, the installation it came from, and where links lead on the way.
    With packages of its own the environment is theirs, and ours stays out of reach."""
    ours = {sys.prefix, sys.exec_prefix}
    found = {str(environment_folder(limits.packages))} if limits.packages else ours
    found |= {sys.base_prefix, sys.base_exec_prefix}
    link = interpreter(limits)
    for _ in range(10):  # python -> python3 -> /opt/python-3.11/bin/python3.11
        if not os.path.islink(link):
            break
        link = os.path.join(os.path.dirname(link), os.readlink(link))
        found.add(os.path.dirname(os.path.dirname(os.path.abspath(link))))
    found |= {os.path.realpath(path) for path in found}
    return tuple(path for path in sorted(found) if path != "/")


def readable_paths(limits: Limits) -> tuple[str, ...]:
    """All that a worker may read: system libraries, its Python, this package wherever it lies, and what its limits
    name."""
    wanted = (*SYSTEM_PATHS, *SYSTEM_FILES, *interpreter_paths(limits), str(PACKAGE), *limits.readable)
    return tuple(path for path in wanted if os.path.exists(path))


def own_user() -> int | None:
    """When we are root: a user id that nobody else has, so that no file or process of anybody's is its own."""
    if os.geteuid() != 0:
        return None
    wanted = _FIRST_OWN_ID + secrets.randbelow(_NUM_OWN_IDS)
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return NOBODY


def anybody_may_enter(path: str) -> bool:
    """Whether another user reaches a path: every folder on the way is open to all."""
    real = os.path.realpath(path)
    return all(os.stat(folder).st_mode & 0o001 for folder in itertools.chain([real], map(str, Path(real).parents)))


def anybody_may_read(path: str) -> bool:
    """Whether another user who reaches a file, or a folder with all in it, may read it: tools that write models as root
    often keep the weights to root."""
    within = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    folders = [folder for folder, _, _ in os.walk(path)]
    files_open = all(os.stat(file).st_mode & 0o004 for file in (within if folders else [path]))
    return files_open and all(os.stat(folder).st_mode & 0o005 == 0o005 for folder in folders)


def confined(runner: Sequence[str], limits: Limits, user: int | None, program: bytes, **changes: Any) -> list[str]:
    """`runner`, started by confine.py."""
    spec: dict[str, Any] = {
        "uid": user,
        "keep_reading": False,
        "own_namespace": True,
        "max_processes": limits.max_processes,
        "max_files": MAX_OPEN_FILES,
        "max_cpus": limits.max_cpus,
        "list": str(PACKAGE if limits.packages else PACKAGE.parent),
        "read": None,
        "write": [],
        "life": None,
        "folder": "",
        "seccomp": base64.b64encode(program).decode("ascii"),
        "self": seccomp.SELF,
        "proxy_port": None,
        "channel": int(runner[-2]),
    }
    return [trusted_interpreter(), "-I", "-S", "-B", str(CONFINE), json.dumps(spec | changes), *runner]
