"""Environments with the packages of reward functions: made, found again, held to caps, and out of the trainer."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import is_alive, wait_until
from wheels import make_source, make_wheel, use_wheels

from reinforge import requirements
from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import ConfigError, SetupError, UsageError
from reinforge.sandbox import environments, uv_program
from reinforge.sandbox.environments import (
    environment_folder,
    environments_folder,
    list_environments,
    lock_packages,
    provide,
    remove_environments,
)
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.make_environment import Maker
from reinforge.sandbox.plain import Plain
from reinforge.sandbox.pool import SourceFault, Worker

pytest.importorskip("uv", reason="uv makes the environments: pip install 'reinforge[packages]'")
LONG_S = 30.0
ALONE = {"lock", "requests", "downloads"}
"""What may lie beside environments when nobody makes one."""


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "1.5", "2.0"):
        make_wheel(folder, "hello", version)
    make_wheel(folder, "needs_hello", "1.0", requires=["hello>=2"])
    make_wheel(folder, "wants_old_hello", "1.0", requires=["hello<2"])
    make_wheel(folder, "large", "1.0", files={"large.bin": os.urandom(8 << 20)})
    make_wheel(folder, "elsewhere", "1.0", tag="cp311-cp311-win_amd64")
    make_source(folder, "unbuilt", "1.0", f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path, index) -> Iterator[Path]:
    use_wheels(monkeypatch, index, tmp_path / "home")
    yield tmp_path / "home"
    stop_using()


def stop_using() -> None:
    """As when this process ends."""
    while environments._held:
        os.close(environments._held.popitem()[1])


def runtime(*packages: str, **settings) -> RewardFunctionsRuntimeConfig:
    return RewardFunctionsRuntimeConfig(packages=packages, **settings)


def beside_environments() -> set[str]:
    return {path.name for path in environments_folder().iterdir()} - {e.key for e in list_environments()}


def test_a_worker_sees_its_packages_and_ours_but_nothing_installed_beside_us(tier):
    packages = lock_packages(runtime("needs-hello"))
    assert packages == ("hello==2.0", "needs-hello==1.0")
    source = """
import hello, needs_hello
from reinforge.grading.helpers import parse_bool
def importable(names):
    found = []
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            found.append(type(error).__name__)
        else:
            found.append("there")
    return [hello.version, parse_bool("no"), found]
"""
    worker = Worker(source, "rewards.py", Limits(packages=packages), tier)
    beside_us = ["pytest", "pydantic", "click", "numpy"]
    answer = worker.call("importable", {"names": [*beside_us, "json", "reinforge.grading.builtin"]}, LONG_S)
    worker.close()
    assert answer.value == ["2.0", False, ["ModuleNotFoundError"] * 4 + ["there", "there"]]
    assert importlib.util.find_spec("hello") is None


def test_workers_without_packages_see_what_is_installed_beside_us(tier):
    lock_packages(runtime("hello"))
    worker = Worker("import pydantic\ndef f(): return pydantic.__name__", "rewards.py", Limits(), tier)
    assert worker.call("f", {}, LONG_S).value == "pydantic"
    worker.close()


def test_files_of_our_own_environment_are_out_of_reach(isolating_tier):
    packages = lock_packages(runtime("hello"))
    if sys.prefix == sys.base_prefix:
        pytest.skip("this Python is in no environment of its own")
    file = str(Path(pytest.__file__))
    source = "def read(path): return open(path).read()"
    worker = Worker(source, "rewards.py", Limits(packages=packages), isolating_tier)
    assert worker.call("read", {"path": file}, LONG_S).kind == "raised"
    worker.close()


def test_no_package_runs_code_outside_a_worker(monkeypatch, tmp_path, index):
    """A .pth file runs at every start of the environment's Python: LiteLLM's releases 1.82.7 and 1.82.8 stole so."""
    mark = tmp_path / "mark"
    start = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "thief", "1.0", files={"thief.pth": start, "thief.py": start})
    use_wheels(monkeypatch, folder, tmp_path / "home")
    packages = lock_packages(runtime("thief"))
    assert not mark.exists()
    worker = Worker("def f(): return 1", "rewards.py", Limits(packages=packages), Plain())
    assert worker.call("f", {}, LONG_S).value == 1
    worker.close()
    assert mark.exists()  # so it would have been seen


def test_the_second_start_asks_nobody(monkeypatch):
    packages = lock_packages(runtime("hello", "needs-hello"))
    monkeypatch.setattr(uv_program, "find_uv", lambda: "/nowhere")
    stop_using()
    told: list[str] = []
    assert lock_packages(runtime("needs_hello", "Hello"), told.append) == packages
    assert [line.split(" (")[0] for line in told] == ["reward functions run with 2 packages"]


def test_what_is_told_names_versions_time_and_size():
    told: list[str] = []
    lock_packages(runtime("needs-hello"), told.append)
    assert told[0] == "reward packages: looking for needs-hello"
    assert told[1] == "reward packages: installing 2 packages"
    assert "2 installed in" in told[2]
    assert told[2].endswith("s: needs-hello 1.0 and 1 they need")
    assert str(environments_folder()) in told[3]
    assert " MB) in " in told[3]


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (["nonsuch"], "there is no package nonsuch in the package index"),
        (["hello==3"], "the package index has no hello==3"),
        (["unbuilt"], "unbuilt==1.0 has no wheel for this Python and machine, and packages are not built here"),
        (["elsewhere"], "elsewhere==1.0 has no wheel for this Python and machine"),
        (["needs-hello", "wants-old-hello"], "the packages do not go together"),
        (["hello; python_version < '3'"], "none of the packages"),
    ],
)
def test_what_cannot_be_had_is_explained_and_leaves_nothing(packages, message, index):
    with pytest.raises(ConfigError, match=message):
        lock_packages(runtime(*packages))
    assert list_environments() == ()
    assert beside_environments() <= ALONE
    assert not (index / "ran").exists()


def test_a_conflict_names_both_sides():
    with pytest.raises(ConfigError) as caught:
        lock_packages(runtime("needs-hello", "wants-old-hello"))
    assert "needs-hello" in str(caught.value)
    assert "hello<2" in str(caught.value)
    assert "conclude that your requirements" not in str(caught.value)


def test_no_network_is_told_as_such(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{closed.getsockname()[1]}/simple")
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        with pytest.raises(SetupError, match=r"the package index cannot be reached: .*onnection refused"):
            lock_packages(runtime("hello"))


def test_without_uv_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setattr(uv_program.shutil, "which", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'reinforge\[packages\]'"):
        lock_packages(runtime("hello"))
    monkeypatch.setattr(uv_program.shutil, "which", lambda name: f"/somewhere/{name}")
    assert uv_program.find_uv() == "/somewhere/uv"

    def find_uv_bin():
        raise FileNotFoundError("beside another Python")

    monkeypatch.setitem(sys.modules, "uv", SimpleNamespace(find_uv_bin=find_uv_bin))
    assert uv_program.find_uv() == "/somewhere/uv"


def test_a_home_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REINFORGE_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(SetupError, match=r"cannot be made in .*below"):
        lock_packages(runtime("hello"))


def test_a_full_disk_is_told_as_such():
    said = "error: Failed to install: hello-1.0\n  cause: No space left on device (os error 28)"
    error = uv_program.explain(said, 2, Path("/home/me/.reinforge/environments"))
    assert isinstance(error, SetupError)
    assert str(error).startswith("the disk of /home/me/.reinforge/environments is full.")


def test_more_than_the_size_cap_is_removed():
    with pytest.raises(SetupError, match=r"take more than 0.003\d* GiB of disk"):
        lock_packages(runtime("large", max_packages_gb=0.0035))
    assert list_environments() == ()
    assert sum(file.stat().st_size for file in environments_folder().rglob("*") if file.is_file()) < 100_000
    assert lock_packages(runtime("large")) == ("large==1.0",)


def test_files_that_are_no_python_stay_as_they_are(monkeypatch, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "templates", "1.0", files={"template.py": "def {{name}}():\n", "sound.py": "x = 1\n"})
    use_wheels(monkeypatch, folder, tmp_path / "home")
    site = next(environment_folder(lock_packages(runtime("templates"))).glob("lib/python*/site-packages"))
    assert (site / "template.py").read_text() == "def {{name}}():\n"
    compiled = {path.name.partition(".")[0] for path in site.glob("__pycache__/*.pyc")}
    assert compiled == {"templates", "sound"}  # once, here: a worker cannot write


@pytest.fixture
def silent_index(monkeypatch):
    """An index that takes connections and never answers."""
    monkeypatch.delenv("PIP_NO_INDEX")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        yield server


def test_uv_is_ended_at_the_time_cap(silent_index, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(uv_program.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(SetupError, match=r"took more than 0\.5 s"):
        lock_packages(runtime("hello", packages_timeout_s=0.5))
    assert not is_alive(started[0].pid)
    assert beside_environments() <= ALONE


START = """
import sys
from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.sandbox.environments import lock_packages
runtime = RewardFunctionsRuntimeConfig(packages=sys.argv[1:])
print(lock_packages(runtime, lambda text: print(text, flush=True)), flush=True)
"""


def start(*packages: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START, *packages], stdout=subprocess.PIPE, text=True)


def test_of_processes_that_start_together_one_installs():
    processes = [start("hello", "needs-hello") for _ in range(3)]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("installing" in text for text in printed) == 1
    assert len({text.strip().rpartition("\n")[2] for text in printed}) == 1
    assert len(list_environments()) == 1
    assert beside_environments() <= ALONE


MOMENTS = ["making/wanted.txt", "making/pyvenv.cfg", "making/lib/python*/site-packages/large.bin"]
MOMENTS += ["making/lib/python*/site-packages/__pycache__/hello.*.pyc", "making/environment.json", "*/environment.json"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_nothing_broken(moment):
    process = start("large", "needs-hello")
    while process.poll() is None and not any(environments_folder().glob(moment)):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for environment in list_environments():  # complete or absent
        worker = Worker("import large, hello\ndef f(): return 1", "r.py", Limits(packages=environment.packages))
        assert worker.call("f", {}, LONG_S).value == 1
        worker.close()
    packages = lock_packages(runtime("large", "needs-hello"))  # waits for a uv that is left
    assert packages == ("hello==2.0", "large==1.0", "needs-hello==1.0")
    assert beside_environments() <= ALONE


def test_while_uv_lives_nobody_else_installs(silent_index, monkeypatch):
    """It outlives a trainer that is killed, and would write into what the next one makes."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    process = start("hello")
    assert process.stdout is not None
    process.stdout.readline()
    connection, _ = silent_index.accept()  # uv runs
    process.kill()
    process.wait()
    process.stdout.close()
    with (
        pytest.raises(SetupError, match="another process holds"),
        Maker(environments_folder(), runtime(packages_timeout_s=0.3), lambda text: None),
    ):
        pass
    connection.close()
    silent_index.close()  # it gives up

    def is_free() -> bool:
        try:
            with Maker(environments_folder(), runtime(packages_timeout_s=0.1), lambda text: None):
                return True
        except SetupError:
            return False

    assert wait_until(is_free, 60.0)


def test_recorded_versions_are_installed_again_whatever_is_newer():
    recorded = ("hello==1.5",)
    provide(recorded)
    worker = Worker("import hello\ndef f(): return hello.version", "r.py", Limits(packages=recorded))
    assert worker.call("f", {}, LONG_S).value == "1.5"
    worker.close()


def test_found_versions_stay_until_the_environment_is_removed(monkeypatch, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "hello", "1.0")
    use_wheels(monkeypatch, folder, tmp_path / "home")
    assert lock_packages(runtime("hello")) == ("hello==1.0",)
    make_wheel(folder, "hello", "2.0")
    assert lock_packages(runtime("hello")) == ("hello==1.0",)
    stop_using()
    [environment] = list_environments()
    assert remove_environments([environment.key]) > 0
    assert lock_packages(runtime("hello")) == ("hello==2.0",)


def test_removing_one_environment_keeps_what_was_found_for_the_others():
    lock_packages(runtime("hello<2"))
    lock_packages(runtime("needs-hello"))
    stop_using()
    remove_environments([environment_folder(("hello==1.5",)).name])
    assert environments._known(("hello<2",)) is None
    assert environments._known(("needs-hello",)) is not None


def test_an_environment_in_use_is_not_removed():
    lock_packages(runtime("hello"))
    [environment] = list_environments()
    with pytest.raises(UsageError, match="is in use"):
        remove_environments([environment.key])
    assert list_environments() == (environment,)


def test_a_damaged_environment_is_made_again():
    packages = lock_packages(runtime("hello"))
    folder = environment_folder(packages)
    (folder / "bin" / "python").unlink()
    stop_using()
    assert lock_packages(runtime("hello")) == packages
    assert (folder / "bin" / "python").exists()


def test_a_set_takes_the_nearest_later_version_with_a_wheel_and_says_so(monkeypatch):
    monkeypatch.setitem(requirements.SETS, "openai-grader", ("hello==1.2", "needs_hello==1.0", "unbuilt==1.0"))
    told: list[str] = []
    with pytest.raises(ConfigError, match="do not go together"):
        lock_packages(runtime("openai-grader"))
    monkeypatch.setitem(requirements.SETS, "openai-grader", ("hello==1.2", "unbuilt==1.0"))
    assert lock_packages(runtime("openai-grader"), told.append) == ("hello==1.5",)
    notes = [line for line in told if line.startswith("openai-grader: ")]
    assert notes == [
        "openai-grader: hello==1.2 has no wheel for this Python and machine; hello==1.5 is taken",
        "openai-grader: unbuilt==1.0 has no wheel for this Python and machine; no later version has one either: it is "
        "left out",
    ]
    again: list[str] = []
    lock_packages(runtime("openai-grader"), again.append)
    assert again == notes


def test_a_missing_package_is_told_with_the_setting_that_brings_it():
    packages = lock_packages(runtime("hello"))
    worker = Worker("import pydantic", "r.py", Limits(packages=packages))
    with pytest.raises(SourceFault) as caught:
        worker.describe()
    worker.close()
    assert caught.value.package == "pydantic"


def test_the_description_is_readable_text():
    packages = lock_packages(runtime("hello"))
    text = json.loads((environment_folder(packages) / "environment.json").read_text())
    assert text["packages"] == ["hello==2.0"]
    assert text["requirements"] == ["hello"]
    assert text["num_bytes"] > 1000
