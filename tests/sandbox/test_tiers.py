"""Which tier is chosen, what it says of itself, and what happens where none isolates."""

from __future__ import annotations

import json
import os
import platform
import re
import stat
import sys
from pathlib import Path

import pytest

import reinforge
from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import SetupError
from reinforge.sandbox import bubblewrap, consent, launch, tiers
from reinforge.sandbox.bubblewrap import Bubblewrap, find_bubblewrap
from reinforge.sandbox.landlock import Landlock
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.pool import SourceFault, Worker

SHIPPED = Path(reinforge.__file__).parent / "recipes" / "gsm8k" / "rewards.py"


@pytest.fixture(autouse=True)
def fresh_choice(monkeypatch, tmp_path):
    """Each test probes anew, with a home folder of its own."""
    monkeypatch.setenv("REINFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(tiers.VARIABLE, raising=False)
    for cached in (tiers._choose, tiers.working):
        cached.cache_clear()
    yield
    for cached in (tiers._choose, tiers.working):
        cached.cache_clear()


@pytest.fixture
def nothing_isolates(monkeypatch):
    """A machine as a Mac is: both better tiers are missing."""
    monkeypatch.setitem(tiers._FINDERS, "bubblewrap", lambda: "the program bwrap is not installed")
    monkeypatch.setitem(tiers._FINDERS, "landlock", lambda: "Landlock is part of Linux; this is darwin")


def test_the_best_tier_that_holds_is_chosen_and_the_reasons_name_the_others():
    choice = tiers.choose()
    missing = [name for name in tiers.NAMES if isinstance(tiers.working(name), str)]
    assert choice.tier.name == next(name for name in tiers.NAMES if name not in missing)
    better = tiers.NAMES[: tiers.NAMES.index(choice.tier.name)]
    named = [reason.partition(":")[0] for reason in choice.reasons]
    assert [name for name in named if name != "cgroup"][: len(better)] == list(better)
    assert tiers.about()["tier"] == choice.tier.name


def test_a_tier_that_does_not_hold_is_found_out(monkeypatch):
    """A plain worker that calls itself bubblewrap fails the probe: it reads and writes and connects."""
    monkeypatch.setitem(tiers._FINDERS, "bubblewrap", lambda: Plain(name="bubblewrap"))
    reason = tiers.working("bubblewrap")
    assert reason == "it does not hold here: file_read, file_write, signals, tcp, udp"
    assert tiers.choose().reasons[0] == f"bubblewrap: {reason}"


def test_a_tier_that_does_not_start_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    script = '[ "$1" = --help ] && { echo --size; exit 0; }\necho "bwrap: no namespaces" >&2; exit 1\n'
    broken.write_text("#!/bin/sh\n" + script)
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert isinstance(find_bubblewrap(), Bubblewrap)
    assert "bwrap: no namespaces" in tiers.working("bubblewrap")


def test_an_old_or_absent_bwrap_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: None)
    assert find_bubblewrap() == "the program bwrap is not installed (apt install bubblewrap)"
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho --bind\n")
    old.chmod(0o755)
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda name: str(old))
    assert find_bubblewrap() == f"{old} is older than 0.7 and cannot bound the worker's files"


def test_a_tier_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(tiers.VARIABLE, "plain")
    assert tiers.about() == {"tier": "plain", "reasons": ["asked for by REINFORGE_SANDBOX=plain"]}
    worker = Worker("def f(): return 1", "user.py")
    assert worker.call("f", {}, 30.0).value == 1
    worker.close()
    monkeypatch.setenv(tiers.VARIABLE, "docker")
    with pytest.raises(SetupError, match="REINFORGE_SANDBOX=docker names no tier"):
        tiers.choose()


def test_a_tier_asked_for_that_is_missing_is_an_error(monkeypatch, nothing_isolates):
    monkeypatch.setenv(tiers.VARIABLE, "landlock")
    with pytest.raises(SetupError, match="REINFORGE_SANDBOX=landlock, but landlock: Landlock is part of Linux"):
        Worker("", "user.py")


def test_user_code_without_isolation_needs_consent(nothing_isolates):
    with pytest.raises(SetupError) as caught:
        Worker("def f(): return 1", "user.py")
    assert caught.value.exit_code == 4
    assert "bwrap is not installed; landlock: Landlock is part of Linux" in caught.value.message
    fixes = ("apt install bubblewrap", "--unsafe-no-sandbox", "unsafe_no_sandbox: true", "reinforge sandbox consent")
    assert all(fix in caught.value.hint for fix in fixes)
    limits = Limits.from_config(RewardFunctionsRuntimeConfig(unsafe_no_sandbox=True))
    assert isinstance(tiers.tier_for("def f(): return 1", limits), Plain)


def test_what_we_shipped_needs_no_consent_until_it_is_changed(nothing_isolates):
    source = SHIPPED.read_text()
    assert isinstance(tiers.tier_for(source, Limits()), Plain)
    with pytest.raises(SetupError):
        tiers.tier_for(source + "\n", Limits())
    assert tiers.about()["reasons"][-1] == "only functions shipped with Reinforge run without consent"


def test_consent_is_stored_shown_and_withdrawn(nothing_isolates):
    assert consent.stored_consent() is None
    assert not consent.withdraw_consent()
    given = consent.give_consent()
    assert consent.stored_consent() == given
    assert isinstance(tiers.tier_for("user code", Limits()), Plain)
    assert tiers.about()["reasons"][-1] == f"consent given {given.given} in {given.path}"
    assert consent.withdraw_consent()
    with pytest.raises(SetupError):
        tiers.tier_for("user code", Limits())


def test_consent_is_for_one_machine_and_keeps_other_entries():
    path = consent.consent_path()
    path.parent.mkdir()
    path.write_text(json.dumps({"else": 1, consent.KEY: {"machine": "another", "given": "once"}}))
    assert consent.stored_consent() is None
    consent.give_consent()
    entries = json.loads(path.read_text())
    assert (entries["else"], entries[consent.KEY]["machine"]) == (1, platform.node())
    for damaged in ("[", "[]", "[" * 100_000):
        path.write_text(damaged)
        for use in (consent.stored_consent, consent.give_consent, consent.withdraw_consent):
            with pytest.raises(SetupError, match="cannot be read"):
                use()


def test_consent_that_another_user_may_have_given_does_not_count():
    consent.give_consent()
    path = consent.consent_path()
    path.chmod(0o666)
    with pytest.raises(SetupError, match=r"consent\.json can be written by other users .*chmod -R go-w"):
        consent.stored_consent()


def test_a_source_that_is_too_long_is_refused():
    worker = Worker("#" * 2000 + "ü", "user.py", Limits(max_source_bytes=2001), Plain())
    with pytest.raises(SourceFault, match="the source has 2,002 bytes, at most 2,001 are taken"):
        worker.describe()


def test_limits_are_those_of_openai_s_grader():
    limits, runtime = Limits(), RewardFunctionsRuntimeConfig()
    assert (limits.max_source_bytes, limits.max_memory_bytes, limits.max_cpus) == (256 * 1024, 2 * 1024**3, 2)
    assert runtime.timeout_s == 120.0
    assert Limits.from_config(runtime) == limits


def test_the_interpreter_is_found_through_links(monkeypatch, tmp_path):
    real = tmp_path / "opt" / "bin" / "python"
    real.parent.mkdir(parents=True)
    real.write_text("")
    link = tmp_path / "home" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../opt/bin/python")
    monkeypatch.setattr(sys, "executable", str(link))
    paths = launch.interpreter_paths(Limits())
    assert {str(tmp_path / "opt"), sys.prefix, sys.base_prefix} <= set(paths)
    assert "/" not in paths


def test_a_closed_folder_on_the_way_is_seen(tmp_path):
    closed = tmp_path / "closed"
    inside = closed / "inside"
    inside.mkdir(parents=True)
    closed.chmod(0o700)
    assert not launch.anybody_may_enter(str(inside))
    assert launch.anybody_may_enter("/usr/bin") == bool(os.stat("/usr/bin").st_mode & stat.S_IXOTH)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_root_gives_each_worker_a_user_of_its_own():
    users = {Landlock(7).user() for _ in range(20)}
    assert 0 not in users
    assert len(users) == 20 or users == {launch.NOBODY}


@pytest.mark.skipif(os.geteuid() == 0, reason="root becomes another user")
def test_anybody_else_stays_who_they_are():
    assert Landlock(7).user() is None


def test_every_line_of_what_the_tiers_stop_names_an_attack_that_exists():
    folder = Path(__file__).parents[1]
    page = (folder.parent / "SECURITY.md").read_text(encoding="utf-8")
    named = {word for line in page.splitlines() for word in re.findall(r"`(test_\w+)`", line)}
    code = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("test_*.py"))
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in code] == []


READS = """
def attempt(path, mode="r"):
    try:
        with open(path, mode) as file: return file.read(3) if mode != "a" else "open"
    except OSError as error: return type(error).__name__
def f(paths): return [attempt(path) for path in paths]
def append(path): return attempt(path, "a")
def random(): return len(attempt("/dev/urandom", "rb"))
"""


def test_a_worker_reads_the_folders_its_limits_name_and_no_others(isolating_tier, tmp_path):
    tmp_path.chmod(0o755)
    folders = {name: tmp_path / name for name in ("model", "secret")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "file").write_text("abc")
        (folder / "file").chmod(0o600)  # as models are often kept
    (tmp_path / "linked").mkdir()
    link = tmp_path / "linked" / "model"
    link.symlink_to(folders["model"])
    readable = (str(folders["model"]), str(link))
    worker = Worker(READS, "reads.py", Limits(readable=readable), isolating_tier)
    try:
        paths = [str(folder / "file") for folder in (folders["model"], link, folders["secret"])]
        got = worker.call("f", {"paths": paths}, 20.0).value
        assert got[:2] == ["abc", "abc"]
        assert got[2].endswith("Error")
        assert worker.call("append", {"path": paths[0]}, 20.0).value.endswith("Error")
    finally:
        worker.close()


def test_a_worker_has_random_numbers_of_the_system(tier):
    """torch reads them from the device file."""
    worker = Worker(READS, "reads.py", Limits(), tier)
    assert worker.call("random", {}, 20.0).value == 3
    worker.close()
