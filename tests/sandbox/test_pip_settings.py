"""Which of pip's settings reach uv, and that uv's own come first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from reinforge.errors import SetupError
from reinforge.sandbox import pip_settings, uv_program
from reinforge.sandbox.pip_settings import uv_places


@pytest.fixture
def here(tmp_path, monkeypatch) -> dict[str, str]:
    """The environment of a machine without any configuration."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(pip_settings, "MACHINE", tmp_path / "machine")
    return {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path / "etc"),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
    }


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_any_settings_uv_is_left_alone(here):
    assert uv_places({**here, "PIP_CONFIG_FILE": os.devnull}) == ({}, ())


def test_the_index_of_pips_file_is_that_of_uv(here, tmp_path):
    text = "[global]\nindex-url = https://mirror.example/simple\nextra_index_url =\n    file:///a\n    file:///b\n"
    write(tmp_path / "pip.conf", text + "find-links = /wheels /more\ncert = /ca.pem\n")
    assert uv_places(here) == (
        {
            "SSL_CERT_FILE": "/ca.pem",
            "UV_DEFAULT_INDEX": "https://mirror.example/simple",
            "UV_INDEX": "file:///a file:///b",
            "UV_INDEX_STRATEGY": "unsafe-first-match",
            "UV_FIND_LINKS": "/wheels,/more",
        },
        (),
    )


def test_the_more_specific_setting_of_pip_holds(here, tmp_path):
    write(tmp_path / ".config" / "pip" / "pip.conf", "[global]\nindex-url = of-user\nno-index = true\n")
    write(
        tmp_path / "venv" / "pip.conf", "[global]\nindex-url = of-venv\n[install]\nfind-links = /w\n[list]\ncert = x\n"
    )
    variables = {name: value for name, value in here.items() if name != "PIP_CONFIG_FILE"}
    assert uv_places(variables) == ({"UV_DEFAULT_INDEX": "of-venv", "UV_FIND_LINKS": "/w"}, ("--no-index",))
    of_variable = variables | {"PIP_INDEX_URL": "of-variable", "PIP_NO_INDEX": "0"}
    assert uv_places(of_variable) == ({"UV_DEFAULT_INDEX": "of-variable", "UV_FIND_LINKS": "/w"}, ())


@pytest.mark.parametrize(
    "name", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"]
)
def test_where_uv_is_told_a_place_pip_is_not_asked(here, name):
    assert uv_places({**here, "PIP_INDEX_URL": "of-pip", name: "of-uv"}) == ({}, ())


@pytest.mark.parametrize("text", ["[[index]]\nurl = 'u'\n", "find-links = ['/w']\n", "[pip]\nindex-url = 'u'\n"])
def test_a_file_of_uv_that_names_places_comes_first(here, tmp_path, text):
    told = {**here, "PIP_INDEX_URL": "of-pip"}
    write(tmp_path / ".config" / "uv" / "uv.toml", text)
    assert uv_places(told) == ({}, ())
    assert uv_places(told | {"UV_NO_CONFIG": "1"}) == ({"UV_DEFAULT_INDEX": "of-pip"}, ())
    write(tmp_path / ".config" / "uv" / "uv.toml", "native-tls = true\n")
    assert uv_places(told) == ({"UV_DEFAULT_INDEX": "of-pip"}, ())


def test_a_broken_file_of_pip_is_named(here, tmp_path):
    write(tmp_path / "pip.conf", "index-url = no section\n")
    with pytest.raises(SetupError, match=r"pip's configuration .*pip\.conf cannot be read"):
        uv_places(here)


def test_variables_that_change_what_uv_does_are_kept_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr(uv_program, "find_uv", lambda: "uv")
    dropped = (
        "UV_NO_BINARY",
        "UV_COMPILE_BYTECODE",
        "UV_TARGET",
        "UV_CACHE_DIR",
        "UV_PYTHON",
        "VIRTUAL_ENV",
        "PYTHONPATH",
    )
    kept = ("UV_INDEX_MINE_PASSWORD", "UV_HTTP_TIMEOUT", "UV_EXCLUDE_NEWER", "HTTPS_PROXY", "PATH")
    for name in (*dropped, *kept):
        monkeypatch.setenv(name, "1")
    variables = uv_program.uv_in(tmp_path, tmp_path / "downloads", 0).variables
    assert {name: variables.get(name) for name in kept} == dict.fromkeys(kept, "1")
    assert {name for name in dropped if name in variables} == {"UV_CACHE_DIR"}
    assert variables["UV_CACHE_DIR"] == str(tmp_path / "downloads")
