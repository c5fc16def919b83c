"""Packages belong to a version of a function: recorded, found again on a resume, kept by updates."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from wheels import make_wheel, use_wheels

from reinforge.config import RewardFunctionsConfig, RewardFunctionsRuntimeConfig
from reinforge.errors import RewardError
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.language import grader_api
from reinforge.grading.reward_function import RewardFunction
from reinforge.sandbox import environments

pytest.importorskip("uv", reason="uv makes the environments: pip install 'reinforge[packages]'")
SOURCE = """
import hello

def f(prompt, completion, example):
    return float(hello.version)
"""
ROWS = [{"prompt": "p", "completion": "c"}]


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "hello", "1.5")
    use_wheels(monkeypatch, folder, tmp_path / "home")
    monkeypatch.setattr(environments, "_held", {})
    (tmp_path / "rewards.py").write_text(SOURCE)
    return folder


def config(functions, *packages: str) -> RewardFunctionsConfig:
    return RewardFunctionsConfig(functions=functions, runtime=RewardFunctionsRuntimeConfig(packages=packages))


def scores(grader: RewardFunctionGrader) -> list[float | None]:
    with closing(grader):
        return [score.value for score in grade_completions(grader, ROWS)[0].scores]


def on_another_machine(home: Path) -> None:
    shutil.rmtree(home)
    environments._held.clear()


def test_the_versions_are_part_of_the_record_and_come_back_on_another_machine(index, tmp_path):
    grader = RewardFunctionGrader.from_config(config({"f": "rewards.py:f"}, "hello"), tmp_path)
    assert scores(grader) == [1.5]
    record = json.loads(json.dumps(grader.functions[0].to_record()))
    assert record["packages"] == ["hello==1.5"]
    make_wheel(index, "hello", "2.5")
    on_another_machine(tmp_path / "home")
    function = RewardFunction.from_record(record)
    assert function == grader.functions[0]
    told: list[str] = []
    assert scores(RewardFunctionGrader([function], tell=told.append)) == [1.5]
    assert told[0] == "reward packages: installing 1 package"
    on_another_machine(tmp_path / "home")
    assert scores(RewardFunctionGrader.from_config(config({"f": "rewards.py:f"}, "hello"), tmp_path)) == [2.5]


def test_records_from_before_there_were_packages_are_read(tmp_path):
    function = RewardFunction("f", "f_v1", SOURCE, "f.py", "f", "predibase", ())
    record = function.to_record()
    del record["packages"]
    assert RewardFunction.from_record(record) == function


@pytest.mark.parametrize(
    "packages",
    [
        ["--no-binary evil\nevil @ file:///home/me/evil"],
        ["-r /etc/hostname"],
        ["hello==1.5\n"],
        "hello==1.5",
        [1],
        None,
    ],
)
def test_a_record_with_anything_but_versions_is_refused(packages):
    record = RewardFunction("f", "f_v1", SOURCE, "f.py", "f", "predibase", ()).to_record()
    with pytest.raises(RewardError, match=r"recorded packages of f_v1: .* is no (list of )?name==version"):
        RewardFunction.from_record(record | {"packages": packages})


def test_other_packages_make_another_version():
    function = RewardFunction("f", "f_v1", SOURCE, "f.py", "f", "predibase", ())
    assert replace(function, packages=("hello==1.5",)) != function


def test_without_packages_the_error_names_the_setting(index, tmp_path):
    with pytest.raises(RewardError, match=r'If a package brings "hello", name that in reward_fns\.runtime\.packages'):
        RewardFunctionGrader.from_config(config({"f": "rewards.py:f"}), tmp_path)


def test_in_graders_packages_are_for_the_users_python_alone(index, tmp_path):
    pytest.importorskip("rapidfuzz", reason="text_similarity needs it: pip install 'reinforge[graders]'")
    python = {"type": "python", "source": "import hello\ndef grade(sample, item):\n    return float(hello.version)\n"}
    ours = {"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "c"}
    ours["evaluation_metric"] = "fuzzy_match"
    both = {"type": "multi", "graders": {"a": python, "b": ours}, "calculate_output": "a + b"}
    functions = {"python": python, "ours": ours, "both": both}
    grader = RewardFunctionGrader.from_config(config(functions, "hello"), tmp_path)
    assert [function.packages for function in grader.functions] == [("hello==1.5",), (), ("hello==1.5",)]
    assert scores(grader) == [1.5, 1.0, 2.5]


def test_one_completion_is_judged_with_packages(index):
    python = {"type": "python", "source": "import hello\ndef grade(sample, item):\n    return float(hello.version)\n"}
    runtime = RewardFunctionsRuntimeConfig(packages=("hello",))
    assert grader_api.run(python, "text", runtime=runtime)["reward"] == 1.5
