"""What the reward lab finds: each check is a pure function from trials to findings.

Thresholds are those of the table in docs/how-to/test_rewards.md. A finding is `blocking` when training on these rewards
would be wasted or would teach the wrong thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reinforge.insight.trials import TOTAL, Trial

Verdict = Literal["blocking", "warning", "info"]
VERDICTS: tuple[Verdict, ...] = ("blocking", "warning", "info")
MAX_EVIDENCE = 5
"""Rows told of a finding; `num_evidence` counts all."""
TOLERANCE = 0.05
"""Share of a function's range that two scores may differ by and still count as the same."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One completion that shows it."""

    row: int
    """Number in the data, from 1."""
    probe: str
    value: float | None
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Example:
        >>> Finding("G12", "scores_are_graded", "warning", "right", "2 values", 2, "more than 2", "Grade finer.").id
        'G12'
    """

    id: str
    """G01..G28, as in the table of the docs."""
    check: str
    """The check's name: a plain_name."""
    verdict: Verdict
    function: str
    """Display name; TOTAL (empty) when the reward as a whole is meant."""
    message: str
    value: float | str | None
    threshold: str
    """What the value should have been."""
    fix: str
    evidence: tuple[Evidence, ...] = ()
    num_evidence: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def evidence_of(trials: Iterable[Trial], name: str, note: str = "") -> tuple[Evidence, ...]:
    return tuple(Evidence(trial.row, trial.probe, trial.value(name), trial.text, note) for trial in trials)


def finding(
    id: str,
    check: str,
    verdict: Verdict,
    function: str,
    message: str,
    *,
    value: float | str | None = None,
    threshold: str = "",
    fix: str = "",
    evidence: Sequence[Evidence] = (),
) -> Finding:
    """A finding with the first rows of its evidence."""
    shown = tuple(evidence[:MAX_EVIDENCE])
    return Finding(id, check, verdict, function, message, value, threshold, fix, shown, len(evidence))


def label(name: str) -> str:
    """A function's name in a sentence."""
    return "the reward" if name == TOTAL else name


def rows_in_words(rows: Iterable[int], most: int = 8) -> str:
    """
    >>> rows_in_words([3, 1, 3]), rows_in_words(range(1, 12))
    ('rows 1, 3', 'rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more')
    """
    ordered = sorted(set(rows))
    shown = ", ".join(map(str, ordered[:most]))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return f"row{'s' if len(ordered) != 1 else ''} {shown}{more}"


def probes_in_words(trials: Iterable[Trial], most: int = 6) -> str:
    """The probes with the number of rows each is of, the most frequent first."""
    counts = Counter(trial.probe for trial in trials)
    by_count: dict[int, list[str]] = {}
    for probe, count in counts.most_common():
        by_count.setdefault(count, []).append(probe)
    parts = []
    for count, probes in by_count.items():
        shown = ", ".join(probes[:most]) + (f" and {len(probes) - most} more" if len(probes) > most else "")
        parts.append(f"{shown} ({count} row{'s' if count > 1 else ''}{' each' if len(probes) > 1 else ''})")
    return "; ".join(parts)


def one_per_probe(trials: Sequence[Trial]) -> list[Trial]:
    """The first trial of each probe, then the others: a short list shows every probe."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.probe, trial)
    return [*first.values(), *(trial for trial in trials if first[trial.probe] is not trial)]


def earned(trial: Trial, name: str) -> float:
    """What a completion gets: nothing where the function failed."""
    return trial.value(name) or 0.0


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda found: (VERDICTS.index(found.verdict), found.id)))
