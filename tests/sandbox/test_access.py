"""Workers that were granted hosts or secrets: what they reach, and what they still do not. One attack per line of what
SECURITY.md says of it."""

from __future__ import annotations

import os
import shutil
import socket
import textwrap
import time

import pytest
from processes import own_memory_bytes
from servers import Server, answer, echo, make_authority, requests_on

from reinforge.errors import ConfigError, SetupError
from reinforge.sandbox import access
from reinforge.sandbox.bubblewrap import Bubblewrap
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.pool import SourceFault, Worker, WorkerUnavailable
from reinforge.sandbox.tiers import working

LONG_S = 30.0
HOST = "api.example.org"
SECRET = "sk-0123456789abcdefghijklmnopqrstuvwxyz"

ATTACKER = """
import http.client, os, socket, subprocess, sys, urllib.error, urllib.request
def assert_found(found): return found[0]
def get(url): return urllib.request.urlopen(url, timeout=20).read().decode()
def attack(code, **names):
    scope = globals() | names
    exec(code, scope)
    return scope.get("result", "it worked")
def fine(): return 1.0
"""


@pytest.fixture
def bubblewrap():
    tier = working("bubblewrap")
    if isinstance(tier, str):
        pytest.skip(f"no bubblewrap tier here: {tier}")
    return tier


@pytest.fixture
def resolved(monkeypatch):
    """Name -> what a look-up says; nobody outside is asked."""
    names = {HOST: ["127.0.0.1"]}
    monkeypatch.setattr(access, "system_addresses", lambda host, port: names[host])
    return names


@pytest.fixture
def server():
    made = Server(echo)
    yield made
    made.close()


class Made:
    """A worker and what it was heard to connect to."""

    def __init__(self, tier, source=ATTACKER, **limits):
        self.log = []
        self.worker = Worker(textwrap.dedent(source), "rewards.py", Limits(**limits), tier, self.log.append)

    def run(self, code, deadline_s=LONG_S, **names):
        return self.worker.call("attack", {"code": code, **names}, deadline_s)


@pytest.fixture
def make():
    made = []

    def make_one(*arguments, **limits):
        made.append(Made(*arguments, **limits))
        return made[-1]

    yield make_one
    for each in made:
        each.worker.close()


@pytest.fixture(params=["bubblewrap", "plain"])
def proxied_tier(request, bubblewrap):
    """Each tier in which hosts can be allowed."""
    return bubblewrap if request.param == "bubblewrap" else Plain()


def granted(server, *more, **changes):
    return {"allowed_hosts": (f"{HOST}:{server.port}", *more), "allow_private_addresses": True} | changes


CLIENTS = {
    "urllib": "result = get(url)",
    "http.client": """
proxy = os.environ["https_proxy"].rpartition("@")[2].removeprefix("http://").split(":")
connection = http.client.HTTPConnection(proxy[0], int(proxy[1]), timeout=20)
connection.request("GET", url, headers=credentials())
result = connection.getresponse().read().decode()
""",
    "urllib3": """
import urllib3
manager = urllib3.ProxyManager(bare_proxy(), proxy_headers=credentials())
result = manager.request("GET", url).data.decode()
""",
    "curl": "result = subprocess.run(['curl', '-sS', url], check=True, capture_output=True, text=True).stdout",
}
WITH_CREDENTIALS = """
import base64
def bare_proxy(): return "http://" + os.environ["HTTP_PROXY"].removeprefix("http://").rpartition("@")[2]
def credentials():
    user = os.environ["HTTP_PROXY"].removeprefix("http://").rpartition("@")[0]
    return {"Proxy-Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
"""


@pytest.mark.parametrize("code", CLIENTS.values(), ids=CLIENTS.keys())
def test_an_allowed_host_is_reached_and_logged(proxied_tier, resolved, server, make, code):
    if "curl" in code and shutil.which("curl") is None:
        pytest.skip("no program curl")
    made = make(proxied_tier, ATTACKER + WITH_CREDENTIALS, **granted(server))
    result = made.run(code, url=f"http://{HOST}:{server.port}/x")
    assert result.kind == "", result
    assert str(result.value).replace("\r\n", "\n").startswith("GET /x HTTP/1.1\nHost: api.example.org")
    end = time.monotonic() + 10
    while not made.log and time.monotonic() < end:
        time.sleep(0.01)
    (record,) = made.log
    assert (record.host, record.verdict) == (f"{HOST}:{server.port}", "allowed")
    assert record.sent_bytes > 50
    assert record.received_bytes > 50


def test_tls_reaches_from_the_function_to_the_host(proxied_tier, resolved, make, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no program openssl to make a certificate with")
    file, context = make_authority(tmp_path, HOST)
    server = Server(echo, context)
    made = make(proxied_tier, **granted(server))
    code = "import ssl\ncontext = ssl.create_default_context(cadata=authority)\n"
    code += "result = urllib.request.urlopen(url, timeout=20, context=context).read().decode()"
    result = made.run(code, url=f"https://{HOST}:{server.port}/", authority=file.read_text())
    server.close()
    assert str(result.value).startswith("GET / HTTP/1.1"), result


OUTSIDE = {
    "another host": "get(f'http://evil.example:{port}/')",
    "another host by TLS": "get(f'https://evil.example:{port}/')",
    "another port": "get(f'http://api.example.org:{other}/')",
    "its address": "get(f'http://127.0.0.1:{port}/')",
    "past the proxy": "urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f'http://127.0.0.1:{port}/')",
    "past the proxy by name": "socket.create_connection(('api.example.org', port), 5)",
    "tcp": "socket.create_connection(('127.0.0.1', port), 5)",
    "tcp out": "socket.create_connection(('192.0.2.1', 80), 5)",
    "tcp 6": "socket.socket(socket.AF_INET6)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "names": "socket.getaddrinfo('api.example.org', 80)",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "bind": "socket.socket().bind(('127.0.0.1', 0))",
    "multipath": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
    "sctp": "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "vsock": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "kernel TLS": "socket.create_connection(('127.0.0.1', 3128)).setsockopt(socket.IPPROTO_TCP, 31, b'tls')",
    "unix": "socket.socket(socket.AF_UNIX)",
    "unix datagrams": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a pair led elsewhere": "p = socket.socketpair(); p[1].close(); p[0].connect(abstract)",
    "a child": "subprocess.run(['bash', '-c', f'exec 3<>/dev/tcp/127.0.0.1/{port}'], check=True)",
    "a pair led to a path": "p = socket.socketpair(); p[1].close(); p[0].connect(path)",
}


@pytest.mark.parametrize("code", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_nothing_but_the_allowed_host_is_reached(request, bubblewrap, resolved, shared, code, tmp_path):
    other = Server(echo)
    path, abstract = str(tmp_path / "s"), f"\0reinforge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as hidden:
        named.bind(path)
        hidden.bind(abstract)
        named.listen()
        hidden.listen()
        if not shared:
            server = Server(echo)
            shared.append((server, Made(bubblewrap, **granted(server))))
        server, made = shared[0]
        result = made.run(code, port=server.port, other=other.port, path=path, abstract=abstract)
        for listener in (named, hidden):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
    other.close()
    assert (result.kind, result.value) == ("raised", None), result
    if "kernel" in request.node.name:  # without our rule, it would depend on the kernel
        assert "Operation not permitted" in result.message
    assert other.num_connections == server.num_connections == 0


@pytest.fixture(scope="module")
def shared():
    """One worker with one allowed host for all attacks on that, and the server it never reaches."""
    kept: list[tuple[Server, Made]] = []
    yield kept
    for server, made in kept:
        made.worker.close()
        server.close()


def test_the_refusal_names_rule_and_remedy(proxied_tier, resolved, server, make):
    made = make(proxied_tier, **granted(server))
    for scheme in ("http", "https"):
        result = made.run("get(url)", url=f"{scheme}://evil.example/")
        text = f"403 evil.example is none of the hosts in reward_fns.runtime.allowed_hosts ({HOST}:{server.port}). "
        assert text.split()[1] in result.message
        assert 'Add "evil.example" there to allow it.' in result.message
    assert [record.verdict for record in made.log] == ["refused"] * 2


def test_inner_addresses_of_an_allowed_name_are_refused(bubblewrap, resolved, server, make):
    made = make(bubblewrap, **granted(server, allow_private_addresses=False))
    for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:7f00:1", "64:ff9b::7f00:1"):
        resolved[HOST] = [address]
        result = made.run("get(url)", url=f"http://{HOST}:{server.port}/")
        assert f"Error 403: {HOST} is at {address}" in result.message
    assert server.num_connections == 0


def test_a_name_that_turns_to_an_inner_address_is_refused(bubblewrap, resolved, server, make):
    """DNS rebinding: each connection goes to an address that was judged for it."""
    made = make(bubblewrap, **granted(server))
    kinds = []
    for address in ("127.0.0.1", "169.254.169.254", "127.0.0.1"):
        resolved[HOST] = [address]
        kinds.append(made.run("get(url)", url=f"http://{HOST}:{server.port}/").kind)
    assert kinds == ["", "raised", ""]
    assert server.num_connections == 2


def test_a_redirect_leads_nowhere_else(bubblewrap, resolved, make):
    inner = Server(echo)

    def serve(connection):
        for _ in requests_on(connection):
            connection.sendall(answer(b"", "302 Found", f"Location: http://127.0.0.1:{inner.port}/\r\n"))

    server = Server(serve)
    made = make(bubblewrap, **granted(server))
    result = made.run("get(url)", url=f"http://{HOST}:{server.port}/")
    assert "Error 403: 127.0.0.1 is none of the hosts" in result.message
    assert inner.num_connections == 0
    inner.close()
    server.close()


def test_no_worker_uses_the_way_of_another(bubblewrap, resolved, server, make):
    allowed, other = make(bubblewrap, **granted(server)), make(bubblewrap, allowed_hosts=("else.example",))
    without = make(bubblewrap)
    url = f"http://{HOST}:{server.port}/"
    assert allowed.run("result = get(url)", url=url).kind == ""
    assert "Error 403: api.example.org" in other.run("get(url)", url=url).message
    code = "urllib.request.build_opener(urllib.request.ProxyHandler({'http': 'http://127.0.0.1:3128'})).open(url)"
    assert "Operation not permitted" in without.run(code, url=url).message
    assert without.run("assert_found([n for n in os.environ if 'proxy' in n.lower()])").kind == "raised"
    assert server.num_connections == 1


def test_where_the_tier_cannot_hold_a_function_to_its_hosts_none_are_allowed():
    tier = working("landlock")
    if isinstance(tier, str):
        pytest.skip(f"no landlock tier here: {tier}")
    with pytest.raises(
        SetupError, match="the landlock tier of the sandbox cannot hold a function to these hosts"
    ) as caught:
        Worker(ATTACKER, "rewards.py", Limits(allowed_hosts=(HOST,)), tier)
    assert "apt install bubblewrap" in caught.value.hint


def test_without_isolation_the_proxy_asks_for_a_password(resolved, server, make):
    made = make(Plain(), **granted(server))
    proxy = str(made.run("result = os.environ['HTTP_PROXY']").value)
    address = ("127.0.0.1", int(proxy.rpartition(":")[2]))
    with socket.create_connection(address, 20) as connection:
        connection.sendall(f"CONNECT {HOST}:{server.port} HTTP/1.1\r\n\r\n".encode())
        assert connection.recv(999).startswith(b"HTTP/1.1 407 ")
    made.worker.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 20)


def test_the_proxy_of_a_worker_ends_with_it(proxied_tier, resolved, server, make):
    warm = make(proxied_tier, **granted(server))
    warm.run("get(url)", url=f"http://{HOST}:{server.port}/")
    warm.worker.close()
    before = num_descriptors()
    for _ in range(3):
        made = make(proxied_tier, **granted(server))
        assert (
            made.run("global kept; kept = urllib.request.urlopen(url)", url=f"http://{HOST}:{server.port}/").kind == ""
        )
        assert made.run("os._exit(0)").kind == "exited"
        assert made.run("result = get(url)", url=f"http://{HOST}:{server.port}/").kind == ""
        made.worker.close()
    assert num_descriptors(at_most=before) <= before  # three that leave one each would be seen


def num_descriptors(at_most: int = 0) -> int:
    """Of this process, once what is being closed elsewhere (the server's end of a connection) is closed."""
    end = time.monotonic() + 10
    while (found := len(os.listdir("/proc/self/fd"))) > at_most and time.monotonic() < end and at_most:
        time.sleep(0.05)
    return found


def test_a_worker_that_does_not_start_leaves_no_proxy(resolved, make, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no namespaces' >&2; exit 1\n")
    broken.chmod(0o755)
    before = sorted(os.listdir("/proc/self/fd"))
    for tier in (Bubblewrap(str(broken)), Bubblewrap(str(tmp_path / "absent"))):
        made = make(tier, allowed_hosts=(HOST,))
        with pytest.raises((SourceFault, WorkerUnavailable)):
            made.worker.describe()
        made.worker.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_hostile_client_costs_the_trainer_nothing(bubblewrap, resolved, make):
    def endless(connection):
        connection.recv(999)
        while True:
            connection.sendall(b"x" * 65536)

    server = Server(endless)
    made = make(bubblewrap, **granted(server))
    code = """
def connect():
    connection = socket.create_connection(("127.0.0.1", 3128), 20)
    connection.settimeout(20)
    return connection
for number in range(600):
    with connect() as one:
        said = b"CONNECT evil.example:443 HTTP/1.1\\r\\n\\r\\n", b"x" * 9000, b"\\r\\n\\r\\n", b"GET "
        one.sendall(said[number % 4])
held = []
for number in range(60):
    held.append(connect())
    held[-1].sendall(f"CONNECT api.example.org:{port} HTTP/1.1\\r\\n\\r\\nx".encode() if number < 20 else b"GET http://")
    held[-1].setblocking(False)
"""
    made.worker.describe()
    before = own_memory_bytes()
    assert made.run(code, port=server.port).kind == ""
    assert own_memory_bytes() - before < 50e6
    assert made.worker.call("fine", {}, LONG_S).value == 1.0
    server.close()


SHOWS = {
    "printed": "print(os.environ['API_KEY'])",
    "raised": "raise ValueError('bad key ' + os.environ['API_KEY'])",
    "raised as repr": "raise KeyError(os.environ['API_KEY'])",
    "returned": "k = os.environ['API_KEY']; result = {'score': 1, 'reason': k, k: [k]}",
    "returned as an object": "result = type('Key', (), {'__repr__': lambda self: os.environ['API_KEY']})()",
    "written": "os.write(1, os.environ['API_KEY'].encode())",
    "by a child": "subprocess.run(['env'])",
    "cut": "print('x' * 970 + os.environ['API_KEY'])",
    "cut when it is killed": "os.write(1, b'x' * 970 + os.environb[b'API_KEY'] * 9); os._exit(1)",
    "with the end": "sys.exit('x' * 70 + os.environ['API_KEY'])",
    "printed by one that hangs": "print(os.environ['API_KEY']); import time; time.sleep(60)",
    "in its variables": "print(dict(os.environ))",
}


@pytest.fixture(scope="module")
def keepers():
    """One worker with a secret per tier."""
    workers: dict = {}
    yield workers
    for made in workers.values():
        made.worker.close()


@pytest.mark.parametrize("code", SHOWS.values(), ids=SHOWS.keys())
def test_secrets_are_hidden_in_all_that_comes_back(tier, monkeypatch, keepers, code):
    if tier.name not in keepers:
        monkeypatch.setenv("API_KEY", SECRET)
        keepers[tier.name] = Made(tier, secrets=("API_KEY",), max_print_bytes=1000)
    result = keepers[tier.name].run(code, deadline_s=0.5 if "sleep" in code else LONG_S)
    everything = f"{result.value} {result.message} {result.prints}"
    assert "[secret API_KEY]" in everything
    assert SECRET[:8] not in everything


def test_secrets_are_hidden_where_a_file_does_not_load(tier, monkeypatch, make):
    monkeypatch.setenv("API_KEY", 'quote"back\\slash\nline')
    for code in ("raise ValueError(os.environ['API_KEY'])", "print(os.environ['API_KEY'], flush=True); os._exit(1)"):
        made = make(tier, f"import os\n{code}\n", secrets=("API_KEY",))
        with pytest.raises(SourceFault) as caught:
            made.worker.describe()
        assert "quote" not in caught.value.text


def test_a_function_gets_its_own_secrets_and_no_other_variable(tier, monkeypatch, make):
    monkeypatch.setenv("API_KEY", SECRET)
    monkeypatch.setenv("OTHER_KEY", "hunter2-hunter2")
    code = "result = [os.environ.get('API_KEY') == key, sorted(os.environ)]"
    with_key, other, without = make(tier, secrets=("API_KEY",)), make(tier, secrets=("OTHER_KEY",)), make(tier)
    reversed_key = f"{SECRET[::-1]!r}[::-1]"
    usual = without.run("result = sorted(os.environ)").value
    assert not {"API_KEY", "OTHER_KEY", "HTTP_PROXY"} & set(usual)
    assert with_key.run(f"key = {reversed_key}\n{code}").value == [True, sorted(["API_KEY", *usual])]
    assert other.run(f"key = {reversed_key}\n{code}").value == [False, sorted(["OTHER_KEY", *usual])]
    assert without.run(f"key = {reversed_key}\n{code}").value == [False, usual]


def test_secrets_of_others_are_out_of_reach(isolating_tier, monkeypatch, make):
    """From /proc: of the trainer, of the worker of another function, and of the programs that started it."""
    monkeypatch.setenv("API_KEY", SECRET)
    holder, thief = make(isolating_tier, secrets=("API_KEY",)), make(isolating_tier)
    assert holder.worker.call("fine", {}, LONG_S).value == 1.0
    code = """
found = []
try: processes += os.listdir("/proc")
except PermissionError: processes += [os.getpid()]
for process in map(str, processes):
    for name in ("environ", "mem", "task/" + process + "/environ", "cmdline"):
        try:
            with open(f"/proc/{process}/{name}", "rb") as file:
                if name != "mem": found.append(file.read())
        except OSError: pass
result = [any(bytes(reversed(key.encode())) in text for text in found), len(found) > 0]
"""
    processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    assert thief.run(code, key=SECRET[::-1], processes=processes).value == [False, True]
    assert SECRET not in str(thief.run("print(open('/proc/self/environ').read())"))


def test_a_secret_without_a_value_is_told_before_anything_runs(monkeypatch):
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(SetupError) as caught:
        Worker("", "rewards.py", Limits(secrets=("API_KEY",)))
    assert str(caught.value) == (
        "reward_fns.runtime.secrets names API_KEY, but this environment variable is not set. "
        "Set it (export API_KEY=...) or remove the name."
    )
    monkeypatch.setenv("API_KEY", "short")
    with pytest.raises(SetupError, match="has 5 characters, a secret at least 8"):
        Worker("", "rewards.py", Limits(secrets=("API_KEY",)))


@pytest.mark.parametrize("name", ["PATH", "LD_PRELOAD", "PYTHONPATH", "https_proxy", "BASH_ENV", "A=B", "", "1A", "Ä"])
def test_variables_that_steer_programs_are_no_secrets(monkeypatch, name):
    with pytest.raises(ConfigError, match="cannot be handed to a reward function"):
        Worker("", "rewards.py", Limits(secrets=(name,)))


def test_a_host_that_is_none_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match=r"^reward_fns\.runtime\.allowed_hosts: "):
        Worker("", "rewards.py", Limits(allowed_hosts=("https://api.example.org/",)))
