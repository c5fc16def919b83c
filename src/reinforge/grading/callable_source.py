"""The text of a reward function that was given as a Python object: workers run text, never pickled objects."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import symtable
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any

from reinforge.errors import RewardError


def source_of_callable(name: str, function: Callable[..., Any]) -> tuple[str, str, str]:
    """(source, file name, function name).

    A function at the top of an imported module brings the module's whole file. One of a notebook, a script or another
    function brings its own text and what it uses of its surroundings: imports, plain constants, other functions. What
    has no text (a closure over local variables, an open client) is refused with RewardError.
    """
    found = _in_module_file(function)
    if found is not None:
        return found
    plain = inspect.unwrap(function)
    if not isinstance(plain, types.FunctionType) or plain.__name__ == "<lambda>":
        what = "a lambda" if isinstance(plain, types.FunctionType) else f"a {type(plain).__name__} object"
        raise RewardError(f'reward function "{name}" is {what}.', hint="Write it as a `def` function.")
    if plain.__code__.co_freevars:
        captured = ", ".join(plain.__code__.co_freevars)
        raise RewardError(
            f'reward function "{name}" uses local variables of the function around it ({captured}).',
            hint="It runs in a process of its own and cannot see them: define them inside it.",
        )
    return _Gathered(name, plain).text(), f"<{plain.__name__}>", plain.__name__


def _in_module_file(function: Callable[..., Any]) -> tuple[str, str, str] | None:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return None
    name = next((key for key, value in vars(module).items() if value is function), None)
    try:
        file_name = inspect.getsourcefile(module)
        return (inspect.getsource(module), file_name, name) if name and file_name else None
    except (OSError, TypeError):  # a module without a file
        return None


class _Gathered:
    """A function's text with everything it needs before it."""

    def __init__(self, name: str, function: types.FunctionType) -> None:
        self._name = name
        self._surroundings = function.__globals__
        self._statements: list[str] = []
        self._seen = {function.__name__}
        self._add_definition(function)

    def text(self) -> str:
        return "\n\n".join(self._statements) + "\n"

    def _add_definition(self, thing: Any) -> None:
        try:
            source = textwrap.dedent(inspect.getsource(thing))
        except (OSError, TypeError):
            raise RewardError(
                f'reward function "{self._name}": the source of {thing.__name__} cannot be found.',
                hint="Write it into a file and give it as file.py:function.",
            ) from None
        for used in sorted(set(_free_names(source))):
            if used in self._surroundings and used not in self._seen:
                self._seen.add(used)
                self._add(used, self._surroundings[used])
        self._statements.append(source)

    def _add(self, used: str, value: Any) -> None:
        if self._is_defined_here(value):
            self._add_definition(value)
            if value.__name__ != used:
                self._statements.append(f"{used} = {value.__name__}")
            return
        statement = _statement(used, value)
        if statement is None:
            raise RewardError(
                f'reward function "{self._name}" uses the global {used} (a {type(value).__name__}), which cannot be '
                "copied into its process.",
                hint="Make it inside the function, or put function and global into a file: file.py:function.",
            )
        self._statements.append(statement)

    def _is_defined_here(self, value: Any) -> bool:
        here = self._surroundings.get("__name__")
        return isinstance(value, (types.FunctionType, type)) and getattr(value, "__module__", None) == here


def _statement(used: str, value: Any) -> str | None:
    """A line of code that makes the global again; None when there is no such line.

    >>> from fractions import Fraction
    >>> _statement("limit", 3), _statement("regex", re), _statement("Half", Fraction)
    ('limit = 3', 'import re as regex', 'from fractions import Fraction as Half')
    >>> _statement("word", re.compile("a+")), _statement("client", object())
    ("word = __import__('re').compile('a+', 32)", None)
    """
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {used}"
    if isinstance(value, re.Pattern):
        return f"{used} = __import__('re').compile({value.pattern!r}, {value.flags})"
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "_name", None) or ""  # typing.Optional has only _name
    if module and name.isidentifier() and getattr(sys.modules.get(module), name, None) is value:
        return f"from {module} import {name} as {used}"
    try:
        return f"{used} = {value!r}" if ast.literal_eval(repr(value)) == value else None
    except (ValueError, SyntaxError):
        return None


def _free_names(source: str) -> Iterator[str]:
    """Names that a definition takes from its surroundings: in bodies, decorators, defaults and annotations.

    >>> sorted(_free_names("@cache\\ndef f(x, y=LIMIT):\\n    z = g(x)\\n    return len(z.size) + z"))
    ['LIMIT', 'cache', 'g']
    """
    tables = [symtable.symtable(source, "<source>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            outside = (
                symbol.is_global() if table.is_nested() or table.get_type() != "module" else not symbol.is_assigned()
            )
            if outside and symbol.is_referenced() and not hasattr(builtins, symbol.get_name()):
                yield symbol.get_name()
