"""What packages have put into an environment where it changes how its Python starts.

A wheel may bring scripts and data files (`NAME.data/scripts`, `NAME.data/data`): they land beside `bin/python`. CPython
reads `python._pth` and `pyvenv.cfg` there before anything else, whatever its options are
(https://docs.python.org/3/using/windows.html#finding-modules, https://docs.python.org/3/library/site.html), and takes
its whole library from where they say.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

INTERPRETER = re.compile(r"python[\d.]*[a-z]?(\.exe)?", re.IGNORECASE)
SETTINGS = re.compile(r"pyvenv\.cfg|pybuilddir\.txt|.*\._pth", re.IGNORECASE)
"""What CPython reads beside itself (Modules/getpath.py)."""
OURS = "environment.json"

Contents = dict[str, str]
"""Path in the environment -> a hash of what lies there."""


def contents_outside_lib(environment: Path) -> Contents:
    """All files and links of an environment but those below lib, where only its own Python looks, in a worker."""
    found: Contents = {}
    for parent, folders, files in os.walk(environment):
        if Path(parent) == environment:
            folders[:] = [name for name in folders if name != "lib"]
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() or name in files:
                found[str(path.relative_to(environment))] = _hash(path)
    return found


def misplaced(before: Contents, after: Contents) -> str:
    """The first path that no package may bring: one that was there before it, an interpreter, or settings of one.

    >>> misplaced({"bin/python": "1"}, {"bin/python": "1", "bin/f2py": "2", "share/jupyter/kernel.json": "3"})
    ''
    >>> misplaced({"bin/python": "1"}, {"bin/python": "1", "bin/python._pth": "2"})
    'bin/python._pth'
    """
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and (path in before or _is_reserved(path)):
            return path
    return ""


def brought_by(environment: Path, path: str) -> str:
    """The package whose list of files has this path, as "thief 1.0"; "a package" when none has."""
    for record in environment.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
        if any(line.strip('"').startswith(f"../../../{path}") for line in lines):
            return record.parent.name.removesuffix(".dist-info").replace("-", " ")
    return "a package"


def _is_reserved(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return path == OURS or bool(SETTINGS.fullmatch(name) or (folder == "bin" and INTERPRETER.fullmatch(name)))


def _hash(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["Contents", "brought_by", "contents_outside_lib", "misplaced"]
