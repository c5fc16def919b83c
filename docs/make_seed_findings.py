"""Writes docs/explain/seed_grader_findings.md: the reward lab on graders as their sources print them (`make docs`).

The graders lie in tests/lab/seeds, written anew from their descriptions, faults included. A test fails while the page
is stale.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reinforge.cli.main import run as reinforge

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ROOT / "tests" / "lab" / "seeds"
PAGE = ROOT / "docs" / "explain" / "seed_grader_findings.md"
RUNLOOP = "<plan>\n{plan}\n</plan>\n<code>\n```typescript {path}\n{code}\n```\n</code>"


@dataclass(frozen=True)
class Seed:
    """One grader and how it is tried."""

    title: str
    about: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """A fault that is known to be in a printed grader."""

    seed: str
    words: str
    check: str
    """By which the lab finds it."""
    about: str
    """Function, or helper at the beginning of the message."""


CHIPSTACK = Seed(
    "ChipStack",
    "Multiset F1 over (name, value) pairs.",
    ("chipstack.py", "--data", "chipstack.jsonl"),
)
HARVEY = Seed("Harvey", "F1 of fuzzy matches between passages.", ("harvey.py", "--data", "harvey.jsonl"))
RUNLOOP_SEED = Seed(
    "Runloop",
    "A ladder of format checks on a plan and code blocks, then AST-Grep.",
    ("runloop.py", "--data", "runloop.jsonl", "--answer-column", "code", "--gold-template", RUNLOOP),
)
GSM8K = Seed("GSM8K, every function", "Five rewards in TRL's form.", ("gsm8k.py", "--data", "gsm8k.jsonl"))
GSM8K_USED = Seed("GSM8K, as it is trained", "The functions that are passed to the trainer.", ("gsm8k.yaml",))
SEEDS_IN_ORDER = (GSM8K, GSM8K_USED, CHIPSTACK, HARVEY, RUNLOOP_SEED)
UNREADABLE = (
    Seed(
        "ChipStack's JSON",
        "The grader object as it is printed: the line breaks of its source stand in the text as they are.",
        ("chipstack_printed.json", "--data", "chipstack.jsonl"),
    ),
    Seed(
        "ChipStack's data",
        "A row as it is printed, with curly quotes.",
        ("chipstack.py", "--data", "chipstack_printed.jsonl"),
    ),
)
"""What does not even load: the error is the finding."""

FAULTS = (
    Fault(GSM8K.title, "the answer is taken from behind `</answer>`, so correctness can never fire",
          "gold_scores_full", "correctness_reward"),
    Fault(GSM8K.title, "nor can the reward for whole numbers", "gold_scores_full", "int_reward"),
    Fault(GSM8K.title, "the helper itself returns nothing on a perfect reply",
          "gold_survives_extraction", "extract_xml_answer"),
    Fault(GSM8K.title, "the gold answer comes out as `# 72`, 72.5 as `# 725`, and 1,234 keeps its comma",
          "gold_survives_extraction", "extract_hash_answer"),
    Fault(GSM8K.title, "the strict layout is one that nobody asks for", "gold_scores_full", "strict_format_reward"),
    Fault(GSM8K.title, "full marks on form alone, without any mathematics", "wrong_answer_scores_low", ""),
    Fault(GSM8K_USED.title, "the strict format reward is defined and not used", "source_text", "strict_format_reward"),
    Fault(CHIPSTACK.title, "a right abstention (both lists empty) scores 0", "dead_row", "grade"),
    Fault(HARVEY.title, "the empty list it asks for scores 0", "dead_row", "grade"),
    Fault(RUNLOOP_SEED.title, "a code block that opens with its language alone is misread: half of the marks",
          "near_gold_scores_alike", "grade"),
    Fault(RUNLOOP_SEED.title, "text before the plan is never looked at", "text_around_gold", "grade"),
)  # fmt: skip


def page_text() -> str:
    """The whole page. AssertionError when a known fault is not found."""
    reports = {seed.title: json.loads(_run(seed, "--json")) for seed in SEEDS_IN_ORDER}
    return "\n".join([*_head(), *(_row(fault, reports[fault.seed]) for fault in FAULTS), "", *_sections()])


def _head() -> Iterator[str]:
    yield "<!-- Written by docs/make_seed_findings.py: run `make docs`. -->"
    yield ""
    yield "# What the reward lab finds in printed graders"
    yield ""
    yield (
        "Graders from a course and from case studies of other platforms, as they are printed there: written anew from "
        "their descriptions, faults included ([the files](../../tests/lab/seeds)). `reinforge rewards test` "
        "([how](../how-to/test_rewards.md)) on a few rows each, without a model:"
    )
    yield ""
    yield "| grader | fault in it | found as | rows |"
    yield "|---|---|---|---|"


def _row(fault: Fault, report: dict[str, list[dict]]) -> str:
    found = [
        finding
        for finding in report["findings"]
        if finding["check"] == fault.check
        and (finding["function"] == fault.about or finding["message"].startswith(f"{fault.about} "))
    ]
    assert len(found) == 1, f"{fault.seed}: {fault.words}: found {len(found)} times"
    (finding,) = found
    rows = ", ".join(map(str, dict.fromkeys(evidence["row"] for evidence in finding["evidence"]))) or "-"
    where = f" on `{fault.about}`" if fault.about else ""
    return f"| {fault.seed} | {fault.words} | {finding['id']} {finding['verdict']}{where} | {rows} |"


def _sections() -> Iterator[str]:
    for seed in SEEDS_IN_ORDER:
        shown = " ".join(f"'{argument}'" if "\n" in argument else argument for argument in seed.arguments)
        yield f"## {seed.title}\n\n{seed.about}\n"
        yield f"````text\n$ reinforge rewards test {shown}\n\n{_without_times(_run(seed))}\n````\n"
    for seed in UNREADABLE:
        yield f"## {seed.title}\n\n{seed.about}\n"
        yield f"````text\n$ reinforge rewards test {' '.join(seed.arguments)}\n{_run(seed)}\n````\n"


def _run(seed: Seed, *options: str) -> str:
    """What the command prints."""
    before, width = os.getcwd(), os.environ.get("COLUMNS")
    os.chdir(SEEDS)
    os.environ["COLUMNS"] = "110"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = reinforge(["rewards", "test", *seed.arguments, *options])
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    assert code in (0, 3), f"{seed.title}: exit code {code}"
    return (out.getvalue() or err.getvalue()).rstrip().replace(f"{SEEDS}{os.sep}", "")


def _without_times(text: str) -> str:
    """The milliseconds of a call differ from run to run."""
    lines = text.splitlines()
    head = next(place for place, line in enumerate(lines) if line.split()[-1:] == ["ms"])
    end = lines.index("", head)
    cut = [line.rpartition("  ")[0].rstrip() for line in lines[head:end]]
    return "\n".join([*lines[:head], *cut, *lines[end:]])


if __name__ == "__main__":
    PAGE.write_text(page_text(), encoding="utf-8")
