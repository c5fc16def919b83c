"""RewardFunctionGrader: both dialects, faults of user code, order and weights, on real worker processes."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from concurrent.futures import CancelledError
from contextlib import closing

import pytest
from graded import begin, graded
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.errors import DataError, RewardError
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import RewardFunction, load_rewards_file
from reinforge.grading.values import MAX_VALUE
from reinforge.types import Completion, Example, Grade, Prompt


def prompt_of(example: Example) -> Prompt:
    return Prompt(example, text="rendered", token_ids=(1, 2))


def completions_of(*texts: str) -> list[Completion]:
    return [Completion(i, (7, i), text, "stop", (-0.1, -0.2), (-0.1, -0.2), 0) for i, text in enumerate(texts)]


def grades(grader: RewardFunctionGrader, example: Example, *texts: str) -> tuple[Grade, ...]:
    return graded(grader, prompt_of(example), completions_of(*texts))


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
    assert grades(grader, Example(0, "Hi")) == ()


def test_given_completions_are_graded_by_group(make_grader):
    grader = make_grader(
        "def crowd(prompts, completions, target): return [len(completions) + t for t in target]", "crowd"
    )
    rows = [{"prompt": "a", "completion": c, "target": t} for c, t in [("x", 0), ("y", 0), ("z", 10)]]
    assert [grade.reward for grade in grade_completions(grader, rows)] == [2.0, 2.0, 11.0]
    with pytest.raises(DataError, match=r'row 2 has no "completion" \(found: prompt\)'):
        grade_completions(grader, [rows[0], {"prompt": "b"}])
    with pytest.raises(DataError, match='row 1: "completion" is a NoneType, it must be text'):
        grade_completions(grader, [{"prompt": "b", "completion": None}])
    with pytest.raises(DataError, match='row 1: "prompt" is a int, it must be text or chat messages'):
        grade_completions(grader, [{"prompt": 3, "completion": "x"}])
    assert grade_completions(grader, []) == []


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


def test_raises_on_one_call_in_ten_cost_only_those(make_grader):
    source = """
        def {name}({parameters}):
            def one(text):
                if int(text) % 10 == 0: raise ValueError("bad " + text)
                return 1.0
            return {result}
    """
    each = source.format(name="each", parameters="prompt, completion, example", result="one(completion)")
    batched = source.format(name="batched", parameters="prompts, completions", result="[one(c) for c in completions]")
    grader = make_grader(each + batched, "each", "batched")
    result = grades(grader, Example(0, "Hi"), *map(str, range(40)))
    for place in (0, 1):
        scores = [grade.scores[place] for grade in result]
        assert [s.value for s in scores] == [None if i % 10 == 0 else 1.0 for i in range(40)]
        assert {(s.state, s.kind) for s in scores[::10]} == {("error", "raised")}
        assert scores[20].message.startswith("ValueError: bad 20\n")
        assert "rewards.py" in scores[20].message
    assert [grade.reward for grade in result][:2] == [0.0, 2.0]


def test_a_batched_exit_costs_only_the_guilty(make_grader):
    grader = make_grader(
        """
        import os
        def leaves(completions, **columns):
            if "bad" in completions: os._exit(0)
            return [1.0] * len(completions)
        """,
        "leaves",
    )
    scores = [g.scores[0] for g in grades(grader, Example(0, "Hi"), "a", "bad", "b")]
    assert [(s.value, s.kind) for s in scores] == [(1.0, ""), (None, "exited"), (1.0, "")]


def test_a_batched_hang_costs_one_deadline_for_all(make_grader):
    source = "import time\ndef hangs(completions, **columns): time.sleep(60)\n"
    grader = make_grader(source, "hangs", timeout_s=0.3)
    scores = [g.scores[0] for g in grades(grader, Example(0, "Hi"), *"abcd")]
    assert {s.kind for s in scores} == {"timeout"}
    assert sum(s.latency_s for s in scores) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        ("[1.0]", "wrong_length"),
        ("[]", "wrong_length"),
        ("[1.0, 2.0, 3.0]", "wrong_length"),
        ("1.0", "not_a_list"),
        ("None", "not_a_list"),
        ("(1.0 for c in completions)", "not_a_list"),
        ("{'a': 1, 'b': 2}", "not_a_list"),
    ],
)
def test_a_batched_call_must_return_one_value_each(make_grader, returned, kind):
    grader = make_grader(f"def f(completions, **columns): return {returned}", "f")
    scores = [g.scores[0] for g in grades(grader, Example(0, "Hi"), "a", "b")]
    assert [(s.state, s.kind, s.value) for s in scores] == [("error", kind, None)] * 2


def test_batched_arrays_and_mixed_faults(make_grader):
    grader = make_grader(
        """
        import numpy
        def array(completions, **columns): return numpy.linspace(0, 1, len(completions), dtype="float32")
        def mixed(completions, **columns): return (1, float("nan"), "0.5")
        """,
        "array",
        "mixed",
    )
    result = grades(grader, Example(0, "Hi"), *"abc")
    assert [g.scores[0].value for g in result] == [0.0, 0.5, 1.0]
    assert [g.scores[1].kind for g in result] == ["", "not_finite", "not_a_number"]


def test_prints_of_a_batched_call_are_kept_once(make_grader):
    source = "def f(completions, **columns):\n    print(*completions)\n    return [1.0] * len(completions)\n"
    grader = make_grader(source, "f", max_print_bytes=4)
    scores = [g.scores[0] for g in grades(grader, Example(0, "Hi"), *"abc")]
    assert [s.prints for s in scores] == ["a b [... cut: 2 bytes more]", "", ""]


def test_async_functions(make_grader):
    grader = make_grader(
        """
        import asyncio
        async def one(text):
            await asyncio.sleep(0.01)
            return float(len(text))
        async def batched(completions, **columns): return await asyncio.gather(*map(one, completions))
        async def single(prompt, completion, example): return await one(completion)
        """,
        "batched",
        "single",
    )
    assert [g.reward for g in grades(grader, Example(0, "Hi"), "a", "bb")] == [2.0, 4.0]


MESSAGES = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "Hi"})


def test_chat_prompts_give_chat_completions_in_trl_form_and_text_in_predibase_form(make_grader):
    grader = make_grader(
        """
        def chat(prompts, completions, **columns):
            assert [p[-1] for p in prompts] == [{"role": "user", "content": "Hi"}] * 2
            return [len(c[0]["content"]) if c[0]["role"] == "assistant" else -1 for c in completions]
        def text(prompt, completion, example):
            import ast
            assert prompt == "rendered" and ast.literal_eval(example["prompt"])[0]["role"] == "system"
            return len(completion)
        """,
        "chat",
        "text",
    )
    assert [g.reward for g in grades(grader, Example(0, MESSAGES), "a", "bb")] == [2.0, 4.0]


def test_typed_examples_keep_their_types(make_grader):
    source = "def f(prompt, completion, example): return example['target'] + sum(example['numbers'])"
    example = Example(0, "Hi", {"target": 15, "numbers": [1, 2]})
    assert grades(make_grader(source, "f", typed_examples=True), example, "a")[0].reward == 18.0
    assert grades(make_grader(source, "f"), example, "a")[0].scores[0].kind == "raised"


VALUES = {
    "1": 1.0,
    "-0.25": -0.25,
    "True": 1.0,
    "False": 0.0,
    "numpy.float32(0.5)": 0.5,
    "numpy.bool_(True)": 1.0,
    "numpy.int64(3)": 3.0,
    "numpy.array(0.5)": 0.5,
    "Decimal('0.25')": 0.25,
    "Fraction(1, 4)": 0.25,
    "1e308": "out_of_range",
    "1e15": 1e15,
    "Level.HIGH": 2.0,
    "Odd()": 7.0,
    "None": "not_a_number",
    "'0.5'": "not_a_number",
    "b'1'": "not_a_number",
    "1 + 0j": "not_a_number",
    "numpy.complex64(1)": "not_a_number",
    "{'score': 1}": 1.0,
    "{'value': 1}": "not_a_number",
    "[1.0]": "not_a_number",
    "(x for x in [1])": "not_a_number",
    "{1.0}": "not_a_number",
    "object()": "not_a_number",
    "Broken()": "raised",
    "loop": "not_a_number",
    "float('nan')": "not_finite",
    "-float('inf')": "not_finite",
    "1e400": "not_finite",
    "Decimal('NaN')": "not_finite",
    "10 ** 400": "not_finite",
    "10 ** 5000": "not_finite",
    "Fraction(10 ** 400)": "not_finite",
    "'x' * 2_000_000": "not_serialisable",
}


def test_what_counts_as_a_number(make_grader):
    grader = make_grader(
        """
        import enum, numpy
        from decimal import Decimal
        from fractions import Fraction
        class Level(enum.IntEnum): HIGH = 2
        class Odd:
            def __float__(self): return 7.0
        class Broken:
            def __float__(self): raise RuntimeError
        loop = []
        loop.append(loop)
        def value(prompt, completion, example): return eval(completion)
        """,
        "value",
    )
    scores = [g.scores[0] for g in grades(grader, Example(0, "Hi"), *VALUES)]
    assert {e: s.kind or s.value for e, s in zip(VALUES, scores, strict=True)} == VALUES
    assert all((s.value is None) == (s.state == "error") for s in scores)
    assert all(len(s.message) < 1000 for s in scores)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text("import json\ndef echo(prompt, completion, example): return json.loads(completion)")
    grader = RewardFunctionGrader(load_rewards_file("echo.py", folder))
    yield grader
    grader.close()


@given(st.lists(JSON_VALUES, min_size=1, max_size=100))
@settings(max_examples=100, deadline=None)
def test_every_value_is_a_finite_score_or_an_error(echo, values):
    result = grades(echo, Example(0, "Hi"), *map(json.dumps, values))
    for value, grade in zip(values, result, strict=True):
        score = grade.scores[0]
        if score.state == "ok":
            assert score.value == (value["score"] if isinstance(value, dict) else value)
            assert abs(score.value) <= MAX_VALUE
        else:
            assert (score.state, score.value) == ("error", None)
            assert score.kind in ("not_a_number", "not_finite", "out_of_range", "not_a_result", "invalid")
            assert not isinstance(value, (bool, int)) or abs(value) > MAX_VALUE
        assert math.isfinite(grade.reward)


def test_timing_never_changes_the_result(make_grader):
    grader = make_grader(
        """
        import os, time
        def jitter(prompt, completion, example):
            time.sleep(os.urandom(1)[0] / 255 * 0.01)
            return float(prompt) * 100 + float(completion)
        def quick(prompts, completions): return [float(c) for c in completions]
        """,
        "jitter",
        "quick",
        workers=3,
    )
    gradings = [begin(grader, prompt_of(Example(i, str(i))), completions_of(*"0123")) for i in range(12)]
    result = [[tuple(s.value for s in g.scores) for g in grading.grades()] for grading in gradings]
    assert result == [[(100.0 * i + c, float(c)) for c in range(4)] for i in range(12)]


def test_a_machine_without_processes_masks(make_grader, monkeypatch):
    functions = make_grader("def f(prompt, completion, example): return 1.0", "f").functions
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with closing(RewardFunctionGrader(functions)) as grader:
        (grade,) = grades(grader, Example(0, "Hi"), "a")
        assert (grade.state, grade.reward, grade.scores[0].kind) == ("masked", None, "worker_unavailable")
        monkeypatch.undo()
        assert grades(grader, Example(0, "Hi"), "a")[0].reward == 1.0


def test_one_function_cannot_touch_another_in_the_same_file(make_grader):
    grader = make_grader(
        """
        import builtins, sys
        def vandal(prompt, completion, example):
            globals()["honest"] = lambda *a, **k: 0.0
            builtins.len = lambda x: 0
            return 1.0
        def honest(prompt, completion, example): return len(completion)
        """,
        "vandal",
        "honest",
    )
    for _ in range(2):
        assert [g.scores[1].value for g in grades(grader, Example(0, "Hi"), "a", "bb")] == [1.0, 2.0]


def test_closing_under_way_ends_every_future(make_grader):
    grader = make_grader("import time\ndef f(prompt, completion, example): time.sleep(60)", "f")
    gradings = [begin(grader, prompt_of(Example(i, "Hi")), completions_of("a")) for i in range(3)]
    time.sleep(0.3)
    grader.close()
    assert gradings[0].grades()[0].state == "masked"
    for grading in gradings[1:]:
        with pytest.raises(CancelledError):
            grading.grades()


def test_data_that_cannot_be_sent_names_the_row(make_grader):
    grader = make_grader("def f(completions, **columns): return [1.0]", "f")
    with pytest.raises(DataError, match="row 5 cannot be given to a reward function"):
        grades(grader, Example(4, "Hi", {"bad": {(1, 2): 3}}), "a")


def test_a_function_has_a_record_for_the_run(make_grader):
    grader = make_grader(
        'def f(prompt, completion, example):\n    "Says one."\n    return 1.0\n', "f", weights={"f": 2.0}
    )
    record = grader.functions[0].to_record()
    assert hashlib.sha256(record["source"].encode()).hexdigest() == record["sha256"]
    assert (record["name"], record["version"], record["dialect"]) == ("f", "f_v1", "predibase")
    assert (record["weight"], record["doc"]) == (2.0, "Says one.")


def test_a_recorded_grader_judges_without_the_file(make_grader, tmp_path):
    grader = make_grader("def f(completions, target=0, **rest): return [t + 0.5 for t in target]", "f")
    record = json.loads(json.dumps(grader.functions[0].to_record()))
    (tmp_path / "rewards.py").unlink()
    with closing(RewardFunctionGrader([RewardFunction.from_record(record)])) as again:
        assert again.functions == grader.functions
        assert grades(again, Example(0, "Hi", {"target": 2}), "a")[0].reward == 2.5
    record["source"] += "#"
    with pytest.raises(RewardError, match="source of f_v1 does not match"):
        RewardFunction.from_record(record)
