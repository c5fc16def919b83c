"""The first lines of an HTTP request to a proxy, read strictly: what two readers could take for two things is refused.

RFC 9112 (HTTP/1.1), sections 3, 5, 6 and 11.2 (request smuggling); RFC 9110, sections 7.6.1 and 9.3.6 (CONNECT).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from reinforge.sandbox.addresses import split_port, with_port

MAX_HEADERS = 100
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIRST_LINE = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)( [\t -~\x80-\xff]*)?")
_OF_ONE_CONNECTION = {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"host", b"expect"}
"""Not passed on, nor whatever begins with Proxy-; Host is written anew."""


class BadRequest(Exception):
    """What a client sent is no request that a proxy may take; `status` is the answer."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a proxy."""

    kind: Literal["tunnel", "plain"]
    """CONNECT, or a whole URL that begins with http://."""
    host: str
    port: int
    credential: str
    """Value of Proxy-Authorization."""
    forwarded: bytes
    """Head for the server: the host in one spelling, Connection: close, nothing for the proxy; b"" in a tunnel."""
    num_body_bytes: int


def parse_request(head: bytes) -> Request:
    """A request from its head, which ends with an empty line; BadRequest.

    Example:
        >>> request = parse_request(b"CONNECT Example.org:443 HTTP/1.1\\r\\nHost: whatever\\r\\n\\r\\n")
        >>> request.kind, request.host, request.port
        ('tunnel', 'example.org', 443)
        >>> parse_request(b"GET http://a.example/x HTTP/1.1\\r\\nHost: other\\r\\n\\r\\n").forwarded
        b'GET /x HTTP/1.1\\r\\nHost: a.example\\r\\nConnection: close\\r\\n\\r\\n'
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = _FIRST_LINE.fullmatch(first)
    if match is None:
        raise BadRequest("the first line is no request")
    method, target = match[1], match[2].decode("ascii")
    headers = _headers(lines)
    credential = b"".join(value for name, value in headers if name.lower() == b"proxy-authorization").decode("latin-1")
    if method == b"CONNECT":
        host, port = _host_and_port(target)
        if port is None:
            raise BadRequest("CONNECT names no port")
        return Request("tunnel", host, port, credential, b"", 0)
    host, port, path = _parts_of_url(target)
    size = _num_body_bytes(headers)
    named = {option.strip().lower() for value in _values(headers, b"connection") for option in value.split(b",")}
    kept = [
        b"%s: %s" % (name, value)
        for name, value in headers
        if name.lower() not in _OF_ONE_CONNECTION | named or name.lower() == b"content-length"
        if not name.lower().startswith(b"proxy-")
    ]
    own = [f"Host: {with_port(host, port, unless=80)}".encode("ascii"), b"Connection: close"]
    forwarded = b"\r\n".join([b"%s %s HTTP/1.1" % (method, path.encode("ascii")), *own, *kept, b"", b""])
    return Request("plain", host, port, credential, forwarded, size)


def answer_head(head: bytes) -> bytes | None:
    """The head of a server's answer as the client gets it; None for an interim one, after which the real one follows.

    Example:
        >>> answer_head(b"HTTP/1.1 200 OK\\r\\nKeep-Alive: timeout=5\\r\\nA: b\\r\\n\\r\\n")
        b'HTTP/1.1 200 OK\\r\\nA: b\\r\\nConnection: close\\r\\n\\r\\n'
        >>> answer_head(b"HTTP/1.1 103 Early Hints\\r\\n\\r\\n")
    """
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise BadRequest("the server answered what is no HTTP", 502)
    if match[1].startswith(b"1"):
        return None
    kept = [line for line in lines if line.partition(b":")[0].lower() not in (b"connection", b"keep-alive")]
    return b"\r\n".join([first, *kept, b"Connection: close", b"", b""])


def _headers(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    if len(lines) > MAX_HEADERS:
        raise BadRequest(f"more than {MAX_HEADERS} headers", 431)
    matches = [_HEADER.fullmatch(line) for line in lines]
    found = [(match[1], match[2]) for match in matches if match is not None]
    if len(found) < len(lines):
        raise BadRequest("a line is no header")
    return found


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]


def _num_body_bytes(headers: list[tuple[bytes, bytes]]) -> int:
    if _values(headers, b"transfer-encoding"):
        raise BadRequest("over plain HTTP a body needs a Content-Length: send it whole, or use https", 411)
    lengths = _values(headers, b"content-length")
    if not lengths:
        return 0
    if len(lengths) > 1 or not re.fullmatch(rb"\d{1,15}", lengths[0]):
        raise BadRequest("its Content-Length is not one number")
    return int(lengths[0])


def _parts_of_url(target: str) -> tuple[str, int, str]:
    """(host, port, path and query) of a URL that begins with http://."""
    scheme, _, rest = target.partition("://")
    if scheme.lower() != "http" or not rest:
        raise BadRequest("a proxy takes CONNECT, or a whole URL that begins with http://")
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadRequest("the URL cannot be read") from None
    host, port = _host_and_port(parts.netloc)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, 80 if port is None else port, path


def _host_and_port(text: str) -> tuple[str, int | None]:
    try:
        return split_port(text)
    except ValueError as error:
        raise BadRequest(str(error)) from None
