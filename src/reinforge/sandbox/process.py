"""One worker process: started in a tier, spoken to over a private socket pair, killed with all it started."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reinforge.roles import CallResult
from reinforge.sandbox.access import NO_ACCESS, Access, environment, open_way, start_proxy
from reinforge.sandbox.cgroup import entering, make_cgroup
from reinforge.sandbox.launch import RUNNER, Tier, interpreter
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.named_secrets import Hider
from reinforge.sandbox.remains import Remains, first_process, kill, kill_all, make_pipe, start_process
from reinforge.sandbox.runner import CHANNEL_LOST

PASS_ON_S = 0.3
"""How long the end of the runner may take to reach the process that we started."""
MAX_LAST_WORDS = 300
READ_BYTES = 1 << 16
FRAME_OVERHEAD_BYTES = 1_000_000
"""Room in a reply beside the value: prints, messages, escapes."""
MAX_REPLY_DEPTH = 40
"""Of lists and objects within each other; the runner itself sends about 23."""
MAX_LINE = 1 << 31


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

    def __init__(self, limits: Limits, tier: Tier, access: Access = NO_ACCESS) -> None:
        self.limits = limits
        self._hide = Hider(access.secrets)
        try:
            with contextlib.ExitStack() as undo:
                remains = self._start(tier, access, undo)
        except (OSError, RuntimeError) as error:  # RuntimeError: the interpreter is shutting down
            raise WorkerUnavailable(f"a worker process could not be started: {error}") from error
        self._remains = remains
        self.kill = weakref.finalize(self, kill, remains)
        self.functions: tuple[FunctionFacts, ...] = ()
        """What `load` found."""
        self._received = bytearray()
        self._unsent = b""
        self._deadline_s = 0.0
        self._patience_s = 0.0
        self.left = ""
        """What the last call left running, in words; the process must then be replaced."""

    def _start(self, tier: Tier, access: Access, undo: contextlib.ExitStack) -> Remains:
        """Start the process. `undo` closes and removes what was made if that fails half-way."""
        folder = tempfile.mkdtemp(prefix="reinforge-worker-")
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        output = os.path.join(folder, ".output")
        self._output = os.open(output, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        undo.callback(os.close, self._output)
        os.unlink(output)  # reachable through descriptors 1 and 2 only
        user = tier.user()
        if user is not None:
            os.chown(folder, user, user)
        cgroup = make_cgroup(self.limits) if tier.uses_cgroup else None
        if cgroup is not None:
            undo.callback(cgroup.remove)
        self._socket, theirs = socket.socketpair()
        undo.callback(self._socket.close)
        ours, theirs_too = make_pipe(undo, we_read=tier.has_namespace)
        way = open_way(access, tier, undo)
        with theirs:
            own_folders = ["/tmp", "/dev/shm"] if tier.has_namespace else [folder]
            limits = json.dumps(asdict(self.limits) | {"guarded": tier.uses_pipe, "own_folders": own_folders})
            channel = theirs.fileno()
            runner = [interpreter(self.limits), "-s", "-P", "-B", "-X", "utf8", str(RUNNER), str(channel), limits]
            command = tier.command(runner, folder, self.limits, user, theirs_too)
            self._process = start_process(
                entering(cgroup, command) if tier.uses_cgroup else command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                cwd=folder,
                env=_environment() | environment(access, way),
                pass_fds=[channel, theirs_too] if tier.uses_pipe else [channel],
                start_new_session=True,
            )
        os.close(theirs_too)
        first = first_process(ours) if tier.has_namespace else None
        proxy = start_proxy(access, way, self._socket)
        undo.pop_all()
        if tier.has_namespace:
            os.rmdir(folder)  # it has one of its own in there; nothing of it stays, however we end
        return Remains(self._process, first, ours, cgroup, self._socket, self._output, folder, proxy)

    def load(self, source: str, file_name: str) -> None:
        """Run the module body in the process. Raises SourceFault when it fails."""
        deadline = time.monotonic() + self.limits.load_s
        nonce = secrets.token_hex(8)
        try:
            request = {"op": "load", "nonce": nonce, "source": source, "file_name": file_name}
            self._send(_frame(request), deadline)
            reply = self._receive(nonce, deadline)
            if reply.get("ok"):
                self.functions = _facts(reply)
                return
        except TimeoutError:
            raise SourceFault(f"the file did not finish loading within {self.limits.load_s:g} s") from None
        except WorkerGone as gone:
            said = self.unread_prints().strip().rpartition("\n")[2][:MAX_LAST_WORDS]
            text = f"the process ended while the file was loading: {self.kill_and_tell(gone)}"
            raise SourceFault(f"{text} ({_clean(said)})" if said else text) from None
        raise SourceFault(_clean(reply.get("error")), _line(reply.get("line")), _clean(reply.get("package")))

    def prepare(self, function: str, shared: Mapping[str, object], deadline_s: float) -> None:
        """Choose the function and the arguments that are the same in the calls that follow."""
        request = {"op": "prepare", "function": function, "shared": _json_text(shared), "deadline_s": deadline_s}
        self._deadline_s = deadline_s
        self._unsent = _frame(request)

    def call(self, own: Mapping[str, object]) -> CallResult:
        """One call; TimeoutError or WorkerGone when its result will not come."""
        deadline = time.monotonic() + self._deadline_s
        nonce = secrets.token_hex(8)
        request = _frame({"op": "call", "nonce": nonce, "own": own})
        data, self._unsent = self._unsent + request, b""
        self._send(data, deadline)
        reply = self._receive(nonce, deadline)
        latency_s = reply.get("latency_s")
        if not isinstance(latency_s, float) or not 0 <= latency_s < math.inf:
            raise WorkerGone(broken=True)
        kind, message, prints, self.left = (_clean(reply.get(key)) for key in ("kind", "message", "prints", "left"))
        note = f"a call left {self.left} running" if self.left else ""
        return CallResult(None if kind else reply.get("value"), kind, message, prints, latency_s, note)

    def is_idle(self) -> bool:
        """False when the process ended, or wrote something, while nobody asked it anything."""
        if self._received:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def end(self) -> None:
        """Kill the process group at once, from any thread; whoever uses the process then meets WorkerGone."""
        kill_all(self._remains)

    def kill_and_tell(self, gone: WorkerGone) -> str:
        """Kill it; how the process had ended. Where bwrap stands between, its own end follows that of the runner."""
        if not gone.broken:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PASS_ON_S)
        self.kill()
        code = self._process.returncode
        if gone.broken:
            return "it broke its result channel"
        if code == CHANNEL_LOST:
            return "it closed its result channel"
        if self._remains.first is not None and code > 128:
            code = 128 - code  # as bwrap passes a signal on
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, or it closed its result channel"
        names = {number.value: number.name for number in signal.Signals}  # real-time signals have no names
        return f"killed by {names.get(-code, f'signal {-code}')}" if code < 0 else f"exit code {code}"

    def unread_prints(self) -> str:
        """What the call that never answered had printed."""
        data = os.pread(self._output, self.limits.max_print_bytes, 0)
        text = data.decode("utf-8", "replace")
        # How much it went on to print, only the dead process knew.
        text = f"{text}[... cut: the limit was reached]" if len(data) == self.limits.max_print_bytes else text
        return str(self._hide(text))

    def _send(self, data: bytes, deadline: float) -> None:
        try:
            self._wait_at_most(deadline - time.monotonic())
            self._socket.sendall(data)
        except BlockingIOError:
            raise TimeoutError from None
        except OSError:
            raise WorkerGone from None

    def _wait_at_most(self, seconds: float) -> None:
        """Have the kernel end a wait. A socket timeout of Python would cost a call of `poll` before each other call;
        this costs one only when the figure changes: it is rounded, which whoever waits makes up for."""
        rounded = max(math.ceil(seconds * 50) / 50, 0.02)
        if rounded != self._patience_s:
            self._patience_s = rounded
            value = struct.pack("@ll", int(rounded), round(rounded % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)

    def _receive(self, nonce: str, deadline: float) -> dict[str, Any]:
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > self.limits.max_result_bytes + self.limits.max_print_bytes * 12 + FRAME_OVERHEAD_BYTES:
            raise WorkerGone(broken=True)
        try:
            reply = json.loads(self._read(size, deadline))
        except (ValueError, RecursionError):
            raise WorkerGone(broken=True) from None
        if not isinstance(reply, dict) or reply.get("nonce") != nonce or _is_deeper(reply, MAX_REPLY_DEPTH):
            raise WorkerGone(broken=True)
        hidden: dict[str, Any] = self._hide(reply)
        return hidden

    def _read(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            left = deadline - time.monotonic()
            try:
                # At the deadline, one look at what is there: the answer may have come while we were stopped.
                self._wait_at_most(left)
                part = self._socket.recv(READ_BYTES, socket.MSG_DONTWAIT if left <= 0 else 0)
            except BlockingIOError:
                if left <= 0:
                    raise TimeoutError from None
                continue
            except OSError:
                part = b""
            if not part:
                raise WorkerGone
            self._received += part
        data = bytes(self._received[:size])
        del self._received[:size]
        return data


def _environment() -> dict[str, str]:
    """All that a worker knows of ours. The hash seed is fixed so that the order of a set repeats from run to run, and
    one BLAS thread keeps NumPy's per-thread buffers within the memory limit on machines with many cores."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
    }


def _frame(request: Mapping[str, object]) -> bytes:
    data = _json_text(request).encode("ascii")
    return len(data).to_bytes(4, "big") + data


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
                line=_line(fact["line"]) or 0,
                own=bool(fact["own"]),
                doc=_clean(fact["doc"]),
            )
            for fact in reply["functions"]
        )
    except (KeyError, TypeError, ValueError):
        raise WorkerGone(broken=True) from None


def _line(value: object) -> int | None:
    """A line of a file; None for what can be none."""
    return value if isinstance(value, int) and 0 <= value <= MAX_LINE else None


def _is_deeper(reply: object, most: int) -> bool:
    """Whether more than `most` lists and objects lie within each other. Layer by layer: what user code sent may be
    nested more deeply than a function may call itself.

    >>> _is_deeper([[], {"a": [0]}], 3), _is_deeper([[], {"a": [0]}], 2)
    (False, True)
    """
    layer: list[Any] = [reply]
    for _ in range(most):
        entries = (entry for part in layer for entry in (part.values() if isinstance(part, dict) else part))
        layer = [entry for entry in entries if isinstance(entry, dict | list)]
        if not layer:
            return False
    return True


def _clean(text: object) -> str:
    """Text from a worker as valid Unicode: lone surrogates escaped, so that it can be stored and shown. None is ""."""
    return "" if text is None else str(text).encode("utf-8", "backslashreplace").decode("utf-8")
