"""Loading reward functions: references, Python objects, forms, and what is said when it does not work."""

from __future__ import annotations

import functools
import importlib
import re
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import pytest

from reinforge.errors import RewardError
from reinforge.grading.reward_function import RewardFunction, load_reward_functions, load_rewards_file


def load(tmp_path: Path, source: str, reference: str = "rewards.py:f") -> RewardFunction:
    (tmp_path / "rewards.py").write_bytes(source.encode())
    return load_reward_functions({"f": reference}, {}, tmp_path)[0]


@pytest.mark.parametrize(
    ("parameters", "dialect"),
    [
        ("prompt, completion, example", "predibase"),
        ("p, c, row", "predibase"),
        ("prompt, completion, example, strict=True", "predibase"),
        ("prompt, completion, example=None", "predibase"),
        ("prompts, completions, **kwargs", "trl"),
        ("completions, **kwargs", "trl"),
        ("completions, answer", "trl"),
        ("*, prompts, completions, target", "trl"),
        ("completions, completion_ids, trainer_state=None, **kwargs", "trl"),
    ],
)
def test_forms_are_told_apart_by_parameters(tmp_path, parameters, dialect):
    assert load(tmp_path, f"def f({parameters}): return 1").dialect == dialect
    assert load(tmp_path, f"async def f({parameters}): return 1").dialect == dialect


@pytest.mark.parametrize(
    "parameters",
    ["", "prompt", "prompt, completion", "a, b, c, d", "*args", "**kwargs", "a, b, c, *, d", "a, b, c, /"],
)
def test_other_forms_are_refused_with_the_known_ones(tmp_path, parameters):
    with pytest.raises(RewardError) as caught:
        load(tmp_path, f"\ndef f({parameters}): return 1")
    assert "rewards.py:2: f(" in str(caught.value)
    assert "def reward(prompt, completion, example)" in str(caught.value)
    assert "def reward(prompts, completions, **columns)" in str(caught.value)


def test_required_columns_of_the_batched_form(tmp_path):
    function = load(tmp_path, "def f(prompts, completions, answer, trainer_state, level=1, **rest): return []")
    assert function.required_columns == ("answer",)
    assert load(tmp_path, "def f(prompt, completion, example): return 1").required_columns == ()


@pytest.mark.parametrize(
    ("source", "reference", "said"),
    [
        ("def f(:", "rewards.py:f", r"rewards\.py:1: SyntaxError: invalid syntax\."),
        ("x = 1\nimport spacey", "rewards.py:f", r'rewards\.py:2: ModuleNotFoundError.*If a package brings "spacey"'),
        ("from . import x", "rewards.py:f", r"a reward function is one file"),
        ("\n\nraise ValueError('no key')", "rewards.py:f", r"rewards\.py:3: ValueError: no key"),
        ("import sys\nsys.exit(0)", "rewards.py:f", r"rewards\.py:2: called sys.exit\(0\)"),
        ("def g(a, b, c): pass", "rewards.py:f", r"has no function f \(found: g\)"),
        ("f = 3", "rewards.py:f", r"has no function f \(found: none\)"),
        ("def f(a, b, c): pass", "rewards.py", r"has no function grade \(found: f\)\. Name .*rewards\.py:f"),
        ("", "rewards", r'names no function\. Write it as file\.py:function, for instance "rewards:f"'),
        ("", "other.py:f", r"there is no file .*other\.py\. Paths are relative to"),
        ("# coding: latin-1000\n", "rewards.py:f", r"rewards\.py cannot be read: .*unknown encoding"),
    ],
)
def test_what_is_said_when_a_file_does_not_load(tmp_path, source, reference, said):
    with pytest.raises(RewardError, match=said):
        load(tmp_path, source, reference)


@pytest.mark.parametrize("given", ["file", "text", "function"])
def test_a_source_of_more_than_256_kb_is_refused_however_it_is_given(tmp_path, monkeypatch, given):
    source = "def grade(prompt, completion, example): return 1.0\n"
    fits = source + "#" * (256 * 1024 - len(source) - 1) + "\n"
    path = tmp_path / "long_rewards.py"
    path.write_text(fits)
    load_reward_functions({"f": str(path)}, {}, tmp_path)
    path.write_text("\n" + fits)
    reference = {"file": str(path), "text": "\n" + fits}
    if given == "function":
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "long_rewards", raising=False)
        reference["function"] = importlib.import_module("long_rewards").grade
    with pytest.raises(RewardError, match=r"has 262,145 bytes, at most 262,144 are taken\. It is sent to every worker"):
        load_reward_functions({"f": reference[given]}, {}, tmp_path)


def test_objects_that_resist_inspection_are_passed_over(tmp_path):
    source = "from unittest.mock import Mock\nclient = Mock()\ndef f(prompt, completion, example): return 1"
    assert load(tmp_path, source).dialect == "predibase"


def test_encodings_and_main_guard(tmp_path):
    source = '\ufeffdef f(prompt, completion, example): return "ü"\nif __name__ == "__main__": raise SystemExit\n'
    assert "ü" in load(tmp_path, source).source


def test_the_module_body_never_runs_here(tmp_path):
    load(tmp_path, "import sys\nsys.touched_by_reward = True\ndef f(prompt, completion, example): return 1")
    assert not hasattr(sys, "touched_by_reward")


def test_versions_are_named_by_their_text(tmp_path):
    one = load(tmp_path, "def f(prompt, completion, example): return 1")
    two = load(tmp_path, "def f(prompt, completion, example): return 2")
    assert one.version == two.version == "f_v1"
    assert one.sha256 != two.sha256
    assert len(one.sha256) == 64


def test_a_file_offers_what_looks_like_a_reward(tmp_path):
    (tmp_path / "rewards.py").write_text(
        textwrap.dedent(
            """
            from os.path import join
            def clamp(x, low, high): return max(low, min(x, high))
            def _hidden(prompt, completion, example): return 0
            def single(prompt, completion, example): return 1
            def batched(completions, **kwargs): return []
            """
        )
    )
    assert [f.name for f in load_rewards_file("rewards.py", tmp_path)] == ["single", "batched"]
    assert [f.name for f in load_rewards_file("rewards.py:single", tmp_path)] == ["single"]
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(RewardError, match=r"empty\.py has no reward function\. Accepted forms"):
        load_rewards_file("empty.py", tmp_path)


def in_this_file(prompt: str, completion: str, example: dict[str, str]) -> float:
    return float(bool(re.search("a", completion)))


def load_object(function: object) -> RewardFunction:
    return load_reward_functions({"shown": function}, {"shown": 0.5}, Path("."))[0]  # type: ignore[dict-item]


def test_a_function_of_a_module_brings_its_file():
    function = load_object(in_this_file)
    assert (function.name, function.function_name, function.weight) == ("shown", "in_this_file", 0.5)
    assert function.file_name == __file__
    assert "def test_a_function_of_a_module_brings_its_file" in function.source


WORD = re.compile(r"a+", re.IGNORECASE)
LIMIT = {"high": 2.0}
CLIENT = object()


def halve(x: float) -> float:
    return float(Fraction(x) / 2)


def test_a_function_in_a_function_brings_what_it_uses():
    @functools.lru_cache
    def nested(prompt: str, completion: str, example: Fraction, top=LIMIT) -> float:
        return halve(min(len(WORD.findall(completion)), top["high"]))

    function = load_object(nested.__wrapped__)
    assert function.file_name == "<nested>"
    assert "from fractions import Fraction as Fraction" in function.source
    assert "def halve" in function.source
    assert "import functools as functools" in function.source
    assert "CLIENT" not in function.source


def refused_closure():
    factor = 2.0

    def scaled(prompt, completion, example):
        return factor

    return scaled


def refused_global():
    def uses(prompt, completion, example):
        return CLIENT

    return uses


def refused_exec():
    scope: dict[str, object] = {"__name__": "nowhere"}
    exec("def made(prompt, completion, example): return 1", scope)
    return scope["made"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (refused_closure, r'"shown" uses local variables of the function around it \(factor\)'),
        (refused_global, r'"shown" uses the global CLIENT \(a object\), which cannot be copied'),
        (refused_exec, r'"shown": the source of made cannot be found\. Write it into a file'),
        (lambda: functools.partial(in_this_file, example={}), r'"shown" is a partial object\. Write it as a `def`'),
        (lambda: lambda prompt, completion, example: 1.0, r'"shown" is a lambda\.'),
    ],
    ids=["closure", "global", "no text", "partial", "lambda"],
)
def test_objects_that_cannot_be_carried_over(make, said):
    with pytest.raises(RewardError, match=said):
        load_object(make())


def test_functions_of_a_script_work_without_running_it_again(tmp_path):
    script = tmp_path / "train_me.py"
    script.write_text(
        textwrap.dedent(
            """
            import re as regex
            from pathlib import Path
            from reinforge.config import RewardFunctionsConfig
            from reinforge.grading.completions import grade_completions
            from reinforge.grading.grader import RewardFunctionGrader

            WEIGHT = 0.5

            class Rule:
                pattern = regex.compile("^a")

            def even(n): return n == 0 or odd(n - 1)
            def odd(n): return n != 0 and even(n - 1)

            def reward(prompt, completion, example):
                return WEIGHT * bool(Rule.pattern.search(completion)) * even(len(completion))

            print("the script runs")
            grader = RewardFunctionGrader.from_config(RewardFunctionsConfig(functions={"r": reward}), Path("."))
            rows = [{"prompt": "p", "completion": c} for c in ("aa", "a", "bb")]
            grades = grade_completions(grader, rows)
            print([g.reward for g in grades], [g.scores[0].message for g in grades])
            grader.close()
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["the script runs", "[0.5, 0.0, 0.0] ['', '', '']"]
