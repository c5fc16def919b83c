"""Every check of the reward lab, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from reinforge.insight import gold_checks, judge_checks, probe_checks, score_checks
from reinforge.insight.findings import Finding, worst_first
from reinforge.insight.trials import Trials

CHECKS: tuple[Callable[[Trials], Iterator[Finding]], ...] = (
    gold_checks.gold_scores_full,
    gold_checks.gold_survives_extraction,
    probe_checks.garbage_scores_low,
    probe_checks.hacks_score_low,
    probe_checks.ladder_is_monotone,
    score_checks.scores_are_numbers,
    score_checks.scores_repeat,
    score_checks.calls_are_quick,
    score_checks.calls_succeed,
    score_checks.scores_are_graded,
    score_checks.no_function_dominates,
    score_checks.weights_sum_to_one,
    score_checks.form_and_content,
    gold_checks.gold_counts_as_correct,
    probe_checks.near_gold_scores_alike,
    judge_checks.padding_does_not_pay,
    score_checks.columns_are_read_back,
    gold_checks.cases_get_their_scores,
)


def check(trials: Trials, others: Iterable[Finding] = (), accepted: Collection[str] = ()) -> tuple[Finding, ...]:
    """All findings, the worst first. `others` were found elsewhere (in the source texts). `accepted` are findings the
    user knows of, as `G03` or `G03:name` (`G03:reward` for the sum): they stay in the list as info."""
    found = [*others, *(finding for one in CHECKS for finding in one(trials))]
    return worst_first(_accepted(finding, accepted) for finding in found)


def _accepted(finding: Finding, accepted: Collection[str]) -> Finding:
    if {finding.id, f"{finding.id}:{finding.function or 'reward'}"} & set(accepted):
        return replace(finding, verdict="info", message=f"accepted: {finding.message}")
    return finding
