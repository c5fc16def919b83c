"""What commands say of small mistakes, and tables on narrow terminals."""

import json

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.cli.text import fitted
from reinforge.errors import DataError

GOOD = 'def right(prompt, completion, example):\n    """1.0 always."""\n    return 1.0\n'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "rewards.py").write_text(GOOD)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a?", "completion": "b", "answer": "b"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["grade", "rewards.py", "--completion-column", "complet"], 3, "Did you mean --completion-column completion?"),
        (["grade", "rewards.py", "--completion-column", "x"], 3, "Name the one: --completion-column NAME."),
        (["grade", "reward.py"], 3, "Did you mean rewards.py?"),
        (["grade", "set_f2"], 3, "Did you mean the built-in grader set_f1?"),
        (["grade", "similarty"], 3, "Did you mean the built-in grader similarity?"),
        (["grade", "rewards.py:rigth"], 3, "rewards.py:right."),
        (["rewards", "test", "rewards.py", "--answer-column", "anser"], 2, "Did you mean --answer-column answer?"),
        (["rewards", "new", "new.py", "--answer-column", "anser"], 2, "Did you mean --answer-column answer?"),
    ],
)
def test_what_was_probably_meant(arguments, code, told, capsys):
    assert reinforge([*arguments, "--data", "rows.jsonl"]) == code
    assert capsys.readouterr().err.rstrip().endswith(told)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("    return len(completion", "    return len(completion\n                  ^"),
        ("\treturn 1 +* 2", "\treturn 1 +* 2\n        \t          ^"),
    ],
)
def test_a_syntax_error_is_shown_with_its_line_and_place(folder, line, shown, capsys):
    (folder / "broken.py").write_text(f"def f(prompt, completion, example):\n{line}\n")
    assert reinforge(["grade", "broken.py", "--data", "rows.jsonl"]) == 3
    err = capsys.readouterr().err
    assert "broken.py:2: SyntaxError: " in err
    first, second = err.splitlines()[-2:]
    assert [first.strip(), second.strip()] == [line.strip(), "^"]
    place = first.expandtabs(8)[second.expandtabs(8).index("^") :]
    assert place.startswith(("(completion", "* 2"))


def test_a_quoted_full_stop_is_not_doubled():
    assert str(DataError("x cannot be read: no such file..")) == "x cannot be read: no such file."
    assert str(DataError("and so on...")) == "and so on..."


def test_a_table_that_is_too_wide_becomes_paragraphs(monkeypatch):
    header, row = ["function", "mean before", "after"], ["format_v1 -> format_v2", "0.123456", "-"]
    whole = fitted(header, [row])
    assert whole.splitlines()[1].split() == ["format_v1", "->", "format_v2", "0.123456", "-"]
    monkeypatch.setenv("COLUMNS", "80")
    assert fitted(header, [row]) == whole
    monkeypatch.setenv("COLUMNS", "36")
    assert fitted(header, [row]).splitlines() == [
        "function format_v1 -> format_v2",
        "  mean before 0.123456   after -",
    ]
