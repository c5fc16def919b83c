"""Reading a row's columns back: in the Predibase form each of them is a text.

`reinforge rewards helpers` prints what follows, to be copied into a reward file: a reward function is one file, and
what is installed beside Reinforge need not be what its worker sees.
"""

import ast
import math
from typing import Any


def parse_bool(text: Any) -> bool:
    """A yes or a no. (`bool("False")` is True: any text that is not empty is.)

    >>> parse_bool("False"), parse_bool(" yes "), parse_bool(0)
    (False, True, False)
    """
    word = str(text).strip().lower()
    if word in ("true", "yes", "y", "on", "1", "1.0"):
        return True
    if word in ("false", "no", "n", "off", "0", "0.0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def parse_number(text: Any) -> float:
    """A finite number.

    >>> parse_number("15"), parse_number("-2.5e3")
    (15.0, -2500.0)
    """
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number


def parse_value(text: Any) -> Any:
    """The list, dict, set, number, true, false or None that was turned into a text; any other text as it is.

    >>> parse_value("[9, 1]"), parse_value("{'a': None}"), parse_value("free text"), parse_value("True")
    ([9, 1], {'a': None}, 'free text', True)
    """
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
