"""Run pytest and read what came out."""

from __future__ import annotations

import os
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prove.page import ROOT


@dataclass(frozen=True)
class Outcome:
    """Of one pytest call."""

    passed: int
    failed: list[str]
    """Tests that failed or could not be collected."""
    skipped: list[str]
    """With the reason."""
    seconds: dict[str, float]
    """Per test that ran."""

    @property
    def is_proof(self) -> bool:
        """Tests ran, and none failed."""
        return self.passed > 0 and not self.failed


def run_pytest(python: Path, arguments: Sequence[str]) -> Outcome:
    """Run pytest with one thread under `python`, its own output shown as it comes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", *arguments, f"--junitxml={report}", "-p", "no:cacheprovider"]
        print("$ " + " ".join(command), flush=True)
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if not report.exists():
            raise SystemExit(f"pytest wrote no report (exit status {done.returncode}); its message stands above.")
        return read_report(report.read_text(encoding="utf-8"))


def read_report(xml: str) -> Outcome:
    """Read a JUnit report.

    >>> read_report('<s><testcase classname="tests.a" name="t" time="1.5"/></s>').seconds
    {'tests.a::t': 1.5}
    """
    passed, failed, skipped, seconds = 0, [], [], {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif skip is not None:
            skipped.append(f"{name}: {skip.get('message')}")
            continue
        else:
            passed += 1
        seconds[name] = float(case.get("time", 0))
    return Outcome(passed, failed, skipped, seconds)
