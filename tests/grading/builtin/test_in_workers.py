"""A reward file that uses the built-ins, in real workers."""

from __future__ import annotations

from collections.abc import Callable

from reinforge.grading.grader import grade_completions

REWARDS = """
from reinforge.grading.builtin import gate, set_f1, tag_format


def codes(prompt, completion, example):
    return set_f1(input=completion, reference=example["codes"])


def both(prompt, completion, example):
    found = set_f1(input="[1]", reference=[1])
    return gate(a=float(tag_format(input=completion)), b=float(found))
"""


def test_a_reward_file_returns_what_a_builtin_answers(make_grader: Callable):
    grader = make_grader(REWARDS, "codes", "both")
    rows = [
        {"prompt": "p", "completion": text, "codes": ["E11.9", "I10"]}
        for text in ('["I10"]', "<think>a</think><answer>b</answer>")
    ]
    first, second = grade_completions(grader, rows)
    assert [score.value for score in first.scores] == [2 / 3, 0.0]
    assert first.scores[0].message == "1 of 1 found, 1 of 2 expected"
    assert first.scores[0].metrics == {"precision": 1.0, "recall": 0.5}
    assert [score.value for score in second.scores] == [0.0, 1.0]
    assert second.scores[0].message.startswith("not JSON: ")
