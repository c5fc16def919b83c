"""The pages about the lab say what the command does today."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from reinforge.lab.cases import read_cases

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_page_of_the_seeds_is_what_the_command_says(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("make_seed_findings", ROOT / "docs" / "make_seed_findings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    stored = (ROOT / "docs" / "explain" / "seed_grader_findings.md").read_text(encoding="utf-8")
    assert stored == module.page_text(), "stale: run `make docs`"


def test_the_how_to_names_every_check_and_no_other():
    page = (ROOT / "docs" / "how-to" / "test_rewards.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "reinforge"
    sources = [*(source / "insight").glob("*.py"), source / "lab" / "examine.py", source / "grading" / "lint.py"]
    in_code = {name for path in sources for name in re.findall(r'"(G\d\d)"', path.read_text(encoding="utf-8"))}
    in_table = set(re.findall(r"^\| (G\d\d) \|", page, re.MULTILINE))
    assert in_table - {"G01"} == in_code


def test_the_cases_of_the_how_to_can_be_read(tmp_path: Path):
    page = (ROOT / "docs" / "how-to" / "test_rewards.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "rewards.cases.jsonl").write_text(block)
    cases = read_cases(tmp_path / "rewards.cases.jsonl", ["correct", "format"])
    assert [case.name for case in cases] == ["cut off", "case 2", "case 3", "case 4"]
    assert [len(case.completions) for case in cases] == [1, 1, 3, 1]
