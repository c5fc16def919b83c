"""Runs the program `uv` (https://docs.astral.sh/uv/): found, told where packages are, ended at a cap, its errors told.

uv reads wheels and writes their files; it runs nothing of what they hold. What could make it do so (building from
source, compiling in the new environment) is switched off on every command line.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reinforge.errors import ConfigError, ReinforgeError, SetupError
from reinforge.sandbox.pip_settings import OWN_PLACES, uv_places

KEPT_VARIABLES = {
    *OWN_PLACES,
    *("UV_INDEX_STRATEGY", "UV_KEYRING_PROVIDER", "UV_INSECURE_HOST", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_OFFLINE"),
    *("UV_EXCLUDE_NEWER", "UV_CONFIG_FILE", "UV_NO_CONFIG", "UV_TORCH_BACKEND", "UV_CONCURRENT_DOWNLOADS"),
}
"""Of uv's own variables. Others (UV_NO_BINARY, UV_COMPILE_BYTECODE, UV_TARGET ...) would change what is installed and
where, or run code. UV_HTTP_*, UV_INDEX_<NAME>_* (credentials) are kept too."""
_KEPT_PREFIXES = ("UV_HTTP_", "UV_INDEX_")
_NOT_OURS = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME")
LOOK_S = 0.5
"""How often a running uv is looked at."""
MAX_EXPLANATION = 700


@dataclass(frozen=True, slots=True)
class Uv:
    """A uv to run in `folder`, where all that it keeps lies too."""

    program: str
    folder: Path
    variables: Mapping[str, str]
    options: tuple[str, ...]
    lock: int
    """Descriptor that it inherits: while it runs, what that locks stays locked, even when we are killed."""

    def command(self, *words: str) -> list[str]:
        return [self.program, *words, "--no-progress", "--color", "never", "--no-python-downloads"]

    def packages_command(self, *words: str) -> list[str]:
        """`uv pip ...` for wheels only, nothing compiled."""
        return [*self.command("pip", *words, "--only-binary", ":all:"), *self.options]

    def run(self, command: Sequence[str], look: Callable[[], None], *, may_fail: bool = False) -> str:
        """What it printed. `look` is called again and again while it runs and may raise: then it is ended with all it
        started. An error of uv's becomes one of ours unless it may fail."""
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as printed:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=said,
                cwd=self.folder,
                env=dict(self.variables),
                pass_fds=[self.lock],
                start_new_session=True,
                umask=0o022,
            )
            try:
                _wait(process, look)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            printed.seek(0)
            said.seek(0)
            if process.returncode != 0 and not may_fail:
                raise explain(said.read().decode("utf-8", "replace"), process.returncode, self.folder)
            return printed.read().decode("utf-8", "replace")


def _wait(process: subprocess.Popen[bytes], look: Callable[[], None]) -> None:
    next_look = time.monotonic()
    while process.poll() is None:
        if time.monotonic() >= next_look:
            look()
            next_look = time.monotonic() + LOOK_S
        time.sleep(0.02)


def find_uv() -> str:
    """Path of the program: of the package `uv` in this environment, else on the PATH."""
    try:
        from uv import find_uv_bin

        found: str | None = find_uv_bin()
    except (ImportError, FileNotFoundError):  # not there, or its program is elsewhere than it thinks
        found = shutil.which("uv")
    if found is None:
        raise SetupError(
            "reward_fns.runtime.packages needs the program uv, which is not installed.",
            hint="pip install 'reinforge[packages]'",
        )
    return found


def uv_in(folder: Path, cache: Path, lock: int) -> Uv:
    """uv with this machine's settings of where packages come from."""
    places, options = uv_places(os.environ)
    variables = {name: value for name, value in os.environ.items() if _is_kept(name)} | places
    return Uv(find_uv(), folder, variables | {"UV_CACHE_DIR": str(cache)}, options, lock)


def _is_kept(name: str) -> bool:
    if name.startswith("UV_"):
        return name in KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    return name not in _NOT_OURS


def explain(said: str, code: int, folder: Path) -> ReinforgeError:
    """An error message of uv's as one of ours.

    >>> text = "error: No solution found\\n  cause: Because nonsuch was not found in the package registry and ..."
    >>> print(explain(text, 1, Path(".")).message)
    there is no package nonsuch in the package index.
    >>> text = "  × No solution found:\\n  ╰─▶ Because a==1 has no usable wheels and you require a==1, ..."
    >>> print(explain(text, 1, Path(".")).message.partition(" (")[0])
    a==1 has no wheel for this Python and machine, and packages are not built here
    """
    if "No space left on device" in said or "os error 28" in said:
        return SetupError(
            f"the disk of {folder} is full.", hint="Make room, or set REINFORGE_HOME to a folder on a larger disk."
        )
    lines = [
        re.sub(r"^(error:|cause:|[×╰├─▶│\s])+", "", line) for line in re.split(r"\n\s*hint:", said)[0].splitlines()
    ]
    reason = " ".join(filter(None, lines))[:MAX_EXPLANATION]
    if "No solution found" in said:
        reason = reason[max(reason.find("Because"), 0) :]
        return _unsolvable(reason.replace(", we can conclude that your requirements are unsatisfiable", ""))
    if any(sign in said for sign in ("Failed to fetch", "error sending request", "dns error", "Request failed")):
        hint = "Check the network, and the index that UV_DEFAULT_INDEX, or pip's configuration, names."
        return SetupError(f"the package index cannot be reached: {reason}.", hint=hint)
    return SetupError(f"uv failed with exit code {code}: {reason or 'it said nothing'}.")


def _unsolvable(reason: str) -> ConfigError:
    place = "Correct reward_fns.runtime.packages."
    unknown = re.search(r"[Bb]ecause (\S+) was not found in the (?:package registry|provided)", reason)
    if unknown:
        return ConfigError(f"there is no package {unknown[1]} in the package index.", hint=place)
    without = re.match(r"Because (?:only \S+ is available and )?(\S+) has no (?:usable )?wheels", reason)
    if without:
        because = reason.rstrip(".")
        text = f"{without[1]} has no wheel for this Python and machine, and packages are not built here ({because})."
        return ConfigError(text, hint="Ask for a version that has one.")
    version = re.match(r"Because there is no version of (\S+) and you require", reason)
    if version:
        return ConfigError(f"the package index has no {version[1]}.", hint=place)
    return ConfigError(f"the packages do not go together: {reason}", hint=place)


__all__ = ["Uv", "explain", "find_uv", "uv_in"]
