"""The program around model-written code, in a worker of its own. Standard library only, nothing of ours.

Its text is the source of that worker (`code_tests.py` reads it from this file); each call runs in a fork that has no
channel to anybody. Expected values never come here: whatever the code does to this process, it can only claim other
results than it computed, and without the expected ones that is no way to pass.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from typing import Any

MAX_DEPTH = 8


def call(code: str, expression: str) -> dict[str, Any]:
    """Define what the code defines, then evaluate the expression: `{"value": ...}` or `{"error": "..."}`."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(code, "<completion>", "exec", dont_inherit=True), module.__dict__)
            return {"value": encode(eval(compile(expression, "<test>", "eval", dont_inherit=True), module.__dict__))}
        except BaseException as error:  # noqa: BLE001  (whatever model-written code raises is an answer)
            return {"error": in_words(error)}


def script(code: str, stdin: str) -> dict[str, Any]:
    """Run the code as a program: `{"value": what it printed}` or `{"error": "..."}`."""
    printed = io.StringIO()
    sys.stdin = io.StringIO(stdin)
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, "<completion>", "exec", dont_inherit=True), {"__name__": "__main__"})
        except SystemExit as end:
            if end.code not in (None, 0):
                return {"error": f"exit code {end.code!r:.100}"}
        except BaseException as error:  # noqa: BLE001
            return {"error": in_words(error)}
    return {"value": printed.getvalue()}


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def encode(value: Any, depth: int = 0) -> Any:
    """JSON that keeps what Python's `==` tells apart, but for tuples, which become lists.

    >>> encode({1: (2, 3)}), encode({2, 1}), encode(1j)
    ({'dict': [[1, [2, 3]]]}, {'set': [1, 2]}, {'text': '1j', 'type': 'complex'})
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [encode(entry, depth + 1) for entry in value]
    if depth < MAX_DEPTH and isinstance(value, (set, frozenset)):
        return {"set": sorted((encode(entry, depth + 1) for entry in value), key=repr)}
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(entry, depth + 1)] for key, entry in value.items()]}
    return {"text": repr(value)[:1000], "type": type(value).__name__}
