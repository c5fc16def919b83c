"""Requests under a policy, against servers of this machine that behave badly."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import Server, answer, echo, make_authority, requests_on

from reinforge.errors import NetworkError
from reinforge.sandbox.egress import EgressPolicy
from reinforge.sandbox.fetch import Client, fetch

HOST = "api.example.org"


@pytest.fixture
def make_client():
    """A client that may talk to api.example.org, which is a server of this machine."""
    made = []

    def make(serve, tls=None, **changes):
        server = Server(serve, tls)
        policy = EgressPolicy(
            **{
                "allowed_hosts": (f"{HOST}:{server.port}",),
                "allow_private_addresses": True,
                "resolve": lambda host, port: ["127.0.0.1"],
            }
            | changes
        )
        client = Client(policy)
        made.extend([client, server])
        return client, server

    yield make
    for each in made:
        each.close()


def get(client, server, path="/", scheme="http", deadline_s=20.0, body=None, headers=None):
    url = f"{scheme}://{HOST}:{server.port}{path}"
    return client.fetch("GET" if body is None else "POST", url, headers or {}, body, deadline_s)


def test_a_request_arrives_as_it_was_given(make_client):
    client, server = make_client(echo)
    reply = get(client, server, "/v1/x?a=b%20c", body=b"{}", headers={"Authorization": "Bearer k"})
    head, _, body = reply.body.partition(b"|")
    assert (reply.status, body) == (200, b"{}")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/x?a=b%20c HTTP/1.1"
    assert {f"Host: {HOST}:{server.port}", "Authorization: Bearer k", "Content-Length: 2"} <= set(lines)


def test_a_body_without_a_length_ends_with_the_connection(make_client):
    client, server = make_client(lambda c: (c.recv(999), c.sendall(b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\nwhole")))
    reply = get(client, server)
    assert (reply.body, reply.headers) == (b"whole", {"a": "1, 2"})


def test_connections_are_kept_for_sixteen_at_once(make_client):
    barrier = threading.Barrier(16)

    def serve(connection):
        for number, _ in enumerate(requests_on(connection)):
            if number == 0:
                barrier.wait(10)
            connection.sendall(answer(b"ok"))

    client, server = make_client(serve)
    with ThreadPoolExecutor(16) as threads:
        for _ in range(4):
            replies = list(threads.map(lambda _: get(client, server).body, range(16)))
            assert replies == [b"ok"] * 16
    assert server.num_connections == 16


def test_a_connection_the_server_closed_is_not_missed(make_client):
    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(answer(b"ok"))
            return

    client, server = make_client(serve)
    assert [get(client, server).body for _ in range(5)] == [b"ok"] * 5


def test_bytes_that_nobody_asked_for_are_nobody_s_answer(make_client):
    had, sent = threading.Event(), threading.Event()

    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(answer(b"mine"))
            had.wait(10)
            connection.sendall(answer(b"smuggled"))
            sent.set()

    client, server = make_client(serve)
    assert get(client, server).body == b"mine"
    had.set()
    assert sent.wait(10)
    assert get(client, server).body == b"mine"
    assert server.num_connections == 2


def test_a_connection_that_breaks_as_we_write_is_replaced_and_a_broken_reply_is_not_asked_for_again(make_client):
    seen = []

    def serve(connection):
        for number, (head, _) in enumerate(requests_on(connection)):
            seen.append(head.split(b" ")[1])
            if number == 1:  # read the request, answer nothing
                return
            cut = head.split(b" ")[1] == b"/cut"
            connection.sendall(answer(b"ok" * 50)[: 60 if cut else None])
            if cut:
                return

    client, server = make_client(serve)
    assert get(client, server, "/1").body == get(client, server, "/2").body == b"ok" * 50
    assert seen == [b"/1", b"/2", b"/2"]
    seen.clear()
    client.close()
    with pytest.raises(NetworkError) as caught:
        get(client, server, "/cut")
    assert (caught.value.kind, seen) == ("broken", [b"/cut"])


def test_an_unlisted_host_is_not_looked_up(make_client):
    client, server = make_client(echo, resolve=lambda host, port: pytest.fail("asked"))
    for url in (f"http://evil.example:{server.port}/", f"http://{HOST}/", f"http://127.0.0.1:{server.port}/"):
        with pytest.raises(NetworkError) as caught:
            client.fetch("GET", url, {}, None, 5.0)
        assert caught.value.kind == "refused"
    assert server.num_connections == 0


def test_private_addresses_are_refused_by_default(make_client):
    client, server = make_client(echo, allow_private_addresses=False)
    with pytest.raises(NetworkError, match=r"is at 127\.0\.0\.1"):
        get(client, server)
    assert server.num_connections == 0


def test_a_name_that_changes_its_mind_is_asked_once_per_connection(make_client):
    """DNS rebinding: a good address while it is judged, an inner one afterwards."""
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    client, server = make_client(echo, resolve=resolve)
    assert [get(client, server).status for _ in range(3)] == [200] * 3
    assert asked == [HOST]
    client.close()
    with pytest.raises(NetworkError, match="never allowed"):
        get(client, server)


def test_a_redirect_is_shown_and_not_followed(make_client):
    inner = Server(echo)

    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(answer(b"", "302 Found", f"Location: http://127.0.0.1:{inner.port}/\r\n"))

    client, server = make_client(serve)
    reply = get(client, server)
    assert (reply.status, reply.headers["location"]) == (302, f"http://127.0.0.1:{inner.port}/")
    assert inner.num_connections == 0
    inner.close()


def test_the_next_address_is_tried(make_client):
    client, server = make_client(echo, resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"])
    assert get(client, server).status == 200


def drip(data):
    def serve(connection):
        for _ in requests_on(connection):
            while True:
                connection.sendall(data)
                time.sleep(0.02)

    return serve


def silent(connection):
    connection.recv(1)
    time.sleep(30)


SLOW = {
    "no answer": silent,
    "a head that drips": drip(b"H"),
    "headers that drip": lambda c: (c.sendall(b"HTTP/1.1 200 OK\r\n"), drip(b"X: y\r\n")(c)),
    "continues": drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body that drips": lambda c: (c.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), drip(b"x")(c)),
    "chunks that drip": lambda c: (
        c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        drip(b"1\r\nx\r\n")(c),
    ),
}


@pytest.mark.parametrize("serve", SLOW.values(), ids=SLOW.keys())
def test_the_deadline_is_for_the_whole_request(make_client, serve):
    client, server = make_client(serve)
    start = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        get(client, server, deadline_s=0.4)
    assert caught.value.kind in ("timeout", "broken")  # broken: a head of more than a hundred lines
    assert time.monotonic() - start < 5.0


def test_a_server_that_reads_nothing_does_not_hold_us(make_client):
    client, server = make_client(lambda connection: time.sleep(30))
    with pytest.raises(NetworkError) as caught:
        get(client, server, deadline_s=0.4, body=b"x" * (15 << 20))
    assert caught.value.kind == "timeout"


def test_the_policy_bounds_every_deadline(make_client):
    client, server = make_client(silent, timeout_s=0.3)
    with pytest.raises(NetworkError, match=r"did not answer within 0\.3 s"):
        get(client, server, deadline_s=60.0)


LARGE = {
    "by its length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
    "endless": b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fff\r\n" + b"x" * 4095 + b"\r\n" * 2,
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE.keys())
def test_large_answers_are_refused(make_client, data):
    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(data)
            while b"chunked" in data:
                connection.sendall(b"fff\r\n" + b"x" * 4095 + b"\r\n")

    client, server = make_client(serve, max_response_bytes=100_000)
    with pytest.raises(NetworkError) as caught:
        get(client, server)
    assert caught.value.kind in ("too_large", "broken")
    with pytest.raises(NetworkError, match="at most 1,000 are sent"):
        Client(EgressPolicy((f"{HOST}:1",), max_request_bytes=1000)).fetch(
            "POST", f"http://{HOST}:1", {}, b"x" * 1001, 5
        )


BROKEN = {
    "nothing": b"",
    "garbage": b"\x16\x03\x01 not HTTP at all\r\n\r\n",
    "ends early": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "long line": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_that_is_no_http_is_told(make_client, data):
    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(data)
            return

    client, server = make_client(serve)
    with pytest.raises(NetworkError) as caught:
        get(client, server)
    assert caught.value.kind == "broken"


def test_nobody_listens_is_told(make_client):
    client, server = make_client(echo)
    server.close()
    with pytest.raises(NetworkError, match="failed") as caught:
        get(client, server)
    assert caught.value.kind == "connect"


@pytest.fixture
def authority(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("no program openssl to make a certificate with")
    file, context = make_authority(tmp_path, HOST)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return context


def test_tls_is_checked_against_the_name_not_the_address(make_client, authority):
    client, server = make_client(echo, tls=authority)
    assert [get(client, server, scheme="https").status for _ in range(3)] == [200] * 3
    assert server.num_connections == 1
    wrong = f"other.example.org:{server.port}"
    other = Client(EgressPolicy((wrong,), allow_private_addresses=True, resolve=lambda host, port: ["127.0.0.1"]))
    with pytest.raises(NetworkError, match="TLS with https://other") as caught:
        other.fetch("GET", f"https://{wrong}/", {}, None, 20.0)
    assert caught.value.kind == "tls"


def test_an_unknown_authority_is_refused(make_client, authority, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    client, server = make_client(echo, tls=authority)
    with pytest.raises(NetworkError) as caught:
        get(client, server, scheme="https")
    assert caught.value.kind == "tls"
    assert "SSL_CERT_FILE" in caught.value.hint


def test_a_handshake_that_hangs_meets_the_deadline(make_client):
    client, server = make_client(silent)
    with pytest.raises(NetworkError) as caught:
        get(client, server, scheme="https", deadline_s=0.3)
    assert caught.value.kind == "timeout"


URLS = [
    "ftp://api.example.org/",
    "//api.example.org/",
    "http:///",
    "http://u:hunter2@api.example.org/",
    "file:///etc/passwd",
]
URLS += [
    "http://api.example.org\\@evil.example/",
    "http://api.example.org/a b",
    "http://api.example.org/\r\nX: y",
    "http://[::1",
]
URLS += ["http://api.example.org:99999/", "http://bücher.example/", "http://api.example.org:x/"]


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_url_is_refused_and_its_password_not_repeated(url):
    with pytest.raises(NetworkError) as caught:
        fetch(EgressPolicy((HOST,)), "GET", url)
    assert caught.value.kind == "refused"
    assert "hunter2" not in str(caught.value)


def test_a_key_with_a_line_end_is_refused_and_not_repeated():
    with pytest.raises(NetworkError) as caught:
        fetch(EgressPolicy((HOST,)), "GET", f"http://{HOST}/", {"Authorization": "Bearer hunter2\n"})
    assert "Authorization" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_requests_of_one_policy_share_connections():
    server = Server(echo)
    url = f"http://127.0.0.1:{server.port}/"
    policy = EgressPolicy((f"127.0.0.1:{server.port}",), allow_private_addresses=True)
    assert [fetch(policy, "GET", url).status for _ in range(3)] == [200] * 3
    assert server.num_connections == 1
    server.close()
    with pytest.raises(NetworkError), socket.socket():
        fetch(policy, "GET", url, deadline_s=5.0)
