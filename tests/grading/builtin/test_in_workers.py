"""A reward file that uses the built-ins, in real workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grading.builtin.cases import USES

from reinforge.grading.completions import grade_completions
from reinforge.sandbox import tiers
from reinforge.sandbox.pool import Limits, Worker

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


EVERY = """
from reinforge.grading.builtin import BUILTINS, find

def judge(grader, arguments):
    result = find(grader)(**arguments)
    return float(result)
"""


@pytest.mark.parametrize("name", tiers.NAMES)
def test_every_builtin_works_in_every_tier(name: str):
    """Their libraries too, with the files, system calls and memory that a tier leaves."""
    tier = tiers.working(name)
    if isinstance(tier, str):
        pytest.skip(f"no {name} tier here: {tier}")
    worker = Worker(EVERY, "rewards.py", Limits(), tier)
    wrong = []
    for use in USES:
        for case in use.cases:
            arguments = {"grader": use.grader, "arguments": {**use.options, **case.arguments}}
            answer = worker.call("judge", arguments, 60.0)
            wanted = case.score
            right = wanted in answer.message if isinstance(wanted, str) else answer.value == pytest.approx(wanted)
            wrong += [] if right else [(use.grader, case.what, answer)]
    worker.close()
    assert wrong == []


BLOWUP = """
from reinforge.grading.builtin import math_equal

def judge(prompt, completion, example):
    return math_equal(input=completion, reference="72", timeout_s=0.5)
"""


def test_mathematics_that_explodes_is_stopped_inside_the_worker(make_grader: Callable):
    grader = make_grader(BLOWUP, "judge")
    rows = [{"prompt": "p", "completion": text} for text in ("$(x+1)^{5000}$", "so 72", "$9^{9^9}$")]
    scores = [grade.scores[0] for grade in grade_completions(grader, rows)]
    assert [score.value for score in scores] == [0.0, 1.0, 0.0]
    assert [score.message for score in scores[::2]] == [
        f"'{text}' could not be compared within 0.5 s" for text in ("$(x+1)^{5000}$", "$9^{9^9}$")
    ]
