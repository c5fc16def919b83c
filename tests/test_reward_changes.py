"""Updates of reward functions that only fail, that match by the run's name, and that still wait."""

import json

import pytest
from test_reward_updates import LENGTH, ROWS, make_config

import reinforge
from reinforge.cli.main import run as command
from reinforge.errors import RewardError
from reinforge.run_store.control import REWARDS, pending_requests

BROKEN = "def length(prompt, completion, example):\n    return example['lenght']\n"


@pytest.fixture(scope="module")
def stopped(tiny_qwen2, tmp_path_factory):
    """A run with two steps whose function is called `size` in it and `length` in its file."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "rewards.py").write_text(LENGTH)
    functions = {"functions": {"size": f"{folder / 'rewards.py'}:length"}}
    config = make_config(tiny_qwen2, folder / "rewards.py", reward_fns=functions, data={"heldout": 0}, train_steps=5)

    class Stops(reinforge.api.SilentWatcher):
        def step(self, step, metrics, groups):
            if step == 2:
                (folder / "run" / "control" / "stop").write_text("look")

    with pytest.raises(reinforge.errors.StoppedByGuard):
        reinforge.train(config, ROWS, runs_dir=folder, name="run", watcher=Stops())
    return folder / "run"


@pytest.fixture
def run(stopped):
    yield stopped
    for request in pending_requests(stopped, REWARDS):
        request.path.unlink()


def update(run, *arguments):
    return command(["rewards", "update", str(run), *arguments, "--wait", "0"])


def test_a_function_that_only_fails_is_not_sent_by_a_script(run, tmp_path, capsys):
    (tmp_path / "new.py").write_text(BROKEN)
    assert update(run, str(tmp_path / "new.py")) == 3
    err = capsys.readouterr().err
    assert "size fails on all 16 completions of steps 1 to 2. The first call: raised: KeyError: 'lenght'" in err
    assert "--yes" in err
    assert pending_requests(run, REWARDS) == []
    rewards = reinforge.get_config(run)
    rewards.reward_fns["size"] = f"{tmp_path / 'new.py'}:length"
    with pytest.raises(RewardError, match="size fails on all 16 completions"):
        reinforge.update_config(run, rewards)
    assert pending_requests(run, REWARDS) == []

    assert update(run, str(tmp_path / "new.py"), "--yes") == 0
    assert "warning  size fails on all 16" in capsys.readouterr().err
    sent = reinforge.update_config(run, rewards, even_if_broken=True)
    assert [request.id for request in pending_requests(run, REWARDS)][1:] == [sent]


def test_one_that_fails_now_and_then_is_sent(run, tmp_path):
    (tmp_path / "new.py").write_text(LENGTH + "\n" + LENGTH.replace("return", "return 1 / (len(completion) % 2) and"))
    assert update(run, str(tmp_path / "new.py")) == 0


@pytest.mark.parametrize(
    ("source", "name"), [(LENGTH + "# new\n", "length"), (LENGTH.replace("def length", "def size"), "size")]
)
def test_a_file_brings_what_bears_the_functions_name_or_the_runs(run, tmp_path, capsys, source, name):
    (tmp_path / "new.py").write_text(source)
    assert update(run, str(tmp_path / "new.py")) == 0
    assert f"size: {tmp_path / 'new.py'}:{name}\n" in capsys.readouterr().err
    (request,) = pending_requests(run, REWARDS)
    assert json.loads(request.text)["texts"]["size"]["function_name"] == name


def test_what_waits_is_shown_and_withdrawn(run, tmp_path, capsys):
    (tmp_path / "new.py").write_text(LENGTH + "# new\n")
    assert update(run, "--weight", "size=0.5", "--at-step", "4") == 0
    assert update(run, str(tmp_path / "new.py")) == 0
    first, second = (request.id for request in pending_requests(run, REWARDS))
    capsys.readouterr()
    assert command(["rewards", "pending", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        [first, "weight of size 0.5, not before step 4"],
        [second, "new text of size"],
    ]
    assert command(["rewards", "pending", str(run), "--withdraw", "nonsense"]) == 2
    assert command(["rewards", "pending", str(run), "--withdraw", first, "--json"]) == 0
    assert [row["request"] for row in json.loads(capsys.readouterr().out)] == [second]
    assert [request.id for request in pending_requests(run, REWARDS)] == [second]
