"""How deeply JSON may be nested where a model wrote it."""

from __future__ import annotations

from collections.abc import Mapping

MAX_NESTING = 64
"""Levels of lists and objects. Python's own readers and writers give up wherever their stack happens to end, which is
somewhere else for each caller: what one could read, the next could not write."""


def is_too_deep(value: object) -> bool:
    """Whether lists and objects are nested more than MAX_NESTING deep; level by level, so that nothing is too deep to
    be asked.

    >>> is_too_deep([[1], {"a": [2]}]), is_too_deep(1)
    (False, False)
    """
    level = [value] if _holds(value) else []
    for _ in range(MAX_NESTING):
        if not level:
            return False
        level = [inner for outer in level for inner in _entries(outer) if _holds(inner)]
    return bool(level)


def _holds(value: object) -> bool:
    return isinstance(value, (list, tuple, Mapping))


def _entries(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []
