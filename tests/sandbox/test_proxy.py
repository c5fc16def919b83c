"""The proxy of a worker, spoken to directly: what it lets through, and what a hostile client costs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import shutil
import socket
import ssl
import time

import pytest
from processes import own_memory_bytes
from servers import Server, answer, echo, make_authority, requests_on

from reinforge.sandbox import proxy
from reinforge.sandbox.egress import EgressPolicy
from reinforge.sandbox.proxy import WorkerProxy

HOST = "api.example.org"


class Run:
    """A proxy, a server behind it, and what was logged."""

    def __init__(self, serve, *, credential="", tls=None, **policy):
        self.server = Server(serve, tls)
        self.log = []
        hosts = (f"{HOST}:{self.server.port}", "*.wide.example.org", f"127.0.0.1:{self.server.port}")
        defaults = {"allowed_hosts": hosts, "allow_private_addresses": True, "section": "reward_fns.runtime"}
        self.policy = EgressPolicy(**defaults | {"resolve": lambda host, port: ["127.0.0.1"]} | policy)
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = listener.getsockname()[1]
        self.proxy = WorkerProxy(listener, self.policy, self.log.append, credential)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def say(self, data: bytes) -> bytes:
        """All that comes back."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)

    def tunnel(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.set_tunnel(HOST, self.server.port)
        return connection

    def logged(self, number=1):
        end = time.monotonic() + 10
        while len(self.log) < number and time.monotonic() < end:
            time.sleep(0.01)
        return self.log

    def close(self):
        self.proxy.close()
        self.server.close()


def read_all(connection):
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def run():
    made = []

    def make(serve=echo, **changes):
        made.append(Run(serve, **changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_tunnel_carries_requests_and_is_logged_with_its_bytes(run):
    here = run()
    tunnel = here.tunnel()
    for body in (b"one", b"two" * 100_000):
        tunnel.request("POST", "/x", body)
        assert tunnel.getresponse().read().endswith(b"|" + body)
    tunnel.close()
    (record,) = here.logged()
    assert (record.host, record.verdict, record.reason) == (f"{HOST}:{here.server.port}", "allowed", "")
    assert record.sent_bytes > 300_000
    assert record.received_bytes > 300_000


def test_a_plain_request_is_passed_on_with_its_body(run):
    here = run()
    head = f"POST http://{HOST}:{here.server.port}/a?b HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 4\r\n\r\n"
    reply = here.say(head.encode() + b"body")
    expected = f"POST /a?b HTTP/1.1\r\nHost: {HOST}:{here.server.port}\r\nConnection: close\r\nContent-Length: 4|body"
    assert reply.endswith(b"Connection: close\r\n\r\n" + expected.encode())
    assert here.logged()[0].verdict == "allowed"


def test_a_large_body_gets_through_both_ways_in_whole(run):
    here = run()
    body = bytes(range(256)) * 20_000
    head = f"POST http://{HOST}:{here.server.port}/ HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    assert here.say(head.encode() + body).partition(b"|")[2] == body


def test_tls_is_between_the_worker_and_the_host(run, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no program openssl to make a certificate with")
    file, context = make_authority(tmp_path, HOST)
    here = run(tls=context)
    connection = http.client.HTTPSConnection(
        "127.0.0.1", here.port, timeout=20, context=ssl.create_default_context(cafile=file)
    )
    connection.set_tunnel(HOST, here.server.port)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_refused_host_is_told_why_where_programs_look(run):
    here = run(resolve=lambda host, port: pytest.fail(host))
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=20)
    connection.set_tunnel("evil.example", 443)
    with pytest.raises(OSError, match="Tunnel connection failed: 403 ") as caught:
        connection.connect()
    assert "evil.example is none of the hosts in reward_fns.runtime.allowed_hosts" in str(caught.value)
    assert 'Add "evil.example" there to allow it.' in str(caught.value)
    connection.close()
    (record,) = here.logged()
    assert (record.host, record.verdict, record.sent_bytes) == ("evil.example:443", "refused", 0)


REFUSED = {
    "another host": "CONNECT evil.example:443",
    "another port": "CONNECT api.example.org:22",
    "an address": "CONNECT 10.0.0.1:443",
    "this machine": "CONNECT localhost:{port}",
    "this machine in IPv6": "CONNECT [::1]:{port}",
    "this machine, mapped": "CONNECT [::ffff:127.0.0.2]:{port}",
    "a metadata service": "CONNECT 169.254.169.254:80",
    "a suffix": "CONNECT api.example.org.evil.example:{port}",
    "a prefix": "CONNECT evilapi.example.org:{port}",
    "the parent of a wildcard": "CONNECT wide.example.org:443",
    "cyrillic": "CONNECT xn--pi-6kc.example.org:{port}",
    "by URL": "GET http://evil.example/",
    "by URL, with the right Host": "GET http://evil.example/ HTTP/1.1\r\nHost: api.example.org",
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_nothing_but_the_listed_hosts_is_reached(run, line):
    here = run()
    line = line.format(port=here.server.port)
    start, *more = line.split(" HTTP/1.1")
    reply = here.say((f"{start} HTTP/1.1" + "".join(more) + "\r\n\r\n").encode())
    assert reply.startswith(b"HTTP/1.1 403 ")
    assert here.logged()[0].verdict == "refused"
    assert here.server.num_connections == 0


@pytest.mark.parametrize("host", ["API.Example.ORG", "api.example.org.", "ApI.eXample.orG."])
def test_a_listed_host_is_reached_by_any_spelling(run, host):
    here = run()
    assert here.say(f"GET http://{host}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")
    assert here.logged()[0].host == f"{HOST}:{here.server.port}"


def test_private_addresses_behind_an_allowed_name_are_refused(run):
    here = run(allow_private_addresses=False)
    reply = here.say(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\n".encode())
    assert b"403 api.example.org is at 127.0.0.1" in reply
    assert b"reward_fns.runtime.allow_private_addresses" in reply
    assert here.server.num_connections == 0


def test_a_name_that_changes_its_mind_is_judged_each_time(run):
    """DNS rebinding: what is connected to is what was judged, and every connection is judged."""
    answers = [["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1"]]
    here = run(resolve=lambda host, port: answers.pop(0))
    request = f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode()
    assert [here.say(request).split(b" ")[1] for _ in range(3)] == [b"200", b"403", b"200"]


def test_a_redirect_to_another_host_is_refused_when_it_is_followed(run):
    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(answer(b"", "302 Found", "Location: http://127.0.0.2/\r\n"))

    here = run(serve)
    assert b"\r\nLocation: http://127.0.0.2/\r\n" in here.say(
        f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode()
    )
    assert here.say(b"GET http://127.0.0.2/ HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403 ")


SMUGGLED = b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n"


@pytest.mark.parametrize("length", ["", "Content-Length: 0\r\n", "Content-Length: 3\r\n"])
def test_what_follows_a_request_goes_nowhere(run, length):
    got = []

    def serve(connection):
        received = connection.recv(1 << 16)
        connection.sendall(answer(b"ok"))
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(1 << 16):
                received += part
        got.append(received)

    here = run(serve)
    head = f"POST http://{HOST}:{here.server.port}/ HTTP/1.1\r\n{length}\r\n".encode()
    reply = here.say(head + b"abc"[: 3 if "3" in length else 0] + SMUGGLED)
    assert reply.count(b"HTTP/1.1 200 OK") == 1
    assert got[0].endswith(b"\r\n\r\nabc" if "3" in length else b"\r\n\r\n")
    assert b"evil" not in got[0]


def test_a_server_that_answers_no_http_is_told(run):
    for data in (
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 80_000,
    ):
        here = run(lambda connection, data=data: (connection.recv(999), connection.sendall(data)))
        assert here.say(f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 502 ")
        assert here.logged()[0].verdict == "failed"


def test_a_host_nobody_reaches_is_told(run):
    here = run()
    here.server.close()
    reply = here.say(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 502 api.example.org was not reached: ")
    assert here.logged()[0].verdict == "failed"


def test_interim_answers_are_left_out(run):
    here = run(lambda c: (c.recv(999), c.sendall(b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + answer(b"ok"))))
    assert here.say(f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 OK")


def test_where_others_can_connect_the_password_is_asked_for(run):
    here = run(credential="hunter2")
    request = f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n"
    for wrong in ("", "Proxy-Authorization: Basic d29ya2VyOng=\r\n", "Proxy-Authorization: \xe9\r\n"):
        assert here.say((request + wrong + "\r\n").encode("latin-1")).startswith(b"HTTP/1.1 407 ")
    right = base64.b64encode(b"worker:hunter2").decode()
    reply = here.say(f"{request}Proxy-Authorization: Basic {right}\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 200 ")
    assert right.encode() not in reply  # the server saw none of it


def test_too_much_is_cut_and_said(run):
    def serve(connection):
        connection.recv(999)
        while True:
            connection.sendall(b"x" * 65536)

    here = run(serve, max_response_bytes=300_000)
    received = here.say(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\nhello".encode())
    assert len(received) < 500_000
    (record,) = here.logged()
    assert (record.verdict, record.reason) == ("cut", "more than 300,000 bytes")


def test_too_much_sent_is_cut_and_a_long_body_refused(run):
    here = run(lambda connection: read_all(connection), max_request_bytes=300_000)
    with here.connect() as connection, pytest.raises(OSError):
        connection.sendall(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\n".encode())
        for _ in range(1000):
            connection.sendall(b"x" * 65536)
    assert here.logged()[0].verdict == "cut"
    reply = here.say(f"POST http://{HOST}:{here.server.port}/ HTTP/1.1\r\nContent-Length: 300001\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 413 ")


def test_a_connection_has_an_end(run):
    here = run(lambda connection: time.sleep(30), timeout_s=0.3)
    start = time.monotonic()
    here.say(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\n".encode())
    assert time.monotonic() - start < 20
    (record,) = here.logged()
    assert (record.verdict, record.reason) == ("cut", "not over within 0.3 s")


def test_a_worker_that_left_does_not_keep_the_server_waiting(run, monkeypatch):
    monkeypatch.setattr(proxy, "HALF_S", 0.2)
    here = run(lambda connection: time.sleep(30))
    for line in ("CONNECT {}:{} HTTP/1.1\r\n\r\n", "GET http://{}:{}/ HTTP/1.1\r\n\r\n"):
        with here.connect() as connection:
            connection.sendall(line.format(HOST, here.server.port).encode())
            time.sleep(0.1)
    assert len(here.logged(2)) == 2


def test_slow_heads_and_header_bombs_end(run, monkeypatch):
    monkeypatch.setattr(proxy, "HEAD_S", 0.3)
    here = run()
    with here.connect() as connection:
        connection.sendall(b"GET http://")
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    bomb = b"GET http://a.example/ HTTP/1.1\r\n" + b"A: " + b"x" * 1000 + b"\r\n"
    assert here.say(bomb + b"A: b\r\n" * 5000).startswith(b"HTTP/1.1 431 ")
    assert here.say(b"x" * 100_000).startswith(b"HTTP/1.1 431 ")


def test_further_connections_wait_for_room(run):
    here = run()
    held = [here.connect() for _ in range(proxy.MAX_CONNECTIONS)]
    waiting = here.connect()
    waiting.sendall(f"GET http://{HOST}:{here.server.port}/ HTTP/1.1\r\n\r\n".encode())
    waiting.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting.recv(1)
    held.pop().close()
    waiting.settimeout(20)
    assert waiting.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    for each in (*held, waiting):
        each.close()


def test_tunnels_that_were_forgotten_make_room(run, monkeypatch):
    monkeypatch.setattr(proxy, "IDLE_S", 0.1)
    here = run()
    held = []
    for _ in range(proxy.MAX_CONNECTIONS + 5):
        held.append(here.tunnel())
        held[-1].request("GET", "/")
        assert held[-1].getresponse().read()
    for each in held:
        each.close()


def test_thousands_of_connections_and_endless_bodies_cost_little(run):
    def serve(connection):
        connection.recv(999)
        while True:
            connection.sendall(b"x" * 65536)

    here = run(serve, max_response_bytes=1 << 30, timeout_s=20.0)
    here.say(b"warm\r\n\r\n")
    before = own_memory_bytes()
    for number in range(2000):
        with here.connect() as connection:
            connection.sendall((b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n", b"x" * 5000, b"\r\n\r\n")[number % 3])
    unread = [here.connect() for _ in range(20)]
    for connection in unread:
        connection.sendall(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\nx".encode())
    time.sleep(0.5)
    assert own_memory_bytes() - before < 50e6
    for connection in unread:
        connection.close()


def test_a_closed_proxy_leaves_nothing(run):
    here = run(lambda connection: time.sleep(30))
    with here.connect() as connection:
        connection.sendall(f"CONNECT {HOST}:{here.server.port} HTTP/1.1\r\n\r\n".encode())
        assert connection.recv(999).startswith(b"HTTP/1.1 200 ")
        start = time.monotonic()
        here.proxy.close()
        here.proxy.close()
        assert time.monotonic() - start < 10
        assert read_all(connection) == b""
    with pytest.raises(ConnectionRefusedError):
        here.connect()
    assert here.logged()[0].verdict == "allowed"
    assert not proxy._open_sessions
