"""OpenAI's grader endpoints as functions and commands: replies to the letter, flags, time limits."""

from __future__ import annotations

import json

import pytest
from judge_server import JudgeServer

from reinforge.cli.main import run as command
from reinforge.config import JudgeConfig, RewardFunctionsRuntimeConfig
from reinforge.errors import RewardError
from reinforge.grading.language.grader_api import run, validate

CHECK = {"type": "string_check", "name": "fmt", "operation": "like", "input": "{{sample.output_text}}"}
CHECK["reference"] = "<answer>"
PYTHON = {"type": "python", "name": "f1", "image_tag": "2025-05-08"}
PYTHON["source"] = "def grade(sample, item):\n    print(sorted(sample), item)\n    return 0.375"
TOTAL = {"type": "multi", "name": "total", "calculate_output": "0.2*fmt + 0.8*f1"}

ERRORS = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_server_error_details": None,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
}


@pytest.mark.parametrize("graders", [{"fmt": CHECK, "f1": PYTHON}, [CHECK, PYTHON]])
def test_a_reply_to_the_letter(graders):
    reply = run({**TOTAL, "graders": graders}, "<answer>", {"a": 1})
    assert reply["metadata"].pop("execution_time") > 0
    assert reply["reward"] == pytest.approx(0.5, abs=1e-12)
    del reply["reward"]
    assert reply == {
        "sub_rewards": {"fmt": 1.0, "f1": 0.375},
        "model_grader_token_usage_per_model": {},
        "metadata": {
            "name": "total",
            "type": "multi",
            "scores": {"fmt": 1.0, "f1": 0.375},
            "token_usage": None,
            "sampled_model_name": None,
            "errors": ERRORS,
            "logs": "[f1]\n['choices', 'output_text', 'output_tools'] {'a': 1}\n",
            "valid": True,
            "reason": "",
            "version": "total_v1",
        },
    }
    assert list(reply["metadata"]["errors"]) == list(ERRORS)


def python(body):
    return {"type": "python", "source": f"def grade(sample, item):\n    {body}"}


@pytest.mark.parametrize(
    ("grader", "text", "flags", "valid"),
    [
        ({**CHECK, "reference": "{{item.gone}}"}, "x", {"invalid_variable_error"}, False),
        ({**CHECK, "input": "{{sample.output_json.a}}"}, "x", {"sample_parse_error"}, True),
        ({**CHECK, "input": "{{sample.output_json.a}}"}, "{}", {"invalid_variable_error"}, True),
        ({"type": "multi", "graders": {"a": CHECK}, "calculate_output": "1/a"}, "x", {"formula_parse_error"}, False),
        (python("return 1 / 0"), "x", {"python_grader_runtime_error"}, False),
        (python("return 'x'"), "x", {"python_grader_runtime_error"}, False),
        (python("return float('nan')"), "x", {"python_grader_runtime_error"}, False),
        (python("import os; os._exit(0)"), "x", {"python_grader_runtime_error"}, False),
        (python("while True: pass"), "x", {"python_grader_runtime_error", "unresponsive_reward_error"}, False),
        (python("import re; return float(bool(re.match('(a+)+$', 'a' * 40 + '!')))"), "x",
         {"python_grader_runtime_error", "unresponsive_reward_error"}, False),
        ({"type": "multi", "graders": {"a": CHECK, "p": python("return 1 / 0")}, "calculate_output": "a + p"}, "x",
         {"python_grader_runtime_error"}, False),
        ({"type": "set_f1", "reference": "{{item.list}}"}, "[1]", {"other_error"}, False),
    ],
)  # fmt: skip
def test_flags(grader, text, flags, valid):
    reply = run(grader, text, {"list": "no list"}, runtime=RewardFunctionsRuntimeConfig(timeout_s=1.0))
    assert {name for name, value in reply["metadata"]["errors"].items() if value is True} == flags
    assert reply["reward"] == 0.0
    assert reply["metadata"]["valid"] is valid
    assert reply["metadata"]["reason"]
    details = reply["metadata"]["errors"]["python_grader_runtime_error_details"]
    assert (details is not None) == ("python_grader_runtime_error" in flags)


def test_an_item_is_what_was_given():
    source = "def grade(sample, item):\n    print(item)\n    return 1"
    for item in ({}, {"a": [1, None]}, {"messages": [{"role": "user", "content": "hi"}], "b": 2.5}):
        assert run({"type": "python", "source": source}, "", item)["metadata"]["logs"] == f"{item}\n"


def test_pass_thresholds_are_told_beside_the_score():
    similar = {"type": "text_similarity", "input": "{{sample.output_text}}", "reference": "kitten"}
    similar |= {"evaluation_metric": "fuzzy_match", "pass_threshold": 0.6}
    both = {"type": "multi", "graders": {"s": similar, "p": {**PYTHON, "pass_threshold": 0.5}}, "calculate_output": "s"}
    reply = run(both, "sitting", {})
    assert reply["reward"] == pytest.approx(0.6153846, abs=1e-6)
    assert reply["metadata"]["scores"] == {"s": reply["reward"], "p": 0.375}


def test_validate_answers_normalised_or_says_what_is_wrong():
    given = {**TOTAL, "graders": [{**CHECK, "operation": "neq"}, PYTHON]}
    normalised = {**TOTAL, "graders": {"fmt": {**CHECK, "operation": "ne"}, "f1": PYTHON}}
    assert validate(given) == {"grader": normalised}
    assert validate(json.dumps(given)) == {"grader": normalised}
    judge = {"type": "score_model", "name": "judge", "model": "m", "range": [0, 1], "pass_threshold": 0.5,
             "sampling_params": {"temperature": 0, "seed": 1, "max_completions_tokens": 512, "reasoning_effort": "low"},
             "input": [{"role": "developer", "content": "rubric"},
                       {"role": "user", "content": "Q: {{item.q}} Reply: {{sample.output_text}}"},
                       {"role": "user", "content": {"type": "input_text", "text": "{{item.q}}"}},
                       {"role": "user", "content": ["a", {"type": "input_image", "image_url": "u"}]}]}  # fmt: skip
    assert validate(judge) == {"grader": judge}
    label = {"type": "label_model", "name": "l", "model": "m", "input": judge["input"][:1], "labels": ["a", "b"],
             "passing_labels": ["a"]}  # fmt: skip
    assert validate(label) == {"grader": label}
    for wrong, said in (
        ({**judge, "range": [1, 0]}, "range: the lowest score, 1, must be below the highest, 0"),
        ({**judge, "sampling_params": {"max_completion_tokens": 5}}, "sampling_params.max_completion_tokens"),
        ({**judge, "input": []}, "input: \\[\\], but it must have at least 1"),
        ({**judge, "input": [{"role": "tool", "content": "x"}]}, "input.0.role: \"tool\", but it must be 'user'"),
        ({**judge, "input": [{"role": "user", "content": "{{x}}"}]}, "input.0.content.*does not begin with item"),
        ({**label, "passing_labels": ["c"]}, '"c" is none of the labels'),
        (
            {"type": "text_similarity", "input": "", "reference": "", "evaluation_metric": "cosine"},
            "compares embeddings",
        ),
        (
            {"type": "text_similarity", "input": "", "reference": "", "evaluation_metric": "bleau"},
            "must be 'fuzzy_match'",
        ),
        ({"type": "set_f1"}, "reference: is not set"),
        ({"type": "set_f1", "reference": [], "emptymatch": 1}, "is no key of set_f1; did you mean empty_match"),
        ({"type": "set_f1", "reference": [], "empty_match": "x"}, "empty_match: Input should be a valid number"),
        ({"type": "set_f1", "reference": "{{items}}"}, "reference: {{items}} does not begin"),
    ):
        with pytest.raises(RewardError, match=said):
            validate(wrong)


def test_built_in_graders_are_types_and_take_values_as_they_are():
    grader = {
        "type": "set_f1",
        "input": "{{sample.output_json.codes}}",
        "reference": "{{item.codes}}",
        "pass_threshold": 0.5,
    }
    reply = run(
        {"type": "multi", "graders": {"f1": grader}, "calculate_output": "f1"}, '{"codes": [1, 2]}', {"codes": [2]}
    )
    assert reply["reward"] == pytest.approx(2 / 3, abs=1e-12)
    assert reply["metadata"]["reason"] == "f1: 1 of 2 found, 1 of 1 expected"
    assert run({"type": "set_f1", "reference": "{{item.codes}}"}, "[2, 1]", {"codes": [1, 2]})["reward"] == 1.0


def test_judges_are_asked_counted_and_their_faults_flagged(tmp_path, monkeypatch, capsys):
    said = {"result": 0.5, "steps": [{"description": "d", "conclusion": "half right"}]}
    judge = {"type": "score_model", "name": "j", "model": "m", "input": [{"role": "user", "content": "{{item.q}}"}]}
    (tmp_path / "total.json").write_text(
        json.dumps({"type": "multi", "graders": {"j": judge, "f": PYTHON}, "calculate_output": "j + f"})
    )
    with JudgeServer(lambda body: said) as server:
        config = JudgeConfig(base_url=server.url, allow_private_addresses=True)
        reply = run(judge, "x", {"q": "good?"}, judge=config)
        assert reply["reward"] == 0.5
        used = reply["model_grader_token_usage_per_model"]["m"]
        assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"] > 0
        assert reply["metadata"]["token_usage"] == used["total_tokens"]
        assert reply["metadata"]["sampled_model_name"] == "m"
        assert reply["metadata"]["errors"] == ERRORS
        (tmp_path / "c.yaml").write_text(
            f"base_model: m\nreward_fns:\n  functions: {{f: total.json}}\n"
            f"  judge: {{base_url: {server.url}, allow_private_addresses: true}}\n"
        )
        monkeypatch.chdir(tmp_path)
        shown = ["grader", "run", "total.json", "--completion", "x", "--row", '{"q": "good?"}']
        assert command([*shown, "--config", "c.yaml"]) == 0
        assert capsys.readouterr().out.startswith("reward  0.875\nj       0.500\nf       0.375\nj: d: half right\n")
        assert command(shown) == 2
        assert "reward_fns.judge.base_url is not set" in capsys.readouterr().err
    with JudgeServer(lambda body: "no JSON at all") as server:
        config = JudgeConfig(base_url=server.url, allow_private_addresses=True)
        reply = run(judge, "x", {"q": "good?"}, judge=config)
    assert (reply["reward"], reply["metadata"]["valid"]) == (0.0, False)
    assert reply["metadata"]["errors"] == ERRORS | {"model_grader_parse_error": True}


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "total.json"
    good = json.dumps({**TOTAL, "graders": {"fmt": CHECK, "f1": PYTHON}}, indent=1)
    file.write_text(good.replace("\\n", "\n").replace("}\n}", "},\n}"))
    assert command(["grader", "validate", "total.json"]) == 3
    assert "total.json:17: a text goes over 3 lines" in capsys.readouterr().err
    assert command(["grader", "validate", "total.json", "--fix", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"grader": json.loads(good)}
    assert "total.json:17: repaired a text goes over 3 lines\ntotal.json:21: repaired a comma before }\n" in err
    assert json.loads(file.read_text()) == json.loads(good)
    assert command(["grader", "validate", "total.json", "--fix"]) == 0
    assert "total.json is a grader: multi (fmt: string_check, f1: python)." in capsys.readouterr().err
    (tmp_path / "reply.txt").write_text("<answer>\x1b[2J")
    assert command(["grader", "run", "total.json", "--completion", "@reply.txt", "--row", '{"a": "\\u001b[2J"}']) == 0
    out = capsys.readouterr().out
    assert out.startswith("reward  0.500\nfmt     1.000\nf1      0.375\n")
    assert "\x1b" not in out
    assert command(["grader", "run", "total.json", "--completion", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sub_rewards"] == {"fmt": 0.0, "f1": 0.375}
    file.write_text(json.dumps({**CHECK, "reference": "{{item.b}}"}))
    assert command(["grader", "run", "total.json", "--completion", "x", "--row", '{"a": 1}']) == 3
    assert "invalid_variable_error" in capsys.readouterr().out
    for wrong, code in (
        (["validate", "gone.json"], 2),
        (["run", "total.json", "--completion", "x", "--row", "[1]"], 2),
        (["run", "total.json", "--completion", "@gone.txt"], 2),
        (["run", "total.json", "--completion", "x", "--row", "{'a': 1}"], 3),
    ):
        assert command(["grader", *wrong]) == code, wrong
    file.write_text(json.dumps(python("return x(")))
    assert command(["grader", "validate", "total.json"]) == 3
    assert "<total.source>:2: SyntaxError" in capsys.readouterr().err


def test_half_a_surrogate_pair_comes_out_as_json(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    grader = {"type": "string_check", "operation": "eq", "input": "{{sample.output_json.x}}", "reference": "1"}
    (tmp_path / "s.json").write_text(json.dumps(grader))
    assert command(["grader", "run", "s.json", "--completion", '{"\\ud800": 1}', "--row", "{}", "--json"]) in (0, 3)
    reply = json.loads(capfd.readouterr().out)
    assert "\ud800" in reply["metadata"]["reason"]
    (tmp_path / "s.json").write_text(json.dumps({**grader, "reference": "\ud800"}))
    assert command(["grader", "validate", "s.json", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["grader"]["reference"] == "\ud800"
