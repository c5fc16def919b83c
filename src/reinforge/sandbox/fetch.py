"""Requests over HTTP under a policy, for our own code: judges, webhooks, the server.

Standard library only, because the deadline must hold for the request as a whole (look-up, TLS, a body that drips) and
the connection must go to the address the policy has judged; libraries above `http.client` hide the socket.
Connections are kept and used again. Redirects are not followed, and the proxies of this process's own environment are
not used.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from reinforge.errors import NetworkError
from reinforge.sandbox.addresses import with_port
from reinforge.sandbox.egress import EgressPolicy

MAX_IDLE_S = 30.0
"""Servers close idle connections after some time; five seconds is the shortest in common use, but we notice."""
MAX_IDLE = 64
READ_BYTES = 1 << 16
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; several of one name joined by commas."""
    body: bytes


class Client:
    """Makes requests under one policy and keeps connections for the next ones. Any thread may use it.

    A kept connection that breaks before an answer begins was closed by the server meanwhile: the request is sent again.
    """

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._idle: dict[_Server, list[_Connection]] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline_s: float,
        on_resend: Callable[[], None] = lambda: None,
    ) -> Reply:
        """One request, answered within `deadline_s` seconds (and the policy's `timeout_s`); NetworkError if not.

        `on_resend` is called whenever it is sent again: the server may have taken it the time before.
        """
        server, target = _parse(url)
        server = server._replace(host=self._policy.check(server.host, server.port))
        most = self._policy.max_request_bytes
        if body is not None and len(body) > most:
            text = f"the request to {server} has {len(body):,} bytes, at most {most:,} are sent."
            raise NetworkError(text, kind="too_large")
        allowed_s = min(deadline_s, self._policy.timeout_s)
        sent = {"Host": server.as_header(), "Accept-Encoding": "identity", **_checked(headers)}
        request = _Request(server, method, target, sent, body, time.monotonic() + allowed_s, on_resend)
        try:
            return self._reply_to(request)
        except TimeoutError:
            raise NetworkError(f"{server} did not answer within {allowed_s:g} s.", kind="timeout") from None
        except ssl.SSLError as error:
            raise NetworkError(f"TLS with {server} failed: {_reason(error)}.", kind="tls", hint=_TLS_HINT) from None
        except http.client.HTTPException as error:
            text = f"{server} answered what is no whole HTTP: {type(error).__name__}: {error!s:.200}."
            raise NetworkError(text, kind="broken") from None
        except OSError as error:
            raise NetworkError(f"the connection to {server} failed: {error}.", kind="connect") from None

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connection in (connection for of_server in idle.values() for connection in of_server):
            connection.end()

    def _reply_to(self, request: _Request) -> Reply:
        while (connection := self._take(request.server)) is not None:
            try:
                return self._over(connection, request)
            except _Unused:  # the server closed it in the moment we wrote
                request.on_resend()
        try:
            return self._over(self._connect(request.server, request.end), request)
        except _Unused as unused:
            raise unused.cause from None

    def _over(self, connection: _Connection, request: _Request) -> Reply:
        try:
            connection.socket.end = request.end
            try:
                connection.request(request.method, request.target, request.body, request.headers)
                answer = connection.getresponse()
            except (ConnectionError, ssl.SSLEOFError) as error:
                raise _Unused(error) from None
            reply = Reply(answer.status, _joined(answer), self._body(answer, request.server))
        except BaseException:
            connection.end()
            raise
        if answer.will_close:
            connection.end()
        else:
            self._put_back(request.server, connection)
        return reply

    def _body(self, answer: http.client.HTTPResponse, server: _Server) -> bytes:
        most, parts, received = self._policy.max_response_bytes, list[bytes](), 0
        while received + (answer.length or 0) <= most and (part := answer.read(READ_BYTES)):
            parts.append(part)
            received += len(part)
        if received + (answer.length or 0) > most:
            raise NetworkError(f"{server} answered more than {most:,} bytes.", kind="too_large")
        if answer.length:  # `read` in pieces does not mind a body that ends too early
            raise http.client.IncompleteRead(b"", answer.length)
        return b"".join(parts)

    def _take(self, server: _Server) -> _Connection | None:
        with self._lock:
            idle = self._idle.get(server, [])
            while idle:
                connection = idle.pop()
                if connection.is_usable():
                    return connection
                connection.end()
        return None

    def _put_back(self, server: _Server, connection: _Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(server, [])
            idle.append(connection)
            surplus = idle.pop(0) if len(idle) > MAX_IDLE else None
        if surplus is not None:
            surplus.end()

    def _connect(self, server: _Server, end: float) -> _Connection:
        bare = _connected(self._policy.look_up(server.host, server.port).result(_left(end)), server.port, end)
        try:
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if server.scheme == "https":
                bare.settimeout(_left(end))  # for the handshake as a whole
                bare = self._tls_context().wrap_socket(bare, server_hostname=server.host)
        except BaseException:
            bare.close()
            raise
        return _Connection(server, _TimedSocket(bare, end))

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
                self._tls.set_alpn_protocols(["http/1.1"])
            return self._tls


def fetch(
    policy: EgressPolicy,
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    deadline_s: float = 60.0,
) -> Reply:
    """One request by a client that all requests under this policy share; NetworkError when it gets no reply."""
    return _client(policy).fetch(method, url, headers or {}, body, deadline_s)


@cache
def _client(policy: EgressPolicy) -> Client:
    return Client(policy)


class _Server(NamedTuple):
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.as_header()}"

    def as_header(self) -> str:
        return with_port(self.host, self.port, unless=_PORTS[self.scheme])


class _Request(NamedTuple):
    server: _Server
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | None
    end: float
    on_resend: Callable[[], None]


class _Unused(Exception):
    """A connection broke before an answer began."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Connection(http.client.HTTPConnection):
    """On a socket that is connected already; never opens one by itself, which would look the name up again."""

    auto_open = 0

    def __init__(self, server: _Server, connected: _TimedSocket) -> None:
        super().__init__(server.host, server.port)
        self.socket = connected
        self.sock: Any = connected
        self.idle_since = 0.0

    def is_usable(self) -> bool:
        """Not too old, and nothing arrived while nobody asked: not even its end."""
        if time.monotonic() - self.idle_since > MAX_IDLE_S:
            return False
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        return not poll.poll(0)

    def end(self) -> None:
        self.close()
        self.socket.end_now()


class _TimedSocket:
    """What `http.client` needs of a socket, with one deadline for all it does."""

    def __init__(self, connected: socket.socket, end: float) -> None:
        self._socket = connected
        self.end = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._socket.settimeout(_left(self.end))
            view = view[self._socket.send(view) :]

    def recv_into(self, buffer: Any) -> int:
        self._socket.settimeout(_left(self.end))
        return self._socket.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self), READ_BYTES)

    def close(self) -> None:
        """Nothing: `http.client` calls it before it reads a body that lasts until the connection ends."""

    def end_now(self) -> None:
        self._socket.close()


class _Reading(io.RawIOBase):
    def __init__(self, source: _TimedSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.recv_into(buffer)


_TLS_HINT = "Did an authority of your own sign its certificate? Put the path of its file into SSL_CERT_FILE."
_URL_HINT = "Write it as https://api.example.org/path: no user or password, and %xx for other characters."


def _parse(url: str) -> tuple[_Server, str]:
    """(server, request target) of a URL; NetworkError (refused) for what is none."""
    parts, port = urlsplit(""), None
    if url.isascii() and url.isprintable() and not set(url) & set(' \\"<>^`{|}'):
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        shown = url.partition("?")[0].rpartition("@")[2][:200]  # whatever may be secret in it stays out
        raise NetworkError(f"{shown!r} is no URL of a server.", kind="refused", hint=_URL_HINT)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Server(parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port), target


def _checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers, if they can be sent. What is in one stays out of the message: it may be a key."""
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            raise NetworkError(
                f"the header {name!r:.100} holds a character that no header may hold.",
                kind="refused",
                hint="Look for a line end at the end of a key that came from a file.",
            )
    return headers


def _connected(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """To the first of them that answers, each within its share of the time that is left."""
    for number, address in enumerate(addresses):
        try:
            return socket.create_connection((address, port), _left(end) / (len(addresses) - number))
        except OSError:
            if number == len(addresses) - 1:
                raise
    raise AssertionError("a look-up gives at least one address")


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _joined(answer: http.client.HTTPResponse) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in answer.getheaders():
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined


def _reason(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or str(error)
