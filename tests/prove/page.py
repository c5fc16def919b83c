"""Dated pages under docs/proofs: what was run, where, and what came out."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "proofs"
PACKAGES = ("reinforge", "torch", "transformers", "peft")


def write_page(name: str, title: str, lines: Sequence[str]) -> Path:
    """Write `<name>-<today>.md`: title, then `lines`, then the facts of this machine and checkout."""
    path = dated(name, ".md")
    about = [f"- {key}: {value}" for key, value in facts().items()]
    path.write_text("\n".join([f"# {title}", "", *lines, "", "## Where", "", *about, ""]), encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}", flush=True)
    return path


def dated(name: str, ending: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    return FOLDER / f"{name}-{datetime.date.today()}{ending}"


def facts() -> dict[str, str]:
    """What a reader needs to judge a figure: date, commit, machine, versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "date": str(datetime.date.today()),
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}; one thread",
        "versions": f"Python {platform.python_version()}, {versions}",
    }


def commit() -> str:
    """The checkout's short commit, and whether code or tests differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "tests", "pyproject.toml")
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")


def processor() -> str:
    """The CPU's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table.

    >>> table(["seed", "after"], [[0, 0.5]])
    ['| seed | after |', '|---|---|', '| 0 | 0.5 |']
    """
    first, *others = [f"| {' | '.join(map(str, row))} |" for row in (header, *rows)]
    return [first, "|" + "---|" * len(header), *others]
