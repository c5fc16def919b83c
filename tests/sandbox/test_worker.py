"""One worker against code that misbehaves: it answers with a kind, and the next call is served."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import is_alive, new_marker, processes_with, wait_until

from reinforge.sandbox.bubblewrap import OWN_FOLDER
from reinforge.sandbox.launch import RUNNER
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.pool import Limits, Parameter, SourceFault, UnsendableArguments, Worker, WorkerUnavailable
from reinforge.sandbox.runner import Runner

LONG_S = 30.0


@pytest.fixture
def make_worker():
    workers = []

    def make(source: str, *, tier=None, **limits) -> Worker:
        workers.append(Worker(textwrap.dedent(source), "user.py", Limits(**limits), tier))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.fixture(scope="module")
def echo():
    worker = Worker("def same(value): return value", "echo.py")
    yield worker
    worker.close()


@example(["", "ü → 🐍", "\x00\x1b[31m", "lone \ud800 surrogate \udfff", "\r\n\u2028"])
@given(st.lists(st.text(st.characters(), max_size=20), max_size=5))
@settings(deadline=None)
def test_every_character_survives_the_way_there_and_back(echo, texts):
    results = echo.call_each("same", {}, [{"value": text} for text in texts], LONG_S)
    assert [result.value for result in results] == texts


def test_each_call_has_its_own_copies(make_worker):
    worker = make_worker(
        """
        def spoil(row, own):
            row["list"].append(own.pop()); row["new"] = 1
            return [row, own]
        """
    )
    shared = {"row": {"list": [1]}}
    results = worker.call_each("spoil", shared, [{"own": [8]}, {"own": [9]}], LONG_S)
    assert [r.value for r in results] == [[{"list": [1, 8], "new": 1}, []], [{"list": [1, 9], "new": 1}, []]]
    assert shared == {"row": {"list": [1]}}


def test_a_raise_tells_line_and_text(make_worker):
    worker = make_worker("def f(x):\n    y = 1\n    return y / x\n")
    result = worker.call("f", {"x": 0}, LONG_S)
    assert result.kind == "raised"
    assert result.message.startswith("ZeroDivisionError: division by zero\n")
    assert 'File "user.py", line 3, in f' in result.message
    assert "return y / x" in result.message
    assert "runner" not in result.message


def test_an_exception_without_text_is_still_told(make_worker):
    worker = make_worker(
        """
        class Mute(Exception):
            def __str__(self): raise RuntimeError("no")
        def f(): raise Mute()
        def g(): raise ValueError("x" * 10**7)
        """
    )
    assert "Mute" in worker.call("f", {}, LONG_S).message
    message = worker.call("g", {}, LONG_S).message
    assert re.fullmatch(r"ValueError: x{3988}\[\.\.\. cut: 99961\d\d characters more\]", message), message[-100:]


HANGS = {
    "sleep": "time.sleep(60)",
    "busy": "while True: pass",
    "regex": "re.match(r'(a+)+$', 'a' * 60 + 'b')",  # holds the GIL in C: no thread or handler in there could act
    "shielded": """
    while True:
        try: time.sleep(60)
        except BaseException: pass""",
    "signals": "[signal.signal(s, signal.SIG_IGN) for s in (2, 14, 15)]; time.sleep(60)",
}


@pytest.mark.parametrize("body", HANGS.values(), ids=HANGS.keys())
def test_a_hang_is_ended_and_the_others_are_served(make_worker, body):
    source = f"import re, signal, time\ndef f(x):\n    print('start', x)\n    if x != 1: return x\n    {body}\n"
    worker = make_worker(source)
    worker.describe()
    start = time.monotonic()
    results = worker.call_each("f", {}, [{"x": x} for x in range(4)], 0.4)
    assert time.monotonic() - start < LONG_S / 2
    assert [r.value for r in results] == [0, None, 2, 3]
    assert [r.kind for r in results] == ["", "timeout", "", ""]
    assert results[1].prints == "start 1\n"
    assert results[1].message == "no result within 0.4 s"


ENDS = {
    "sys.exit": ("sys.exit(0)", "called sys.exit(0)"),
    "os._exit": ("os._exit(0)", "exit code 0"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    "unnamed signal": ("os.kill(os.getpid(), 40)", "killed by signal 40"),
    "segfault": ("ctypes.string_at(0)", "killed by SIGSEGV"),
    "closed channel": ("os.closerange(0, 100)", "closed its result channel"),
}


@pytest.mark.parametrize(("body", "told"), ENDS.values(), ids=ENDS.keys())
def test_an_exit_is_never_a_result(make_worker, body, told):
    source = f"import ctypes, os, signal, sys\ndef f(x):\n    if x == 1: {body}\n    return 1.0\n"
    results = make_worker(source).call_each("f", {}, [{"x": x} for x in range(3)], LONG_S)
    assert [r.kind for r in results] == ["", "exited", ""]
    assert results[1].value is None
    assert told in results[1].message


def test_print_is_cut_with_a_visible_mark(make_worker):
    worker = make_worker(
        """
        import os, subprocess, sys
        def loud(): print("x" * 10_000_000)
        def raw(): os.write(1, b"y" * 5000)
        def mixed():
            print("out"); print("err", file=sys.stderr); sys.stdout.buffer.write(b"bytes\\n")
            subprocess.run(["echo", "child"]); os.write(2, b"fd\\n"); print("\\ud800 \\xfc")
        def closes(): sys.stdout.close(); os.close(1)
        def quiet(): return 1
        """,
        max_print_bytes=1000,
    )
    assert worker.call("loud", {}, LONG_S).prints == "x" * 1000 + "[... cut: 9999001 bytes more]"
    assert worker.call("raw", {}, LONG_S).prints == "y" * 1000 + "[... cut: 4000 bytes more]"
    assert worker.call("mixed", {}, LONG_S).prints == "out\nerr\nbytes\nchild\nfd\n\\ud800 ü\n"
    assert worker.call("closes", {}, LONG_S).kind == ""
    assert worker.call("quiet", {}, LONG_S).prints == ""


def test_prints_before_a_hang_are_cut_too(make_worker):
    source = "def f():\n    print('x' * 5000)\n    while True: pass"
    worker = make_worker(source, max_print_bytes=10)
    assert worker.call("f", {}, 0.3).prints == "x" * 10 + "[... cut: the limit was reached]"


def test_patched_modules_do_not_take_the_runner_along(make_worker):
    worker = make_worker(
        """
        import json, time
        def f():
            json.dumps = json.loads = time.perf_counter = None
            return 0.5
        """
    )
    assert [r.value for r in worker.call_each("f", {}, [{}, {}], LONG_S)] == [0.5, 0.5]


def test_a_huge_result_is_refused(make_worker):
    worker = make_worker("def f(n): return 'x' * n", max_result_bytes=1000)
    assert worker.call("f", {"n": 998}, LONG_S).value == "x" * 998
    result = worker.call("f", {"n": 100_000_000}, LONG_S)
    assert (result.kind, result.value) == ("not_serialisable", None)
    assert "at most 1,000" in result.message


def test_memory_is_bounded_and_given_back(make_worker):
    worker = make_worker(
        "kept = []\ndef f(n): kept.append(bytearray(n)); return len(kept)", max_memory_bytes=300_000_000
    )
    assert worker.call("f", {"n": 1000}, LONG_S).value == 1
    assert worker.call("f", {"n": 10**9}, LONG_S).kind == "out_of_memory"
    assert worker.call("f", {"n": 1000}, LONG_S).value == 1  # a fresh process


@pytest.mark.parametrize("target", ["(1, 2)", "range(3, 64)"], ids=["stdout and stderr", "every descriptor"])
def test_forged_frames_are_no_results(make_worker, target):
    worker = make_worker(
        f"""
        import json, os
        def forge():
            for nonce in ["", None, "0" * 16]:
                reply = json.dumps({{"nonce": nonce, "value": 999.0, "latency_s": 0.1}}).encode()
                for descriptor in {target}:
                    try: os.write(descriptor, len(reply).to_bytes(4, "big") + reply)
                    except OSError: pass
            return 0.5
        def fine(): return 1.0
        """
    )
    for _ in range(5):
        result = worker.call("forge", {}, LONG_S)
        assert result.value == 0.5 if target == "(1, 2)" else (result.kind, result.value) == ("exited", None)
        assert worker.call("fine", {}, LONG_S).value == 1.0


TAMPERED = {
    "latency": {"value": 1.0, "latency_s": "soon"},
    "nan latency": {"value": 1.0, "latency_s": float("nan")},
    "nonce": {"nonce": "0" * 16, "value": 1.0, "latency_s": 0.1},
    "nothing": {},
    "deep value": {"value": json.loads("[" * 700 + "]" * 700), "latency_s": 0.1},
    "deep objects": {"value": json.loads('{"a":' * 700 + "1" + "}" * 700), "latency_s": 0.1},
    "deep kind": {"kind": json.loads("[" * 700 + "]" * 700), "latency_s": 0.1},
}


@pytest.mark.parametrize("reply", TAMPERED.values(), ids=TAMPERED.keys())
@pytest.mark.parametrize("secret", [False, True], ids=["plain", "with a secret"])
def test_a_tampered_runner_cannot_confuse_us(make_worker, monkeypatch, reply, secret):
    monkeypatch.setenv("API_KEY", "sk-0123456789")
    worker = make_worker(
        """
        import __main__, json
        def f(reply):
            send = __main__.Runner._reply
            __main__.Runner._reply = lambda self, honest: send(self, {"nonce": honest["nonce"], **json.loads(reply)})
        """,
        secrets=("API_KEY",) if secret else (),
    )
    honest, tampered = worker.call_each("f", {"reply": json.dumps(reply)}, [{}, {}], LONG_S)
    assert (honest.kind, honest.value) == ("", None)
    assert (tampered.kind, tampered.value) == ("exited", None)
    assert tampered.message.endswith("it broke its result channel")


@pytest.mark.parametrize("functions", ["3", "[3]", "[{'name': 'f'}]", "None"])
def test_a_module_body_cannot_confuse_us(make_worker, functions):
    with pytest.raises(SourceFault, match="broke its result channel"):
        make_worker(f"import __main__\n__main__.describe = lambda *a: {functions}").describe()


@pytest.mark.parametrize("line", ["float('inf')", "float('nan')", "-1", "10**4000", "[[]]", "'one'"])
def test_a_line_that_is_none_is_no_line(make_worker, line):
    fact = f"{{'name': 'f', 'parameters': [], 'line': {line}, 'own': True, 'doc': ''}}"
    (facts,) = make_worker(f"import __main__\n__main__.describe = lambda *a: [{fact}]\ndef f(): pass").describe()
    assert facts.line == 0
    with pytest.raises(SourceFault, match="broken") as caught:
        make_worker(
            f"import __main__\n__main__.load_fault = lambda *a: {{'error': 'broken', 'line': {line}}}\n1/0"
        ).describe()
    assert caught.value.line is None


@pytest.mark.parametrize("doc", ["[", "{'a':"], ids=["lists", "objects"])
def test_a_deep_description_is_no_description(make_worker, doc):
    code = f"doc = {{}}\nfor _ in range(700): doc = {'[doc]' if doc == '[' else '{0: doc}'}\n"
    fact = "{'name': 'f', 'parameters': [], 'line': 1, 'own': True, 'doc': doc}"
    with pytest.raises(SourceFault, match="broke its result channel"):
        make_worker(f"import __main__\n{code}__main__.describe = lambda *a: [{fact}]\ndef f(): pass").describe()


def test_a_worker_that_died_between_calls_costs_no_result(make_worker):
    worker = make_worker("import os\ndef f(): return os.getpid()", tier=Plain())
    first = worker.call("f", {}, LONG_S).value
    os.kill(first, 9)
    assert wait_until(lambda: not is_alive(first))
    assert worker.call("f", {}, LONG_S).value not in (None, first)


def test_messages_are_valid_unicode(make_worker):
    worker = make_worker("def f(): raise ValueError('lone \\ud800')")
    assert worker.call("f", {}, LONG_S).message.startswith("ValueError: lone \\ud800\n")


def test_an_answer_that_came_while_we_were_stopped_counts(tmp_path):
    script = tmp_path / "stopped.py"
    script.write_text(
        textwrap.dedent(
            """
            from reinforge.sandbox.pool import Worker
            worker = Worker("import time\\ndef f(): time.sleep(0.2); return 'in time'", "a.py")
            worker.describe()
            print("ready", flush=True)
            print(worker.call("f", {}, 0.7).value)
            worker.close()
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout.readline() == "ready\n"
        time.sleep(0.05)
        trainer.send_signal(signal.SIGSTOP)
        time.sleep(1.2)
        trainer.send_signal(signal.SIGCONT)
        assert trainer.stdout.readline() == "in time\n"


def test_a_forked_child_that_returns_has_no_voice(make_worker):
    worker = make_worker("import os\ndef f(): return 'child' if os.fork() == 0 else 'parent'")
    assert [worker.call("f", {}, LONG_S).value for _ in range(5)] == ["parent"] * 5


def test_nothing_of_ours_is_inside(make_worker, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    worker = make_worker(
        """
        import os, sys
        def environment(): return dict(os.environ)
        def descriptors(): return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
        def folder(): return [os.listdir("."), os.getcwd(), sys.argv]
        def modules(): return [name for name in sys.modules if name.startswith("reinforge")]
        def limits():
            import resource as r
            return [r.getrlimit(k)[0] for k in (r.RLIMIT_CORE, r.RLIMIT_AS, r.RLIMIT_FSIZE)]
        """
    )
    environment = worker.call("environment", {}, LONG_S).value
    assert set(environment) == {"PATH", "LANG", "PYTHONHASHSEED", "OMP_NUM_THREADS", "HOME"}
    assert len(worker.call("descriptors", {}, LONG_S).value) <= 5  # 0, 1, 2, the channel, the kept output
    files, folder, arguments = worker.call("folder", {}, LONG_S).value
    assert (files, arguments) == ([], [""])
    assert worker.call("modules", {}, LONG_S).value == []
    assert worker.call("limits", {}, LONG_S).value == [0, 2 << 30, 64 << 20]
    assert folder == OWN_FOLDER or os.path.exists(folder)
    worker.close()
    assert folder == OWN_FOLDER or not os.path.exists(folder)


def test_close_leaves_no_process(make_worker):
    worker = make_worker(
        """
        import subprocess, time
        def start(marker):
            subprocess.Popen(["sleep", marker])
            time.sleep(60)
        """
    )
    marker = new_marker()
    thread = threading.Thread(target=worker.call, args=("start", {"marker": marker}, 1.0))
    thread.start()
    assert wait_until(lambda: processes_with(marker))
    thread.join()
    worker.close()
    assert processes_with(marker) == []
    with pytest.raises(WorkerUnavailable):
        worker.call("start", {}, LONG_S)


def test_a_timeout_leaves_no_child(make_worker):
    worker = make_worker(
        """
        import subprocess, time
        def hang(marker):
            subprocess.Popen(["sleep", marker])
            print("started")
            time.sleep(60)
        """
    )
    marker = new_marker()
    assert worker.call("hang", {"marker": marker}, 0.5).prints == "started\n"
    assert wait_until(lambda: not processes_with(marker), 10.0)


def test_close_from_another_thread_ends_a_call(make_worker):
    worker = make_worker("import time\ndef hang(): time.sleep(60)")
    worker.describe()
    outcome = []

    def call():
        with pytest.raises(WorkerUnavailable):
            worker.call("hang", {}, LONG_S)
        outcome.append("ended")

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.2)
    start = time.monotonic()
    worker.close()
    thread.join(LONG_S)
    assert outcome == ["ended"]
    assert time.monotonic() - start < LONG_S / 2


@pytest.mark.parametrize(
    ("source", "text", "line", "package"),
    [
        ("x = 1\ndef f(:\n", "SyntaxError", 2, ""),
        ("import no_such_package.part\n", "No module named 'no_such_package'", 1, "no_such_package"),
        ("def g():\n    return 1 / 0\n\ng()\n", "ZeroDivisionError", 2, ""),
        ("import sys\nsys.exit(0)\n", "called sys.exit(0)", 2, ""),
        ("import os\nos._exit(0)\n", "exit code 0", None, ""),
        ("while True: pass\n", "did not finish loading within 0.5 s", None, ""),
    ],
)
def test_a_source_that_does_not_load(make_worker, source, text, line, package):
    with pytest.raises(SourceFault) as caught:
        make_worker(source, load_s=0.5 if "while" in source else 30.0).describe()
    assert text in caught.value.text
    assert (caught.value.line, caught.value.package) == (line, package)


def test_describe_names_parameters_and_kinds(make_worker):
    source = '''
    from math import sqrt
    from textwrap import dedent
    def one(a, b=1, *rest, c, **more):
        """First line.

        Second."""
    async def two(): pass
    class Three: pass
    '''
    found = {fact.name: fact for fact in make_worker(source).describe()}
    kinds = ["positional_or_keyword", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
    defaults = [False, True, False, False, False]
    assert found["one"].parameters == tuple(map(Parameter, ["a", "b", "rest", "c", "more"], kinds, defaults))
    assert (found["one"].doc, found["one"].own, found["one"].line) == ("First line.", True, 4)
    assert found["two"].own
    assert not found["dedent"].own
    assert "Three" not in found


def test_async_functions_share_one_loop(make_worker):
    worker = make_worker(
        """
        import asyncio
        loops = set()
        async def f(x):
            loops.add(id(asyncio.get_running_loop()))
            await asyncio.sleep(0)
            return [x, len(loops)]
        """
    )
    assert [r.value for r in worker.call_each("f", {}, [{"x": 1}, {"x": 2}], LONG_S)] == [[1, 1], [2, 1]]


def test_set_order_repeats_from_process_to_process(make_worker):
    source = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    assert make_worker(source).call("f", {}, LONG_S).value == make_worker(source).call("f", {}, LONG_S).value


def test_arguments_without_json_form_are_our_caller_s_fault(make_worker):
    worker = make_worker("def f(x): return 1")
    with pytest.raises(UnsendableArguments):
        worker.call("f", {"x": {(1, 2): 3}}, LONG_S)
    assert worker.call("f", {"x": 1}, LONG_S).value == 1


TRAINER = """
import sys, threading, time
from reinforge.sandbox.pool import Worker
from reinforge.sandbox.tiers import working
source = '''
import subprocess, time
def start(marker):
    subprocess.Popen(["sleep", marker])
    time.sleep(60)
'''
tier = working(sys.argv[1])
idle, busy = Worker(source, "a.py", None, tier), Worker(source, "b.py", None, tier)
idle.describe()
busy.describe()
threading.Thread(target=busy.call, args=("start", {"marker": sys.stdin.readline().strip()}, 2.0)).start()
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_worker(tmp_path, isolating_tier):
    marker = new_marker()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", TRAINER, isolating_tier.name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        trainer.stdin.write(f"{marker}\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "started\n"
        assert wait_until(lambda: processes_with(marker), 20.0)
        trainer.kill()
    assert wait_until(lambda: not processes_with(marker), 10.0)
    assert wait_until(lambda: list(tmp_path.glob("reinforge-worker-*")) == [])


@pytest.mark.slow
def test_a_killed_trainer_leaves_no_plain_worker(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", TRAINER, "plain"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        trainer.stdin.write("0.1\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "started\n"
        folders = {str(folder) for folder in tmp_path.glob("reinforge-worker-*")}

        def of_this_trainer():
            return [process for process in processes_with(str(RUNNER)) if _folder_of(process) in folders]

        assert wait_until(lambda: len(of_this_trainer()) == 2)  # a child of theirs looks like them until it has begun
        runners = of_this_trainer()
        trainer.kill()
    assert wait_until(lambda: not any(map(is_alive, runners)), 12.0)  # the busy one: 5 s after its deadline


def _folder_of(process_id: int) -> str:
    return os.readlink(f"/proc/{process_id}/cwd")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="nothing is mounted at /dev/shm here")
def test_what_is_mounted_where_a_call_may_write_is_no_file_of_its():
    """Python itself may lie below /tmp: tens of thousands of files, looked at after each call."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        for start, is_seen in (("/dev/shm", True), ("/dev", False)):
            found = Runner.files_now(SimpleNamespace(own_folders=[start], fresh_process=True))
            assert (file.name in {path for path, *_ in found}) == is_seen
