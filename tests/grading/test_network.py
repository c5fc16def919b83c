"""What reward functions did with the network, as a run keeps and tells it."""

from __future__ import annotations

import errno
import os

import pytest

from reinforge.config import JudgeConfig, RewardFunctionSettings
from reinforge.errors import RewardError
from reinforge.grading.access_text import access_lines
from reinforge.grading.describe import describe_source
from reinforge.grading.network import MAX_TOLD, Network
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.faults import network_faults
from reinforge.run_store import network_log
from reinforge.run_store.network_log import NetworkLog, read_network_log
from reinforge.sandbox.landlock import Landlock
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.proxy import Connection

ALLOWED = Connection("a.example:443", "allowed", "", 10, 200, 0.5)
REFUSED = Connection("evil.example:443", "refused", "evil.example is none of the hosts.")


def test_every_connection_is_written_down_with_its_function(tmp_path):
    network = Network()
    network.hearing("early_v1")(ALLOWED)  # before there is a folder: counted only
    network.keep_in(tmp_path)
    network.hearing("judge_v1")(ALLOWED)
    network.hearing("judge_v2")(REFUSED)
    first, second = read_network_log(tmp_path)
    assert (first["function"], first["host"], first["verdict"]) == ("judge_v1", "a.example:443", "allowed")
    assert (first["sent_bytes"], first["received_bytes"], first["duration_s"]) == (10, 200, 0.5)
    assert (second["function"], second["verdict"], second["reason"]) == ("judge_v2", "refused", REFUSED.reason)


def test_figures_and_failures_are_told_once():
    network = Network()
    for connection in (ALLOWED, REFUSED, REFUSED, Connection("b.example:80", "failed", "no answer")):
        network.hearing("f_v1")(connection)
    figures = {"connections": 4.0, "refused": 2.0, "failed": 1.0, "sent_bytes": 10.0, "received_bytes": 200.0}
    assert network.take_figures() == {f"network/{name}": value for name, value in figures.items()}
    events = list(network_faults(network.take_failures()))
    assert [(event.kind, event.data["count"]) for event in events] == [("network_refused", 2), ("network_failed", 1)]
    assert "f_v1: 2 connections to evil.example:443 refused: evil.example is none" in events[0].message
    assert (network.take_figures(), network.take_failures()) == ({}, {})


def test_a_function_that_tries_every_host_is_told_in_few_events():
    network = Network()
    for number in range(1000):
        network.hearing("f_v1")(Connection(f"{number}.example:80", "refused", f"{number}.example is none"))
    failures = network.take_failures()
    assert len(failures) == MAX_TOLD + 1
    assert sum(failures.values()) == 1000


def test_a_full_log_says_so_and_stays(tmp_path):
    log = NetworkLog(tmp_path, max_bytes=100)
    for _ in range(9):
        log.write({"host": "x" * 30})
    NetworkLog(tmp_path, max_bytes=100).write({"host": "x"})
    assert list(read_network_log(tmp_path)) == [{"host": "x" * 30}, {"host": "x" * 30}, {"full": True}]


def test_a_torn_line_costs_itself_only(tmp_path):
    (tmp_path / "network.jsonl").write_bytes(b'{"host": "a"}\n{"host": "b')
    NetworkLog(tmp_path).write({"host": "c"})
    assert list(read_network_log(tmp_path)) == [{"host": "a"}, {"host": "c"}]
    assert list(read_network_log(tmp_path / "absent")) == []


def test_a_full_disk_stops_the_log_and_not_the_scores(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    network = Network()
    network.keep_in(tmp_path)
    monkeypatch.setattr(network_log.os, "write", full)
    for _ in range(3):
        network.hearing("f_v1")(ALLOWED)
    (event,) = network_faults(network.take_failures())
    assert (event.kind, "No space left" in event.message) == ("network_unwritten", True)
    assert network.take_failures() == {}
    assert network.take_figures()["network/connections"] == 3.0


def function(name, dialect="predibase", source=""):
    return RewardFunction(name, f"{name}_v1", source, "f.py", name, dialect, ())


PYTHON = '{"type": "python", "source": "def grade(sample, item): return 1.0"}'
LOCAL = '{"type": "string_check", "operation": "eq", "input": "a", "reference": "b"}'
JUDGE = '{"type": "score_model", "model": "m", "input": [{"role": "user", "content": "x"}], "range": [0, 1]}'


def test_what_each_function_may_reach_is_said():
    functions = [function("brief"), function("style"), function("judge"), function("same", "grader", LOCAL)]
    functions += [function("code", "grader", PYTHON), function("asked", "grader", JUDGE)]
    own = RewardFunctionSettings(allowed_hosts=("b.example:8443",), secrets=("KEY", "OTHER"))
    none = RewardFunctionSettings(allowed_hosts=(), secrets=())
    limits = Limits(
        allowed_hosts=("a.example",),
        secrets=("API_KEY",),
        allow_private_addresses=True,
        settings=(("judge", own), ("style", none)),
    )
    lines = access_lines(functions, limits, JudgeConfig(base_url="https://judge.example/v1"), Landlock(7))
    assert lines == [
        "brief, code may reach: a.example (private addresses too), the secret API_KEY",
        "style, same may reach: no network, no secrets",
        "judge may reach: b.example:8443 (private addresses too), the secrets KEY, OTHER",
        "asked may reach: the judge at judge.example, asked by us",
    ]
    assert access_lines(functions, limits, JudgeConfig(), Plain())[-1] == (
        "nothing holds reward functions to this: the plain tier does not isolate"
    )


def test_a_key_that_was_not_granted_is_told_with_the_setting(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "hunter2-hunter2")
    with pytest.raises(RewardError, match=r"KeyError: 'JUDGE_KEY'.*reward_fns\.runtime\.secrets: \[JUDGE_KEY\]"):
        describe_source("import os\nKEY = os.environ['JUDGE_KEY']\n", "judge.py")
    granted = Limits(secrets=("JUDGE_KEY",))
    assert describe_source("import os\nKEY = os.environ['JUDGE_KEY']\n", "judge.py", granted) == ()


@pytest.mark.parametrize("name", ["own", "other"])
def test_a_function_has_its_own_access_instead_of_that_of_all(name):
    own = RewardFunctionSettings(allowed_hosts=(), allow_private_addresses=False)
    limits = Limits(
        allowed_hosts=("a.example",), allow_private_addresses=True, secrets=("K",), settings=(("own", own),)
    )
    of = limits.of(name)
    expected = ((), False, "reward_fns.settings.own") if name == "own" else (("a.example",), True, "reward_fns.runtime")
    assert (of.allowed_hosts, of.allow_private_addresses, of.section) == expected
    assert (of.secrets, of.secrets_section, of.settings) == (("K",), "reward_fns.runtime", ())
    assert limits.closed().of(name) == Limits()
