"""Model-written Python code against tests: the share that passes.

Each completion has a sandbox of its own, new for it and gone after it, and each test a process of its own in there;
what comes back is compared here, where the code is not, with values it never sees. So no completion can change what
another scores or read what another wrote, or pass a test by ending the process, patching `==` or writing what looks
like a result.

| test | passes when |
|---|---|
| `"assert add(1, 2) == 3"` | the call's value equals the literal; a text may hold several, or a `check(candidate)` |
| `{"call": "add(1, 2)", "expected": 3}` | the expression's value equals `expected` |
| `{"args": [1, 2], "kwargs": {}, "expected": 3}` | so does the value of `function`, called with these |
| `{"stdin": "1 2", "stdout": "3"}` | the code, run as a program, prints that (but for space at the end of lines) |
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reinforge.grading.builtin.result import Result, refused
from reinforge.grading.code_harness import encode
from reinforge.roles import CallResult, Sandbox

DEFAULT_TIMEOUT_S = 10.0
CODE_LIMITS: dict[str, Any] = {"fresh_process": True, "max_print_bytes": 2_000}
"""Of the worker, as fields of `Limits`."""
HARNESS = Path(__file__).with_name("code_harness.py")
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
RELATIVE_TOLERANCE = 1e-9
"""Between floats."""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test, ready to run."""

    kind: Literal["call", "script"]
    text: str
    """Expression to evaluate, or standard input."""
    expected: object
    """As `code_harness.encode` writes values."""


@dataclass(frozen=True, slots=True)
class CodeReport:
    """How the tests went."""

    num_tests: int
    failures: tuple[str, ...]
    """One line for each test that did not pass."""

    @property
    def share(self) -> float:
        """Of the tests that passed, 0..1."""
        return 1 - len(self.failures) / self.num_tests

    @property
    def reason(self) -> str:
        passed = f"{self.num_tests - len(self.failures)} of {self.num_tests} tests passed"
        return f"{passed}; {self.failures[0]}" if self.failures else passed


def code_tests(
    *, input: object, tests: object, function: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Result:
    """The share of `tests` that the Python code in `input` passes (S4's code cases); a test may take `timeout_s`.

    The code is the last fenced block, or all of the text. `function` names what tests with `args`, or written as
    `check(candidate)`, call. For a row without tests, or with tests of no known form, ValueError. Not to be called
    from a reward function, whose worker cannot make another one: name it as a grader beside it.
    """
    from reinforge.sandbox.pool import Limits, Worker

    worker = Worker(harness_source(), HARNESS.name, Limits(**CODE_LIMITS))
    try:
        return judge_code(input=input, tests=tests, function=function, timeout_s=timeout_s, sandbox=worker)
    finally:
        worker.close()


def judge_code(
    *,
    input: object,
    tests: object,
    sandbox: Sandbox,
    function: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Result:
    """`code_tests` in a worker that is there already."""
    read = read_tests(tests, function)
    if not isinstance(input, str):
        return refused("the completion is no text")
    report = run_tests(code_in(input), read, sandbox, timeout_s)
    return Result(report.share, report.reason, {"passed": float(report.num_tests - len(report.failures))})


def code_in(text: str) -> str:
    """The last fenced block of a completion, else all of it.

    >>> code_in("So:\\n```python\\nx = 1\\n```\\nDone.")
    'x = 1\\n'
    """
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text


def read_tests(tests: object, function: str | None = None) -> tuple[CodeTest, ...]:
    """The tests of one row. ValueError when one cannot be judged.

    >>> read_tests(["assert add(1, 2) == 3"])
    (CodeTest(kind='call', text='add(1, 2)', expected=3),)
    >>> read_tests([{"args": [[1, 2]], "expected": 3}], function="total")
    (CodeTest(kind='call', text='total([1, 2])', expected=3),)
    """
    entries = [tests] if isinstance(tests, (str, Mapping)) else tests
    if not isinstance(entries, Sequence) or not entries:
        raise ValueError(f"tests must be a list of tests, not {tests!r:.80}")
    read: list[CodeTest] = []
    for number, entry in enumerate(entries, start=1):
        try:
            read += _asserts(entry, function) if isinstance(entry, str) else [_read_test(entry, function)]
        except (ValueError, SyntaxError, TypeError, RecursionError) as error:
            raise ValueError(f"test {number} ({entry!r:.80}): {error}") from None
    return tuple(read)


def run_tests(code: str, tests: Sequence[CodeTest], sandbox: Sandbox, timeout_s: float) -> CodeReport:
    """Run every test; after one that takes too long the rest counts as failed. `sandbox` runs HARNESS with a fresh
    process for each call."""
    failures: list[str] = []
    for number, test in enumerate(tests, start=1):
        given = {"expression": test.text} if test.kind == "call" else {"stdin": test.text}
        result = sandbox.call(test.kind, {"code": code, **given}, timeout_s)
        fault = _fault(test, result)
        if fault:
            shown = test.text.strip().partition("\n")[0]
            failures.append(f"test {number}, {shown:.100}: {fault}")
        if result.kind == "timeout":
            failures += [f"test {late + 1}: not run" for late in range(number, len(tests))]
            break
    return CodeReport(len(tests), tuple(failures))


def _fault(test: CodeTest, result: CallResult) -> str:
    """Why a test did not pass, "" when it did."""
    if result.kind:
        return result.message.partition("\n")[0][:200]
    told = result.value if isinstance(result.value, dict) else {}
    if "value" not in told:
        return str(told.get("error", "no result"))[:200]
    value = told["value"]
    if test.kind == "script":
        is_same = _lines(value) == _lines(test.expected)
        return "" if is_same else f"printed {value!r:.80}, expected {test.expected!r:.80}"
    try:
        value = json.loads(str(value))
        is_same = same(value, test.expected)
    except (ValueError, RecursionError):  # the harness writes nothing of the kind: the code did
        return "no value"
    return "" if is_same else f"gave {value!r:.80}, expected {test.expected!r:.80}"


def same(value: object, expected: object) -> bool:
    """Python's `==` on encoded values, floats to a relative 1e-9 (and NaN equal to NaN).

    >>> same(0.1 + 0.2, 0.3), same(1, True), same([1, 2], [2, 1]), same(encode({1: 2, 3: 4}), encode({3: 4, 1: 2}))
    (True, True, False, True)
    """
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return _same_number(value, expected)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict) and value.keys() == expected.keys():
        if value.keys() == {"dict"} and isinstance(value["dict"], list):
            return same(sorted(value["dict"], key=repr), sorted(expected["dict"], key=repr))
        return all(same(value[key], expected[key]) for key in expected)
    return type(value) is type(expected) and value == expected


def _same_number(value: float, expected: float) -> bool:
    if isinstance(value, int) and isinstance(expected, int):
        return value == expected
    try:
        one, other = float(value), float(expected)
    except OverflowError:
        return False
    return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE) or (math.isnan(one) and math.isnan(other))


def _lines(text: object) -> list[str]:
    return [line.rstrip() for line in str(text).rstrip().split("\n")]


def _read_test(entry: object, function: str | None) -> CodeTest:
    if not isinstance(entry, Mapping):
        raise ValueError("it is neither a text nor a mapping")
    keys = set(entry)
    if keys == {"stdin", "stdout"}:
        return CodeTest("script", str(entry["stdin"]), str(entry["stdout"]))
    if keys == {"call", "expected"}:
        ast.parse(entry["call"], mode="eval")
        return CodeTest("call", entry["call"], encode(entry["expected"]))
    if {"args", "expected"} <= keys <= {"args", "kwargs", "expected"}:
        if function is None:
            raise ValueError("it has args, but `function` does not say of what")
        shown = [repr(value) for value in entry["args"]]
        shown += [f"{name}={value!r}" for name, value in entry.get("kwargs", {}).items()]
        return CodeTest("call", f"{function}({', '.join(shown)})", encode(entry["expected"]))
    raise ValueError(f"its keys are {sorted(keys)}: write call and expected, args and expected, or stdin and stdout")


def _asserts(text: str, function: str | None) -> list[CodeTest]:
    body = ast.parse(text).body
    rename: Callable[[ast.expr], ast.expr] = lambda expression: expression  # noqa: E731
    for statement in body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "check" and len(statement.args.args) == 1:
            if function is None:
                raise ValueError("it is a function check(...), but `function` does not say of what")
            rename = _Renamed(statement.args.args[0].arg, function).visit
            body = statement.body
            break
    tests = [_assertion(statement, rename) for statement in body if not isinstance(statement, ast.Pass)]
    if not tests:
        raise ValueError("it asserts nothing")
    return tests


def _assertion(statement: ast.stmt, rename: Callable[[ast.expr], ast.expr]) -> CodeTest:
    """`assert CALL == LITERAL` (or `is None`, `is True`, `CALL`, `not CALL`): the literal stays on our side."""
    if isinstance(statement, ast.Assert):
        test = statement.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Eq, ast.Is)):
            return CodeTest("call", ast.unparse(rename(test.left)), encode(ast.literal_eval(test.comparators[0])))
        if isinstance(test, ast.Call):
            return CodeTest("call", f"not not {ast.unparse(rename(test))}", True)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return CodeTest("call", f"not {ast.unparse(rename(test.operand))}", True)
    raise ValueError("only `assert CALL == LITERAL` can be judged outside the code's process")


class _Renamed(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Name(self._new, node.ctx), node) if node.id == self._old else node


def harness_source() -> str:
    """The source for the worker that runs model-written code."""
    return HARNESS.read_text(encoding="utf-8")
