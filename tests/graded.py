"""Completions that are all there, judged as the rollout would have them judged."""

from __future__ import annotations

from collections.abc import Sequence

from reinforge.roles import Grader, GroupGrading
from reinforge.types import Completion, Grade, Prompt


def begin(grader: Grader, prompt: Prompt, completions: Sequence[Completion]) -> GroupGrading:
    """Their grading, every completion of the group added."""
    grading = grader.begin(prompt, len(completions))
    for completion in completions:
        grading.add(completion)
    return grading


def graded(grader: Grader, prompt: Prompt, completions: Sequence[Completion]) -> tuple[Grade, ...]:
    """Their grades."""
    return begin(grader, prompt, completions).grades()
