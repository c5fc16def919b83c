"""Results of every shape, what counts in place of a failed score, the cache, and OpenAI's form."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from graded import graded
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reinforge.config import RewardFunctionsConfig, RewardFunctionSettings
from reinforge.grading.cache import ScoreCache
from reinforge.grading.calls import Case, openai_sample
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import load_reward_functions
from reinforge.types import Completion, Example, FinishReason, Prompt, Score

RESULT = """
import json
def f(prompt, completion, example):
    print("judging")
    return json.loads(completion)
"""


def grades(grader, *texts, example=Example(0, "Hi")):  # noqa: B008  (frozen)
    completions = [Completion(i, (i,), text, "stop", (-0.1,), (-0.1,), 0) for i, text in enumerate(texts)]
    return graded(grader, Prompt(example, "rendered", (1,)), completions)


@pytest.fixture
def make(tmp_path: Path):
    graders = []

    def make(source, functions, **config):
        (tmp_path / "rewards.py").write_text(source)
        named = {name: f"rewards.py:{name}" for name in functions}
        graders.append(RewardFunctionGrader.from_config(RewardFunctionsConfig(functions=named, **config), tmp_path))
        return graders[-1]

    yield make
    for grader in graders:
        grader.close()


RESULTS = [
    ({"score": 0.5}, 0.5, "", "", {}),
    ({"score": True, "valid": True, "reason": "neat"}, 1.0, "", "neat", {}),
    ({"score": 0.5, "reason": "x" * 5000}, 0.5, "", "x" * 4000 + "[... cut: 1000 characters more]", {}),
    ({"score": 0.25, "metrics": {"words": 3, "right": False}}, 0.25, "", "", {"words": 3.0, "right": 0.0}),
    ({"score": 0.9, "valid": False, "reason": "no answer"}, None, "invalid", "no answer", {}),
    ({"score": None, "valid": False}, None, "invalid", "the function says that its score is not valid", {}),
    ({"score": "0.5"}, None, "not_a_number", "returned the text '0.5', not a number", {}),
    ({"score": float("nan")}, None, "not_finite", "returned nan: rewards must be finite", {}),
    (
        {"score": 1, "metrics": {"a": "b"}},
        None,
        "not_a_number",
        "returned the text 'b', not a number (metrics['a'])",
        {},
    ),
    ({"score": 1, "is_score_valid": True}, None, "not_a_result", "returned a result with 'is_score_valid'", {}),
    ({"score": 1, "valid": 1}, None, "not_a_result", 'returned a int 1 as "valid", not true or false', {}),
    ({"score": 1, "reason": 5}, None, "not_a_result", 'returned a int 5 as "reason", not a text', {}),
    ({"score": 1, "metrics": [1]}, None, "not_a_result", 'returned a list [1] as "metrics", not a dict', {}),
]


def test_a_result_is_a_score_with_its_reason_and_metrics_or_an_error(make):
    grader = make(RESULT, ["f"])
    for (result, value, kind, message, metrics), grade in zip(
        RESULTS, grades(grader, *(json.dumps(result) for result, *_ in RESULTS)), strict=True
    ):
        (score,) = grade.scores
        assert (score.value, score.kind, score.metrics) == (value, kind, metrics), result
        assert score.message.startswith(message)
        assert bool(message) == bool(score.message)
        assert score.state == ("error" if kind else "ok")


FLAKY = """
def judge(prompt, completion, example):
    return 1 / int(completion)
def rule(completions, **columns):
    return [None if c == "00" else 0.25 for c in completions]
"""


@pytest.mark.parametrize(
    ("settings", "states", "rewards"),
    [
        ({}, ("ok", "error", "error"), (1.0, 0.0, 0.0)),
        ({"on_error": "mask"}, ("ok", "masked", "masked"), (1.0, None, None)),
        ({"on_error": "fail"}, ("ok", "error", "error"), (1.0, 0.0, 0.0)),
        ({"default": 0.5}, ("ok", "error", "error"), (1.0, 0.5, 0.5)),
        ({"default": 0.0, "on_error": "mask"}, ("ok", "error", "error"), (1.0, 0.0, 0.0)),
        ({"fallback": "rule"}, ("ok", "error", "error"), (1.0, 0.25, 0.0)),
        ({"fallback": "rule", "on_error": "mask"}, ("ok", "error", "masked"), (1.0, 0.25, None)),
        ({"fallback": "rule", "default": -1.0}, ("ok", "error", "error"), (1.0, 0.25, -1.0)),
    ],
)
def test_what_counts_for_a_failed_score_is_never_its_value(make, settings, states, rewards):
    grader = make(FLAKY, ["judge", "rule"], weights={"rule": 0.0}, settings={"judge": settings})
    result = grades(grader, "1", "0", "00")
    assert tuple(grade.scores[0].state for grade in result) == states
    assert tuple(grade.reward for grade in result) == rewards
    assert [grade.scores[0].value for grade in result] == [1.0, None, None]
    assert all(grade.scores[0].kind == "raised" for grade in result[1:])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"settings": {"g": {}}}, r"settings name \['g'\], but the functions are \['f'\]"),
        ({"settings": {"f": {"fallback": "f"}}}, r"f.fallback = 'f' is none of the other functions \[\]"),
        ({"max_error_rate": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(config, said):
    with pytest.raises(ValidationError, match=said):
        RewardFunctionsConfig(functions={"f": "f.py:f"}, **config)


COUNTING = """
import os
def each(prompt, completion, example):
    print("each", completion)
    with open(LOG, "a") as log: log.write(completion + ";")
    return len(completion) + float(example["n"])
def batch(completions, n):
    print("batch", *completions)
    with open(LOG, "a") as log: log.write("+".join(completions) + ";")
    return [len(c) + n[0] for c in completions]
def fails(prompt, completion, example):
    with open(LOG, "a") as log: log.write(completion + ";")
    raise ValueError
"""


@pytest.mark.parametrize("name", ["each", "batch"])
def test_a_pure_function_is_asked_once_for_each_completion_of_a_row(make, tmp_path, name, monkeypatch):
    monkeypatch.setenv("REINFORGE_SANDBOX", "plain")  # only there it can write the log
    log = tmp_path / "log"
    source = COUNTING.replace("LOG", repr(str(log)))
    pure = make(source, [name], settings={name: {"pure": True}})
    plain = make(source, [name])
    rows = [Example(0, "Hi", {"n": 1}), Example(0, "Hi", {"n": 2}), Example(1, "Ho", {"n": 1})]
    texts = ("a", "bb", "a")
    first = [grades(pure, *texts, example=row) for row in rows]
    assert log.read_text() == "a;bb;" * 3
    again = [grades(pure, "bb", "a", "ccc", example=row) for row in rows]
    assert log.read_text() == "a;bb;" * 3 + "ccc;" * 3
    assert [[g.scores[0].cached for g in grade] for grade in first] == [[False, False, True]] * 3
    assert [[g.scores[0].cached for g in grade] for grade in again] == [[True, True, False]] * 3
    expected = [[g.reward for g in grades(plain, *texts, example=row)] for row in rows]
    assert [[g.reward for g in grade] for grade in first] == expected
    prints = [g.scores[0].prints for grade in again for g in grade]
    assert prints == [f"{name} bb\n", f"{name} a\n", f"{name} ccc\n"] * 3  # as if each had been asked


def test_failed_scores_are_not_kept(make, tmp_path, monkeypatch):
    monkeypatch.setenv("REINFORGE_SANDBOX", "plain")  # only there it can write the log
    log = tmp_path / "log"
    grader = make(COUNTING.replace("LOG", repr(str(log))), ["fails"], settings={"fails": {"pure": True}})
    for _ in range(2):
        assert grades(grader, "a")[0].scores[0].kind == "raised"
    assert log.read_text() == "a;a;"


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=12), st.integers(1, 4))
def test_the_cache_never_changes_a_score_and_stays_bounded(cases, max_scores):
    cache = ScoreCache(max_scores)
    for texts in cases:
        case = Case(Example(0, "Hi"), "Hi", tuple(texts), ((),) * len(texts))
        scores = cache.score(case, lambda asked: [Score("f", "f_v1", float(ord(text))) for text in asked.texts])
        assert [score.value for score in scores] == [float(ord(text)) for text in texts]
        assert len(cache._scores) <= max_scores


OPENAI = '''
def grade(sample, item):
    """Compares."""
    assert sample["choices"][0]["message"]["content"] == sample["output_text"]
    assert item == {"prompt": "Hi", "answer": {"x": [1]}, "none": None}, item
    if "output_json" in sample:
        return {"score": float(sample["output_json"] == item["answer"]), "reason": "compared"}
    return 0.25
'''


@pytest.mark.parametrize("reference", ["rewards.py", "rewards.py:grade", OPENAI])
def test_openai_form_as_file_function_and_text(tmp_path, reference):
    (tmp_path / "rewards.py").write_text(OPENAI)
    functions = load_reward_functions({"match": reference}, {}, tmp_path)
    assert (functions[0].dialect, functions[0].version, functions[0].doc) == ("openai", "match_v1", "Compares.")
    with closing(RewardFunctionGrader(functions)) as grader:
        example = Example(3, "Hi", {"answer": {"x": [1]}, "none": None})
        result = grades(grader, '{"x": [1]}', '{"x": [2]}', "x", example=example)
    assert [grade.reward for grade in result] == [1.0, 0.0, 0.25], result


def test_chat_rows_have_messages_and_tools_in_openai_form(tmp_path):
    source = 'def grade(sample, item):\n    return item["messages"][0]["content"] == item["tools"][0]["name"]\n'
    with closing(RewardFunctionGrader(load_reward_functions({"f": source}, {}, tmp_path))) as grader:
        example = Example(0, ({"role": "user", "content": "t"},), {}, ({"name": "t"},))
        assert grades(grader, "x", example=example)[0].reward == 1.0


CUT_OFF = """
def grade(sample, item):
    return float(sample["choices"][0]["finish_reason"] == "length")
"""


@pytest.mark.parametrize("pure", [False, True])
def test_a_sample_says_whether_it_was_cut_off(make, tmp_path, pure):
    """Also when the cache has the same text that ended by itself."""
    functions = load_reward_functions({"cut_off": CUT_OFF}, {}, tmp_path)
    prompt = Prompt(Example(0, "Hi"), "Hi", (1,))
    reasons: list[FinishReason] = ["stop", "length", "length", "stop"]
    completions = [Completion(i, (1,), "same", reason, (), (), 0) for i, reason in enumerate(reasons)]
    with closing(RewardFunctionGrader(functions, settings={"cut_off": RewardFunctionSettings(pure=pure)})) as grader:
        rewards = [grade.reward for grade in graded(grader, prompt, completions)]
        given = grade_completions(grader, [{"prompt": "Hi", "completion": "same"}])
    assert rewards == [0.0, 1.0, 1.0, 0.0]
    assert given[0].reward == 0.0  # of a text nobody knows how it ended


@given(st.text() | st.from_regex(r"[\[{}\]0-9e:,\"-]*", fullmatch=True))
def test_any_completion_makes_a_sample_that_can_be_sent(text):
    sample = openai_sample(text)
    json.dumps(sample, allow_nan=False)
    if "output_json" in sample:
        assert sample["output_json"] == json.loads(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "Infinity", '{"a": 1e999}', ""])
def test_completions_that_are_no_json_for_us(text):
    assert "output_json" not in openai_sample(text)
