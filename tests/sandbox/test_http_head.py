"""Heads of requests to the proxy: strict, because whatever two readers read differently is a way in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.sandbox.http_head import BadRequest, answer_head, parse_request

GET = b"GET http://a.example/ HTTP/1.1\r\n"
POST = b"POST http://a.example/ HTTP/1.1\r\n"

BAD = {
    "empty": b"\r\n\r\n",
    "not for a proxy": b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "another scheme": b"GET ftp://a.example/ HTTP/1.1\r\n\r\n",
    "no host": b"GET http:///x HTTP/1.1\r\n\r\n",
    "old": b"GET http://a.example/ HTTP/0.9\r\n\r\n",
    "new": b"GET http://a.example/ HTTP/2.0\r\n\r\n",
    "two spaces": b"GET  http://a.example/ HTTP/1.1\r\n\r\n",
    "a space in the URL": b"GET http://a.example/a b HTTP/1.1\r\n\r\n",
    "a tab": b"GET\thttp://a.example/ HTTP/1.1\r\n\r\n",
    "nul in the URL": b"GET http://a.example/\0 HTTP/1.1\r\n\r\n",
    "no ASCII in the URL": "GET http://bücher.example/ HTTP/1.1\r\n\r\n".encode(),
    "userinfo": b"GET http://a.example@evil.example/ HTTP/1.1\r\n\r\n",
    "userinfo with a port": b"CONNECT a.example:443@evil.example:443 HTTP/1.1\r\n\r\n",
    "backslash": b"GET http://a.example\\@evil.example/ HTTP/1.1\r\n\r\n",
    "tunnel without a port": b"CONNECT a.example HTTP/1.1\r\n\r\n",
    "tunnel to a URL": b"CONNECT http://a.example:443/ HTTP/1.1\r\n\r\n",
    "port 0": b"CONNECT a.example:0 HTTP/1.1\r\n\r\n",
    "port 65536": b"CONNECT a.example:65536 HTTP/1.1\r\n\r\n",
    "port in other digits": "CONNECT a.example:٤٤٣ HTTP/1.1\r\n\r\n".encode(),
    "decimal address": b"CONNECT 2130706433:80 HTTP/1.1\r\n\r\n",
    "octal address": b"CONNECT 0177.0.0.1:80 HTTP/1.1\r\n\r\n",
    "short address": b"CONNECT 127.1:80 HTTP/1.1\r\n\r\n",
    "folded header": GET + b"A: b\r\n c\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 5\r\n\r\n",
    "no colon": GET + b"A\r\n\r\n",
    "bare line feed": GET + b"A: b\nContent-Length: 5\r\n\r\n",
    "bare carriage return": GET + b"A: b\rContent-Length: 5\r\n\r\n",
    "nul in a header": GET + b"A: \0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "twice the same length": POST + b"Content-Length: 5\r\ncontent-length: 5\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\n",
    "signed length": POST + b"Content-Length: +5\r\n\r\n",
    "negative length": POST + b"Content-Length: -5\r\n\r\n",
    "hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\n",
    "huge length": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "chunked": POST + b"Transfer-Encoding: chunked\r\n\r\n",
    "chunked and a length": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked in disguise": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n",
    "many headers": GET + b"A: b\r\n" * 101 + b"\r\n",
}


@pytest.mark.parametrize("head", BAD.values(), ids=BAD.keys())
def test_what_can_be_read_in_two_ways_is_refused(head):
    with pytest.raises(BadRequest) as caught:
        parse_request(head)
    assert caught.value.status in (400, 411, 431)


def test_only_what_is_meant_for_the_server_is_passed_on():
    head = POST + b"Host: evil.example\r\nProxy-Authorization: Basic abc\r\nProxy-Connection: keep-alive\r\n"
    head += b"Connection: keep-alive, X-Secret, Content-Length\r\nX-Secret: 1\r\nUpgrade: websocket\r\n"
    head += b"Expect: 100-continue\r\ncontent-length: 5\r\nAccept: */*\r\n\r\n"
    request = parse_request(head)
    expected = b"POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\ncontent-length: 5\r\nAccept: */*\r\n\r\n"
    assert (request.forwarded, request.credential, request.num_body_bytes) == (expected, "Basic abc", 5)


@pytest.mark.parametrize(
    ("target", "host", "port", "line"),
    [
        (b"http://A.Example./x?y=z#f", "a.example", 80, b"GET /x?y=z HTTP/1.1\r\nHost: a.example\r\n"),
        (b"HTTP://a.example:8080", "a.example", 8080, b"GET / HTTP/1.1\r\nHost: a.example:8080\r\n"),
        (b"http://[::1]/", "::1", 80, b"GET / HTTP/1.1\r\nHost: [::1]\r\n"),
        (
            b"http://a.example/http://b.example/",
            "a.example",
            80,
            b"GET /http://b.example/ HTTP/1.1\r\nHost: a.example\r\n",
        ),
    ],
)
def test_the_host_is_that_of_the_url(target, host, port, line):
    request = parse_request(b"GET " + target + b" HTTP/1.0\r\nHost: b.example\r\n\r\n")
    assert (request.host, request.port) == (host, port)
    assert request.forwarded.startswith(line)


@given(st.binary(max_size=200), st.sampled_from([b"", GET, POST, b"CONNECT "]))
def test_anything_is_a_request_or_refused(noise, start):
    try:
        request = parse_request(start + noise + b"\r\n\r\n")
    except BadRequest:
        return
    assert 1 <= request.port <= 65535
    assert request.forwarded.count(b"\r\n\r\n") == (request.kind == "plain")
    assert b"\n" not in request.forwarded.replace(b"\r\n", b"")


@given(st.binary(max_size=200))
def test_any_answer_is_closed_or_refused(noise):
    try:
        head = answer_head(b"HTTP/1.1 " + noise + b"\r\n\r\n")
    except BadRequest:
        return
    assert head is None or head.endswith(b"\r\nConnection: close\r\n\r\n")
