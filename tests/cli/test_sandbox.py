"""`reinforge sandbox`: what it says of this machine, and of one where nothing isolates."""

import json
import re

import pytest

from reinforge.cli.main import run as reinforge
from reinforge.sandbox import tiers

REWARD = "def f(prompt, completion, example):\n    return 1.0\n"


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch, tmp_path):
    """Each test probes anew, with a home folder of its own."""
    monkeypatch.setenv("REINFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(tiers.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for cached in (tiers._choose, tiers.working):
        cached.cache_clear()
    yield
    for cached in (tiers._choose, tiers.working):
        cached.cache_clear()


@pytest.fixture
def nothing_isolates(monkeypatch):
    monkeypatch.setitem(tiers._FINDERS, "bubblewrap", lambda: "the program bwrap is not installed")
    monkeypatch.setitem(tiers._FINDERS, "landlock", lambda: "Landlock is part of Linux; this is darwin")


def test_the_tiers_of_this_machine_are_shown_with_the_one_in_use(capsys):
    assert reinforge(["sandbox"]) == 0
    shown = capsys.readouterr().out
    used = tiers.choose().tier.name
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith(tiers.NAMES)}
    assert set(lines) == set(tiers.NAMES)
    for name in tiers.NAMES:
        found, fine = tiers.working(name), "not needed" if name == "plain" else "works"
        assert lines[name].endswith(found if isinstance(found, str) else "used" if name == used else fine)


def test_a_program_reads_the_same_as_json(capsys):
    assert reinforge(["sandbox", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [tier["tier"] for tier in found["tiers"]] == list(tiers.NAMES)
    assert found["used"] == tiers.choose().tier.name
    assert found["consent"] is None
    assert found["hosts"].startswith("hosts that a config allows: ")


def test_a_tier_asked_for_is_named(monkeypatch, capsys):
    monkeypatch.setenv(tiers.VARIABLE, "plain")
    assert reinforge(["sandbox"]) == 0
    shown = capsys.readouterr().out
    assert "used, asked for by REINFORGE_SANDBOX" in shown
    assert "none is needed" in shown
    monkeypatch.setenv(tiers.VARIABLE, "docker")
    assert reinforge(["sandbox"]) == 4
    assert "names no tier" in capsys.readouterr().err


def test_where_nothing_isolates_the_error_names_the_command_that_lets_a_function_run(
    nothing_isolates, capsys, tmp_path
):
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2 =", "completion": "4"}\n')
    grade = ["grade", "rewards.py", "--data", "rows.jsonl"]
    assert reinforge(grade) == 4
    told = capsys.readouterr().err
    assert "bwrap is not installed" in told
    command = re.search(r"reinforge (sandbox \w+)", told)[1].split()
    assert reinforge(["sandbox"]) == 0
    shown = capsys.readouterr().out
    assert "the program bwrap is not installed" in shown
    assert "only functions that come with Reinforge run here" in shown

    assert reinforge(command) == 0
    assert reinforge(grade) == 0
    capsys.readouterr()
    assert reinforge(["sandbox"]) == 0
    assert "consent to run without isolation: given 2" in capsys.readouterr().out

    assert reinforge(["sandbox", "consent", "--withdraw"]) == 0
    assert reinforge(grade) == 4
    capsys.readouterr()
    assert reinforge(["sandbox", "consent", "--withdraw"]) == 0
    assert "There was no consent" in capsys.readouterr().err
