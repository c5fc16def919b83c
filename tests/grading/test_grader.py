"""RewardFunctionGrader: both dialects, faults of user code, order and weights, on real worker processes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from reinforge.config import RewardFunctionsConfig, RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.grader import RewardFunctionGrader, grade_completions
from reinforge.types import Completion, Example, Grade, Prompt

LONG_S = 30.0


def prompt_of(example: Example) -> Prompt:
    return Prompt(example, text="rendered", token_ids=(1, 2))


def completions_of(*texts: str) -> list[Completion]:
    return [Completion(i, (7, i), text, "stop", (-0.1, -0.2), (-0.1, -0.2), 0) for i, text in enumerate(texts)]


@pytest.fixture
def make_grader(tmp_path: Path):
    graders = []

    def make(source: str, *names: str, weights=None, timeout_s=LONG_S, **runtime) -> RewardFunctionGrader:
        (tmp_path / "rewards.py").write_text(textwrap.dedent(source), encoding="utf-8")
        config = RewardFunctionsConfig(
            functions={name: f"rewards.py:{name}" for name in names},
            weights=weights or {},
            runtime=RewardFunctionsRuntimeConfig(timeout_s=timeout_s, **runtime),
        )
        graders.append(RewardFunctionGrader.from_config(config, tmp_path))
        return graders[-1]

    yield make
    for grader in graders:
        grader.close()


def grades(grader: RewardFunctionGrader, example: Example, *texts: str) -> tuple[Grade, ...]:
    return grader.grade(prompt_of(example), completions_of(*texts)).result(timeout=60)


def test_predibase_form_sees_prompt_completion_and_text_columns(make_grader):
    grader = make_grader(
        """
        def probe(prompt, completion, example):
            assert (prompt, example) == ("Hi", {"prompt": "Hi", "target": "15", "tags": "['a']"}), (prompt, example)
            return len(completion)
        """,
        "probe",
    )
    example = Example(0, "Hi", {"target": 15, "tags": ["a"]})
    assert [grade.reward for grade in grades(grader, example, "", "abc")] == [0.0, 3.0]


def test_trl_form_gets_lists_of_everything_it_asks_for(make_grader):
    grader = make_grader(
        """
        def probe(prompts, completions, completion_ids, target, trainer_state, **columns):
            assert prompts == ["Hi"] * 3 and target == [15] * 3 and trainer_state is None
            assert columns == {"tags": [["a"]] * 3}, columns
            assert completion_ids == [[7, 0], [7, 1], [7, 2]]
            return [1.0, None, len(completions[2])]
        """,
        "probe",
    )
    result = grades(grader, Example(0, "Hi", {"target": 15, "tags": ["a"]}), "a", "b", "cc")
    assert [grade.scores[0].value for grade in result] == [1.0, None, 2.0]
    assert [grade.scores[0].state for grade in result] == ["ok", "ok", "ok"]
    assert [grade.reward for grade in result] == [1.0, None, 2.0]


def test_weights_order_and_names(make_grader):
    grader = make_grader(
        """
        import time
        def slow(prompt, completion, example):
            time.sleep(0.1)
            return 1
        def fast(prompts, completions):
            return [0.5] * len(completions)
        """,
        "slow",
        "fast",
        weights={"slow": 0.1, "fast": 2.0},
    )
    (grade,) = grades(grader, Example(0, "Hi"), "x")
    assert [(s.name, s.version, s.weight) for s in grade.scores] == [("slow", "slow_v1", 0.1), ("fast", "fast_v1", 2.0)]
    assert grade.reward == pytest.approx(1.1)
    assert grade.scores[0].latency_s >= 0.1


def test_given_completions_are_graded_by_group(make_grader):
    grader = make_grader(
        "def crowd(prompts, completions, target): return [len(completions) + t for t in target]", "crowd"
    )
    rows = [{"prompt": "a", "completion": c, "target": t} for c, t in [("x", 0), ("y", 0), ("z", 10)]]
    assert [grade.reward for grade in grade_completions(grader, rows)] == [2.0, 2.0, 11.0]
    with pytest.raises(DataError, match=r'row 2 has no "completion" \(found: prompt\)'):
        grade_completions(grader, [rows[0], {"prompt": "b"}])


def test_a_hang_costs_one_completion(make_grader):
    grader = make_grader(
        """
        def hangs(prompt, completion, example):
            print("looking at", completion)
            while completion == "bad":
                pass
            return 1.0
        """,
        "hangs",
        timeout_s=0.5,
    )
    result = grades(grader, Example(0, "Hi"), "a", "bad", "b")
    assert [grade.reward for grade in result] == [1.0, 0.0, 1.0]
    score = result[1].scores[0]
    assert (score.state, score.kind, score.prints) == ("error", "timeout", "looking at bad\n")
