"""Graders that ship with Reinforge: by name in a config, as a grader's `type`, and as Python functions.

    from reinforge.grading.builtin import set_f1

Each judges one completion: `input` is its text, or the value that was taken from it; `reference` is what it is
compared with; options follow, all by keyword. The answer is a `Result` with `score`, `reason` and `metrics`; the score
lies in 0..1 unless an option says otherwise. Whatever `input` is, a built-in answers: what cannot be read scores 0 with
a reason. Options and references that make no sense raise ValueError: they are the config's or the row's fault.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reinforge.errors import SetupError

if TYPE_CHECKING:
    from reinforge.grading.builtin.answers import exact_answer, is_number, numeric_close
    from reinforge.grading.builtin.arithmetic import equation
    from reinforge.grading.builtin.code import ast_grep
    from reinforge.grading.builtin.codes import icd_codes
    from reinforge.grading.builtin.composite import combine, gate
    from reinforge.grading.builtin.labels import label
    from reinforge.grading.builtin.lists import set_f1
    from reinforge.grading.builtin.mathematics import math_equal
    from reinforge.grading.builtin.passages import span_f1
    from reinforge.grading.builtin.records import record_checks
    from reinforge.grading.builtin.result import Result
    from reinforge.grading.builtin.schema import json_schema
    from reinforge.grading.builtin.tags import tag_count, tag_format, tag_ladder
    from reinforge.grading.builtin.wording import copied_prompt, length, repetition

_MODULES = {
    "answers": ("exact_answer", "is_number", "numeric_close"),
    "arithmetic": ("equation",),
    "code": ("ast_grep",),
    "codes": ("icd_codes",),
    "composite": ("combine", "gate"),
    "labels": ("label",),
    "lists": ("set_f1",),
    "mathematics": ("math_equal",),
    "passages": ("span_f1",),
    "records": ("record_checks",),
    "schema": ("json_schema",),
    "tags": ("tag_count", "tag_format", "tag_ladder"),
    "wording": ("copied_prompt", "length", "repetition"),
}
ELSEWHERE = {
    "code_tests": "reinforge.grading.code_tests:code_tests",
    "fluency": "reinforge.inference.text_models:fluency",
    "similarity": "reinforge.inference.text_models:similarity",
}
"""Those that judge by running something of their own: a model, or the completion's code."""
BUILTINS: dict[str, str] = ELSEWHERE | {
    name: f"{__name__}.{module}:{name}" for module in _MODULES for name in _MODULES[module]
}
"""Name -> `module:function`."""
COMPOSITES = ("gate", "combine")
"""Of them, those that judge no completion but join the scores of other graders."""
LIBRARIES = {
    "ast_grep": "ast-grep-py",
    "json_schema": "jsonschema",
    "math_equal": "math-verify",
    "span_f1": "rapidfuzz",
}
"""Of them, those that need a package of the extra `graders`."""

__all__ = [
    "BUILTINS",
    "COMPOSITES",
    "ELSEWHERE",
    "LIBRARIES",
    "Result",
    "ast_grep",
    "combine",
    "copied_prompt",
    "equation",
    "exact_answer",
    "find",
    "gate",
    "icd_codes",
    "is_number",
    "json_schema",
    "label",
    "length",
    "math_equal",
    "numeric_close",
    "record_checks",
    "repetition",
    "set_f1",
    "span_f1",
    "tag_count",
    "tag_format",
    "tag_ladder",
]


def find(name: str) -> Callable[..., Any]:
    """The function of a built-in; KeyError when there is none of that name, SetupError when its package is missing.

    >>> find("set_f1").__name__
    'set_f1'
    """
    module, _, function = BUILTINS[name].partition(":")
    package = LIBRARIES.get(name)
    if package and not _installed(package.replace("-", "_")):
        hint = f"pip install 'reinforge[graders]', or add {package} to reward_fns.runtime.packages where those are set."
        raise SetupError(f"{name} needs the package {package}.", hint=hint)
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def name_of(function: object) -> str | None:
    """The name of a function that is a built-in; None of all others.

    >>> name_of(find("set_f1")), name_of(len)
    ('set_f1', None)
    """
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", "")
    return name if BUILTINS.get(name) == f"{module}:{name}" else None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def __getattr__(name: str) -> Any:
    """A built-in is imported when it is first asked for: a worker waits for no other."""
    if name == "Result":
        from reinforge.grading.builtin.result import Result

        return Result
    if name not in BUILTINS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return find(name)
