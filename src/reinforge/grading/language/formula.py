"""Formulas of graders (`calculate_output`): a parser and evaluator of its own, bounded in length, depth and magnitude.

    sum     = product (("+" | "-") product)*
    product = signed (("*" | "/") signed)*
    signed  = ("+" | "-") signed | power
    power   = atom ("^" signed)?                      so -2^2 is -4, 2^3^2 is 512, 2^-1 is 0.5
    atom    = number | name | name "(" sum ("," sum)* ")" | "(" sum ")"

min and max take any number of arguments, abs floor ceil exp sqrt log one. Numbers are floats. What cannot be read, and
what has no finite value (1/0, log(0), 9^9^9), is a `formula_parse_error`. Nothing is ever given to Python's `eval`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reinforge.grading.language.error_flags import GraderFault

MAX_LENGTH = 4000
MAX_DEPTH = 64
MAX_VALUE = 1e15
"""Of every intermediate result: as large as a score may be."""

BINARY: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": lambda *arguments: min(arguments),
    "max": lambda *arguments: max(arguments),
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
ANY_NUMBER = {"min", "max"}
"""Functions that take one argument or more."""

_TOKEN = re.compile(
    r"\s*(?:((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)|([^\W\d]\w*)|(\*\*|//|[-+*/^(),])|$)"
)
_PYTHON = {"**": "^ for powers", "//": "floor(a / b)"}


class FormulaFault(GraderFault):
    """The formula cannot be read, or has no finite value."""

    def __init__(self, message: str) -> None:
        super().__init__("formula_parse_error", message)


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a formula in postfix order: takes `num_arguments` from the stack, puts its result there."""

    name: str
    """As written, or "negate"."""
    num_arguments: int


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula.

    >>> formula = parse("0.2 * format + 0.8 * max(f1, 0)")
    >>> formula.names, formula.numbers
    (('format', 'f1'), (0.2, 0.8, 0.0))
    >>> formula.value({"format": 1.0, "f1": 0.5})
    0.6000000000000001
    """

    text: str
    steps: tuple[float | str | Operation, ...]
    """Numbers, variables and operations in postfix order."""

    @property
    def names(self) -> tuple[str, ...]:
        """The variables, each once, in the order they first appear."""
        return tuple(dict.fromkeys(step for step in self.steps if isinstance(step, str)))

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers as they are written, in order."""
        return tuple(step for step in self.steps if isinstance(step, float))

    @property
    def operations(self) -> tuple[str, ...]:
        """What is done, in the order it is done."""
        return tuple(step.name for step in self.steps if isinstance(step, Operation))

    def value(self, variables: Mapping[str, float]) -> float:
        """FormulaFault when a variable is missing or there is no finite result."""
        stack: list[float] = []
        for step in self.steps:
            if isinstance(step, Operation):
                arguments = stack[len(stack) - step.num_arguments :]
                del stack[len(stack) - step.num_arguments :]
                stack.append(_apply(step.name, arguments))
            elif isinstance(step, str):
                if step not in variables:
                    raise FormulaFault(f"{step} has no value (known: {', '.join(variables) or 'nothing'})")
                stack.append(_bounded(variables[step], step))
            else:
                stack.append(step)
        return stack[0]


def _apply(name: str, arguments: list[float]) -> float:
    shown = _shown(name, arguments)
    try:
        if name == "negate":
            return -arguments[0]
        function = BINARY[name] if name in BINARY else FUNCTIONS[name]
        return _bounded(float(function(*arguments)), shown)
    except ZeroDivisionError:
        raise FormulaFault(f"{shown} divides by zero") from None
    except OverflowError:
        raise FormulaFault(f"{shown} is too large (at most {MAX_VALUE:g})") from None
    except ValueError:
        raise FormulaFault(f"{shown} has no value among the real numbers") from None


def _bounded(value: float, shown: str) -> float:
    if not abs(value) <= MAX_VALUE:  # NaN too
        raise FormulaFault(f"{shown} is {value:g}, beyond {MAX_VALUE:g}")
    return value


def _shown(name: str, arguments: list[float]) -> str:
    figures = [f"{argument:g}" for argument in arguments[:4]]
    return f" {name} ".join(figures) if name in BINARY else f"{name}({', '.join(figures)})"


def parse(text: str) -> Formula:
    """FormulaFault with the place when it is no formula.

    >>> parse("2 * (a + ").value({})
    Traceback (most recent call last):
    reinforge.grading.language.formula.FormulaFault: after "2 * (a +" a number, a name or a bracket is missing
    """
    if len(text) > MAX_LENGTH:
        raise FormulaFault(f"the formula has {len(text):,} characters, at most {MAX_LENGTH:,} are read")
    if not text.strip():
        raise FormulaFault("the formula is empty")
    return _Parser(text).parse()


class _Parser:
    """Recursive descent; writes postfix steps as it goes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps: list[float | str | Operation] = []
        self._depth = 0
        self._place = self._end = 0
        self._number = self._name = self._sign = ""
        self._advance()

    def parse(self) -> Formula:
        self._sum()
        if not self._at_end():
            raise FormulaFault(f'after "{self._before()}" there is {self._rest()} where an operator was expected')
        return Formula(self._text, tuple(self._steps))

    def _advance(self) -> None:
        """Read the next token; at the end all of its three kinds are empty."""
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            place = len(self._text) - len(self._text[self._end :].lstrip())
            raise FormulaFault(f"{self._text[place]!r} at character {place + 1} is not known in formulas")
        self._number, self._name, self._sign = (group or "" for group in match.groups())
        self._place, self._end = self._end, match.end()
        if self._sign in _PYTHON:
            raise FormulaFault(f"{self._sign} is Python: write {_PYTHON[self._sign]}")

    def _at_end(self) -> bool:
        return not (self._number or self._name or self._sign)

    def _before(self) -> str:
        return self._text[: self._place].strip()[-40:]

    def _rest(self) -> str:
        return repr(self._number or self._name or self._sign)

    def _take(self, *signs: str) -> str:
        """The sign that stands here if it is one of these, and go on; else empty."""
        sign = self._sign
        if sign and sign in signs:
            self._advance()
            return sign
        return ""

    def _deeper(self, inner: Callable[[], None]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaFault(f"the formula is nested more than {MAX_DEPTH} deep")
        inner()
        self._depth -= 1

    def _sum(self) -> None:
        self._product()
        while sign := self._take("+", "-"):
            self._product()
            self._steps.append(Operation(sign, 2))

    def _product(self) -> None:
        self._signed()
        while sign := self._take("*", "/"):
            self._signed()
            self._steps.append(Operation(sign, 2))

    def _signed(self) -> None:
        sign = self._take("+", "-")
        if not sign:
            return self._power()
        self._deeper(self._signed)
        if sign == "-":
            self._steps.append(Operation("negate", 1))
        return None

    def _power(self) -> None:
        self._atom()
        if self._take("^"):
            self._deeper(self._signed)
            self._steps.append(Operation("^", 2))

    def _atom(self) -> None:
        if self._number:
            self._steps.append(_bounded(float(self._number), self._number))
            self._advance()
        elif self._name:
            name = self._name
            self._advance()
            if self._take("("):
                self._call(name)
            else:
                self._steps.append(name)
        elif self._take("("):
            self._deeper(self._sum)
            self._close()
        elif self._at_end():
            raise FormulaFault(f'after "{self._before()}" a number, a name or a bracket is missing')
        else:
            raise FormulaFault(f'after "{self._before()}" there is {self._rest()} where a value was expected')

    def _call(self, name: str) -> None:
        if name not in FUNCTIONS:
            raise FormulaFault(f"{name}(...) is no function of formulas (there are {', '.join(FUNCTIONS)})")
        self._deeper(self._sum)
        count = 1
        while self._take(","):
            self._deeper(self._sum)
            count += 1
        self._close()
        if count > 1 and name not in ANY_NUMBER:
            raise FormulaFault(f"{name} takes one argument, not {count}")
        self._steps.append(Operation(name, count))

    def _close(self) -> None:
        if not self._take(")"):
            raise FormulaFault(f'after "{self._before()}" a closing bracket is missing')
