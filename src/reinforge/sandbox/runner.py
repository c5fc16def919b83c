"""The program inside a worker process: loads user code and calls it. Standard library only, nothing of ours.

Started by `process.py` as `python -s -P -B runner.py FD LIMITS`. FD is one end of a socket pair nobody else holds. On
it travel frames: 4 bytes of length (big-endian), then that many bytes of ASCII JSON. User code never sees it as
stdin, stdout or stderr, and every reply carries the nonce of its request, so nothing printed can pass as a reply.

    {"op": "load", "nonce", "source", "file_name"}  -> {"nonce", "ok", "functions" | "error", ...}
    {"op": "prepare", "function", "shared", "deadline_s"} -> nothing: it holds for the calls that follow
    {"op": "call", "nonce", "own"} -> {"nonce", "value" | "kind" + "message", "prints", "latency_s", "left"}

`shared` is JSON text decoded anew for every call: a function that changes its arguments changes only its own copy. The
next call comes after the reply to the last one: no call can know the nonce, or see the arguments, of a later one.
`left` tells in words what the call left running; the worker is then replaced.
"""

from __future__ import annotations

import inspect
import io
import linecache
import os
import resource
import signal
import sys
import traceback
import types
from collections.abc import Awaitable
from json import dumps, loads  # bound here: user code that replaces them in their modules does not reach us
from os import WNOHANG, waitpid
from sys import _current_frames as threads_by_id
from time import perf_counter, sleep
from typing import Any

CHANNEL_LOST = 70
"""Exit code when there is no way to answer any more."""
READ_BYTES = 1 << 16
MAX_FRAME_EXTRA = 1 << 16
MAX_DROPPED = 1 << 60
MAX_DEPTH = 20
MAX_TEXT = 200
MAX_MESSAGE = 4000
# A worker that nobody guards ends itself this long after the deadline when its trainer was killed: the kernel's timer
# needs no GIL.
SELF_DESTRUCT_GRACE_S = 5.0
THREAD_END_S = 0.05  # until a thread that was joined is gone


class Output(io.RawIOBase):
    """Where sys.stdout and sys.stderr go: the file behind descriptors 1 and 2, up to a cap per call."""

    def __init__(self, descriptor: int, max_bytes: int) -> None:
        self.descriptor = descriptor
        self.max_bytes = max_bytes
        self.written = 0
        self.dropped = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        """User code that closes its stdout must not take the next call's output with it."""

    def write(self, data: Any) -> int:
        data = bytes(data)
        keep = data[: max(0, self.max_bytes - self.written)]
        if keep:
            os.write(self.descriptor, keep)
        self.written += len(keep)
        self.dropped += len(data) - len(keep)
        return len(data)

    def take(self) -> str:
        """The text of the call that just ended; the file is emptied for the next one."""
        try:
            size = os.fstat(self.descriptor).st_size
        except OSError:  # user code closed every descriptor: the channel too
            os._exit(CHANNEL_LOST)
        total = size + self.dropped
        text = os.pread(self.descriptor, self.max_bytes, 0).decode("utf-8", "replace") if size else ""
        if size:
            os.ftruncate(self.descriptor, 0)
        self.written = self.dropped = 0
        cut = total - min(size, self.max_bytes)
        return f"{text}[... cut: {cut} bytes more]" if cut else text


class Runner:
    def __init__(self, channel: int, limits: dict[str, Any]) -> None:
        self.channel = channel
        self.max_result_bytes = limits["max_result_bytes"]
        self.fresh_process = limits["fresh_process"]
        self.guarded = limits["guarded"]
        self.own_folders = limits["own_folders"]
        self.files: set[tuple[str, int, int]] = set()
        self.process_id = os.getpid()
        self.folder = os.getcwd()
        self.output = Output(os.dup(1), limits["max_print_bytes"])
        stream: Any = self.output
        self.stdout = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace", write_through=True)
        self.module = types.ModuleType("rewards")
        self.function: Any = None
        self.shared = "{}"
        self.end_s = 0.0
        self.received = bytearray()
        self.loop: Any = None
        self.num_threads = 1

    def serve(self) -> None:
        while True:
            request = loads(self._read(int.from_bytes(self._read(4), "big")))
            if request["op"] == "load":
                self._reply({"nonce": request["nonce"], **self.load(request["source"], request["file_name"])})
            elif request["op"] == "prepare":
                self.prepare(request["function"], request["shared"], request["deadline_s"])
            else:
                self._reply({"nonce": request["nonce"], **self.call(request["own"])})

    def _read(self, size: int) -> bytes:
        while len(self.received) < size:
            part = os.read(self.channel, READ_BYTES)
            if not part:
                self._end()  # the trainer was killed: nobody else will clean up
            self.received += part
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    def _end(self) -> None:
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)  # with whatever user code has started in this group

    def _reply(self, reply: dict[str, Any]) -> None:
        if os.getpid() != self.process_id:
            os._exit(0)  # a child that user code forked and let return: it has no voice here
        data = frame(reply)
        try:
            while data:
                data = data[os.write(self.channel, data) :]
        except OSError:  # user code closed our descriptor
            os._exit(CHANNEL_LOST)

    def load(self, source: str, file_name: str) -> dict[str, Any]:
        """Run the module body; its functions with their parameters, or what went wrong and where."""
        name = os.path.splitext(os.path.basename(file_name))[0]
        self.module = types.ModuleType(name if name.isidentifier() and name not in sys.modules else "rewards")
        self.module.__file__ = file_name
        sys.modules[self.module.__name__] = self.module
        # Tracebacks quote the lines of the text that runs, also when the file is out of reach or has changed.
        linecache.cache[file_name] = (len(source), None, source.splitlines(True), file_name)
        sys.stdout = sys.stderr = self.stdout
        try:
            exec(compile(source, file_name, "exec", dont_inherit=True), self.module.__dict__)
            self.num_threads = len(threads_by_id())  # those of the module body may stay, and its files
            self.files = self.files_now()
            return {"ok": True, "functions": describe(self.module, file_name)}
        except BaseException as error:  # noqa: BLE001  (whatever user code raises is an answer)
            return {"ok": False, **load_fault(error, file_name)}
        finally:
            self.output.take()

    def prepare(self, function: str, shared: str, deadline_s: float) -> None:
        self.function = self.module
        for part in function.split("."):
            self.function = getattr(self.function, part)
        self.shared = shared
        self.end_s = deadline_s + SELF_DESTRUCT_GRACE_S

    def call(self, own: dict[str, Any]) -> dict[str, Any]:
        arguments = {**loads(self.shared), **own}
        sys.stdout = sys.stderr = self.stdout
        if not self.guarded:
            signal.setitimer(signal.ITIMER_REAL, self.end_s)
        start = perf_counter()
        outcome = self.outcome_of_child(arguments) if self.fresh_process else self.outcome(arguments)
        latency_s = perf_counter() - start
        if not self.guarded:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return {**outcome, "latency_s": latency_s, "left": self.left(), "prints": self.output.take()}

    def outcome_of_child(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The outcome in a fork that has no channel: what the call does there ends there."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(self.channel)
            outcome = {**self.outcome(arguments), "dropped": self.output.dropped}
            with open(writing, "wb") as pipe:
                pipe.write(frame(outcome))
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:  # its end may be held by what the call left: only the frame is waited for
            size = int.from_bytes(pipe.read(4), "big")
            data = pipe.read(size) if size <= self.max_result_bytes + MAX_FRAME_EXTRA else b""
        _, status = waitpid(child, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            return {"kind": "exited", "message": f"the process of this call ended with exit code {code}"}
        try:
            told = loads(data)
            self.output.dropped = min(max(int(told["dropped"]), 0), MAX_DROPPED)
            return {key: told[key] for key in ("value", "kind", "message") if key in told}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return {"kind": "exited", "message": "the process of this call ended without a result"}

    def left(self) -> str:
        """What the call left: threads, processes we hear of, files where each call is to be alone; "" for nothing."""
        end = perf_counter() + THREAD_END_S
        while len(threads_by_id()) > self.num_threads:
            if perf_counter() > end:
                return "threads"
            sleep(0.001)
        try:
            while waitpid(-1, WNOHANG) != (0, 0):
                pass  # reaped one that had ended
        except ChildProcessError:
            return "files" if self.files_now() != self.files else ""
        return "processes"

    def files_now(self) -> set[tuple[str, int, int]]:
        """What lies where the worker may write, as it last changed. Mounts below (a Python in /tmp) are only read."""
        found = set()
        for start in self.own_folders if self.fresh_process else ():
            for folder, folders, names in os.walk(start):
                folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    status = os.lstat(path)
                    found.add((path, status.st_ino, 0 if path == folder else status.st_ctime_ns))
        return found

    def outcome(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            value = self.function(**arguments)
            if inspect.isawaitable(value):
                value = self.wait_for(value)
            value = plain(value)
            size = len(dumps(value))
        except SystemExit as error:
            return {"kind": "exited", "message": f"called sys.exit({error.code!r:.100})"}
        except MemoryError:
            return {"kind": "out_of_memory", "message": "MemoryError: the worker's memory limit was reached"}
        except BaseException as error:  # noqa: BLE001  (whatever user code raises is an answer)
            return {"kind": "raised", "message": raised_message(error)}
        if size > self.max_result_bytes:
            text = f"returned {size:,} bytes of JSON, at most {self.max_result_bytes:,} are taken"
            return {"kind": "not_serialisable", "message": text}
        return {"value": value}

    def wait_for(self, awaitable: Awaitable[Any]) -> Any:
        """The result of an `async def`. One event loop for all calls: clients kept in globals stay usable."""
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()

        async def wait() -> Any:
            return await awaitable

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor() as threads:  # for asyncio.to_thread: they end with the call
            self.loop.set_default_executor(threads)
            return self.loop.run_until_complete(wait())


def frame(message: dict[str, Any]) -> bytes:
    data = dumps(message).encode("ascii")
    return len(data).to_bytes(4, "big") + data


def describe(module: types.ModuleType, file_name: str) -> list[dict[str, Any]]:
    """Name, parameters and first lines of every function the module offers, in the order of its text."""
    found = []
    for name, value in list(vars(module).items()):
        if not callable(value) or isinstance(value, (type, types.ModuleType)):
            continue
        try:
            code = getattr(inspect.unwrap(value), "__code__", None)
            parameters = inspect.signature(value).parameters.values()
        except Exception:  # noqa: BLE001  (a client or a mock: an object with attributes of its own is no function)
            continue
        found.append(
            {
                "name": name,
                "parameters": [[p.name, p.kind.name.lower(), p.default is not p.empty] for p in parameters],
                "line": code.co_firstlineno if code else 0,
                "own": bool(code and code.co_filename == file_name),
                "doc": (inspect.getdoc(value) or "").partition("\n")[0][:MAX_TEXT],
            }
        )
    return found


def plain(value: Any, depth: int = 0) -> Any:
    """The value as JSON: number-like objects as numbers, whatever has no JSON form as {"$type", "$text"}."""
    if value is None or isinstance(value, (bool, str)):
        return value if type(value) in (bool, str, type(None)) else str(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() < 4096 else opaque(value, f"an integer of {value.bit_length()} bits")
    if isinstance(value, float):
        return float(value)
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [plain(entry, depth + 1) for entry in value]
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {str(key): plain(entry, depth + 1) for key, entry in value.items()}
    if depth < MAX_DEPTH and callable(getattr(value, "tolist", None)):  # NumPy, torch
        return plain(value.tolist(), depth + 1)
    if depth < MAX_DEPTH and (fields := getattr(type(value), "__dataclass_fields__", None)):  # also our own Result
        return {name: plain(getattr(value, name), depth + 1) for name in fields}
    if hasattr(type(value), "__float__"):  # Decimal, Fraction
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    return opaque(value, repr(value))


def opaque(value: Any, text: str) -> dict[str, str]:
    return {"$type": type(value).__name__, "$text": text[:MAX_TEXT]}


def load_fault(error: BaseException, file_name: str) -> dict[str, Any]:
    """What went wrong in a module body: `error` for people, the line, and the missing package if that is it."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file_name:
            line = frame.lineno
    package = (error.name or "") if isinstance(error, ImportError) else ""
    text = f"called sys.exit({error.code!r:.100})" if isinstance(error, SystemExit) else cut(last_line(error))
    return {"error": text, "line": line, "package": package.partition(".")[0]}


def last_line(error: BaseException) -> str:
    """`ValueError: bad` in one line; of a syntax error its message only (the place is reported beside it)."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    return "".join(traceback.format_exception_only(type(error), error)).strip()


def raised_message(error: BaseException) -> str:
    """The exception in its first line, then where it came from: frames of user code only."""
    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
        return cut((last_line(error) + "\n" + "".join(traceback.format_list(frames[-10:]))).strip())
    except Exception as second:  # noqa: BLE001  (an exception whose own text raises)
        return f"{type(error).__name__} (its text cannot be shown: {type(second).__name__})"


def cut(text: str) -> str:
    """At most 4,000 characters, and a mark where more is missing."""
    return (
        text
        if len(text) <= MAX_MESSAGE
        else f"{text[:MAX_MESSAGE]}[... cut: {len(text) - MAX_MESSAGE} characters more]"
    )


def apply_limits(limits: dict[str, int]) -> None:
    """Hard limits of this process and its children. Set here: between fork and exec it would be unsafe with threads."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: limits["max_memory_bytes"],
        resource.RLIMIT_FSIZE: limits["max_file_bytes"],
    }
    for kind, value in wanted.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if kind != resource.RLIMIT_AS:  # macOS refuses limits of the address space
                raise


class OurPackage:
    """Finds `reinforge` where this file lies: user code may import our graders, whatever else its Python has."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        if name != "reinforge":
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(name, os.path.join(os.path.dirname(__file__), "..", "__init__.py"))


if __name__ == "__main__":
    parsed = loads(sys.argv[2])
    apply_limits(parsed)
    channel = int(sys.argv[1])
    sys.argv[:] = [""]
    os.environ["HOME"] = os.getcwd()  # some packages (nltk) cannot be imported without one
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]
    sys.meta_path.insert(0, OurPackage)
    os.set_inheritable(channel, False)
    Runner(channel, parsed).serve()
