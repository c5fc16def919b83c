"""Whether files that we are about to trust are ours: another user of this machine may share the home folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from reinforge.errors import SetupError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def check_ours(root: Path, paths: Iterable[Path]) -> None:
    """SetupError for a path, all below `root`, that belongs to neither us nor root or that others may write to. What is
    absent, or out of our reach, cannot be used either."""
    for path in paths:
        try:
            _check(root, path, os.lstat(path))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue


def all_in(folder: Path) -> Iterator[Path]:
    """A folder and every path below it; links are not followed."""
    yield folder
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


def keep_others_out(folder: Path) -> None:
    """Take from others the right to write to a folder of ours and all in it, whatever the umask and uv gave them."""
    for path in all_in(folder):
        mode = os.lstat(path).st_mode
        if mode & WRITABLE_BY_OTHERS and not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode) & ~WRITABLE_BY_OTHERS)


def _check(root: Path, path: Path, facts: os.stat_result) -> None:
    elsewhere = "or set REINFORGE_HOME to a folder of your own."
    me = os.geteuid()
    if facts.st_uid not in (me, 0):
        raise SetupError(
            f"{path} belongs to user {facts.st_uid}, not to you (user {me}) or root: what lies in it is not trusted.",
            hint=f"Remove it, or when you trust what is in it: chown -R {me} {root}; {elsewhere}",
        )
    if facts.st_mode & WRITABLE_BY_OTHERS and not stat.S_ISLNK(facts.st_mode):
        raise SetupError(
            f"{path} can be written by other users (mode {stat.S_IMODE(facts.st_mode):o}): it is not trusted.",
            hint=f"Remove it, or when you trust what is in it: chmod -R go-w {root}; {elsewhere}",
        )


__all__ = ["all_in", "check_ours", "keep_others_out"]
