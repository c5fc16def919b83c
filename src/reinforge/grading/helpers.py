"""Reading a row's columns back: in the Predibase form each of them is a text. And asking again what failed.

`reinforge rewards helpers` prints what follows, to be copied into a reward file: a reward function is one file, and
what is installed beside Reinforge need not be what its worker sees.
"""

import ast
import math
import time
from collections.abc import Callable
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


def retry(call: Callable[[], Any], attempts: int = 4, wait_s: float = 1.0) -> Any:
    """What `call()` returns; when it raises it is asked again after 1, 2, 4 ... seconds. What the last attempt raises
    is raised; the failures before are printed, for the reward logs. All of it must fit into the deadline of a call
    (`reward_fns.runtime.timeout_s`).

    >>> replies = iter(["", "", "0.5"])
    >>> retry(lambda: float(next(replies)), wait_s=0.001)
    attempt 1 of 4 failed: ValueError: could not convert string to float: ''
    attempt 2 of 4 failed: ValueError: could not convert string to float: ''
    0.5
    """
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except Exception as error:
            if attempt == attempts:
                raise
            print(f"attempt {attempt} of {attempts} failed: {type(error).__name__}: {error}")
            time.sleep(wait_s * 2 ** (attempt - 1))
    raise ValueError(f"attempts = {attempts} must be at least 1")
