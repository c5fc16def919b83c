"""The only way from a sandbox worker to the network: a proxy in our process, one for each worker process.

It listens on a socket that a worker without any other network can reach (bubblewrap.py), and takes CONNECT for TLS and
whole URLs for plain HTTP. Every request is put before the policy (egress.py); a refused host is answered with 403 and
the rule in the words of the status line, which Python's HTTP libraries put into their exceptions.

What a worker does with it costs the trainer little: bounded buffers, heads, times and connections, one request
for each connection; what it sends beyond that waits in the worker's own buffers. All proxies share one thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Literal

from reinforge.errors import NetworkError
from reinforge.sandbox.addresses import with_port
from reinforge.sandbox.egress import EgressPolicy
from reinforge.sandbox.http_head import BadRequest, Request, answer_head, parse_request

MAX_CONNECTIONS = 32
"""Of one worker at once; further ones wait."""
MAX_HEAD_BYTES = 1 << 14
MAX_ANSWER_HEAD_BYTES = 1 << 16
MAX_INTERIM = 8
PIECE_BYTES = 1 << 15
HEAD_S = 10.0
"""For a worker to say what it wants."""
REACH_S = 30.0
"""For the look-up and the connection."""
IDLE_S = 2.0
"""After this long without a byte a tunnel that waits for nothing may be closed for another connection."""
HALF_S = 10.0
"""For a server to finish when the worker has ended its side, and for the last bytes to reach a worker."""
LINGER_S = 1.0
CLOSE_S = 2.0
MAX_REASON = 300
USER = "worker"

Verdict = Literal["allowed", "refused", "failed", "cut"]


@dataclass(slots=True)
class Connection:
    """One connection that a worker asked for."""

    host: str = ""
    """As `name:port`, empty when it named none."""
    verdict: Verdict = "refused"
    """refused: by the policy, or no request; failed: allowed, but nobody answered; cut: ended at a limit."""
    reason: str = ""
    """Why it is not simply allowed."""
    sent_bytes: int = 0
    """From the worker to the host, TLS included."""
    received_bytes: int = 0
    duration_s: float = 0.0


class WorkerProxy:
    """Serves one worker process until `close`, or until we end."""

    def __init__(
        self,
        listener: socket.socket,
        policy: EgressPolicy,
        on_connection: Callable[[Connection], None],
        credential: str = "",
    ) -> None:
        """`listener` is ours from here on; `on_connection` is called in the proxy's thread after each connection. Where
        others can reach the listener, `credential` is what a client must show."""
        listener.setblocking(False)
        self._listener = listener
        self._policy = policy
        self._tell = on_connection
        self._expected = "Basic " + base64.b64encode(f"{USER}:{credential}".encode()).decode() if credential else ""
        self._sessions: set[_Session] = set()
        self._loop = _running_loop()
        self._accepting = asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result()

    def close(self) -> None:
        """Stop listening and end all connections; from any thread, twice is fine."""
        ended = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.current_thread() is not _thread:  # there, waiting for ourselves would be for ever
            with contextlib.suppress(TimeoutError):  # a machine under load: it ends all the same
                ended.result(CLOSE_S)

    async def _begin(self) -> asyncio.Task[None]:
        return self._loop.create_task(self._accept())

    async def _end(self) -> None:
        self._accepting.cancel()
        for session in self._sessions:
            session.task.cancel()
        await asyncio.gather(self._accepting, *(session.task for session in self._sessions), return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            await self._wait_for_room()
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # out of descriptors, or it was aborted
                await asyncio.sleep(0.05)
            else:
                self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        session = _Session()
        session.task = self._loop.create_task(self._run(connection, session))
        self._sessions.add(session)
        _open_sessions.add(session)

    async def _wait_for_room(self) -> None:
        """Until one more connection may be open; a leaked one makes room for it."""
        while (own := len(self._sessions) >= MAX_CONNECTIONS) or len(_open_sessions) >= _max_all_connections():
            idle = [session for session in (self._sessions if own else _open_sessions) if session.is_idle()]
            if idle:
                min(idle, key=lambda session: session.last_byte).task.cancel()
            await asyncio.sleep(0.02)

    async def _run(self, connection: socket.socket, session: _Session) -> None:
        record = session.record
        reader, writer = None, None
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD_BYTES)
            async with asyncio.timeout(self._policy.timeout_s):
                await self._handle(reader, writer, session)
        except _TooMuch as limit:
            record.verdict, record.reason = "cut", str(limit)
        except TimeoutError:
            record.verdict = "cut" if record.host else "refused"
            record.reason = f"not over within {self._policy.timeout_s:g} s"
        except (OSError, EOFError):  # one side is gone
            pass
        finally:
            self._sessions.discard(session)
            _open_sessions.discard(session)
            if writer is None:
                connection.close()
            else:
                writer.transport.abort()
            self._tell_once(session)

    def _tell_once(self, session: _Session) -> None:
        """Of a connection that is over, unless nothing was ever asked for."""
        record = session.record
        if not session.is_told and (record.host or record.reason):
            session.is_told = True
            record.duration_s = time.monotonic() - session.start
            self._tell(record)

    async def _refuse(self, client: _Stream, session: _Session, status: int, reason: str) -> None:
        """Told before the worker hears of it: whoever has its score finds the refusal counted."""
        self._tell_once(session)
        await _say_no(client, status, reason)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: _Session) -> None:
        record = session.record
        try:
            request = await self._request(reader)
            record.host = with_port(request.host, request.port)
            upstream = await self._reach(request, session)
        except BadRequest as bad:
            record.reason = str(bad)
            await self._refuse((reader, writer), session, bad.status, str(bad))
            return
        except NetworkError as error:
            record.verdict, record.reason = ("refused" if error.kind == "refused" else "failed"), error.message
            await self._refuse((reader, writer), session, 403 if error.kind == "refused" else 502, str(error))
            return
        record.verdict, record.reason = "allowed", ""
        try:
            if request.kind == "tunnel":
                await self._relay(session, (reader, writer), upstream)
            else:
                await self._pass_on(session, request, (reader, writer), upstream)
            writer.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HALF_S):  # for the last bytes to get through
                    await writer.wait_closed()
        finally:
            upstream[1].transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> Request:
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            raise BadRequest(f"no request within {HEAD_S:g} s", 408) from None
        except asyncio.LimitOverrunError:
            raise BadRequest(f"a head of more than {MAX_HEAD_BYTES:,} bytes", 431) from None
        request = parse_request(head)
        if self._expected and not hmac.compare_digest(request.credential.encode(), self._expected.encode()):
            raise BadRequest("this proxy serves one worker, who knows its password", 407)
        if request.num_body_bytes > self._policy.max_request_bytes:
            raise BadRequest(f"a body of more than {self._policy.max_request_bytes:,} bytes", 413)
        return request

    async def _reach(self, request: Request, session: _Session) -> _Stream:
        """A connection to the address that the policy has judged; NetworkError."""
        name = self._policy.check(request.host, request.port)
        session.record.verdict = "failed"
        try:
            async with asyncio.timeout(REACH_S):
                addresses = await asyncio.wrap_future(self._policy.look_up(name, request.port))
                return await _first_of(addresses, request.port)
        except TimeoutError:
            raise NetworkError(f"{name} was not reached within {REACH_S:g} s.", kind="timeout") from None
        except OSError as error:
            raise NetworkError(f"{name} was not reached: {error}.", kind="connect") from None

    async def _relay(self, session: _Session, client: _Stream, upstream: _Stream) -> None:
        """Both ways, until the server has ended or, some seconds after it, the client."""
        client[1].write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await _until_answered(
            self._pump(session, client[0], upstream[1], "sent"), self._pump(session, upstream[0], client[1], "received")
        )

    async def _pass_on(self, session: _Session, request: Request, client: _Stream, upstream: _Stream) -> None:
        """One request with exactly its body, one answer; what the client sends beyond that goes nowhere."""
        session.count("sent", len(request.forwarded), self._policy)
        upstream[1].write(request.forwarded)

        async def ask() -> None:
            await self._pump(session, client[0], upstream[1], "sent", request.num_body_bytes)
            if await client[0].read(1):
                await asyncio.get_running_loop().create_future()  # never: it is not over, and nobody listens

        async def answer() -> None:
            head = await _answer_head(upstream[0])
            session.count("received", len(head), self._policy)
            client[1].write(head)
            await self._pump(session, upstream[0], client[1], "received")

        try:
            await _until_answered(ask(), answer())
        except BadRequest as bad:
            session.record.verdict, session.record.reason = "failed", str(bad)
            await self._refuse(client, session, bad.status, str(bad))

    async def _pump(
        self,
        session: _Session,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        way: Literal["sent", "received"],
        num_bytes: int | None = None,
    ) -> None:
        """`num_bytes`, or all of them and the end too."""
        while num_bytes is None or num_bytes > 0:
            piece = await source.read(PIECE_BYTES if num_bytes is None else min(PIECE_BYTES, num_bytes))
            if not piece:
                break
            session.count(way, len(piece), self._policy)
            sink.write(piece)
            await sink.drain()
            num_bytes = None if num_bytes is None else num_bytes - len(piece)
        if num_bytes is None:
            sink.write_eof()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _TooMuch(Exception):
    """A connection carried more than its limit."""


class _Session:
    """A connection while it is open."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.record = Connection()
        self.start = self.last_byte = time.monotonic()
        self.is_answered = self.is_told = False

    def count(self, way: Literal["sent", "received"], num_bytes: int, policy: EgressPolicy) -> None:
        """Before they are passed on, so that whoever got them finds them counted."""
        self.last_byte, self.is_answered = time.monotonic(), way == "received"
        if way == "sent":
            self.record.sent_bytes += num_bytes
            over = self.record.sent_bytes > policy.max_request_bytes + MAX_HEAD_BYTES
        else:
            self.record.received_bytes += num_bytes
            over = self.record.received_bytes > policy.max_response_bytes + MAX_ANSWER_HEAD_BYTES
        if over:
            raise _TooMuch(
                f"more than {policy.max_request_bytes if way == 'sent' else policy.max_response_bytes:,} bytes"
            )

    def is_idle(self) -> bool:
        """Whether nobody seems to wait for anything here: the last word was the server's."""
        return self.is_answered and time.monotonic() - self.last_byte > IDLE_S


async def _first_of(addresses: list[str], port: int) -> _Stream:
    """A connection to the first address that answers, each within its share of REACH_S."""
    for number, address in enumerate(addresses):
        try:
            async with asyncio.timeout(REACH_S / len(addresses)):
                return await asyncio.open_connection(address, port, limit=MAX_ANSWER_HEAD_BYTES)
        except (OSError, TimeoutError):
            if number == len(addresses) - 1:
                raise
    raise AssertionError("a look-up gives at least one address")


async def _until_answered(asking: Coroutine[None, None, None], answering: Coroutine[None, None, None]) -> None:
    """Run both until the answer is whole; when the one who asks has left, not much longer."""
    asks, answers = asyncio.ensure_future(asking), asyncio.ensure_future(answering)
    try:
        await asyncio.wait({asks, answers}, return_when=asyncio.FIRST_COMPLETED)
        if asks.done() and asks.exception() is None:
            await asyncio.wait({answers}, timeout=HALF_S)
    finally:
        for task in (asks, answers):
            task.cancel()
        faults = await asyncio.gather(asks, answers, return_exceptions=True)
    for fault in faults:
        if isinstance(fault, Exception):
            raise fault


async def _answer_head(upstream: asyncio.StreamReader) -> bytes:
    for _ in range(MAX_INTERIM):
        try:
            head = answer_head(await upstream.readuntil(b"\r\n\r\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise BadRequest("the server answered what is no HTTP", 502) from None
        if head is not None:
            return head
    raise BadRequest("the server answered nothing but interim answers", 502)


async def _say_no(client: _Stream, status: int, reason: str) -> None:
    """In the status line, where programs look, and in the body. What was sent is read for a moment: a closed
    connection could take the answer with it."""
    line = "".join(character if " " <= character <= "~" else "?" for character in reason)[:MAX_REASON]
    body = f"{line}\n".encode("ascii")
    asks = 'Proxy-Authenticate: Basic realm="reinforge"\r\n' if status == 407 else ""
    head = f"HTTP/1.1 {status} {line}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n{asks}"
    reader, writer = client
    with contextlib.suppress(OSError):
        writer.write(head.encode("ascii") + b"Connection: close\r\n\r\n" + body)
        writer.write_eof()
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while await reader.read(PIECE_BYTES):
                    pass


_open_sessions: set[_Session] = set()
_lock = threading.Lock()
_thread: threading.Thread | None = None
_loop: asyncio.AbstractEventLoop | None = None


def _max_all_connections() -> int:
    """Of all workers together: two descriptors each, and at most half of those we may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 256 if soft == resource.RLIM_INFINITY else max(2, min(256, soft // 4))


def _running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of all proxies, in a thread that ends with the process."""
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="egress-proxy", daemon=True)
            _thread.start()
        return _loop


def _forget() -> None:
    global _loop, _thread, _lock
    _loop, _thread, _lock = None, None, threading.Lock()
    _open_sessions.clear()


os.register_at_fork(after_in_child=_forget)
