"""Source texts as a worker sees them: they are loaded there, never here."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Sequence

from reinforge.errors import RewardError
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.pool import FunctionFacts, Limits, SourceFault, Worker, WorkerUnavailable

TOO_LONG_HINT = "It is sent to every worker and kept with every version: put tables and texts into columns of the data."


def describe_source(
    source: str, file_name: str, limits: Limits | None = None, tier: Tier | None = None
) -> tuple[FunctionFacts, ...]:
    """The functions of a module text, as a worker sees them; RewardError when it does not load."""
    packages = limits.packages if limits else ()
    worker = Worker(source, file_name, limits, tier)
    try:
        return worker.describe()
    except SourceFault as fault:
        place = f"{file_name}:{fault.line}" if fault.line else file_name
        shown = f"{place}: {fault.text}.{_shown_place(source, fault.line)}"
        raise RewardError(shown, hint=_load_hint(fault, packages)) from None
    except WorkerUnavailable as error:
        raise RewardError(f"{file_name}: {error}.") from error
    finally:
        worker.close()


def _shown_place(source: str, line: int | None) -> str:
    """The line that Python cannot read, with a caret below the place; empty when the fault is another one."""
    try:
        ast.parse(source)
    except SyntaxError as error:
        if error.lineno != line or not error.offset or not error.text:
            return ""
        text = error.text.rstrip("\n")
        blank = "".join(char if char == "\t" else " " for char in text[: error.offset - 1])
        return f"\n    {text}\n    {blank}^"
    except (ValueError, RecursionError, MemoryError):
        return ""
    return ""


def _load_hint(fault: SourceFault, packages: Sequence[str]) -> str:
    if "relative import" in fault.text:
        return "Copy what you need of the other file: a reward function is one file."
    variable = re.fullmatch(r"KeyError: '(\w+)'", fault.text)
    if variable is not None and variable[1] in os.environ:
        return f"Is it read from the environment? Name it there: reward_fns.runtime.secrets: [{variable[1]}]."
    if not fault.package:
        return TOO_LONG_HINT if fault.text.startswith("the source has") else ""
    elsewhere = (
        "" if packages else " or install it beside Reinforge (`pip install -e` does not do: workers cannot see it)"
    )
    return (
        f'If a package brings "{fault.package}", name that in reward_fns.runtime.packages{elsewhere}; if it is a file '
        "of yours, copy what you need of it: a reward function is one file."
    )
