"""Checks of judges: G14 (rubric weights), G17, G18, G20."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reinforge.insight.findings import Finding, earned, evidence_of, finding
from reinforge.insight.trials import Trials

BIAS_SHARE = 0.1
"""Of its range that padding may move a judge's score."""


@dataclass(frozen=True, slots=True)
class JudgeFacts:
    """What the text of a judging grader says."""

    function: str
    place: str
    """Names that lead to it inside the grader; empty for the grader itself."""
    model: str
    temperature: float
    num_examples: int
    """Example completions that it is shown to measure by."""
    weight_sum: float | None = None
    """Of a rubric's lines above 0; None for other judges."""


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """What judges took in the lab, and what a run would ask."""

    function: str
    num_asked: int
    tokens: int
    cost: float | None
    """None without prices."""
    num_questions_of_run: int
    """Training alone: steps x prompts x completions x judges."""
    budget_tokens: int | None
    budget_cost: float | None


def judges_are_set_up(facts: Sequence[JudgeFacts], policy: str | None) -> Iterator[Finding]:
    """G17: another model than the one that is trained, at temperature 0, shown examples (S4-084, S4-086, S3-046); and
    G14 for rubrics (S4-062). `policy` is the model that is trained, where that is known."""
    for judge in facts:
        where = f"{judge.function}, {judge.place}" if judge.place else judge.function
        if policy is not None and judge.model.rstrip("/").lower() == policy.rstrip("/").lower():
            yield finding(
                "G17", "judge_is_another_model", "warning", judge.function,
                f"{where} is judged by {judge.model}, the model that is trained",
                value=judge.model, threshold="another model",
                fix="A model favours what it would have written itself: let another one judge.",
            )  # fmt: skip
        if judge.temperature > 0:
            yield finding(
                "G17", "judge_is_steady", "warning", judge.function,
                f"{where} draws its answers at temperature {judge.temperature:g}",
                value=judge.temperature, threshold="0",
                fix="Set sampling_params.temperature: 0, so that equal completions get equal scores.",
            )  # fmt: skip
        if judge.num_examples == 0:
            yield finding(
                "G17", "judge_has_examples", "warning", judge.function,
                f"{where} is shown no completions to measure by",
                value=0.0, threshold="at least 1 great, 1 fair and 1 poor one",
                fix="Add examples: {great: ..., fair: ..., poor: ...}.",
            )  # fmt: skip
        if judge.weight_sum is not None and abs(judge.weight_sum - 1) > 1e-9:
            yield finding(
                "G14", "rubric_weights_sum_to_one", "warning", judge.function,
                f"the weights of {where} sum to {judge.weight_sum:.3g}",
                value=judge.weight_sum, threshold="1",
                fix="They are divided by their sum; was a line forgotten?",
            )  # fmt: skip


def padding_does_not_pay(trials: Trials) -> Iterator[Finding]:
    """G18: empty words around a right completion do not move a judge's score."""
    golds = {trial.row: trial for trial in trials.of("gold")}
    for function in trials.functions:
        if not function.is_judge:
            continue
        allowed = BIAS_SHARE * trials.scale(function.name).span
        padded = [trial for trial in trials.of("padded") if trial.row in golds]
        moved = [
            trial
            for trial in padded
            if abs(earned(trial, function.name) - earned(golds[trial.row], function.name)) > allowed
        ]
        if 2 * len(moved) > len(padded):
            shifts = [earned(trial, function.name) - earned(golds[trial.row], function.name) for trial in moved]
            mean = math.fsum(shifts) / len(shifts)
            yield finding(
                "G18", "padding_does_not_pay", "warning", function.name,
                f"{function.name} moves by {mean:+.3g} on average when empty words are put around a right completion",
                value=mean, threshold=f"within {allowed:.3g}",
                fix="Tell the judge that length and politeness do not count, and show it a long poor example.",
                evidence=evidence_of(moved, function.name),
            )  # fmt: skip


def judges_fit_the_budget(cost: JudgeCost) -> Iterator[Finding]:
    """G20: what a run would take at the tokens per question that the lab saw."""
    if not cost.num_asked:
        return
    tokens = cost.tokens / cost.num_asked * cost.num_questions_of_run
    money = None if cost.cost is None else cost.cost / cost.num_asked * cost.num_questions_of_run
    over_tokens = cost.budget_tokens is not None and tokens > cost.budget_tokens
    over_money = money is not None and cost.budget_cost is not None and money > cost.budget_cost
    limits = [f"{cost.budget_tokens:,} tokens"] if cost.budget_tokens is not None else []
    limits += [f"{cost.budget_cost:g} in money"] if cost.budget_cost is not None else []
    yield finding(
        "G20", "judges_fit_the_budget", "blocking" if over_tokens or over_money else "info", cost.function,
        f"a run asks its judges {cost.num_questions_of_run:,} questions: about {tokens:,.0f} tokens"
        + ("" if money is None else f", {money:,.4g} in money"),
        value=tokens, threshold="at most " + " and ".join(limits) if limits else "",
        fix="Raise the budget, ask fewer questions (a gate before the judge), or train fewer steps."
        if over_tokens or over_money
        else "Equal questions are asked once. reward_fns.judge.budget_tokens sets a limit.",
    )  # fmt: skip
