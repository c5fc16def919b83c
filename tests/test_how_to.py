"""What the how-to pages show works in a worker."""

from __future__ import annotations

import json
import re
import shlex
from contextlib import closing
from pathlib import Path

import torch
import yaml
from builders import make_policy

from reinforge.cli.main import run as command
from reinforge.grading.completions import grade_completions
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import load_reward_functions, load_rewards_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "how-to" / "rewards.md"


def test_the_functions_of_the_page_give_the_scores_it_says(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "rewards.py").write_text("\n\n".join(blocks))
    row = {"prompt": "6 * 7?", "answer": 42, "keywords": "42 six", "codes": ["42", "6"]}
    with closing(RewardFunctionGrader(load_rewards_file("rewards.py", tmp_path))) as grader:
        found = grade_completions(grader, [row | {"completion": text} for text in ("42", "", '["42"]')])
    scores = [{score.name: (score.value, score.kind) for score in grade.scores} for grade in found]
    nothing = {"codes": (0.0, ""), "mixed": (0.0, "")}
    assert (
        scores[0] == {"correct": (1.0, ""), "brief": (1 / 3, ""), "grade": (1.0, ""), "judged": (1 / 3, "")} | nothing
    )
    assert scores[1] == {
        "correct": (0.0, ""), "brief": (1.0, ""), "grade": (0.0, ""), "judged": (None, "invalid"), **nothing
    }  # fmt: skip
    assert found[0].scores[3].metrics == {"words": 1.0}
    assert scores[2]["codes"] == (2 / 3, "")
    assert scores[2]["mixed"] == (0.5, "")
    codes = found[2].scores[4]
    assert (codes.message, codes.metrics) == ("1 of 1 found, 1 of 2 expected", {"precision": 1.0, "recall": 0.5})


def test_helpers_are_appended_to_a_file_and_work_in_its_worker(tmp_path, capsys):
    source = (
        "def f(prompt, completion, example):\n"
        "    assert parse_value(example['numbers']) == [9, 1] and parse_value(example['set']) == {1}\n"
        "    number = retry(lambda: parse_number(example['target']))\n"
        "    return number if retry(lambda: parse_bool(example['flag']), attempts=2, wait_s=0.01) else -1.0\n"
    )
    assert command(["rewards", "helpers"]) == 0
    (tmp_path / "rewards.py").write_text(source + capsys.readouterr().out)
    rows = [
        {"prompt": "p", "completion": "c", "numbers": [9, 1], "set": {1}, "target": 15, "flag": flag}
        for flag in (True, False, "maybe")
    ]
    with closing(RewardFunctionGrader(load_reward_functions({"f": "rewards.py:f"}, {}, tmp_path))) as grader:
        scores = [grade.scores[0] for grade in grade_completions(grader, rows)]
    assert [score.value for score in scores] == [15.0, -1.0, None]
    assert scores[2].message.startswith("ValueError: 'maybe' is neither true nor false")
    assert scores[2].prints == "attempt 1 of 2 failed: ValueError: 'maybe' is neither true nor false\n"


GRADERS_PAGE = PAGE.with_name("graders.md")


def blocks_of(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_graders_of_the_page_are_read_and_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text("def own(prompt, completion, example):\n    return 1.0\n")
    (tmp_path / "grader.json").write_text(blocks_of(GRADERS_PAGE, "json")[0])
    config, gate = (yaml.safe_load(text) for text in blocks_of(GRADERS_PAGE, "yaml.*?"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base_model": "unused", **config}))
    rows = [{"prompt": "p", "completion": text, "answer": "42", "codes": ["E11"]} for text in ('["E11"]', "42")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(["grade", "mine.yaml", "--data", "rows.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    scores = [{score["name"]: score["value"] for score in row["scores"]} for row in found]
    assert scores[0] | {"close": 0, "file": 0} == {"right": 0, "close": 0, "codes": 1, "tags": 0, "file": 0, "own": 1}
    assert scores[1] | {"file": 0} == {"right": 1, "close": 1, "codes": 0, "tags": 0, "file": 0, "own": 1}
    assert command(["grade", "grader.json", "--data", "rows.jsonl"]) == 0
    with closing(RewardFunctionGrader(load_reward_functions(gate, {}, tmp_path))) as grader:
        (grade,) = grade_completions(grader, rows[:1])
    assert (grade.reward, grade.scores[0].metrics) == (0.0, {"a": 0.0})


def test_the_commands_of_the_page_print_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grader.json").write_text(blocks_of(GRADERS_PAGE, "json")[0])
    for shown in "".join(blocks_of(GRADERS_PAGE, "console")).split("$ reinforge ")[1:]:
        line, _, printed = shown.partition("\n")
        assert command(shlex.split(line)) == 0
        out = capsys.readouterr()
        assert out.out + out.err == printed


def test_several_adapters_answer_as_the_page_says(tiny_qwen2, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "explain" / "several_adapters.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("legal", "medical")):
        policy = make_policy(tiny_qwen2, seed=seed)
        for matrix in policy.trainable().values():
            torch.nn.init.normal_(matrix)
        policy.save_adapter(tmp_path / "runs" / name)
    answers: dict[str, dict[int, str]] = {}
    exec(compile(code, "several_adapters.md", "exec"), answers)
    assert len(set(answers["answers"].values())) == 3
