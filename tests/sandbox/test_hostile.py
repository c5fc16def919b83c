"""Code that wants out, in each isolating tier of this machine: one attack per line of what the tiers say they stop.

Every bomb is bounded (hundreds of processes, a few GiB), and none runs in the plain tier.
"""

from __future__ import annotations

import os
import socket
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest
from processes import new_marker, own_memory_bytes, processes_with, wait_until

from reinforge.sandbox import process, seccomp
from reinforge.sandbox.cgroup import make_cgroup
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.pool import Worker

LONG_S = 30.0
FINE = "\ndef fine(): return 1.0\n"


@pytest.fixture
def make_worker(isolating_tier):
    workers = []

    def make(source: str, **limits) -> Worker:
        workers.append(Worker(textwrap.dedent(source) + FINE, "hostile.py", Limits(**limits), isolating_tier))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


BOMBS = {
    "forks": """
        for _ in range(300):
            if os.fork() == 0: os.execv("/bin/sleep", ["sleep", marker])
    """,
    "doubling forks": """
        for _ in range(9): os.fork()
        os.execv("/bin/sleep", ["sleep", marker])
    """,
    "setsid child": """
        if os.fork() == 0:
            try: os.setsid()
            except OSError: pass
            os.execv("/bin/sleep", ["sleep", marker])
    """,
    "double fork": """
        if os.fork() == 0:
            if os.fork() == 0: os.execv("/bin/sleep", ["sleep", marker])
            os._exit(0)
        os.wait()
    """,
    "daemon": """
        if os.fork() == 0:
            for leave in (os.setsid, os.setpgrp, lambda: os.chdir("/"), lambda: os.closerange(0, 256)):
                try: leave()
                except OSError: pass
            if os.fork() == 0: os.execv("/bin/sleep", ["sleep", marker])
            os._exit(0)
        os.wait()
    """,
    "children that ignore signals": """
        signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for _ in range(5): subprocess.Popen(["sleep", marker])
    """,
    "threads": """
        for _ in range(500): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    """,
    "threads that hang on": """
        threading.Thread(target=time.sleep, args=(60,)).start()
    """,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_and_daemons_end_with_the_call(make_worker, body):
    source = "import os, signal, subprocess, threading, time\nprocess = os.getpid()\ndef attack(marker):\n"
    source += textwrap.indent(textwrap.dedent(body), "    ") + "    return 0.25\ndef who(): return process"
    worker = make_worker(source)
    marker = new_marker()
    worker.call("attack", {"marker": marker}, 5.0)
    assert wait_until(lambda: not processes_with(marker), 10.0)
    assert worker.call("fine", {}, LONG_S).value == 1.0


def test_daemons_end_with_the_call_where_no_cgroup_can_be_made(make_worker, monkeypatch):
    monkeypatch.setattr(process, "make_cgroup", lambda limits: None)
    test_bombs_and_daemons_end_with_the_call(make_worker, BOMBS["daemon"])
    test_bombs_and_daemons_end_with_the_call(make_worker, BOMBS["doubling forks"])


def test_the_number_of_processes_is_bounded(make_worker):
    worker = make_worker(
        """
        import os, time
        def attack():
            started = 0
            try:
                for started in range(300):
                    if os.fork() == 0:
                        time.sleep(60)
            except OSError:
                pass
            return started
        """,
        max_processes=40,
    )
    assert 20 <= worker.call("attack", {}, LONG_S).value <= 40


def test_a_worker_is_replaced_after_a_call_that_leaves_something_and_kept_otherwise(make_worker):
    worker = make_worker(
        """
        import asyncio, concurrent.futures, subprocess, threading, time
        calls = []
        def call(what):
            calls.append(what)
            if what == "thread": threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            if what == "process": subprocess.Popen(["sleep", "60"])
            if what == "joined":
                with concurrent.futures.ThreadPoolExecutor(4) as pool: list(pool.map(str, range(9)))
                subprocess.run(["true"])
            return calls
        async def waits():
            await asyncio.to_thread(str)
            return len(calls)
        """
    )
    each = [{"what": what} for what in ("joined", "joined", "thread", "joined", "process", "joined")]
    seen = [len(result.value) for result in worker.call_each("call", {}, each, LONG_S)]
    assert seen == [1, 2, 3, 1, 2, 1]
    assert [worker.call("waits", {}, LONG_S).value for _ in range(2)] == [1, 1]


def test_a_gigabyte_of_prints_is_cut_and_held_by_nobody(make_worker):
    worker = make_worker(
        """
        import os, subprocess
        def prints():
            for _ in range(1000): print("x" * 10**6)
            return 0.5
        def writes():
            try:
                for _ in range(1000): os.write(1, b"y" * 10**6)
            except OSError: return 0.25
        def child(): return subprocess.run(["yes"], timeout=20).returncode
        """
    )
    worker.describe()
    before = own_memory_bytes()
    results = [worker.call(name, {}, LONG_S) for name in ("prints", "writes", "child")]
    assert own_memory_bytes() - before < 50e6
    assert [result.value for result in results[:2]] == [0.5, 0.25]
    assert all(len(result.prints) < 20_100 and "[... cut: " in result.prints for result in results)
    assert worker.call("fine", {}, LONG_S).value == 1.0


def test_a_memory_bomb_costs_its_own_call_only(make_worker):
    worker = make_worker("def attack():\n    kept = []\n    while True: kept.append(b'x' * 50_000_000)\n")
    before = own_memory_bytes()
    assert worker.call("attack", {}, LONG_S).kind == "out_of_memory"
    assert own_memory_bytes() - before < 50e6
    assert worker.call("fine", {}, LONG_S).value == 1.0


def test_memory_of_all_processes_together_is_bounded(make_worker):
    limits = Limits(max_memory_bytes=400 << 20)
    cgroup = make_cgroup(limits)
    if cgroup is None:
        pytest.skip("no cgroup can be made here: memory is limited per process only")
    cgroup.remove()
    worker = make_worker(
        """
        import mmap, os, time
        def attack():
            reading, writing = os.pipe()
            children = []
            for _ in range(8):
                child = os.fork()
                if child == 0:
                    memory = bytearray(b"x") * (200 << 20)
                    os.write(writing, b"held")
                    time.sleep(60)
                children.append(child)
            ended = 0
            while ended < 7:
                _, status = os.wait()
                ended += os.WIFSIGNALED(status)
            return ended
        """,
        max_memory_bytes=400 << 20,
    )
    result = worker.call("attack", {}, LONG_S)
    assert result.value == 7 or (result.kind, result.message[-7:]) == ("exited", "SIGKILL")
    assert worker.call("fine", {}, LONG_S).value == 1.0


def test_files_are_bounded(make_worker, isolating_tier):
    worker = make_worker(
        """
        import errno
        def one():
            with open("large", "wb") as file: file.write(b"x" * 30_000_000)
        def many():
            for i in range(20):
                with open(f"f{i}", "wb") as file: file.write(b"x" * 5_000_000)
        """,
        max_file_bytes=20_000_000,
        max_disk_bytes=50_000_000,
    )
    assert "File too large" in worker.call("one", {}, LONG_S).message
    if isolating_tier.name == "bubblewrap":  # Landlock has no bound for many files, and says so
        assert "No space left" in worker.call("many", {}, LONG_S).message


ENDS = {
    "hang in C": ("re.match(r'(a+)+$', 'a' * 60 + 'b')", "timeout"),
    "os._exit(0)": ("os._exit(0)", "exited"),
    "sys.exit(0)": ("sys.exit(0)", "exited"),
    "kill itself": ("os.kill(os.getpid(), signal.SIGKILL)", "exited"),
    "segfault": ("ctypes.string_at(0)", "exited"),
    "closed descriptors": ("os.closerange(0, 256)", "exited"),
    "stopped": ("os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
}


@pytest.mark.parametrize(("body", "kind"), ENDS.values(), ids=ENDS.keys())
def test_an_end_is_no_result_and_the_next_call_is_served(make_worker, body, kind):
    worker = make_worker(
        f"import ctypes, os, re, signal, sys, time\ndef attack(x):\n    if x == 1: {body}\n    return 0.5"
    )
    worker.describe()
    results = worker.call_each("attack", {}, [{"x": x} for x in range(3)], 2.0)
    assert [(result.value, result.kind) for result in results] == [(0.5, ""), (None, kind), (0.5, "")]


FORGERS = {
    "printed": """
        for _ in range(100):
            frame = reply({"nonce": secrets.token_hex(8), "value": 999.0, "latency_s": 0.1, "kind": ""})
            os.write(1, frame); sys.__stdout__.buffer.write(frame)
    """,
    "on every descriptor": """
        for nonce in ["", None, "0" * 16, secrets.token_hex(8)]:
            for descriptor in range(64):
                try: os.write(descriptor, reply({"nonce": nonce, "value": 999.0, "latency_s": 0.1}))
                except OSError: pass
    """,
    "with our own nonce, for the calls to come": """
        runner = next(o for o in gc.get_objects() if type(o).__name__ == "Runner")
        frame = sys._getframe()
        while frame and "request" not in frame.f_locals: frame = frame.f_back
        nonce = frame.f_locals["request"]["nonce"]
        own = reply({"nonce": nonce, "value": 0.5, "latency_s": 0.1, "kind": "", "prints": "", "left": ""})
        more = reply({"nonce": nonce, "value": 999.0, "latency_s": 0.1, "kind": "", "prints": "", "left": ""})
        os.write(runner.channel, own + more * 100)
    """,
    "later, from a child": """
        if os.fork() == 0:
            for _ in range(100):
                for descriptor in range(3, 64):
                    try: os.write(descriptor, reply({"nonce": "0" * 16, "value": 999.0, "latency_s": 0.1}))
                    except OSError: pass
                time.sleep(0.001)
            os._exit(0)
    """,
}


FORGER = """
import gc, json, os, secrets, sys, threading, time
def reply(d):
    data = json.dumps(d).encode(); return len(data).to_bytes(4, "big") + data
"""


@pytest.mark.parametrize("body", FORGERS.values(), ids=FORGERS.keys())
def test_no_call_changes_the_score_of_another(make_worker, body):
    """Calls that write up to a hundred frames each; every second call is an honest one."""
    source = FORGER + "def attack(x):\n    if x % 2: return x\n" + textwrap.indent(textwrap.dedent(body), "    ")
    worker = make_worker(source + "    return 0.5\n")
    results = worker.call_each("attack", {}, [{"x": x} for x in range(20)], LONG_S)
    assert [result.value for result in results[1::2]] == [x for x in range(20) if x % 2]


@pytest.mark.slow
def test_of_a_thousand_forgeries_none_is_accepted(make_worker):
    """1,000 calls that try to forge, in every way known to us, each before an honest call of the same function; and a
    function beside it that is called all along. Most tries print, which does not cost the worker its life."""
    ways = ["printed"] * 3 + list(FORGERS)
    source = FORGER + "def attack(x, way):\n    if way is None: return x\n"
    for way, body in FORGERS.items():
        source += f"    if way == {way!r}:\n" + textwrap.indent(textwrap.dedent(body), " " * 8)
    forger, other = make_worker(source + "    return 0.5\n"), make_worker("def double(x): return 2 * x")
    num_tries = 0
    for start in range(0, 1000, 20):
        each = [
            {"x": x, "way": ways[x % len(ways)] if tries else None}
            for x in range(start, start + 20)
            for tries in (1, 0)
        ]
        results = forger.call_each("attack", {}, each, LONG_S)
        num_tries += sum(arguments["way"] is not None for arguments in each)
        assert [result.value for result in results[1::2]] == list(range(start, start + 20))
        assert {result.value for result in results[::2]} <= {0.5, None}
        assert other.call("double", {"x": start}, LONG_S).value == 2 * start
    assert num_tries == 1000


TAMPERERS = {
    "the program": """
        main = sys.modules["__main__"]
        main.Runner.outcome = lambda self, arguments: {"value": 999.0}
        main.Runner._reply = main.dumps = main.loads = main.plain = None
    """,
    "the function": "globals()['attack'] = lambda x: 999.0",
    "globals": "calls.extend([999.0] * 9)",
    "modules": "json.dumps = time.perf_counter = None; builtins.float = builtins.dict = lambda *a: 999.0",
    "a file": "open('calls', 'w').write('999')",
    "a thread": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "a child": "subprocess.Popen(['sleep', '60'])",
    "memory of the parent": """
        try:
            with open(f"/proc/{os.getppid()}/mem", "r+b", buffering=0) as memory: written.append(memory.fileno())
        except OSError: written.clear()
        assert not written
    """,
    "the end": "os._exit(0)",
    "death of the parent": "os.kill(os.getppid(), signal.SIGKILL)",
    "a raise": "raise SystemExit(0)",
    "a forged frame": """
        frame = b'{"value": 999.0, "dropped": 0}'
        frame = len(frame).to_bytes(4, "big") + frame
        for descriptor in range(3, 64):
            try: os.write(descriptor, frame * 50)
            except OSError: pass
    """,
}


@pytest.mark.parametrize("body", TAMPERERS.values(), ids=TAMPERERS.keys())
def test_in_a_process_of_its_own_a_call_reaches_no_other(make_worker, body):
    """Whatever they do to their process, the calls between stay right."""
    source = "import builtins, json, os, signal, subprocess, sys, threading, time\ncalls, written = [], []\n"
    source += "def attack(x):\n    if x % 2: return x + len(calls) + os.path.exists('calls')\n" + textwrap.indent(
        textwrap.dedent(body), "    "
    )
    worker = make_worker(source + "\n    return 0.5\n", fresh_process=True)
    results = worker.call_each("attack", {}, [{"x": x} for x in range(20)], LONG_S)
    assert [result.value for result in results[1::2]] == [x for x in range(20) if x % 2]


@pytest.mark.parametrize("dropped", ["1e999", "-1e999", "NaN", "-5", '"9"', "[]", "1" * 400])
def test_what_a_fresh_process_says_of_its_prints_ends_nothing(make_worker, dropped):
    """Its program may be replaced: the kept process, which hears it, lives on."""
    worker = make_worker(
        f"""
        import __main__, os
        def f(lies):
            frame = b'{{"value": 1, "dropped": ' + {dropped!r}.encode() + b'}}'
            __main__.frame = lambda outcome: len(frame).to_bytes(4, "big") + frame
            return os.getppid()
        def parent(): return os.getppid()
        """,
        fresh_process=True,
    )
    kept = worker.call("parent", {}, LONG_S).value
    result = worker.call("f", {"lies": 1}, LONG_S)
    assert (result.kind, result.value) in [("", 1), ("exited", None)]
    assert "-" not in result.prints
    assert worker.call("parent", {}, LONG_S).value == kept


def test_a_fresh_process_has_no_channel(make_worker):
    """The call could answer in place of the kept process, and read what that is told."""
    code = """
    import os, stat
    def f():
        kinds = {}
        for descriptor in range(256):
            try: kinds[descriptor] = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
            except OSError: pass
        return [kinds[0], [descriptor for descriptor, is_socket in kinds.items() if is_socket]]
    """
    kept, fresh = (make_worker(code, fresh_process=own).call("f", {}, LONG_S).value for own in (False, True))
    assert len(kept[1]) == 1
    assert fresh == [False, []]


def test_a_fresh_process_answers_as_a_kept_one(make_worker):
    source = """
    import asyncio, os
    def f(x):
        print("x" * x)
        if x == 3: os._exit(3)
        if x == 4: return object
        return [1.5, {"x": x}]
    async def waits(): return await asyncio.to_thread(str, 1)
    """
    kept, fresh = (make_worker(source, max_print_bytes=6, fresh_process=own) for own in (False, True))
    for x in (1, 3, 4, 9):
        one, other = (worker.call("f", {"x": x}, LONG_S) for worker in (kept, fresh))
        assert (one.value, one.kind, one.prints) == (other.value, other.kind, other.prints)
        assert one.message.partition("exit code")[2] == other.message.partition("exit code")[2]
    assert fresh.call("waits", {}, LONG_S).value == "1"


def test_patched_modules_and_import_hooks_change_no_other_function(make_worker):
    patcher = make_worker(
        """
        import builtins, json, math, sys, time
        class Hook:
            def find_spec(self, name, path=None, target=None): raise ImportError("hooked")
        def attack():
            json.dumps = json.loads = json.JSONEncoder.encode = lambda *a, **k: '{"value": 999.0}'
            builtins.float = builtins.len = builtins.print = lambda *a: 999.0
            math.isfinite = time.perf_counter = time.monotonic = lambda *a: 999.0
            sys.meta_path.insert(0, Hook()); sys.path_hooks.clear(); sys.modules.pop("json")
            return 0.5
        """
    )
    other = make_worker("import json\ndef reads(): return json.loads('[0.25]')[0] + float('1')")
    patcher.call("attack", {}, LONG_S)
    assert other.call("reads", {}, LONG_S).value == 1.25


@pytest.fixture
def outside(tmp_path):
    """A file of this machine, with content and mode that must stay; where not even its folder protects it."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.geteuid() and folder != Path(tempfile.gettempdir()):
            folder.chmod(folder.stat().st_mode | 0o055)
    path = tmp_path / "outside.txt"
    path.write_text("hunter2")
    path.chmod(0o666)
    yield path
    assert path.read_text() == "hunter2"
    assert path.stat().st_mode & 0o777 == 0o666


FILE_ATTACKS = {
    "read": "open(path).read()",
    "read through a link": "os.symlink(path, 'link'); open('link').read()",
    "read through a hard link": "os.link(path, 'hard'); open('hard').read()",
    "map": "mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:]",
    "list the folder": "os.listdir(os.path.dirname(path))",
    "list home folders": "[os.listdir(f) for f in ('/home', '/root') if os.path.isdir(f)][0][100]",
    "append": "open(path, 'a').write('x')",
    "truncate": "os.truncate(path, 0)",
    "delete": "os.unlink(path)",
    "rename": "os.rename(path, 'mine')",
    "mode": "os.chmod(path, 0)",
    "owner": "os.chown(path, os.getuid(), os.getgid())",
    "times": "os.utime(path, (0, 0))",
    "attribute": "os.setxattr(path, 'user.x', b'1')",
    "a shell": "subprocess.run(['cat', path], check=True)",
    "shadow": "open('/etc/shadow').read()",
    "write into Python": "open(os.path.join(os.path.dirname(os.__file__), 'evil.py'), 'w')",
    "write into us": "open(sys.modules['__main__'].__file__, 'a')",
    "mode in Python": "os.chmod(os.__file__, 0o600)",
    "write into /usr": "open('/usr/evil', 'w')",
    "write at the top": "open('/evil', 'w')",
    "kernel settings": "open('/proc/sys/kernel/core_pattern', 'w')",
    "devices": "os.mknod('disk', 0o600 | 0o060000, os.makedev(8, 0)); open('disk')",
    "leave by chroot": "os.mkdir('d'); os.chroot('d')",
    "environment of others": "open(f'/proc/{trainer}/environ', 'rb').read()[0]",
    "memory of others": "open(f'/proc/{trainer}/mem', 'rb')",
    "descriptors of others": "os.listdir(f'/proc/{trainer}/fd')[0]",
    "root of others": "os.listdir(f'/proc/{trainer}/root')",
    "command lines of others": "assert_found([n for n in os.listdir('/proc') if n.isdigit() and pytest_in(n)])",
    "signal the trainer": "os.kill(trainer, 0)",
    "signal its group": "os.killpg(os.getpgid(trainer), 0)",
}


@pytest.mark.parametrize("attack", FILE_ATTACKS.values(), ids=FILE_ATTACKS.keys())
def test_files_and_processes_of_the_machine_are_out_of_reach(shared_attacker, outside, attack):
    result = shared_attacker.call("attack", {"code": attack, "path": str(outside), "trainer": os.getpid()}, LONG_S)
    assert (result.kind, result.value) == ("raised", None), result
    assert wait_until(lambda: outside.read_text() == "hunter2", 5.0)


@pytest.fixture(scope="module")
def attackers():
    workers = {}
    yield workers
    for worker in workers.values():
        worker.close()


ATTACKER = """
import ctypes, mmap, os, signal, socket, subprocess, sys, urllib.request
def assert_found(found): return found[0]
def pytest_in(process): return b"pytest" in open(f"/proc/{process}/cmdline", "rb").read()
def attack(code, **names):
    exec(code, globals() | names)
    return "it worked"
"""


@pytest.fixture
def shared_attacker(isolating_tier, attackers):
    """One worker per tier for all attacks that leave their process alive."""
    if isolating_tier.name not in attackers:
        attackers[isolating_tier.name] = Worker(ATTACKER, "attacker.py", Limits(), isolating_tier)
    return attackers[isolating_tier.name]


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    """Sockets of this machine that must hear nothing: TCP, UDP, unix by path and abstract."""
    path = str(tmp_path_factory.mktemp("listening") / "socket")
    abstract = f"\0reinforge-test-{os.getpid()}"
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(f"{path}-datagrams")
    os.chmod(f"{path}-datagrams", 0o777)
    named, hidden = (socket.socket(socket.AF_UNIX) for _ in range(2))
    named.bind(path)
    hidden.bind(abstract)
    for listener in (named, hidden):
        listener.listen()
    everything = (tcp, udp, datagrams, named, hidden)
    for listener in everything:
        listener.setblocking(False)
    yield {"tcp": tcp.getsockname()[1], "udp": udp.getsockname()[1], "path": path, "abstract": abstract} | {
        "datagrams": f"{path}-datagrams"
    }
    for listener in (tcp, named, hidden):
        with pytest.raises(BlockingIOError):
            listener.accept()
    for listener in (udp, datagrams):
        with pytest.raises(BlockingIOError):
            listener.recv(1)
    for listener in everything:
        listener.close()


NETWORK_ATTACKS = {
    "tcp": "socket.create_connection(('127.0.0.1', tcp), 2)",
    "tcp out": "socket.create_connection(('192.0.2.1', 80), 2)",
    "tcp 6": "socket.socket(socket.AF_INET6)",
    "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', udp))",
    "names": "socket.getaddrinfo('example.com', 80)",
    "http": "urllib.request.urlopen(f'http://127.0.0.1:{tcp}', timeout=2)",
    "unix by path": "socket.socket(socket.AF_UNIX).connect(path)",
    "unix abstract": "socket.socket(socket.AF_UNIX).connect(abstract)",
    "datagram pair to a path": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', datagrams)",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "vsock": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "kernel crypto": "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
}


@pytest.mark.parametrize("attack", NETWORK_ATTACKS.values(), ids=NETWORK_ATTACKS.keys())
def test_nothing_is_sent(shared_attacker, listeners, attack):
    result = shared_attacker.call("attack", {"code": attack, **listeners}, LONG_S)
    assert (result.kind, result.value) == ("raised", None), result
    assert any(reason in result.message for reason in ("Operation not permitted", "name resolution")), result


CALLS = {
    "ptrace": ("ptrace", (16, 1, 0, 0)),
    "read memory of a process": ("process_vm_readv", (1, 0, 0, 0, 0, 0)),
    "key rings": ("keyctl", (0, -3, 1, 0, 0)),
    "add a key": ("add_key", (0, 0, 0, 0, -3)),
    "userfaultfd": ("userfaultfd", (0,)),
    "bpf": ("bpf", (0, 0, 0)),
    "perf events": ("perf_event_open", (0, 0, -1, -1, 0)),
    "io_uring": ("io_uring_setup", (1, 0)),
    "mount": ("mount", (0, 0, 0, 0, 0)),
    "open_tree": ("open_tree", (-100, 0, 0)),
    "unshare": ("unshare", (0x10000000,)),
    "setns": ("setns", (0, 0)),
    "file handles": ("open_by_handle_at", (0, 0, 0)),
    "modules": ("init_module", (0, 0, 0)),
    "kernel log": ("syslog", (3, 0, 0)),
    "reboot": ("reboot", (0, 0, 0, 0)),
    "clock": ("clock_settime", (0, 0)),
    "shared memory": ("shmget", (0, 4096, 0o1777)),
    "messages": ("msgget", (0, 0o1777)),
    "memory files": ("memfd_create", (0, 0)),
    "priority of others": ("setpriority", (0, 1, 19)),
    "processors of others": ("sched_setaffinity", (1, 0, 0)),
    "fake input": ("ioctl", (0, 0x5412, 0)),
    "limits of others": ("prlimit64", (1, 7, 0, 0)),
    "a namespace by clone": ("clone", (0x10000000 | 17, 0, 0, 0, 0)),
}


@pytest.mark.parametrize(("name", "arguments"), CALLS.values(), ids=CALLS.keys())
def test_system_calls_that_nobody_needs_are_refused(shared_attacker, name, arguments):
    column = 0 if os.uname().machine == "x86_64" else 1
    table = seccomp._FORBIDDEN | {"ioctl": seccomp._IOCTL, "prlimit64": seccomp._PRLIMIT, "clone": seccomp._CLONE}
    code = f"""
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
result = libc.syscall({table[name][column]}, *map(ctypes.c_long, {arguments}))
raise OSError(ctypes.get_errno() if result == -1 else 0, "result")
"""
    assert shared_attacker.call("attack", {"code": code}, LONG_S).message.startswith("PermissionError: [Errno 1] ")


def test_no_capability_no_root_no_secret(shared_attacker, monkeypatch):
    status = "open('/proc/self/status').read()"
    code = f"facts = dict(l.split(':', 1) for l in {status}.splitlines()); raise Exception([facts[k].split() for k in "
    code += "('Uid', 'NoNewPrivs', 'Seccomp', 'CapPrm', 'CapBnd')], sorted(os.environ))"
    message = shared_attacker.call("attack", {"code": code}, LONG_S).message
    identity = message.partition(")")[0]
    assert "'0', '0', '0', '0'" not in identity  # not root
    assert "['1'], ['2']" in identity  # no new privileges, seccomp filter
    assert "['HOME', 'LANG', 'OMP_NUM_THREADS', 'PATH', 'PYTHONHASHSEED']" in message


def test_killing_everybody_kills_nobody_else(make_worker):
    worker, other = make_worker("import os, time\ndef attack():\n    os.kill(-1, 9); time.sleep(9)"), make_worker("")
    assert other.call("fine", {}, LONG_S).value == 1.0
    assert worker.call("attack", {}, 1.0).kind in ("raised", "timeout", "exited")
    assert other._process is not None
    assert other._process.is_idle()
    assert worker.call("fine", {}, LONG_S).value == 1.0


def test_attacks_at_once_leave_the_trainer_as_it_was(make_worker):
    """All kinds together, from threads as the grader uses them."""
    source = """
    import os, threading, time
    def attack(x):
        if x % 4 == 0: [os.fork() for _ in range(6)]
        if x % 4 == 1: threading.Thread(target=time.sleep, args=(60,)).start()
        if x % 4 == 2: os._exit(0)
        return x
    """
    workers = [make_worker(source) for _ in range(4)]
    descriptors, memory = len(os.listdir("/proc/self/fd")), own_memory_bytes()
    kinds: list[list[str]] = []

    def grade(worker: Worker) -> None:
        results = worker.call_each("attack", {}, [{"x": x} for x in range(8)], LONG_S)
        kinds.append([result.kind for result in results])
        worker.close()

    threads = [threading.Thread(target=grade, args=(worker,)) for worker in workers]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == [["", "", "exited", ""] * 2] * 4
    assert time.monotonic() - start < LONG_S
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert own_memory_bytes() - memory < 50e6
