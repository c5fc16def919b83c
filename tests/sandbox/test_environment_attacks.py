"""Wheels, records and other users that would have code run with the rights of the trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wheels import make_wheel, use_wheels

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import ConfigError, RewardError, SetupError
from reinforge.sandbox import environments
from reinforge.sandbox.environments import (
    environment_folder,
    environments_folder,
    list_environments,
    lock_packages,
    provide,
    remove_environments,
)
from reinforge.sandbox.launch import trusted_interpreter
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.make_environment import Maker
from reinforge.sandbox.misplaced import misplaced
from reinforge.sandbox.pool import SourceFault, Worker

pytest.importorskip("uv", reason="uv makes the environments: pip install 'reinforge[packages]'")
HELLO = RewardFunctionsRuntimeConfig(packages=("hello",))
LONG_S = 30.0
TELL_STATUS = """
import posix
def lines(path):
    file = posix.open(path, posix.O_RDONLY)
    text = posix.read(file, 1 << 16).decode()
    posix.close(file)
    return text.split(chr(10))
told = [line.replace(chr(9), " ") for line in lines("/proc/self/status") if line[:8] in ("Seccomp:", "NoNewPri")]
posix.write(2, ("; ".join(told) + chr(10)).encode())
posix._exit(3)
"""
"""In the place of the module that Python starts with: says which filter of system calls it runs under."""


@pytest.fixture(autouse=True)
def wheels(monkeypatch, tmp_path) -> Iterator[Path]:
    folder = tmp_path / "wheels"
    folder.mkdir()
    make_wheel(folder, "hello", "1.0")
    use_wheels(monkeypatch, folder, tmp_path / "home")
    yield folder
    stop_using()


def stop_using() -> None:
    while environments._held:
        os.close(environments._held.popitem()[1])


PLACES = [
    ("scripts", "python._pth", "bin/python._pth"),
    ("data", "bin/python._pth", "bin/python._pth"),
    ("data", "bin/python3._pth", "bin/python3._pth"),
    ("data", "pyvenv.cfg", "pyvenv.cfg"),
    ("data", "bin/pyvenv.cfg", "bin/pyvenv.cfg"),
    ("data", "bin/pybuilddir.txt", "bin/pybuilddir.txt"),
    ("data", "bin/activate", "bin/activate"),
    ("data", "environment.json", "environment.json"),
    ("data", "packages.txt", "packages.txt"),
]


@pytest.mark.parametrize(("scheme", "file", "path"), PLACES)
def test_a_wheel_that_changes_how_python_starts_is_refused_by_name(wheels, scheme, file, path):
    make_wheel(wheels, "thief", "1.0", files={f"thief-1.0.data/{scheme}/{file}": "../evil\n"})
    with pytest.raises(ConfigError) as caught:
        lock_packages(RewardFunctionsRuntimeConfig(packages=("thief",)))
    assert f"thief 1.0 puts {path} into the environment" in str(caught.value)
    assert list_environments() == ()
    assert not (environments_folder() / "making").exists()


@pytest.mark.parametrize("place", ["scripts/python", "data/bin/python", "data/bin/python3", "data/bin/python3.99"])
def test_a_wheel_with_an_interpreter_is_refused(wheels, place):
    make_wheel(wheels, "thief", "1.0", files={f"thief-1.0.data/{place}": "#!/bin/sh\n"})
    with pytest.raises((ConfigError, SetupError), match="python"):  # uv refuses the name too
        lock_packages(RewardFunctionsRuntimeConfig(packages=("thief",)))
    assert list_environments() == ()


@pytest.mark.parametrize("path", ["bin/python3.99", "bin/Python", "bin/pythonw.exe", "share/a/python311._pth"])
def test_interpreters_and_their_settings_have_reserved_names(path):
    assert misplaced({}, {"bin/f2py": "1", path: "2", "share/python": "3"}) == path


def test_scripts_and_data_files_of_ordinary_wheels_stay(wheels):
    files = {
        "tool-1.0.data/scripts/f2py": "#!python\nprint()\n",
        "tool-1.0.data/scripts/python-tool": "#!python\nprint()\n",
        "tool-1.0.data/data/share/jupyter/kernels/python3/kernel.json": "{}",
        "tool-1.0.data/data/share/python": "a file of this name elsewhere",
        "tool-1.0.data/data/etc/tool/pyproject.toml": "",
        "tool-1.0.data/data/share/man/man1/tool.1": "",
        "tool-1.0.data/headers/tool.h": "",
        "tool-1.0.dist-info/entry_points.txt": "[console_scripts]\ntool = tool:main\n",
    }
    make_wheel(wheels, "tool", "1.0", files=files)
    folder = environment_folder(lock_packages(RewardFunctionsRuntimeConfig(packages=("tool",))))
    assert {"f2py", "python-tool", "tool"} <= {path.name for path in (folder / "bin").iterdir()}
    assert (folder / "share/jupyter/kernels/python3/kernel.json").read_text() == "{}"


def test_no_file_of_an_environment_is_run_before_the_worker_is_confined(isolating_tier):
    packages = lock_packages(HELLO)
    folder = environment_folder(packages)
    (folder / "bin" / "python._pth").write_text("../evil\n")
    (folder / "evil" / "encodings").mkdir(parents=True)
    (folder / "evil" / "encodings" / "__init__.py").write_text(TELL_STATUS)
    worker = Worker("def f(): return 1", "r.py", Limits(packages=packages), isolating_tier)
    with pytest.raises(SourceFault) as caught:
        worker.describe()
    worker.close()
    assert "NoNewPrivs: 1; Seccomp: 2" in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        "--no-binary hello\nhello @ file:///home/me/hello",
        "hello @ file:///home/me/hello",
        "-r /etc/hostname",
        "-e /home/me/hello",
        "/home/me/hello",
        "--index-url http://127.0.0.1:9/simple\nhello==1.0",
        "hello==1.0\n",
        "hello==1.0 --no-binary hello",
        "hello>=1.0",
        "-hello==1.0",
    ],
)
def test_nothing_but_versions_is_installed_again(entry):
    with pytest.raises(RewardError, match="is no name==version"):
        provide((entry,))
    assert not environments_folder().exists()
    with Maker(environments_folder(), HELLO, lambda text: None) as maker, pytest.raises(RewardError):
        maker.make(environment_folder((entry,)), (entry,), (entry,))
    assert list_environments() == ()


def ways_to_use(packages: tuple[str, ...]) -> list[Callable[[], object]]:
    return [lambda: lock_packages(HELLO), lambda: provide(packages)]


def parts_of(packages: tuple[str, ...]) -> list[Path]:
    root, folder = environments_folder(), environment_folder(packages)
    module = next(folder.glob("lib/python*/site-packages/hello.py"))
    parts = [root, root / "lock", root / "requests", root / "downloads", folder, folder / "bin", module]
    assert all(path.exists() for path in parts)
    return parts


def test_what_other_users_may_write_is_not_trusted():
    packages = lock_packages(HELLO)
    stop_using()
    for path in parts_of(packages):
        mode = path.stat().st_mode
        for bit in (0o020, 0o002):
            path.chmod(mode | bit)
            for use in ways_to_use(packages):
                with pytest.raises(SetupError, match="can be written by other users") as caught:
                    use()
                assert f"{path} " in str(caught.value)
                assert f"chmod -R go-w {environments_folder()}" in caught.value.hint
        path.chmod(mode)
    assert not environments._held
    assert lock_packages(HELLO) == packages


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_made_is_not_trusted():
    packages = lock_packages(HELLO)
    stop_using()
    for path in [*parts_of(packages), environment_folder(packages) / "bin" / "python"]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
        for use in ways_to_use(packages):
            with pytest.raises(SetupError, match="belongs to user 65534, not to you") as caught:
                use()
            assert f"{path} " in str(caught.value)
            assert f"chown -R 0 {environments_folder()}" in caught.value.hint
        os.chown(path, 0, 0, follow_symlinks=False)
    assert lock_packages(HELLO) == packages


def test_a_folder_that_others_may_write_is_not_emptied():
    packages = lock_packages(HELLO)
    stop_using()
    environments_folder().chmod(0o777)
    with pytest.raises(SetupError, match="can be written by other users"):
        remove_environments([environment_folder(packages).name])
    assert environment_folder(packages).is_dir()


def test_a_generous_umask_leaves_nothing_that_others_may_write():
    before = os.umask(0)
    try:
        packages = lock_packages(HELLO)
        stop_using()
        assert lock_packages(HELLO) == packages
    finally:
        os.umask(before)


def test_the_python_that_confines_is_in_no_environment():
    python = Path(trusted_interpreter())
    assert python.is_file()
    assert not python.is_symlink()
    assert python.is_relative_to(os.path.realpath(sys.base_prefix))
