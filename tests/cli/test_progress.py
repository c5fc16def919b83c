"""How far long commands are, on stderr."""

import json

import pytest

from reinforge.cli import progress
from reinforge.cli.main import run as reinforge

REWARDS = '''
def gold(example):
    return example["answer"]

def right(prompt, completion, example):
    """1.0 for the answer."""
    return {"score": float(completion == example["answer"]), "reason": "as the answer" if completion else "empty"}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{n}?", "answer": f"{n}!", "completion": text} for n in (1, 2, 3) for text in ("1!", "")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_long_grading_tells_how_far_it_is_and_a_short_one_does_not(folder, monkeypatch, capsys):
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 0
    assert capsys.readouterr().err.splitlines() == [f"completions judged {done} of 6" for done in (2, 4, 6)]


def test_grade_shows_the_reasons_of_scores(folder, capsys):
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[-7:-5]] == [["row", "reward", "right"], ["1", "1.000", "1.000"]]
    assert [line[20:] for line in lines[-7:-4]] == ["reason         completion", "as the answer  1!", "empty"]
    assert reinforge(["grade", "rewards.py", "--data", "rows.jsonl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["scores"][0]["message"] for row in rows[:2]] == ["as the answer", "empty"]


def test_the_lab_tells_how_far_it_is(folder, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    reinforge(["rewards", "test", "rewards.py", "--data", "rows.jsonl", "--json"])
    lines = capsys.readouterr().err.splitlines()
    last = {line.rpartition(" of ")[0].rstrip("0123456789,"): line for line in lines}
    assert set(last) == {"completions tried ", "odd completions tried ", "tried once more "}
    for line in last.values():
        done, _, total = line.split()[-3:]
        assert done == total


def test_a_line_on_a_terminal_stays_in_place_and_goes_away(monkeypatch, capsys):
    monkeypatch.setattr(progress, "REDRAW_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "is_rich_terminal", lambda stream: True)
    with progress.shown_progress() as tell:
        tell("rows\x1b[2J", 1, 2000)
        tell("rows", 2, 2000)
    first, second, cleared = capsys.readouterr().err.split("\r")[1:]
    assert first == "rows\\x1b[2J 1 of 2,000, 0:00\x1b[K"
    assert second == "rows 2 of 2,000, 0:00\x1b[K"
    assert cleared == "\x1b[K"
