"""`reinforge rewards new`: what it writes passes `reinforge rewards test` on the data it was written for, as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.lab.starter import kind_of

TAGS = "Write\n<reasoning>\n...\n</reasoning>\n<final_answer>\n...\n</final_answer>"
Row = dict[str, Any]


def ask(prompt: str) -> Callable[[int], Row]:
    return lambda i: {"prompt": prompt.format(i), "answer": str(i)}


def chat(i: int) -> Row:
    messages = [{"role": "system", "content": TAGS}, {"role": "user", "content": f"{i}?"}]
    return {"prompt": messages, "answer": str(i)}


SHAPES: dict[str, tuple[str, int, Callable[[int], Row]]] = {
    "numbers behind hashes": ("number", 6, lambda i: {"prompt": f"{i}?", "answer": f"So.\n#### {1200 + i:,}"}),
    "native numbers": ("number", 6, lambda i: {"prompt": f"{i}?", "answer": i / 2}),
    "labels": ("label", 9, lambda i: {"prompt": f"Text {i}", "label": ["ham", "spam", "ham"][i % 3]}),
    "yes or no": ("label", 8, lambda i: {"prompt": f"Text {i}", "target": i % 2 == 0}),
    "lists": ("list", 7, lambda i: {"prompt": f"Which {i}?", "answer": [f"E{i}", "E9"][: i % 3]}),
    "lists of tables": ("list", 4, lambda i: {"prompt": f"{i}", "answer": [{"n": "A", "v": i}, {"n": i, "v": None}]}),
    "tables": ("table", 5, lambda i: {"prompt": f"Who {i}?", "reference": {"name": f"N{i}", "age": i, "tall": [i]}}),
    "texts": (
        "text",
        5,
        lambda i: {"prompt": f"Why {i}?", "answer": f"for reason number {i} and nothing {i * 7} else"},
    ),
    "one row": ("text", 1, lambda i: {"prompt": "Why?", "answer": "no reason"}),
    "gaps": ("number", 5, lambda i: {"prompt": f"{i}", "answer": None if i == 2 else i}),
    "chat that asks for tags": ("number", 5, chat),
    "hashes asked for": ("number", 5, ask("{}? End with #### and the number.")),
    "a box asked for": ("number", 5, ask("{}? Put it in \\boxed{{}}.")),
    "odd characters": ("text", 3, lambda i: {"prompt": "p", "answer": f'a "quote" \\ {{b}} \u202e{i} and five words'}),
}


def write_rows(shape: str) -> str:
    kind, num_rows, make = SHAPES[shape]
    Path("rows.jsonl").write_text("".join(json.dumps(make(i)) + "\n" for i in range(num_rows)))
    return kind


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_written_passes_on_its_data(shape: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    kind = write_rows(shape)
    assert reinforge(["rewards", "new", "rewards.py", "--data", "rows.jsonl"]) == 0
    assert f"(answers: {kind}, column " in capsys.readouterr().err
    code = reinforge(["rewards", "test", "rewards.py", "--data", "rows.jsonl", "--json"])
    report = json.loads(capsys.readouterr().out)
    warnings = [(f["id"], f["check"]) for f in report["findings"] if f["verdict"] in ("blocking", "warning")]
    # A missing answer, and two labels or one row, are faults of the data.
    data_faults = {("G03", "gold_is_known"), ("G15", "form_and_content"), ("G28", "constant_answer")}
    assert (code, [warning for warning in warnings if warning not in data_faults]) == (0, [])
    assert report["functions"][-1]["gold"] == 2.0
    assert sum(finding["id"] == "G26" for finding in report["findings"]) == 0
    kinds = {"right", "nothing", "wrong", "cut off", "ladder"}
    names = {json.loads(line)["name"] for line in (folder / "rewards.cases.jsonl").read_text().splitlines()}
    assert names <= kinds
    assert {"right", "nothing"} <= names


@pytest.mark.parametrize(
    ("columns", "prompt", "listed"),
    [
        ({}, "Write a poem.", "    none\n"),
        ({"topic": "rain", "mood": "sad"}, "Write a poem.", '    topic: str, "rain"\n    mood: str, "sad"\n'),
        ({}, "Write. End with #### and your answer.", "    none\n"),
        ({}, "Write. Put your answer into \\boxed{}.", "    none\n"),
    ],
)
def test_what_is_written_for_data_without_answers_passes_too(
    columns: Row, prompt: str, listed: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{"prompt": f"{number}. {prompt}", **columns} for number in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert reinforge(["rewards", "new", "rewards.py", "--data", "rows.jsonl"]) == 0
    assert f"Only form is judged: no column looks like the answer (found: {', '.join(columns) or 'none'})." in (
        capsys.readouterr().err
    )
    source = (folder / "rewards.py").read_text()
    assert listed in source
    assert "COLUMN" not in source
    assert "correct" not in source
    assert reinforge(["rewards", "test", "rewards.py", "--data", "rows.jsonl", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [finding for finding in report["findings"] if finding["verdict"] != "info"] == []
    assert report["functions"][-1]["gold"] == 1.0


def test_a_file_without_data_is_tried_by_its_cases(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert reinforge(["rewards", "new", "rewards.py"]) == 0
    assert reinforge(["rewards", "test", "rewards.py", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_trials"] == 7
    text = (folder / "rewards.py").read_text().replace("return 1.0 if value", "return 0.0 if value")
    (folder / "rewards.py").write_text(text.replace("    if answer == reference(example):\n        return 1.0\n", ""))
    assert reinforge(["rewards", "test", "rewards.py"]) == 3
    assert "G27" in capsys.readouterr().out


def test_the_file_is_plain_python_in_order(folder: Path):
    for shape in SHAPES:
        name = f"{write_rows(shape)}.py"
        assert reinforge(["rewards", "new", name, "--data", "rows.jsonl", "--force"]) == 0
        command = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--line-length",
            "120",
            "--select",
            "F,E,W,I",
            name,
        ]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


def test_nothing_is_written_over(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rewards.cases.jsonl").write_text("mine")
    assert reinforge(["rewards", "new", "rewards.py"]) == 2
    assert "rewards.cases.jsonl is there already" in capsys.readouterr().err
    assert not (folder / "rewards.py").exists()
    assert reinforge(["rewards", "new", "rewards.txt"]) == 2
    assert reinforge(["rewards", "new", "nowhere/rewards.py"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_columns_that_are_not_there(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "rows.jsonl").write_text('{"question": "2?", "gold": "2"}\n')
    assert reinforge(["rewards", "new", "rewards.py", "--data", "rows.jsonl"]) == 3
    assert "--prompt-column question" in capsys.readouterr().err
    arguments = ["rewards", "new", "rewards.py", "--data", "rows.jsonl", "--prompt-column", "question"]
    assert reinforge([*arguments, "--answer-column", "golds"]) == 2
    assert 'no column "golds" (found: gold)' in capsys.readouterr().err
    assert reinforge(arguments) == 0
    assert (
        "try:     reinforge rewards test rewards.py --data rows.jsonl --prompt-column question"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_real_data(shared_data: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    """GSM8K, and messages that are spam or not."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()[:50]
    (folder / "gsm8k.jsonl").write_text("\n".join(lines))
    spam = [line.split("\t", 1) for line in (shared_data / "sms_spam.tsv").read_text().splitlines()[:80]]
    rows = [{"prompt": text, "label": label} for label, text in spam]
    (folder / "spam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options, gold in (("gsm8k", ["--prompt-column", "question"], 2.0), ("spam", [], 2.0)):
        assert reinforge(["rewards", "new", f"{name}.py", "--data", f"{name}.jsonl", *options]) == 0
        assert reinforge(["rewards", "test", f"{name}.py", "--data", f"{name}.jsonl", *options, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["functions"][-1]["gold"] == gold
    assert [finding["id"] for finding in report["findings"] if finding["verdict"] == "warning"] == ["G28"]


def test_kinds_of_answers():
    assert kind_of([]) == "text"
    assert kind_of(["1e400"]) == "text"
    assert kind_of([True, False, True, True]) == "label"
    assert kind_of([{}, {"a": 1}]) == "table"
    assert kind_of(["a", "b"]) == "text"
