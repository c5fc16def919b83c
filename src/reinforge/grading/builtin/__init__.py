"""Graders that ship with Reinforge: by name in a config, as a grader's `type`, and as Python functions.

    from reinforge.grading.builtin import set_f1
    result = set_f1(input=completion, reference=["E11.9"])

Each judges one completion: `input` is its text, or the value that was taken from it; `reference` is what it is
compared with; options follow, all by keyword. The score lies in 0..1. Whatever `input` is, a built-in answers: what
cannot be read scores 0 with a reason. Options and references that make no sense raise ValueError: they are the row's
fault.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reinforge.grading.builtin.composite import combine, gate
    from reinforge.grading.builtin.lists import set_f1
    from reinforge.grading.builtin.result import Result
    from reinforge.grading.builtin.tags import tag_count, tag_format, tag_ladder

BUILTINS: dict[str, str] = {
    "set_f1": "reinforge.grading.builtin.lists:set_f1",
    "tag_format": "reinforge.grading.builtin.tags:tag_format",
    "tag_count": "reinforge.grading.builtin.tags:tag_count",
    "tag_ladder": "reinforge.grading.builtin.tags:tag_ladder",
    "gate": "reinforge.grading.builtin.composite:gate",
    "combine": "reinforge.grading.builtin.composite:combine",
}
"""Name -> `module:function`."""
COMPOSITES = ("gate", "combine")
"""Of them, those that judge no completion but join the scores of other graders."""

__all__ = [
    "BUILTINS",
    "COMPOSITES",
    "Result",
    "combine",
    "find",
    "gate",
    "set_f1",
    "tag_count",
    "tag_format",
    "tag_ladder",
]


def find(name: str) -> Callable[..., Any]:
    """The function of a built-in; KeyError when there is none of that name.

    >>> find("set_f1").__name__
    'set_f1'
    """
    module, _, function = BUILTINS[name].partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def __getattr__(name: str) -> Any:
    """A built-in is imported when it is first asked for: a worker waits for no other."""
    if name == "Result":
        from reinforge.grading.builtin.result import Result

        return Result
    if name not in BUILTINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return find(name)
