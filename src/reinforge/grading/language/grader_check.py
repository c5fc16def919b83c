"""Checks before a run that a grader can judge: there is something here for each of its types, and its code loads."""

from __future__ import annotations

from typing import Any

from reinforge.errors import RewardError, SetupError
from reinforge.grading.describe import describe_source
from reinforge.grading.language.local_grader import worker_source
from reinforge.grading.language.places import check_places, local_leaves
from reinforge.grading.language.spec import PythonGrader, walk
from reinforge.grading.language.spec_base import GraderNode
from reinforge.sandbox import tiers
from reinforge.sandbox.pool import Limits


def check_grader(node: GraderNode, name: str, limits: Limits | None = None) -> None:
    """RewardError naming the part that cannot judge."""
    check_places(node, name)
    for path, part in walk(node):
        if isinstance(part, PythonGrader):
            _check_python(part, ".".join((name, *path, "source")), limits)
    leaves: dict[str, Any] = {str(i): leaf.full_json() for i, leaf in enumerate(local_leaves(node))}
    if leaves:  # all in one worker: does what they import exist?
        together = {"type": "combine", "graders": leaves, "weights": {}, "clip": None}
        ours = (limits or Limits()).closed()
        try:
            describe_source(worker_source(together), f"<{name}>", ours, tiers.choose().tier)
        except RewardError as error:
            if "No module named" not in error.message:
                raise
            raise SetupError(error.message, hint="pip install 'reinforge[graders]'") from None


def _check_python(part: PythonGrader, place: str, limits: Limits | None) -> None:
    facts = {fact.name: fact for fact in describe_source(part.source, f"<{place}>", limits)}
    if "grade" not in facts:
        own = ", ".join(name for name, fact in facts.items() if fact.own) or "none"
        raise RewardError(f"{place} has no function grade (found: {own}).", hint="Write def grade(sample, item): ...")
    names = [parameter.name for parameter in facts["grade"].parameters]
    if names[:2] != ["sample", "item"] or not all(p.has_default for p in facts["grade"].parameters[2:]):
        text = f"<{place}>:{facts['grade'].line}: grade({', '.join(names)}) must have the parameters sample and item."
        raise RewardError(text, hint="Write def grade(sample, item): ...")
