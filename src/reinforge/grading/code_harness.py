"""The program around model-written code, in a worker of its own. Standard library only, nothing of ours.

Its text is the source of that worker (`code_tests.py` reads it from this file); each call runs in a fork that has no
channel to anybody. Expected values never come here: whatever the code does to this process, it can only claim other
results than it computed, and without the expected ones that is no way to pass.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import types
from typing import Any

MAX_DEPTH = 50
MAX_REPR = 100_000
PLAIN_INT_BITS = 1000
"""Longer integers travel in hexadecimal: decimal takes quadratic time, and Python bounds it."""


def call(code: str, expression: str) -> dict[str, Any]:
    """Define what the code defines, then evaluate the expression: `{"value": JSON text}` or `{"error": "..."}`."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(code, "<completion>", "exec", dont_inherit=True), module.__dict__)
            value = eval(compile(expression, "<test>", "eval", dont_inherit=True), module.__dict__)
            return {"value": json.dumps(encode(value))}
        except BaseException as error:  # noqa: BLE001  (whatever model-written code raises is an answer)
            return {"error": in_words(error)}


def script(code: str, stdin: str) -> dict[str, Any]:
    """Run the code as a program on real descriptors 0 and 1: `{"value": what it printed}` or `{"error": "..."}`."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(stdin.encode("utf-8", "surrogatepass"))
        given.seek(0)
        os.dup2(given.fileno(), 0)
        os.dup2(printed.fileno(), 1)
        sys.stdin = open(0, encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        try:
            exec(compile(code, "<completion>", "exec", dont_inherit=True), {"__name__": "__main__"})
        except SystemExit as end:
            if end.code not in (None, 0):
                return {"error": f"exit code {end.code!r:.100}"}
        except BaseException as error:  # noqa: BLE001
            return {"error": in_words(error)}
        with contextlib.suppress(ValueError):  # the program closed it
            sys.stdout.flush()
        printed.seek(0)
        return {"value": printed.read().decode("utf-8", "replace")}


def in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def encode(value: Any, depth: int = 0) -> Any:
    """JSON that keeps what Python's `==` tells apart, but for tuples, which become lists, and NumPy's values, which
    become Python's.

    >>> encode({1: (2, 3)}), encode({2, 1}), encode(1j), encode(2**2000)["int"][:3]
    ({'dict': [[1, [2, 3]]]}, {'set': [1, 2]}, {'text': '1j', 'type': 'complex'}, '0x1')
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:
        return value if value.bit_length() <= PLAIN_INT_BITS else {"int": hex(value)}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple)):
        return [encode(entry, depth + 1) for entry in value]
    if depth < MAX_DEPTH and isinstance(value, (set, frozenset)):
        return {"set": sorted((encode(entry, depth + 1) for entry in value), key=repr)}
    if depth < MAX_DEPTH and isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(entry, depth + 1)] for key, entry in value.items()]}
    if depth < MAX_DEPTH and type(value).__module__ == "numpy":
        return encode(value.tolist(), depth + 1)
    if type(value).__module__ in ("fractions", "decimal") and value == int(value):
        return encode(int(value))
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    return {"text": repr(value)[:MAX_REPR], "type": type(value).__name__}
