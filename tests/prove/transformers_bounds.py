"""The tests that touch transformers, on the lowest and the highest version that pyproject.toml allows.

    PYTHONPATH=tests .venv/bin/python -m prove.transformers_bounds              both, writes docs/proofs
    PYTHONPATH=tests .venv/bin/python -m prove.transformers_bounds 5.21.0      only this one, writes nothing

Each version gets an overlay `.venv/prove-<version>`: an environment whose own packages come first and which sees those
of `.venv` behind them. So only transformers, and what it wants in other versions, is installed a second time; torch
is not. `.venv` itself is never changed.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from prove.junit import Outcome, run_pytest
from prove.page import ROOT, table, write_page

HELD = ("torch", "peft", "datasets", "safetensors")
"""Packages whose version stays that of `.venv`: beside transformers, they make the result."""
TESTS = [
    "tests/policy",
    "tests/inference",
    "tests/learner",
    "tests/data/test_render.py",
    "tests/recipes",
    "tests/cli",
    "tests/test_fixtures.py",
    "tests/test_loop.py",
    "tests/test_resume.py",
    "tests/test_runs_in_python.py",
    # TRL, the oracle, has bounds on transformers of its own.
    "--ignore=tests/learner/test_trl_oracle.py",
    "-m",
    "not prove",
    "-q",
]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main(asked: Sequence[str]) -> None:
    bounds = allowed()
    versions = list(asked) or [lowest(bounds), highest(bounds)]
    outcomes = {version: run_pytest(overlay(version), TESTS) for version in versions}
    if not asked:
        write(bounds, outcomes)
    for version, outcome in outcomes.items():
        print(f"transformers {version}: {'proven' if outcome.is_proof else outcome.failed or 'no test ran'}")
    sys.exit(not all(outcome.is_proof for outcome in outcomes.values()))


def allowed() -> SpecifierSet:
    """transformers' bounds in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = map(Requirement, project["optional-dependencies"]["train"])
    return next(requirement.specifier for requirement in wanted if requirement.name == "transformers")


def lowest(bounds: SpecifierSet) -> str:
    """The lower bound, which is itself a version.

    >>> lowest(SpecifierSet(">=5.20.0,<5.24"))
    '5.20.0'
    """
    return next(one.version for one in bounds if one.operator == ">=")


def highest(bounds: SpecifierSet) -> str:
    """The newest version that pip finds within the bounds."""
    options = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    command = [*PIP, "install", *options, f"transformers{bounds}"]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return str(report["install"][0]["metadata"]["version"])


def overlay(version: str) -> Path:
    """Make the overlay of one version anew -> its python; `.venv`'s own python where that has the version."""
    if importlib.metadata.version("transformers") == version:
        print(f"transformers {version}: installed in {sys.prefix}, no overlay needed", flush=True)
        return Path(sys.executable)
    folder = Path(sys.prefix) / f"prove-{version}"
    python = folder / "bin" / "python"
    print(f"transformers {version}: overlay {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    # A line of code, not a path: only then are the .pth files in there (our editable installation) read too.
    link = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    (Path(own) / "zz_base_environment.pth").write_text(link)
    held = [f"{name}=={importlib.metadata.version(name)}" for name in HELD]
    subprocess.run([*PIP, "--python", str(python), "install", "--quiet", f"transformers=={version}", *held], check=True)
    ask = [str(python), "-c", "import transformers; print(transformers.__version__)"]
    answer = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    if answer != version:
        raise SystemExit(f"{python} imports transformers {answer}, not {version}: the tests would prove nothing.")
    found = importlib.metadata.distributions(path=[own])
    print("  in it: " + ", ".join(sorted(f"{one.name} {one.version}" for one in found)), flush=True)
    return python


def write(bounds: SpecifierSet, outcomes: dict[str, Outcome]) -> None:
    rows = [
        [version, one.passed, len(one.failed), len(one.skipped), f"{sum(one.seconds.values()):.0f}"]
        for version, one in outcomes.items()
    ]
    faults = [f"- {version}: {name}" for version, one in outcomes.items() for name in one.failed]
    lines = [
        f"pyproject.toml allows `transformers{bounds}`. The tests that touch it, on the lowest and the highest:",
        "",
        *table(["transformers", "passed", "failed", "skipped", "seconds"], rows),
        *(["", "Failed:", "", *faults] if faults else []),
        "",
        f"`pytest {' '.join(TESTS)}`",
    ]
    write_page("transformers", "The transformers versions we allow", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
