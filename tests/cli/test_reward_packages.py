"""`reinforge rewards packages`, and packages in a run from its first step to its resume on another machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from wheels import make_wheel, use_wheels

import reinforge
from reinforge.cli.main import run as command
from reinforge.reward_updates import latest_functions
from reinforge.run_store import Run
from reinforge.sandbox import environments

pytest.importorskip("uv", reason="uv makes the environments: pip install 'reinforge[packages]'")
SOURCE = "import hello\ndef f(prompt, completion, example):\n    return float(hello.version) * len(completion)\n"


@pytest.fixture(autouse=True)
def index(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "hello", "1.5")
    make_wheel(folder, "other", "3.0", requires=["hello"])
    use_wheels(monkeypatch, folder, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    yield folder
    stop_using()


def stop_using() -> None:
    """As when this process ends."""
    while environments._held:
        os.close(environments._held.popitem()[1])


def write_config(model: Path) -> None:
    config = {
        "base_model": str(model),
        "reward_fns": {"functions": {"f": "rewards.py:f"}, "runtime": {"packages": ["hello"]}},
        "data": {"path": "rows.jsonl", "heldout": 0},
        "train_steps": 4,
        "prompts_per_step": 1,
        "num_generations": 2,
        "learning_rate": 1e-3,
        "lora": {"rank": 2},
        "sampling_params": {"max_tokens": 4},
        "save_every": 1,
    }
    Path("train.yaml").write_text(yaml.safe_dump(config))
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"count to {n}"}) + "\n" for n in range(4)))
    Path("rewards.py").write_text(SOURCE)


def test_a_run_keeps_its_versions_through_updates_and_on_another_machine(tiny_qwen2, index, capsys):
    write_config(tiny_qwen2)
    assert command(["train", "train.yaml", "--name", "a", "-o", "train_steps=2"]) == 0
    told = capsys.readouterr().err
    assert "reward packages: 1 installed in" in told
    with Run.open(Path("runs/a")) as run:
        assert run.about["packages"] == ["hello==1.5"]
        assert [f.packages for f in latest_functions(run)] == [("hello==1.5",)]
    assert command(["runs", "show", "a"]) == 0
    assert "\npackages hello==1.5\n" in capsys.readouterr().out
    stopped(index)
    make_wheel(index, "hello", "2.5")
    stop_using()
    shutil.rmtree("home")
    assert command(["rewards", "update", "b", "rewards.py", "extra=more.py:g"]) == 0
    assert "reward packages: installing 1 package" in capsys.readouterr().err
    assert command(["runs", "resume", "b"]) == 0
    with Run.open(Path("runs/b")) as run:
        versions = {f.version: f.packages for f in latest_functions(run)}
    assert versions == {"f_v2": ("hello==1.5",), "extra_v1": ("hello==1.5",)}
    assert all(reinforge.verify("runs/b", step).equal for step in (2, 4))


def stopped(index: Path) -> None:
    """A run that stopped after two steps, and changed files beside it."""
    from reinforge.api import SilentWatcher
    from reinforge.errors import StoppedByGuard

    class StopAt2(SilentWatcher):
        def step(self, step, metrics, groups):
            if step == 2:
                Path("runs/b/control/stop").write_text("look")

    with pytest.raises(StoppedByGuard):
        reinforge.train(reinforge.load_config(["train.yaml"]), name="b", watcher=StopAt2())
    Path("rewards.py").write_text(SOURCE.replace("*", "+"))
    Path("more.py").write_text(SOURCE.replace("def f", "def g"))


def test_an_update_may_bring_other_packages(tiny_qwen2, index, capsys):
    write_config(tiny_qwen2)
    stopped(index)
    Path("more.py").write_text("import other\ndef g(prompt, completion, example):\n    return float(other.version)\n")
    update = ["rewards", "update", "b", "extra=more.py:g"]
    assert command(update) == 3
    assert 'If a package brings "other", name that in' in capsys.readouterr().err
    assert command([*update, "--package", "git+https://example.org/other"]) == 2
    assert command([*update, "--package", "nonsuch"]) == 2
    assert command(["rewards", "update", "b", "--weight", "f=2", "--package", "other"]) == 2
    capsys.readouterr()
    assert command([*update, "f=rewards.py:f", "--package", "other", "--package", "hello<2"]) == 0
    assert command(["runs", "resume", "b"]) == 0
    assert "f_v1 -> f_v2 (new text, other packages), extra_v1 added" in capsys.readouterr().err
    with Run.open(Path("runs/b")) as run:
        assert {f.packages for f in latest_functions(run)} == {("hello==1.5", "other==3.0")}
        assert {row.kind for row in run.score_log()} == {""}
    rewards = reinforge.get_config("runs/b")
    assert rewards.packages is None


def test_a_file_is_tried_with_packages_before_there_is_a_config(capsys):
    Path("rewards.py").write_text(SOURCE)
    Path("rows.jsonl").write_text('{"prompt": "p", "completion": "four"}\n')
    assert command(["grade", "rewards.py", "--data", "rows.jsonl"]) == 3
    assert 'If a package brings "hello"' in capsys.readouterr().err
    assert command(["grade", "rewards.py", "--data", "rows.jsonl", "--package", "hello", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["functions"][0]["mean"] == 6.0
    assert "reward packages: 1 installed in" in printed.err
    Path("rewards.py").write_text(SOURCE + "def gold(example):\n    return 'x' * round(float(hello.version))\n")
    command(["rewards", "test", "rewards.py", "--data", "rows.jsonl", "--package", "hello", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["functions"][0]["num_failed"] == 0


def test_environments_are_listed_and_removed(capsys):
    assert command(["rewards", "packages"]) == 0
    assert "no environments in" in capsys.readouterr().err
    runtime = reinforge.RewardFunctionsRuntimeConfig(packages=("hello",))
    environments.lock_packages(runtime)
    assert command(["rewards", "packages", "--json"]) == 0
    [described] = json.loads(capsys.readouterr().out)["environments"]
    assert described["packages"] == ["hello==1.5"]
    assert command(["rewards", "packages"]) == 0
    listed = capsys.readouterr().out
    assert listed.splitlines()[1].startswith(described["key"])
    assert listed.splitlines()[1].endswith("hello")
    assert command(["rewards", "packages", "--remove", described["key"]]) == 2
    assert "is in use" in capsys.readouterr().err
    assert command(["rewards", "packages", "--remove", "nonsuch"]) == 2
    stop_using()
    assert command(["rewards", "packages", "--remove", "all"]) == 0
    assert "\nremoved 1, 0." in capsys.readouterr().err
    assert environments.list_environments() == ()
    assert {path.name for path in environments.environments_folder().iterdir()} == {"lock", "requests"}
