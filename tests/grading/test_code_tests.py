"""Model-written code against tests: what passes, what fails, and what a cheat can reach."""

from __future__ import annotations

import textwrap
from contextlib import closing

import pytest

from reinforge.config import RewardFunctionsConfig
from reinforge.errors import SetupError
from reinforge.grading.builtin import code_tests
from reinforge.grading.code_harness import encode
from reinforge.grading.code_tests import CodeReport, code_in, harness_source, read_tests, run_tests, same
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.sandbox import tiers
from reinforge.sandbox.pool import Limits, Worker

TIMEOUT_S = 20.0
RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


@pytest.fixture(scope="module")
def worker():
    worker = Worker(harness_source(), "code_harness.py", Limits(fresh_process=True))
    yield worker
    worker.close()


@pytest.fixture
def judge(worker):
    def run(code: str, tests: object, function: str | None = None, timeout_s: float = TIMEOUT_S) -> CodeReport:
        return run_tests(textwrap.dedent(code), read_tests(tests, function), worker, timeout_s)

    return run


def test_the_share_of_passed_tests_and_the_first_failure(judge):
    assert judge(RIGHT, TESTS) == CodeReport(2, ())
    half = judge("def add(a, b):\n    return 3\n", TESTS)
    assert half.share == 0.5
    assert half.reason == "1 of 2 tests passed; test 2, add(-1, 1): gave 3, expected 0"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def add(a, b) return", "SyntaxError: expected ':' (<completion>, line 1)"),
        ("x = 1", "NameError: name 'add' is not defined"),
        ("def add(a, b): return a + undefined", "NameError: name 'undefined' is not defined"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "the process of this call ended without a result"),
        ("import os\nos.abort()", "the process of this call ended with exit code -6"),
        ("", "NameError: name 'add' is not defined"),
        ("def add(a, b): return 'x' * 10_000_000", "10,000,017 bytes of JSON, at most"),
        ("\x00", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_code_that_fails_says_how(judge, code, reason):
    report = judge(code, TESTS[:1])
    assert report.share == 0
    assert reason in report.reason


def test_a_hang_costs_one_deadline_and_the_rest_counts_as_failed(judge):
    report = judge(
        "def add(a, b):\n    while a == 1: pass\n    return a + b\n", [*TESTS, "assert add(2, 2) == 4"], None, 0.5
    )
    assert report.num_tests == 3
    assert report.failures == (
        "test 1, add(1, 2): no result within 0.5 s",
        "test 2: not run",
        "test 3: not run",
    )
    assert judge(RIGHT, TESTS).share == 1


CHEATS = {
    "equal to everything": "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "a number equal to everything": "class Any(int):\n    def __eq__(self, other): return True\n"
    "def add(a, b): return Any(7)",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.type = lambda x: int\n"
    "def add(a, b): return None",
    "the harness": "import sys\nmain = sys.modules['__main__']\nmain.Runner.outcome = None\n"
    "for name, module in list(sys.modules.items()):\n"
    "    if hasattr(module, 'encode') and hasattr(module, 'script'): module.encode = lambda *a: True\n"
    "def add(a, b): return None",
    "a frame on every descriptor": "import json, os\ndef add(a, b):\n"
    "    data = json.dumps({'value': {'value': 0}, 'dropped': 0}).encode()\n"
    "    for descriptor in range(3, 64):\n"
    "        try: os.write(descriptor, len(data).to_bytes(4, 'big') + data)\n"
    "        except OSError: pass\n"
    "    os._exit(0)",
    "the caller's frames": "import sys\ndef add(a, b):\n    frame, seen = sys._getframe(), []\n"
    "    while frame:\n        seen += [v for v in frame.f_locals.values() if isinstance(v, int)]\n"
    "        frame = frame.f_back\n    return 12345 if 54321 in seen else None",
    "the collector": "import gc\ndef add(a, b):\n    wanted = int('54' + '321')\n"
    "    seen = [o for o in gc.get_objects() if isinstance(o, (list, tuple, dict))]\n"
    "    return wanted if any(wanted in (o.values() if isinstance(o, dict) else o) for o in seen) else None",
}


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS.keys())
def test_no_cheat_passes_a_test_it_cannot_answer(judge, code):
    """54321 is written nowhere but in the expected value, which never reaches the code's process."""
    assert judge(code, [{"call": "add(1, 2)", "expected": 54321}]).share == 0
    assert judge(RIGHT, TESTS).share == 1


NESTED = "def f(): return [[[[[[[[[[{'a': {'b': {1: {}}}}]]]]]]]]]]"


@pytest.mark.parametrize(
    ("tests", "function", "code"),
    [
        ([{"args": [[1, 2]], "expected": 3}], "total", "total = sum"),
        ([{"args": [], "kwargs": {"a": 1}, "expected": [1]}], "f", "def f(a): return (a,)"),
        ("assert f(1) is None\nassert f(2) is None", None, "def f(x): pass"),
        (["assert even(2)", "assert not even(3)"], None, "def even(x): return x % 2 == 0"),
        (["assert f() == {1: 'a', 2: (3.0000000000001, {4})}"], None, "def f(): return {2: [3.0, {4}], 1: 'a'}"),
        (
            "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1]",
            "double",
            "def double(x): return x * 2",
        ),
        ([{"stdin": "1 2\n", "stdout": "3"}], None, "print(sum(map(int, input().split())))  \nprint()"),
        ([{"stdin": "ab", "stdout": "ba"}], None, "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"),
        ([{"stdin": "ab", "stdout": "ab"}], None, "import os\nos.write(1, open(0, 'rb').read())"),
        ([{"call": "f()", "expected": 2**5000}], None, "def f(): return 2**5000"),
        ([{"call": "f()", "expected": [[[[[[[[[[{"a": {"b": {1: {}}}}]]]]]]]]]]}], None, NESTED),
        (["assert f(3) == 3"], None, "from fractions import Fraction\ndef f(x): return Fraction(6, 2)"),
        (["assert f(3)"], None, "def f(x): return [x]"),
        ([{"call": "f()", "expected": b"x" * 2000 + b"y"}], None, "def f(): return b'x' * 2000 + b'y'"),
    ],
)
def test_every_form_of_test_can_pass_and_can_fail(judge, tests, function, code):
    assert judge(code, tests, function).share == 1
    assert judge("def total(*a, **k): return 0\nf = double = even = total\nprint('no')", tests, function).share < 1


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        ([], "tests must be a list"),
        (None, "tests must be a list"),
        ([{"input": 1}], "its keys are ['input']"),
        ([{"args": [1], "expected": 1}], "`function` does not say"),
        (["assert abs(f(1) - 0.5) < 1e-6"], "only `assert CALL == LITERAL`"),
        (["for x in range(3): assert f(x) == x"], "only `assert CALL == LITERAL`"),
        (["x = 1 +"], "invalid syntax"),
        (["def check(candidate): assert candidate(1) == 1"], "`function` does not say"),
        (["assert f(1) == g(2)"], "malformed node"),
        ([7], "neither a text nor a mapping"),
        ([{"call": "f(", "expected": 1}], "was never closed"),
    ],
)
def test_tests_that_cannot_be_judged_are_refused(tests, problem):
    with pytest.raises(ValueError, match=r"^test") as caught:
        read_tests(tests)
    assert problem in str(caught.value)


def test_the_last_fenced_block_is_the_code():
    assert code_in("no fence") == "no fence"
    assert code_in("```\nold\n```\ntext\n```python\nnew\n```") == "new\n"


NODE = {"type": "code_tests", "tests": "{{item.tests}}"}


def scores_of(node, rows):
    config = RewardFunctionsConfig(functions={"code": node})
    with closing(RewardFunctionGrader.from_config(config, ".")) as grader:
        return [grade.scores[0] for grade in grade_completions(grader, [{"prompt": "p", **row} for row in rows])]


def test_as_a_grader_of_a_run():
    half = "```python\ndef add(a, b):\n    return 3\n```"
    rows = [
        {"tests": TESTS, "completion": f"Here:\n```python\n{RIGHT}```"},
        {"tests": TESTS, "completion": half},
        {"tests": TESTS, "completion": ""},
        {"tests": ["assert add(1, 2) < 4"], "completion": RIGHT},
    ]
    right, some, none, bad = scores_of(NODE, rows)
    assert (right.value, some.value, none.value) == (1.0, 0.5, 0.0)
    assert (right.metrics, some.metrics) == ({"passed": 2.0}, {"passed": 1.0})
    assert some.message == "1 of 2 tests passed; test 2, add(-1, 1): gave 3, expected 0"
    assert (bad.state, bad.kind) == ("error", "other_error")
    assert "test 1 ('assert add(1, 2) < 4'): only `assert CALL == LITERAL`" in bad.message


VANDALS = {
    "builtins": "import builtins\nbuiltins.len = builtins.open = None\ndef add(a, b): return 0",
    "the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\ndef add(a, b): return 0",
    "the disk": "import os\ntry:\n    for i in range(8):\n"
    "        os.write(os.open(f'/tmp/f{i}', os.O_CREAT | os.O_WRONLY), bytes(60 << 20))\n"
    "except OSError: pass\ndef add(a, b): return 0",
    "its folder": "import os\nos.rmdir(os.getcwd())\ndef add(a, b): return 0",
    "a name": "import os\nos.mkdir('own.txt')\ndef add(a, b): return 0",
}
WRITER = """
import tempfile
def add(a, b):
    with tempfile.TemporaryFile('w+') as file:
        file.write('x' * 5_000_000)
        file.flush()
    with open('own.txt', 'w') as file: file.write('1')
    return a + b
"""


@pytest.mark.parametrize("vandal", VANDALS.values(), ids=VANDALS.keys())
def test_one_completion_does_not_change_the_next(vandal):
    rows = [{"tests": TESTS[:1], "completion": text} for text in (WRITER, vandal, WRITER)]
    assert [score.value for score in scores_of(NODE, rows)] == [1.0, 0.0, 1.0]


def test_no_completion_reads_what_another_wrote():
    """All memory of the process is searched for a solution that an earlier completion brought."""
    solution = "def add(a, b):\n    return a + b  # THE END OF IT\n" + "#" * 3000
    thief = """
    import re
    def add(a, b):
        for line in open('/proc/self/maps'):
            if ' rw-p ' not in line: continue
            first, last = (int(x, 16) for x in line.split()[0].split('-'))
            try:
                with open('/proc/self/mem', 'rb') as memory:
                    memory.seek(first)
                    data = memory.read(last - first)
            except OSError: continue
            if re.search(b'# TH[E] EN[D] O[F] IT', data): return a + b  # what it looks for, it does not hold itself
    """
    rows = [{"tests": TESTS, "completion": textwrap.dedent(text)} for text in (solution, thief)]
    assert [score.value for score in scores_of(NODE, rows)] == [1.0, 0.0]


def test_behind_a_gate_and_in_a_formula():
    gate = {"type": "gate", "a": {"type": "tag_format", "tags": ["answer"]}, "b": NODE}
    rows = [{"tests": TESTS, "completion": text} for text in (f"<answer>\n{RIGHT}</answer>", RIGHT)]
    inside, outside = scores_of(gate, rows)
    assert outside.value == 0.0
    assert "b" not in outside.metrics
    assert inside.metrics["a"] == 1.0
    formula = {"type": "multi", "graders": {"code": NODE}, "calculate_output": "1 - code"}
    assert [score.value for score in scores_of(formula, rows[1:])] == [0.0]


def test_as_python():
    assert float(code_tests(input=RIGHT, tests=TESTS)) == 1.0
    assert code_tests(input=None, tests=TESTS).reason == "the completion is no text"


def test_without_isolation_model_written_code_needs_consent(monkeypatch):
    """The harness is ours, what it runs is not."""
    monkeypatch.setattr(tiers, "choose", lambda: tiers.Choice(tiers.Plain(), ("nothing isolates",)))
    monkeypatch.setattr(tiers, "stored_consent", lambda: None)
    with pytest.raises(SetupError, match="cannot be isolated"):
        code_tests(input=RIGHT, tests=TESTS)


def test_model_written_code_gets_nothing_that_is_meant_for_reward_functions(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    limits = Limits(secrets=("JUDGE_KEY",), allowed_hosts=("example.org",), packages=("x==1",))
    assert limits.closed() == Limits()


def test_values_are_the_same_only_when_they_are():
    assert not same([1, 2, 3], [1, 2])
    assert not same([], [1])
    assert not same({"dict": 5}, encode({}))
    assert not same(1.0000001, 1.0)
    assert not same(encode(b"x" * 2000 + b"y"), encode(b"x" * 2000 + b"z"))
