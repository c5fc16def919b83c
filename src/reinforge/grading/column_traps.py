"""Type traps: a Predibase-form function gets every column as text (S0-100..103), and text is not what it looks like.

`bool("False")` is True, `"15" == 15` is False, `for n in "[9, 1]"` walks over brackets and commas. Found in the text of
a function, which is never run here.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

READ_BACK = "parse_bool, parse_number and parse_value read columns back (reinforge rewards helpers)."
_WALKS = {"len", "sum", "set", "sorted", "list", "tuple", "max", "min", "any", "all", "enumerate", "Counter", "zip"}
"""Builtins that take a collection: of text they take its characters."""
_NUMBERS = {"int", "float", "len", "sum", "abs", "round", "Fraction", "Decimal"}
"""What they return is no text."""
ALWAYS_TRUE = "it is true even for False, 0, [] and None"


@dataclass(frozen=True, slots=True)
class Trap:
    line: int
    message: str
    fix: str = READ_BACK


def column_traps(
    function: ast.FunctionDef | ast.AsyncFunctionDef, columns: Mapping[str, str] | None = None
) -> Iterator[Trap]:
    """Uses of columns that cannot mean what they say. `columns` names the type each column has in the data; a column
    that is text there is no trap. Without it only uses are told that are wrong for text of any kind.

    >>> node, = ast.parse("def f(prompt, completion, example):\\n    return 1.0 if example['ok'] else 0.0").body
    >>> [trap.message for trap in column_traps(node, {"ok": "bool"})]
    ['example["ok"] is text here: it is true even for False, 0, [] and None']
    """
    names = [argument.arg for argument in function.args.args]
    if len(names) < 3 or {"prompts", "completions"} & set(names) or names[:2] == ["sample", "item"]:
        return
    reader = _Reader(names[2], _aliases(function, names[2]))
    for node in ast.walk(function):
        for expression, message in _suspicious(node, reader, columns):
            column = reader.column(expression)
            if column is not None and (columns is None or columns.get(column, "str") != "str"):
                yield Trap(expression.lineno, f'{names[2]}["{column}"] is text here: {message}')


@dataclass(frozen=True, slots=True)
class _Reader:
    example: str
    """Name of the parameter that holds the row."""
    aliases: Mapping[str, str]
    """Local variable -> the column it was set from."""

    def column(self, node: ast.expr) -> str | None:
        """The column that an expression reads as it is; None when it is something else."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id)
        return _column_read(node, self.example)


def _column_read(node: ast.expr, example: str) -> str | None:
    """`example["x"]`, `example.get("x")`."""
    match node:
        case ast.Subscript(value=ast.Name(name), slice=ast.Constant(value=str(column))) if name == example:
            return column
        case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="get"), args=[ast.Constant(value=str(column)), *_]):
            return column if name == example else None
    return None


def _aliases(function: ast.FunctionDef | ast.AsyncFunctionDef, example: str) -> dict[str, str]:
    """Variables that are set once, to a column as it is."""
    nodes = list(ast.walk(function))
    times_set = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    found = {}
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value) if times_set[name] == 1:
                column = _column_read(value, example)
                if column is not None:
                    found[name] = column
    return found


def _suspicious(node: ast.AST, reader: _Reader, columns: Mapping[str, str] | None) -> Iterator[tuple[ast.expr, str]]:
    """(expression, what is wrong if it is a column)."""
    match node:
        case ast.Call(func=ast.Name("bool"), args=[argument]):
            yield argument, ALWAYS_TRUE
        case ast.Call(func=ast.Name("isinstance"), args=[argument, kind]) if ast.unparse(kind) != "str":
            yield argument, f"it is no {ast.unparse(kind)}"
        case ast.Compare(left=left, comparators=comparators):
            yield from _compared([left, *comparators])
        case ast.BinOp(left=left, right=right):
            yield from ((one, "it is no number") for one, other in ((left, right), (right, left)) if _is_number(other))
    if columns is not None:
        yield from _tested(node)
        yield from _walked(node, reader)


def _tested(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Truth values: a test for an empty text is right where the column is text, so the data must be known."""
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.Assert(test=test):
            yield test, ALWAYS_TRUE
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand, ALWAYS_TRUE
        case ast.BoolOp(values=values):
            yield from ((value, ALWAYS_TRUE) for value in values[:-1])


def _compared(sides: list[ast.expr]) -> Iterator[tuple[ast.expr, str]]:
    for one, other in (*pairwise(sides), *pairwise(reversed(sides))):
        match other:
            case ast.Constant(value=None) if isinstance(one, ast.Call):
                continue  # .get() of a column that is not there
            case ast.Constant(value=value) if not isinstance(value, str):
                yield one, f"it never equals {value!r}"
            case ast.Call(func=ast.Name(name)) if name in _NUMBERS:
                yield one, "it never equals a number"


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)


def _walked(node: ast.AST, reader: _Reader) -> Iterator[tuple[ast.expr, str]]:
    """Uses that are right for text and wrong for what stands in the data: told only when that is known."""
    walked = "this goes over its characters"
    match node:
        case ast.For(iter=source) | ast.comprehension(iter=source):
            yield source, walked
        case ast.Call(func=ast.Name(name), args=[argument, *_]) if name in _WALKS:
            yield argument, walked
        case ast.Subscript(value=value, ctx=ast.Load()) if reader.column(value) is not None:
            yield value, "this takes one of its characters"
        case ast.Call(func=ast.Attribute(value=value, attr="get" | "items" | "keys" | "values")):
            yield value, "it is no dict"
