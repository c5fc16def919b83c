"""One worker process: started clean, spoken to over a private socket pair, killed as a group."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reinforge.roles import CallResult
from reinforge.sandbox.runner import CHANNEL_LOST

RUNNER = Path(__file__).with_name("runner.py")
FRAME_OVERHEAD_BYTES = 1_000_000
"""Room in a reply beside the value: prints, messages, escapes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker process may use; `load_s` and the bytes bound what it can make us wait for and hold."""

    max_memory_bytes: int = 2 << 30
    """Address space of each process. Generous: NumPy alone reserves hundreds of megabytes."""
    max_file_bytes: int = 64 << 20
    """Largest file it can write."""
    max_print_bytes: int = 20_000
    """Kept of what one call prints."""
    max_result_bytes: int = 1_000_000
    """Largest JSON text one call may return."""
    load_s: float = 60.0
    """For running the module body: imports of heavy packages take their time."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function."""

    name: str
    kind: str
    """As in `inspect`: positional_only, positional_or_keyword, var_positional, keyword_only, var_keyword."""
    has_default: bool

    @property
    def by_keyword(self) -> bool:
        return self.kind in ("positional_or_keyword", "keyword_only")


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """What a worker tells of one function of its source."""

    name: str
    parameters: tuple[Parameter, ...]
    line: int
    """Where it starts, 0 when unknown."""
    own: bool
    """Defined in the source itself, not imported into it."""
    doc: str
    """First line of its docstring."""


class WorkerUnavailable(Exception):
    """A worker process could not be started, or was closed: our fault or the machine's, never the function's."""


class WorkerGone(Exception):
    """The process ended, or wrote something that is no reply (then `broken` is set), before it answered."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken


class UnsendableArguments(Exception):
    """Arguments without a JSON form."""


class SourceFault(Exception):
    """The module body failed: syntax error, missing package, exception, hang."""

    def __init__(self, text: str, line: int | None = None, package: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.line = line
        self.package = package


class WorkerProcess:
    """A started process. One thread at a time; after any exception it must be killed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        try:
            with contextlib.ExitStack() as undo:
                folder = self._start(undo)
        except OSError as error:
            raise WorkerUnavailable(f"a worker process could not be started: {error}") from error
        self.kill = weakref.finalize(self, _kill, self._process, self._socket, self._output, folder)
        self.functions: tuple[FunctionFacts, ...] = ()
        """What `load` found."""

    def _start(self, undo: contextlib.ExitStack) -> str:
        """Start the process; its folder. `undo` closes and removes what was made if that fails half-way."""
        folder = tempfile.mkdtemp(prefix="reinforge-worker-")
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        output = os.path.join(folder, ".output")
        self._output = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        undo.callback(os.close, self._output)
        os.unlink(output)  # reachable through descriptors 1 and 2 only
        self._socket, theirs = socket.socketpair()
        undo.callback(self._socket.close)
        with theirs:
            limits = json.dumps(asdict(self.limits))
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-B", "-X", "utf8", str(RUNNER), str(theirs.fileno()), limits],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                cwd=folder,
                env=_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        undo.pop_all()
        return folder

    def load(self, source: str, file_name: str) -> None:
        """Run the module body in the process. Raises SourceFault when it fails."""
        deadline = time.monotonic() + self.limits.load_s
        nonce = secrets.token_hex(8)
        try:
            self._send({"op": "load", "nonce": nonce, "source": source, "file_name": file_name}, deadline)
            reply = self._receive(nonce, deadline)
            if reply.get("ok"):
                self.functions = _facts(reply)
                return
        except TimeoutError:
            raise SourceFault(f"the file did not finish loading within {self.limits.load_s:g} s") from None
        except WorkerGone as gone:
            raise SourceFault(f"the process ended while the file was loading: {self.kill_and_tell(gone)}") from None
        line = reply.get("line")
        raise SourceFault(
            _clean(reply.get("error")), line if isinstance(line, int) else None, _clean(reply.get("package"))
        )

    def begin(
        self, function: str, shared: Mapping[str, object], each: Sequence[Mapping[str, object]], deadline_s: float
    ) -> str:
        """Send one request for `len(each)` calls; the nonce to read their replies with."""
        nonce = secrets.token_hex(8)
        request = {
            "op": "call",
            "nonce": nonce,
            "function": function,
            "shared": _json_text(shared),
            "each": each,
            "deadline_s": deadline_s,
        }
        self._send(request, time.monotonic() + deadline_s)
        return nonce

    def next_result(self, nonce: str, index: int, deadline_s: float) -> CallResult:
        """The next call's result; TimeoutError or WorkerGone when it will not come."""
        reply = self._receive(nonce, time.monotonic() + deadline_s)
        latency_s = reply.get("latency_s")
        if reply.get("index") != index or not isinstance(latency_s, float) or not 0 <= latency_s < math.inf:
            raise WorkerGone(broken=True)
        kind, message, prints = (_clean(reply.get(key)) for key in ("kind", "message", "prints"))
        return CallResult(None if kind else reply.get("value"), kind, message, prints, latency_s)

    def is_idle(self) -> bool:
        """False when the process ended, or wrote something, while nobody asked it anything."""
        try:
            self._socket.settimeout(0.0)
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def end(self) -> None:
        """Kill the process group at once, from any thread; whoever uses the process then meets WorkerGone."""
        _kill_group(self._process)

    def kill_and_tell(self, gone: WorkerGone) -> str:
        """Kill the group; how the process had ended. Its exit code is set before its descriptors close, so a kill
        after the channel broke cannot change it."""
        self.kill()
        code = self._process.returncode
        if gone.broken:
            return "it broke its result channel"
        if code == CHANNEL_LOST:
            return "it closed its result channel"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, or it closed its result channel"
        names = {number.value: number.name for number in signal.Signals}  # real-time signals have no names
        return f"killed by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exit code {code}"

    def unread_prints(self) -> str:
        """What the call that never answered had printed."""
        data = os.pread(self._output, self.limits.max_print_bytes, 0)
        text = data.decode("utf-8", "replace")
        # How much it went on to print, only the dead process knew.
        return f"{text}[... cut: the limit was reached]" if len(data) == self.limits.max_print_bytes else text

    def _send(self, request: Mapping[str, object], deadline: float) -> None:
        data = _json_text(request).encode("ascii")
        try:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            self._socket.sendall(len(data).to_bytes(4, "big") + data)
        except TimeoutError:
            raise
        except OSError:
            raise WorkerGone from None

    def _receive(self, nonce: str, deadline: float) -> dict[str, Any]:
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > self.limits.max_result_bytes + self.limits.max_print_bytes * 12 + FRAME_OVERHEAD_BYTES:
            raise WorkerGone(broken=True)
        try:
            reply = json.loads(self._read(size, deadline))
        except (ValueError, RecursionError):
            raise WorkerGone(broken=True) from None
        if not isinstance(reply, dict) or reply.get("nonce") != nonce:
            raise WorkerGone(broken=True)
        return reply

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            try:
                # At the deadline, one look at what is there: the answer may have come while we were stopped.
                self._socket.settimeout(max(left, 0.0))
                part = self._socket.recv(min(size - len(data), 1 << 20))
            except (TimeoutError, BlockingIOError):
                if left <= 0:
                    raise TimeoutError from None
                continue
            except OSError:
                part = b""
            if not part:
                raise WorkerGone
            data += part
        return bytes(data)


def _kill(process: subprocess.Popen[bytes], channel: socket.socket, output: int, folder: str) -> None:
    """End the whole process group, reap it and remove its folder. The leader is reaped last, so that its process id
    cannot belong to anybody else while the group is signalled."""
    _kill_group(process)
    process.wait()
    channel.close()
    os.close(output)
    shutil.rmtree(folder, ignore_errors=True)  # user code may have left files nobody can delete; nothing needs them


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS, when only the dead leader is left in the group
        process.kill()


def _environment() -> dict[str, str]:
    """All that a worker knows of ours. The hash seed is fixed so that the order of a set repeats from run to run, and
    one BLAS thread keeps NumPy's per-thread buffers within the memory limit on machines with many cores."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }


def _json_text(value: object) -> str:
    """JSON in ASCII, so lone surrogates survive; what JSON does not know (dates, bytes) becomes its text."""
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text, circular lists
        raise UnsendableArguments(str(error)) from None


def _facts(reply: Mapping[str, Any]) -> tuple[FunctionFacts, ...]:
    """What the worker says of its functions: checked, because the module body may have tampered with it."""
    try:
        return tuple(
            FunctionFacts(
                name=_clean(fact["name"]),
                parameters=tuple(Parameter(_clean(n), _clean(kind), bool(d)) for n, kind, d in fact["parameters"]),
                line=int(fact["line"]),
                own=bool(fact["own"]),
                doc=_clean(fact["doc"]),
            )
            for fact in reply["functions"]
        )
    except (KeyError, TypeError, ValueError):
        raise WorkerGone(broken=True) from None


def _clean(text: object) -> str:
    """Text from a worker as valid Unicode: lone surrogates escaped, so that it can be stored and shown. None is ""."""
    return "" if text is None else str(text).encode("utf-8", "backslashreplace").decode("utf-8")
