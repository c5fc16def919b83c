"""`reinforge rewards test` on real files, with real worker processes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.recipes.countdown import rewards as countdown
from reinforge.recipes.gsm8k import rewards as gsm8k

GOOD = '''
import re

def correct(prompt, completion, example):
    """1.0 for the row's number, 0.5 for a near one."""
    found = re.fullmatch(r"\\s*<answer>\\s*(-?\\d+)\\s*</answer>\\s*", completion)
    distance = abs(int(found[1]) - int(example["answer"])) if found and len(found[1]) < 20 else 99
    return max(0.0, 1.0 - distance / 2)

def form(prompt, completion, example):
    """0.5 for each tag that occurs once."""
    return sum(completion.count(tag) == 1 for tag in ("<answer>", "</answer>")) / 2
'''
ROWS = [{"prompt": f"{a} + {a}?", "answer": 2 * a} for a in (2, 30, 7, 11, 54)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rewards.py").write_text(GOOD)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "train.yaml").write_text(
        "base_model: unused\ndata: {path: rows.jsonl}\n"
        "reward_fns:\n  functions: {correct: rewards.py:correct, form: rewards.py:form}\n"
        "  weights: {correct: 0.75, form: 0.25}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, list[dict]]:
    assert reinforge(["rewards", "test", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def ids(report: dict[str, list[dict]], verdict: str) -> list[str]:
    return [finding["id"] for finding in report["findings"] if finding["verdict"] == verdict]


def test_good_rewards_pass_without_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]):
    report = told(capsys, "train.yaml")
    assert ids(report, "blocking") == ids(report, "warning") == []
    assert report["verdict"] in ("ok", "info")
    by_name = {line["name"]: line for line in report["functions"]}
    assert (by_name["correct"]["gold"], by_name["correct"]["garbage"], by_name["reward"]["gold"]) == (1.0, 0.0, 1.0)
    assert report["assumptions"] == [
        "answers: column answer, assumed",
        "right completions: '<answer>{answer}</answer>' (assumed: of the layouts that the functions hint at, the one "
        "they give most)",
    ]


def test_the_table_for_people(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    (folder / "rewards.py").write_text(GOOD.replace('int(example["answer"])', "1_000_000"))
    assert reinforge(["rewards", "test", "train.yaml"]) == 3
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "answers: column answer, assumed"
    assert any(line.split()[:4] == ["correct", "0.75", "0", "-"] for line in lines)
    assert "blocking  G03  correct" in out
    assert "row 1, right completion 0: <answer>4</answer>" in out
    assert all(line == line.rstrip() and len(line) <= 120 for line in lines)
    assert lines[-1].endswith("completions of 5 rows")


def test_the_table_fits_eighty_columns(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    reinforge(["rewards", "test", "train.yaml"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["function", "weight"] for line in lines)
    assert any(line.split()[:3] == ["correct", "0.75", "1"] for line in lines)
    assert all(len(line) <= 80 and "…" not in line for line in lines)


def test_every_kind_of_fault_has_its_id(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "faulty.py").write_text(
        "import random, requests_like\n"
        if False
        else "import random, time\n"
        "def lucky(prompt, completion, example):\n    return random.random()\n"
        "def text(prompt, completion, example):\n    return '1.0'\n"
        "def trap(prompt, completion, example):\n    'Doc.'\n    return float(example['answer'] == int(completion))\n"
        "def none(prompt, completion, example):\n    'Doc.'\n    print(completion)\n"
        "def endless(prompt, completion, example):\n    'Doc.'\n"
        "    while len(completion) > 10_000:\n        time.sleep(1)\n    return 1.0\n"
    )
    report = told(capsys, "faulty.py", "--data", "rows.jsonl", "--timeout-s", "0.5", code=3)
    of = {(finding["id"], finding["function"]) for finding in report["findings"]}
    assert {("G09", "lucky"), ("G26", "lucky"), ("G08", "text"), ("G25", "trap"), ("G02", "none"), ("G08", "none"),
            ("G11", "trap"), ("G13", "endless")} <= of  # fmt: skip
    (slow,) = [f for f in report["findings"] if f["function"] == "endless" and "timeout" in f["message"]]
    assert "long text" in slow["message"]
    (trap,) = [f for f in report["findings"] if f["check"] == "source_text" and f["id"] == "G25"]
    assert trap["message"].startswith('line 8: example["answer"] is text here')


@pytest.mark.slow
def test_a_function_that_always_hangs_is_not_asked_about_everything(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "hangs.py").write_text(
        "def hangs(prompt, completion, example):\n    'Doc.'\n    while '<answer>':\n        pass\n"
        "def extract_answer(text):\n    while '<answer>':\n        pass\n"
    )
    report = told(capsys, "hangs.py", "--data", "rows.jsonl", "--timeout-s", "0.2", code=3)
    assert report["num_trials"] < 60
    assert report["assumptions"][-1].startswith("stopped early: ")
    assert set(ids(report, "blocking")) == {"G04", "G11"}


def test_columns_that_are_text_are_found_by_trying_them_typed(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "trap.py").write_text(
        "def trap(prompt, completion, example):\n    'Doc.'\n    wanted = [example['answer'], 'x'][0]\n"
        "    return float(completion.strip().isdigit() and int(completion) == wanted) or 0.5 * (completion == '1')\n"
    )
    report = told(capsys, "trap.py", "--data", "rows.jsonl", code=3)
    (found,) = [finding for finding in report["findings"] if finding["check"] == "columns_are_read_back"]
    assert (found["verdict"], found["function"], found["num_evidence"]) == ("blocking", "trap", 5)


def test_gold_from_a_function_in_the_file(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rewards.py").write_text(
        GOOD + "\ndef gold(example):\n"
        "    return None if example['answer'] == 60 else f\"<answer> {example['answer']} </answer>\"\n"
    )
    report = told(capsys, "train.yaml")
    assert report["assumptions"] == ["right completions: what gold(example) in rewards.py returns"]
    (found,) = [finding for finding in report["findings"] if finding["check"] == "gold_is_known"]
    assert (found["verdict"], found["evidence"][0]["row"]) == ("warning", 2)


@pytest.mark.parametrize("body", ["return 5", "raise KeyError('x')"])
def test_a_gold_function_that_fails(folder: Path, capsys: pytest.CaptureFixture[str], body: str):
    (folder / "rewards.py").write_text(GOOD + f"\ndef gold(example):\n    {body}\n")
    assert reinforge(["rewards", "test", "train.yaml"]) == 3
    assert "rewards.py: gold failed on row 1" in capsys.readouterr().err


def test_template_and_column(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": row["prompt"], "sum": row["answer"], "answer": "no"} for row in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(GOOD.replace('example["answer"]', 'example["sum"]'))
    arguments = ["train.yaml", "--answer-column", "sum", "--gold-template", "<answer>{answer}</answer>"]
    report = told(capsys, *arguments)
    assert report["assumptions"] == [
        "answers: column sum", "right completions: '<answer>{answer}</answer>' (--gold-template)",
    ]  # fmt: skip
    assert reinforge(["rewards", "test", "train.yaml", "--answer-column", "total"]) == 2
    assert 'no column "total" (found: sum, answer)' in capsys.readouterr().err
    assert reinforge(["rewards", "test", "train.yaml", "--gold-template", "{anser}"]) == 2
    assert "--gold-template has {anser}" in capsys.readouterr().err


def test_cases_beside_the_file(folder: Path, capsys: pytest.CaptureFixture[str]):
    cases = [
        {"row": 1, "completion": "<answer>5</answer>", "scores": {"correct": 0.5, "form": 1}},
        {"row": 1, "great": "<answer>4</answer>", "fair": "<answer>5</answer>", "poor": "4"},
        {"example": {"prompt": "1?", "answer": 1}, "completion": "<answer>1</answer>", "reward": [0.9, 1.0]},
    ]
    path = folder / "rewards.cases.jsonl"
    path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    assert ids(told(capsys, "train.yaml"), "blocking") == []
    path.write_text(json.dumps({**cases[0], "scores": {"correct": [0.9, 1.0]}}) + "\n" + json.dumps(
        {"row": 1, "great": "4", "fair": "<answer>4</answer>", "poor": ""}) + "\n")  # fmt: skip
    report = told(capsys, "train.yaml", code=3)
    assert ids(report, "blocking") == ["G07", "G27"]
    (missed,) = [finding for finding in report["findings"] if finding["id"] == "G27"]
    assert (missed["function"], missed["evidence"][0]["note"]) == ("correct", "should be 0.9 to 1")
    assert ids(told(capsys, "train.yaml", "--ignore", "G27:correct", "--ignore", "G07"), "blocking") == []


def test_cases_alone_need_no_data(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["rewards", "test", "rewards.py"]) == 2
    assert "Name a data set: --data F." in capsys.readouterr().err
    case = {"example": {"prompt": "1?", "answer": 1}, "completion": "<answer>1</answer>", "scores": {"correct": 1}}
    (folder / "rewards.cases.jsonl").write_text(json.dumps(case) + "\n")
    assert ids(told(capsys, "rewards.py"), "blocking") == []
    (folder / "rewards.cases.jsonl").write_text(json.dumps(case | {"scores": {"correct": 0}}) + "\n")
    assert ids(told(capsys, "rewards.py", code=3), "blocking") == ["G27"]


def test_a_case_of_a_row_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]):
    case = {"row": 6, "completion": "x", "reward": 0}
    (folder / "rewards.cases.jsonl").write_text(json.dumps(case) + "\n")
    assert reinforge(["rewards", "test", "train.yaml"]) == 3
    assert "is of row 6, but the data has 5 rows" in capsys.readouterr().err


def test_graders_and_built_ins(folder: Path, capsys: pytest.CaptureFixture[str]):
    grader = {
        "type": "string_check",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "operation": "eq",
    }
    (folder / "same.json").write_text(json.dumps(grader))
    report = told(capsys, "same.json", "--data", "rows.jsonl")
    assert (report["functions"][0]["name"], report["functions"][0]["gold"]) == ("same", 1.0)
    rows = [{"prompt": "Which?", "answer": answer} for answer in (["a", "b"], ["c"], [])]
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = {"type": "set_f1", "reference": "{{item.answer}}", "empty_match": 0.0}
    (folder / "sets.json").write_text(json.dumps(node))
    report = told(capsys, "sets.json", "--data", "lists.jsonl", code=3)
    (dead,) = [finding for finding in report["findings"] if finding["check"] == "dead_row"]
    assert (dead["verdict"], dead["evidence"][0]["row"]) == ("blocking", 3)
    (folder / "sets.json").write_text(json.dumps({**node, "empty_match": 1.0}))
    assert ids(told(capsys, "sets.json", "--data", "lists.jsonl"), "blocking") == []


def test_what_does_not_load(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "broken.py").write_text("def f(:\n")
    assert reinforge(["rewards", "test", "broken.py", "--data", "rows.jsonl"]) == 3
    assert "broken.py:1" in capsys.readouterr().err


def test_hostile_text_reaches_no_terminal(folder: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": "p\x1b[2J[bold]", "answer": f"a\x1b[31m{i}"} for i in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "zero.py").write_text("def zero(prompt, completion, example):\n    return 0.0\n")
    assert reinforge(["rewards", "test", "zero.py", "--data", "rows.jsonl"]) == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[31m0" in out


@pytest.mark.parametrize("recipe", ["countdown", "gsm8k"])
def test_the_recipes_pass(recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    module = {"countdown": countdown, "gsm8k": gsm8k}[recipe]
    monkeypatch.chdir(Path(module.__file__).parent)
    data = {"countdown": "data/heldout.jsonl", "gsm8k": "sample.jsonl"}[recipe]
    report = told(capsys, "config.yaml", "--data", data, "--rows", "10")
    assert ids(report, "blocking") == []
    assert report["functions"][-1]["gold"] == {"countdown": 1.0, "gsm8k": 4.0}[recipe]


def test_random_rows_give_the_same_report_twice(folder: Path, capsys: pytest.CaptureFixture[str]):
    draw = random.Random(0)
    rows = [{"prompt": f"row {i}", "answer": draw.randint(0, 9999)} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = told(capsys, "train.yaml"), told(capsys, "train.yaml")
    assert first["findings"] == second["findings"]
    assert first["num_trials"] == second["num_trials"]
