"""Where packages come from on this machine, for uv: its own settings, else those of pip.

uv does not read pip's configuration (https://docs.astral.sh/uv/pip/compatibility/#configuration-files-and-environment-variables);
on a machine behind a mirror that only pip was told of, it would find nothing. So pip's settings are handed to it where
it has none of its own.
"""

from __future__ import annotations

import configparser
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from reinforge.errors import SetupError

MACHINE = Path("/etc")
OWN_PLACES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
"""Variables by which uv is told where packages are."""
_OWN_KEYS = {"index", "index-url", "extra-index-url", "find-links", "no-index"}
_FROM_PIP = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
"""Setting of pip -> variable of uv."""


def uv_places(variables: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """(variables to set for uv, options) from pip's settings; empty where uv has its own.

    `variables` is the environment. pip takes its indexes as equals; uv is told to look through the extra ones first and
    to go on to the main one for versions they do not have.
    """
    pip = _pip_settings(variables)
    found: dict[str, str] = {}
    if "cert" in pip and "SSL_CERT_FILE" not in variables:
        found["SSL_CERT_FILE"] = pip["cert"]
    if any(variables.get(name) for name in OWN_PLACES) or _uv_file_names_places(variables):
        return found, ()
    for setting, variable in _FROM_PIP.items():
        if pip.get(setting):
            separator = "," if variable == "UV_FIND_LINKS" else " "
            found[variable] = separator.join(pip[setting].split())
    if "UV_INDEX" in found and "UV_INDEX_STRATEGY" not in variables:
        found["UV_INDEX_STRATEGY"] = "unsafe-first-match"
    no_index = pip.get("no-index", "").strip().lower() in ("1", "true", "yes", "on")
    return found, ("--no-index",) if no_index else ()


def _pip_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """pip's settings as it would read them: files from the most general to the most specific, then variables
    (https://pip.pypa.io/en/stable/topics/configuration/)."""
    settings: dict[str, str] = {}
    named = variables.get("PIP_CONFIG_FILE")
    files = [] if named == os.devnull else [*_pip_files(variables), *([Path(named)] if named else [])]
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise SetupError(f"pip's configuration {file} cannot be read: {error}.", hint="Correct it.") from None
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    of_pip = {name[4:].lower().replace("_", "-"): value for name, value in variables.items() if name[:4] == "PIP_"}
    return settings | of_pip


def _pip_files(variables: Mapping[str, str]) -> list[Path]:
    home = Path(variables.get("HOME") or Path.home())
    machine = re.split(":", variables.get("XDG_CONFIG_DIRS") or "/etc/xdg")
    of_user = [home / ".pip", _config_home(variables) / "pip"]
    if sys.platform == "darwin":
        machine = ["/Library/Application Support"]
        of_user.insert(1, home / "Library" / "Application Support" / "pip")
    folders = [*(Path(folder) / "pip" for folder in machine), MACHINE, *of_user, Path(sys.prefix)]
    return [folder / "pip.conf" for folder in folders]


def _uv_file_names_places(variables: Mapping[str, str]) -> bool:
    """Whether uv's configuration of the user or the machine says where packages are. (That of the current folder is not
    asked: uv is run elsewhere, so that a folder from a stranger cannot choose.)"""
    if variables.get("UV_NO_CONFIG"):
        return False
    machine = re.split(":", variables.get("XDG_CONFIG_DIRS") or "/etc/xdg")
    folders = [_config_home(variables) / "uv", *(Path(folder) / "uv" for folder in machine), MACHINE / "uv"]
    named = variables.get("UV_CONFIG_FILE")
    for file in [Path(named)] if named else [folder / "uv.toml" for folder in folders]:
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue  # absent; if it is broken, uv itself says so
        if _OWN_KEYS & {*settings, *settings.get("pip", {})}:
            return True
    return False


def _config_home(variables: Mapping[str, str]) -> Path:
    given = variables.get("XDG_CONFIG_HOME")
    return Path(given) if given else Path(variables.get("HOME") or Path.home()) / ".config"


__all__ = ["uv_places"]
