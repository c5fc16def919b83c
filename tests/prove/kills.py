"""Run every test marked `prove` (kill loops) and write docs/proofs/kills-<date>.md."""

from __future__ import annotations

import sys
from pathlib import Path

from prove.junit import run_pytest
from prove.page import table, write_page

COMMAND = ["-m", "prove", "-v"]


def main() -> None:
    outcome = run_pytest(Path(sys.executable), COMMAND)
    rows = [
        [name, "failed" if name in outcome.failed else "passed", f"{seconds:.1f}"]
        for name, seconds in outcome.seconds.items()
    ]
    lines = [
        f"`pytest {' '.join(COMMAND)}`: {outcome.passed} passed, {len(outcome.failed)} failed, "
        f"{len(outcome.skipped)} skipped in {sum(outcome.seconds.values()):.0f} s.",
        "",
        *table(["test", "outcome", "seconds"], rows),
    ]
    write_page("kills", "Killed and resumed", lines)
    sys.exit(not outcome.is_proof)


if __name__ == "__main__":
    main()
