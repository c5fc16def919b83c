"""The text of a reward function that was given as a Python object: workers run text, never pickled objects."""

from __future__ import annotations

import inspect
import textwrap
import types
from collections.abc import Callable
from typing import Any

from reinforge.errors import RewardError


def source_of_callable(name: str, function: Callable[..., Any]) -> tuple[str, str, str]:
    """(source, file name, function name). A function of a module file brings the whole file; one of a notebook, a
    script or another function brings its own text. A closure over local variables is refused."""
    plain = inspect.unwrap(function)
    if not isinstance(plain, types.FunctionType) or plain.__name__ == "<lambda>":
        raise RewardError(
            f'reward function "{name}" is a {type(plain).__name__} without a name of its own.',
            hint="Write it as a plain `def` function.",
        )
    if plain.__code__.co_freevars:
        captured = ", ".join(plain.__code__.co_freevars)
        raise RewardError(
            f'reward function "{name}" uses local variables of the function around it ({captured}).',
            hint="It runs in a process of its own and cannot see them: define them inside it or in its file.",
        )
    try:
        if plain.__module__ != "__main__" and plain.__qualname__ == plain.__name__:
            module = inspect.getmodule(plain)
            if module is not None and inspect.getsourcefile(module):
                return inspect.getsource(module), str(inspect.getsourcefile(module)), plain.__name__
        return textwrap.dedent(inspect.getsource(plain)), f"<{plain.__name__}>", plain.__name__
    except (OSError, TypeError):
        raise RewardError(
            f'the source of reward function "{name}" cannot be found.',
            hint="Write it into a file and give it as file.py:function.",
        ) from None
