"""A real HTTP server that speaks chat completions and misbehaves on request, for tests of judges."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict], object]
"""Request body -> the judge's text (or an object, sent as JSON text)."""


class JudgeServer:
    """A context manager; `url` is its base URL. Its counters may be read at any time."""

    def __init__(
        self,
        answer: Answer = lambda body: {"result": 0.5},
        fault: Callable[[dict, int], str] = lambda body, attempt: "",
    ) -> None:
        """`fault` names one of the faults below, or none, for the request and how often it came before (from 0)."""
        self.answer = answer
        self.fault = fault
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.at: list[float] = []
        self.under_way = self.most_under_way = 0
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        outer = self

        class Handler(_Handler):
            server_of_test = outer

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_test: JudgeServer

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        test, raw = self.server_of_test, self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        asked = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with test.lock:
            attempt = test.seen[asked]
            test.seen[asked] += 1
            test.requests.append(body)
            test.headers.append(dict(self.headers))
            test.at.append(time.monotonic())
            test.under_way += 1
            test.most_under_way = max(test.most_under_way, test.under_way)
        try:
            fault = test.fault(body, attempt)
            if fault:
                FAULTS[fault](self)
            else:
                self.send(200, completion(test.answer(body)))
        finally:
            with test.lock:
                test.under_way -= 1

    def send(self, status: int, body: object, content_type: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", headers.pop("length", str(len(data))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def cut(self) -> None:
        self.send(200, b'{"choices": [', length="500")
        self.close_connection = True

    def hang(self) -> None:
        self.server_of_test.closing.wait(30)
        self.close_connection = True

    def drip(self) -> None:
        """A byte now and then, for ever: no single wait is long."""
        self.send(200, b"", length="100000")
        while not self.server_of_test.closing.wait(0.05):
            self.wfile.write(b" ")

    def flood(self) -> None:
        self.send(200, b"", length=str(1 << 30))
        while not self.server_of_test.closing.is_set():
            self.wfile.write(b" " * 65536)


def completion(content: object, **message: object) -> dict:
    """The envelope; `content` an object is sent as its JSON text."""
    text = content if isinstance(content, str) or content is None else json.dumps(content)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def error(message: str, **fields: object) -> dict:
    return {"error": {"message": message, "type": "error", **fields}}


def cut_off() -> dict:
    whole = completion('{"result": 1}')
    whole["choices"][0]["finish_reason"] = "length"
    return whole


def filtered() -> dict:
    whole = completion(None)
    whole["choices"][0]["finish_reason"] = "content_filter"
    return whole


FAULTS: dict[str, Callable[[_Handler], None]] = {
    "429": lambda h: h.send(429, error("slow down")),
    "429 seconds": lambda h: h.send(429, error("slow down"), Retry_After="1"),
    "429 zero": lambda h: h.send(429, error("slow down"), Retry_After="0"),
    "429 date": lambda h: h.send(429, error("slow down"), Retry_After=formatdate(time.time() + 1.5, usegmt=True)),
    "429 quota": lambda h: h.send(429, error("You exceeded your quota", code="insufficient_quota")),
    "400": lambda h: h.send(400, error("the prompt is too long for this model")),
    "400 plain": lambda h: h.send(400, b"bad request", "text/plain"),
    "401": lambda h: h.send(401, error("Incorrect API key provided: secret-key-1234")),
    "404": lambda h: h.send(404, error("model not found")),
    "500": lambda h: h.send(500, error("oops")),
    "503": lambda h: h.send(503, b"<h1>Service Unavailable</h1>", "text/html"),
    "503 zero": lambda h: h.send(503, error("loading"), Retry_After="0"),
    "html": lambda h: h.send(200, b"<html>Sign in to the Wi-Fi</html>", "text/html"),
    "wrong type": lambda h: h.send(200, completion({"result": 1}), "text/plain"),
    "broken json": lambda h: h.send(200, b'{"choices": [{"message": {"content": '),
    "wrong shape": lambda h: h.send(200, {"choices": []}),
    "no object": lambda h: h.send(200, [1, 2]),
    "deep": lambda h: h.send(200, b"[" * 200_000),
    "refusal": lambda h: h.send(200, completion(None, refusal="I can't help with that.")),
    "filter": lambda h: h.send(200, filtered()),
    "cut off": lambda h: h.send(200, cut_off()),
    "prose": lambda h: h.send(200, completion('I would say {"result": 1} because it is good.')),
    "redirect": lambda h: h.send(302, b"", Location="http://127.0.0.1:1/elsewhere"),
    "reset": _Handler.reset,
    "cut": _Handler.cut,
    "hang": _Handler.hang,
    "drip": _Handler.drip,
    "flood": _Handler.flood,
}


def at_random(share: float, *kinds: str, seed: int = 0) -> Callable[[dict, int], str]:
    """Faults on this share of requests, the same ones in every run: drawn from the question and its attempt."""

    def fault(body: dict, attempt: int) -> str:
        asked = json.dumps([seed, attempt, body["messages"]])
        number = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8], "big")
        return kinds[number % len(kinds)] if (number >> 16) % 10_000 < share * 10_000 else ""

    return fault
