"""Graders of OpenAI's language as reward functions: in workers, in parts, in a run."""

from __future__ import annotations

import json
import re
from contextlib import closing

import pytest
from judge_server import JudgeServer

import reinforge
from reinforge.api import SilentWatcher
from reinforge.cli.main import run as command
from reinforge.config import RewardFunctionsConfig
from reinforge.errors import ConfigError, RewardError
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.language.error_flags import ERROR_FLAGS
from reinforge.grading.reward_function import RewardFunction, load_reward_functions
from reinforge.run_store import Run

EQUAL = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{item.answer}}", "operation": "eq"}
CONTAINS = {**EQUAL, "operation": "like"}
PYTHON = {
    "type": "python",
    "source": "def grade(sample, item):\n    print('saw', item['answer'])\n    return len(sample['output_text']) / 10",
}


def scores_of(functions, row, *texts, **config):
    """[completion][function]"""
    config = RewardFunctionsConfig(functions=functions, **config)
    with closing(RewardFunctionGrader.from_config(config, row.pop("folder", None) or ".")) as grader:
        grades = grade_completions(grader, [{"prompt": "p", **row, "completion": text} for text in texts])
    return [{score.name: score for score in grade.scores} for grade in grades]


def values(scores):
    return [{name: score.value for name, score in row.items()} for row in scores]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("eq", [1, 0, 0, 0]),
        ("ne", [0, 1, 1, 1]),
        ("neq", [0, 1, 1, 1]),
        ("like", [1, 0, 1, 0]),
        ("ilike", [1, 1, 1, 0]),
    ],
)
def test_string_check(operation, expected):
    scores = scores_of({"f": {**EQUAL, "operation": operation}}, {"answer": "Ab"}, "Ab", "aB", "xAbx", "")
    assert [row["f"].value for row in scores] == expected
    assert {(row["f"].version, row["f"].state) for row in scores} == {("f_v1", "ok")}


ANY_DEPTH = [
    opened * depth + "1" + closed * depth
    for depth in range(50, 1001, 50)
    for opened, closed in (("[", "]"), ('{"a":', "}"))
]


def test_nested_json_of_any_depth_and_huge_integers_score_and_end_no_run():
    in_json = {**EQUAL, "input": "{{sample.output_json}}"}
    functions = {
        "whole": {"type": "exact_answer", "input": "{{sample.output_json}}", "reference": "{{item.answer}}"},
        "text": {**in_json, "operation": "ne"},
        "within": {**EQUAL, "input": "x{{sample.output_json.a.a}}", "operation": "ne"},
        "python": PYTHON,
        "code": {"type": "code_tests", "input": "x = {{sample.output_json}}", "tests": ["assert f() == 1"]},
        "parts": {"type": "multi", "graders": {"t": in_json, "p": PYTHON}, "calculate_output": "t + p"},
    }
    texts = [*ANY_DEPTH, *(f'{{"a":{"[" * depth}{"]" * depth}}}' for depth in range(960, 1000)), "9" * 5000]
    for row in scores_of(functions, {"answer": "4"}, *texts):
        for score in row.values():
            assert (score.state, score.kind) == ("ok", "")
            assert score.value is not None


def test_graders_within_graders_in_one_worker_and_in_parts():
    functions = {
        "formula": {"type": "multi", "graders": {"e": EQUAL, "c": CONTAINS}, "calculate_output": "0.5*e + 0.25*c"},
        "list": {
            "type": "multi",
            "graders": [{**EQUAL, "name": "e"}, {**CONTAINS, "name": "c"}],
            "calculate_output": "e+c",
        },
        "sum": {"type": "combine", "graders": {"e": EQUAL, "c": CONTAINS}, "weights": {"e": 3}, "clip": [0, 3.5]},
        "gate": {"type": "gate", "a": CONTAINS, "b": {**EQUAL, "operation": "ne"}, "share": 0, "below": -1.0},
        "parts": {"type": "multi", "graders": {"e": EQUAL, "p": PYTHON}, "calculate_output": "e + p"},
        "gated": {"type": "gate", "a": CONTAINS, "b": PYTHON},
        "python": PYTHON,
    }
    row = {"answer": "4"}
    first, second, third = scores_of(functions, row, "4", "24", "five")
    assert values([first]) == [
        {"formula": 0.75, "list": 2.0, "sum": 3.5, "gate": 0.0, "parts": 1.1, "gated": 0.55, "python": 0.1}
    ]
    assert values([second, third]) == [
        {"formula": 0.25, "list": 1.0, "sum": 1.0, "gate": 1.0, "parts": 0.2, "gated": 0.6, "python": 0.2},
        {"formula": 0.0, "list": 0.0, "sum": 0.0, "gate": -1.0, "parts": 0.4, "gated": 0.0, "python": 0.4},
    ]
    assert first["formula"].metrics == {"e": 1.0, "c": 1.0}
    assert second["parts"].metrics == {"e": 0.0, "p": 0.2}
    assert (second["gated"].metrics, third["gated"].metrics) == ({"a": 1.0, "b": 0.2}, {"a": 0.0})
    assert first["python"].prints == "saw 4\n"
    assert first["parts"].prints == "[p]\nsaw 4\n"
    assert third["gated"].prints == ""  # it was not asked


def test_the_same_tree_gives_the_same_in_one_worker_and_in_parts(monkeypatch):
    from reinforge.grading import start

    inner = {"type": "combine", "graders": {"e": EQUAL, "c": CONTAINS}, "weights": {"c": 0.5}}
    tree = {
        "type": "multi",
        "graders": {"in": {"type": "gate", "a": CONTAINS, "b": inner, "below": "share"}, "e": EQUAL},
        "calculate_output": "1 / (2 - e)",
    }
    json_of = {**EQUAL, "reference": "{{sample.output_json.k}}"}
    functions = {"tree": tree, "fault": {"type": "multi", "graders": {"a": EQUAL}, "calculate_output": "1 / a"}}
    functions["model"] = {"type": "combine", "graders": {"j": json_of, "c": CONTAINS}}
    texts = ("4", "24", "five", '{"k": "4"}')
    together = scores_of(functions, {"answer": "4"}, *texts)
    monkeypatch.setattr(start, "is_local", lambda node: not node.children())
    apart = scores_of(functions, {"answer": "4"}, *texts)

    def told(row):
        return {name: (s.value, s.state, s.kind, s.message, dict(s.metrics)) for name, s in row.items()}

    assert list(map(told, together)) == list(map(told, apart))
    assert together[1]["fault"].kind == "formula_parse_error"
    assert together[0]["model"].metrics["j/invalid_variable_error"] == 1.0
    assert together[1]["model"].metrics["j/invalid_variable_error"] == 1.0
    assert together[2]["model"].metrics["j/sample_parse_error"] == 1.0


def test_faults_of_the_grader_are_errors_of_their_kind_and_those_of_the_completion_an_honest_0():
    functions = {
        "path": {**EQUAL, "reference": "{{item.nested.gone}}"},
        "formula": {"type": "multi", "graders": {"a": EQUAL}, "calculate_output": "1 / a"},
        "part": {"type": "multi", "graders": {"a": {**EQUAL, "reference": "{{item.nested.gone}}"}, "p": PYTHON},
                 "calculate_output": "a"},
        "json": {**EQUAL, "input": "{{sample.output_json.x}}"},
        "raises": {"type": "python", "source": "def grade(sample, item):\n    return item['gone']"},
    }  # fmt: skip
    (scores,) = scores_of(functions, {"answer": "4", "nested": {"there": 1}}, "no JSON")
    assert {name: (score.state, score.kind) for name, score in scores.items()} == {
        "path": ("error", "invalid_variable_error"),
        "formula": ("error", "formula_parse_error"),
        "part": ("error", "invalid_variable_error"),
        "json": ("ok", ""),
        "raises": ("error", "raised"),
    }
    assert {scores[name].kind for name in ("path", "formula")} <= set(ERROR_FLAGS)
    assert scores["path"].message == '{{item.nested.gone}}: item.nested has no "gone" (it has: there)'
    assert scores["part"].message.startswith("a: {{item.nested.gone}}")
    assert scores["part"].metrics == {"p": 0.7}
    assert scores["json"].value == 0.0
    assert scores["json"].metrics == {"sample_parse_error": 1.0}
    assert "the completion is not JSON" in scores["json"].message


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ({"type": "string_chek"}, '"f": type: "string_chek" is no type of grader; did you mean string_check?'),
        ({}, "type: it is not set"),
        ({**EQUAL, "operation": "equals"}, "operation: \"equals\", but it must be 'eq', 'ne'"),
        ({**EQUAL, "refrence": "x"}, "refrence: is no key of string_check; did you mean reference?"),
        ({**EQUAL, "input": "{{answer}}"}, "input: {{answer}} does not begin with item or sample"),
        ({"type": "multi", "graders": {"a": EQUAL}, "calculate_output": "a + b"}, "b is none of the graders (a)"),
        ({"type": "multi", "graders": {"a": EQUAL}, "calculate_output": "a +"}, "calculate_output: after"),
        ({"type": "multi", "graders": {"a": {"type": "gate", "a": EQUAL}}, "calculate_output": "a"},
         "graders.a.b: is not set"),
        ({"type": "combine", "graders": {"a": EQUAL}, "weights": {"b": 1.0}}, "weights: b is none of the graders (a)"),
        ({"type": "python", "source": "def grade(sample"}, "<f.source>:1: SyntaxError"),
        ({"type": "python", "source": "def grade(a, b, c): return 1"}, "must have the parameters sample and item"),
        ({"type": "python", "source": "def other(sample, item): return 1"}, "no function grade (found: other)"),
        ({"type": "gate", "a": EQUAL, "b": {"type": "python", "source": "x"}}, "<f.b.source>:1: NameError"),
        ("set_f2", "names no function"),
        ("gone.json", "there is no file"),
    ],
)  # fmt: skip
def test_a_bad_grader_is_refused_before_anything_runs(tmp_path, grader, said):
    with pytest.raises(RewardError, match=re.escape(said)):
        load_reward_functions({"f": grader}, {}, tmp_path)


def test_a_file_a_table_and_a_record_are_the_same_function(tmp_path):
    (tmp_path / "check.json").write_text(json.dumps(EQUAL))
    table, file = load_reward_functions({"f": EQUAL, "g": "check.json"}, {"f": 0.5}, tmp_path)
    assert (table.dialect, table.weight, table.function_name, table.parameters) == ("grader", 0.5, "", ())
    assert table.source == file.source
    assert json.loads(table.source) == EQUAL
    assert RewardFunction.from_record(json.loads(json.dumps(table.to_record()))) == table
    assert table.required_columns == ("answer",)
    (tmp_path / "bad.json").write_text('{"type": "string_check",\n "input": }')
    with pytest.raises(RewardError, match=r"bad\.json:2: this is not JSON"):
        load_reward_functions({"f": "bad.json"}, {}, tmp_path)


def test_a_built_in_is_given_by_name_by_function_and_as_a_table(tmp_path):
    from reinforge.grading.builtin import set_f1, tag_format

    functions = {"name": "tag_format", "python": tag_format, "table": {"type": "tag_format"}}
    loaded = load_reward_functions(functions, {}, tmp_path)
    assert {function.source for function in loaded} == {'{\n  "type": "tag_format"\n}\n'}
    (scores,) = scores_of(functions, {}, "<think>a</think><answer>b</answer>")
    assert {score.value for score in scores.values()} == {1.0}
    with pytest.raises(RewardError, match="reference: is not set"):
        load_reward_functions({"f": set_f1}, {}, tmp_path)


def test_a_judge_behind_a_gate_is_asked_only_for_what_passes_and_its_fault_masks_the_whole():
    judge = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
    failing = {"type": "python", "source": "def grade(sample, item):\n    return 1 / 0"}
    functions = {
        "gated": {"type": "gate", "a": CONTAINS, "b": judge, "share": 0.0},
        "faulty": {"type": "combine", "graders": {"a": failing, "j": {**judge, "model": "n"}}},
    }

    def answer(body):
        return {"result": 0.5, "steps": []} if body["model"] == "m" else "no JSON"

    with JudgeServer(answer) as server:
        asked = {"base_url": server.url, "allow_private_addresses": True}
        scores = scores_of(functions, {"answer": "4"}, "4", "five", "44", judge=asked)
        questions = [body["messages"][-1]["content"] for body in server.requests if body["model"] == "m"]
    assert [row["gated"].value for row in scores] == [0.5, 0.0, 0.5]
    assert [row["gated"].metrics for row in scores] == [{"a": 1.0, "b": 0.5}, {"a": 0.0}, {"a": 1.0, "b": 0.5}]
    assert len(questions) == 2
    assert {(row["faulty"].state, row["faulty"].kind) for row in scores} == {("masked", "model_grader_parse_error")}
    assert scores[0]["faulty"].message.startswith("j: ")


def test_case_folds_as_unicode_says():
    (scores,) = scores_of({"f": {**EQUAL, "operation": "ilike"}}, {"answer": "straße"}, "DIE STRASSE")
    assert scores["f"].value == 1.0


def test_a_fault_before_a_gate_stays_that_fault_and_nobody_is_asked_behind_it():
    failing = {"type": "python", "source": "def grade(sample, item):\n    return 1 / 0"}
    judge = {"type": "score_model", "model": "m", "input": [{"role": "user", "content": "{{sample.output_text}}"}]}
    with JudgeServer(lambda body: {"result": 0.5, "steps": []}) as server:
        asked = {"base_url": server.url, "allow_private_addresses": True}
        gate = {"type": "gate", "a": failing, "b": judge, "share": 0.0}
        (scores,) = scores_of({"gated": gate}, {"answer": "4"}, "4", judge=asked)
        assert server.requests == []
    assert (scores["gated"].state, scores["gated"].kind, scores["gated"].value) == ("error", "raised", None)
    assert scores["gated"].message.startswith("a: ")
    assert "ZeroDivisionError" in scores["gated"].message


SCHEMA = {"type": "json_schema", "schema": {"type": "string", "pattern": "(a+)+$"}}
SEARCH = "import re\ndef grade(sample, item):\n    return bool(re.match('(a+)+$', sample['output_json']))"


@pytest.mark.parametrize(
    "grader",
    [
        SCHEMA,
        {"type": "multi", "graders": {"j": SCHEMA, "p": PYTHON}, "calculate_output": "j"},
        {"type": "python", "source": SEARCH},
    ],
)
def test_a_pattern_that_takes_forever_meets_the_deadline_and_costs_its_own_score_only(grader):
    texts = ['"aaaa"', '"' + "a" * 40 + '!"', '"aa"']
    scores = scores_of({"f": grader}, {"answer": 1}, *texts, runtime={"timeout_s": 1.0})
    assert [row["f"].kind for row in scores] == ["", "timeout", ""]
    assert scores[1]["f"].message.endswith("no result within 1 s")
    assert scores[1]["f"].state == "error"


CONFIG = """
base_model: {model}
data: {{path: rows.jsonl, heldout: 2}}
reward_fns:
  functions:
    digits: check.json
    short:
      type: multi
      graders:
        no: {{type: string_check, operation: ne, input: "{{{{sample.output_text}}}}", reference: "{{{{item.number}}}}"}}
        four: {{type: string_check, operation: like, input: "{{{{sample.output_text}}}}", reference: "4"}}
      calculate_output: 0.5 * no + 0.25 * four
  weights: {{digits: 0.5}}
train_steps: 4
prompts_per_step: 2
num_generations: 4
lora: {{rank: 2}}
sampling_params: {{max_tokens: 8}}
eval: {{max_prompts: 1, samples_per_prompt: 1, greedy: false}}
"""


@pytest.fixture
def project(tiny_qwen2, tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "check.json").write_text(json.dumps({**CONTAINS, "reference": "1"}))
    rows = [{"prompt": f"count to {number}", "number": number} for number in range(12)]
    (tmp_path / "c" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c" / "train.yaml").write_text(CONFIG.format(model=tiny_qwen2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class AtStep(SilentWatcher):
    def __init__(self, step, act):
        self._step, self._act = step, act

    def step(self, step, metrics, groups):
        if step == self._step:
            self._act()


def test_a_run_with_graders_is_logged_changed_shown_and_verified(project, capsys):
    path = project / "runs" / "graded"
    config = reinforge.load_config(["c/train.yaml"])
    (project / "short.json").write_text(json.dumps({**CONTAINS, "reference": "{{item.number}}"}))

    def act():
        (project / "c" / "check.json").write_text(json.dumps({**CONTAINS, "reference": "{{item.number}}"}))
        assert command(["rewards", "update", str(path), "c/check.json", "--wait", "0"]) == 0
        assert command(["rewards", "update", str(path), "short.json", "--wait", "0"]) == 3
        assert command(["rewards", "update", str(path), "more=short.json", "--at-step", "3", "--wait", "0"]) == 0

    reinforge.train(config, runs_dir="runs", name="graded", watcher=AtStep(2, act))
    assert "Name the function it is for: NAME=short.json" in capsys.readouterr().err
    with Run.open(path) as run:
        ranges = {(f.version, f.weight): (f.first_step, f.last_step, f.num_error) for f in run.functions()}
        log = run.score_log(functions=["short"])
        assert run.reward_source("digits_v2").name == "digits_v2.json"
    assert ranges == {("digits_v1", 0.5): (1, 2, 0), ("digits_v2", 0.5): (3, 4, 0), ("short_v1", 1.0): (1, 4, 0),
                      ("more_v1", 1.0): (4, 4, 0)}  # fmt: skip
    assert all(row.value == 0.5 * row.metrics["no"] + 0.25 * row.metrics["four"] for row in log)
    assert len(log) == 4 * 8
    capsys.readouterr()
    assert command(["runs", "show", str(path)]) == 0
    assert "digits_v2" in capsys.readouterr().out
    assert command(["rewards", "logs", str(path), "--function", "short", "--step", "1"]) == 0
    assert capsys.readouterr().out.count("    four 0\n") + capsys.readouterr().out.count("    four 1\n") >= 1
    for step in (1, 3):
        assert reinforge.verify(path, step).equal
    rewards = reinforge.get_config(path)
    assert rewards.reward_fns["digits"].endswith("rewards/digits_v2.json")


def test_a_column_that_the_data_lacks_is_told_before_the_run(project, capsys):
    (project / "c" / "check.json").write_text(json.dumps({**CONTAINS, "reference": "{{item.nubmer}}"}))
    assert command(["train", "c/train.yaml"]) == 3
    assert "reward function digits needs the column 'nubmer'" in capsys.readouterr().err


def test_a_config_holds_graders_as_tables_only(tmp_path):
    (tmp_path / "a.yaml").write_text("base_model: .\nreward_fns: {functions: {f: 3}}")
    with pytest.raises(ConfigError, match=r"reward_fns\.functions\.f = 3, but it must be a text"):
        reinforge.load_config([tmp_path / "a.yaml"])
