"""What a graded completion, and a whole group, amounts to."""

from __future__ import annotations

from typing import Literal

from reinforge.types import Grade, Group

GroupOutcome = Literal["learning", "all_error", "all_right", "all_truncated", "all_wrong", "all_equal", "dropped"]
"""What a group teaches. Each group has exactly one:

    learning       its valid rewards differ: the only groups with a gradient
    dropped        fewer than two valid completions: nothing to compare
  and, all valid rewards equal ("zero variance"), the first that fits of
    all_error      a reward function failed on every one: look at the function
    all_right      every one is correct: the prompt is too easy
    all_truncated  every one was cut off by max_tokens: no answer was possible
    all_wrong      none is correct: the prompt is too hard, or the function never fires
    all_equal      right and wrong ones got the same reward: the reward does not measure correctness
"""


def is_correct(grade: Grade, correct_fn: str | None = None, correct_from: float = 1.0) -> bool | None:
    """Whether a completion counts as correct: the value of `correct_fn`, or the reward, is at least `correct_from`.

    None, not known, when there is no such value: the function (for the reward: any) failed, whatever stood in for it,
    its score was lost to the grading machinery or it does not apply.

    >>> from reinforge.types import Score
    >>> grade = Grade((Score("answer", "answer_v1", 1.0), Score("brief", "brief_v1", 0.0)))
    >>> is_correct(grade), is_correct(grade, "answer"), is_correct(grade, "brief")
    (True, True, False)
    >>> is_correct(Grade((Score("judge", "judge_v1", None, state="error", stand_in=1.0),)), "judge") is None
    True
    >>> is_correct(Grade((Score("answer", "answer_v1", None, state="error"),))) is None
    True
    """
    if correct_fn is None:
        value = None if grade.state == "error" else grade.reward
    else:
        value = next((score.value for score in grade.scores if score.name == correct_fn), None)
    return None if value is None else value >= correct_from


def group_outcome(group: Group, correct_fn: str | None = None, correct_from: float = 1.0) -> GroupOutcome:
    """Which of GroupOutcome a group is; only valid completions (those with a reward) count."""
    valid = [
        (completion, grade)
        for completion, grade in zip(group.completions, group.grades, strict=True)
        if grade.reward is not None
    ]
    if len(valid) < 2:
        return "dropped"
    if len({grade.reward for _, grade in valid}) > 1:
        return "learning"
    if all(grade.state == "error" for _, grade in valid):
        return "all_error"
    correct = [is_correct(grade, correct_fn, correct_from) for _, grade in valid]
    if all(correct):  # one that is not known is none that is right
        return "all_right"
    if all(completion.is_truncated for completion, _ in valid):
        return "all_truncated"
    return "all_equal" if any(correct) else "all_wrong"
