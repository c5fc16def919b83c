"""docs/explain/grpo_in_code.md quotes the code: every quoted line stands in the file linked above it."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explain" / "grpo_in_code.md"


def test_every_quoted_line_and_named_function_is_in_the_linked_file():
    source, quoted, inside = "", 0, False
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1):
        links = re.findall(r"\[[^\]]+\]\(([^)]+\.py)\)((?:,? `[\w.]+`)*)", line)
        for target, names in links:
            source = (PAGE.parent / target).read_text(encoding="utf-8")
            for name in re.findall(r"`([\w.]+)`", names):
                assert re.search(rf"def {name.rpartition('.')[2]}\b", source), f"line {number}: no function {name}"
        if line.startswith("```"):
            inside = not inside
        elif inside:
            assert f"{line.strip()}\n" in source, f"line {number} is not in the code: {line}"
            quoted += 1
    assert quoted > 20
    assert not inside
