"""Servers of this machine for tests of connections: each listens on 127.0.0.1 and says what it got."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Serve = Callable[[socket.socket], None]


class Server:
    """Calls `serve` with each connection, in a thread of its own."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._serve, self._tls = serve, tls
        self._listener = socket.create_server((host, 0))
        self.port = int(self._listener.getsockname()[1])
        self.num_connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.num_connections += 1
                self._open.append(connection)
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection:
                self._serve(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            connection.close()


def requests_on(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """(head, body) of each request that comes over a connection, until one is the last; bodies by Content-Length."""
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            part = connection.recv(1 << 16)
            if not part:
                return
            received += part
        head, _, received = received.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        size = int(lengths[0]) if lengths else 0
        while len(received) < size:
            part = connection.recv(1 << 16)
            if not part:
                return
            received += part
        body, received = received[:size], received[size:]
        yield head, body
        if b"\r\nconnection: close" in head.lower():
            return


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def echo(connection: socket.socket) -> None:
    """Answers each request with its head, a bar, and its body."""
    for head, body in requests_on(connection):
        connection.sendall(answer(head + b"|" + body))


def make_authority(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """(file of an authority, what a server needs to be `names`): a certificate signed by itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    alternatives = ",".join(f"DNS:{name}" for name in names)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=test"]
    subprocess.run([*command, "-addext", f"subjectAltName={alternatives}"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
