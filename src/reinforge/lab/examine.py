"""Puts reward functions on trial: finds out what a right completion is, has all probes judged, and sums up.

Everything that is code of the user runs in the sandbox, as it would in training; what it says is judged by the pure
checks of insight/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from reinforge.config import GRPOConfig, JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.futures import Progress, no_progress
from reinforge.grading.lint import column_types, lint_functions
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.findings import Evidence, Finding, Verdict, finding
from reinforge.insight.judge_checks import judges_are_set_up, judges_fit_the_budget
from reinforge.insight.lab import check
from reinforge.insight.trials import FunctionInfo, Kind, Trials, median
from reinforge.lab.cases import GoldenCase
from reinforge.lab.extractors import extractions
from reinforge.lab.find_gold import FoundGold, GoldOptions, find_gold
from reinforge.lab.judges import judge_cost, judge_facts, judges_in
from reinforge.lab.run import MAX_HANGS, Lab, hangs, num_own, spread
from reinforge.run_store.judgements import Usage
from reinforge.sandbox.environments import Tell, silent
from reinforge.sandbox.limits import Limits
from reinforge.types import Example

NUM_ROWS = 40
"""Rows that get all probes; right completions are tried on every row."""
NUM_JUDGED_ROWS, NUM_JUDGED_GOLDS = 5, 20
"""Where a judge is asked: rows that get all probes, and rows whose right completion is tried."""
TIMEOUT_S = 10.0
"""Of a call in the lab, unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """How thoroughly functions are tried."""

    gold: GoldOptions = field(default_factory=GoldOptions)
    num_rows: int | None = None
    """Rows that get all probes; None: 40, or 5 where a judge is asked."""
    cases: Sequence[GoldenCase] = ()
    accepted: Collection[str] = ()
    """Findings the user knows of: `G03`, `G03:name`."""
    weights_given: bool = True
    """See Trials."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Where judges are asked."""
    config: GRPOConfig | None = None
    """The run that the functions are for, where that is known: what it counts as correct, its model, its size."""
    progress: Progress = no_progress
    tell: Tell = silent


@dataclass(frozen=True)
class LabReport:
    """What came out."""

    findings: tuple[Finding, ...]
    trials: Trials
    assumptions: tuple[str, ...]
    """How right completions were made, and what else was taken for granted."""
    functions: tuple[dict[str, Any], ...]
    """A line for each function and the sum: medians by kind of completion, calls, failures."""

    @property
    def verdict(self) -> Verdict | None:
        """That of the worst finding; None without any."""
        return self.findings[0].verdict if self.findings else None

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict or "ok",
            "num_rows": self.trials.num_rows,
            "num_trials": len(self.trials.trials),
            "assumptions": list(self.assumptions),
            "functions": list(self.functions),
            "findings": [found.as_json() for found in self.findings],
        }


def examine(
    functions: Sequence[RewardFunction],
    examples: Sequence[Example],
    runtime: RewardFunctionsRuntimeConfig | None = None,
    settings: Mapping[str, RewardFunctionSettings] | None = None,
    options: Options | None = None,
) -> LabReport:
    """Try `functions` on right, wrong, worthless and odd completions of these rows."""
    options = options or Options()
    runtime = runtime or RewardFunctionsRuntimeConfig(timeout_s=TIMEOUT_S)
    examples = [*examples, *_own_rows(options.cases, len(examples))]
    if not examples:
        raise DataError("there are no rows to try the functions on.", hint="Name a data set: --data F.")
    own_rows = {example.index for example in examples[len(examples) - num_own(options.cases) :]}
    data_rows = [example for example in examples if example.index not in own_rows]
    names = {function.name for function in functions if any(judges_in(function))}
    lab = Lab(
        functions, examples, runtime, dict(settings or {}), options.judge, bool(names), options.progress, options.tell
    )
    num_rows = options.num_rows or (NUM_JUDGED_ROWS if names else NUM_ROWS)
    packages = next((function.packages for function in functions if function.packages), ())
    limits = replace(Limits.from_config(runtime), packages=packages)
    with closing(lab.grader()) as grader:
        found = find_gold(functions, data_rows, options.gold, grader, limits)
        golds = spread(found.golds, max(num_rows, NUM_JUDGED_GOLDS)) if names else found.golds
        tried = lab.first_pass(grader, replace(found, golds=tuple(golds)), num_rows, options.cases)
        usage = grader.judges.usage()
    if found.golds:
        tried = lab.second_pass(tried)
        tried = lab.typed_pass(tried)
    evaluated = options.config.eval if options.config else None
    trials = Trials(
        functions=tuple(FunctionInfo(f.name, f.weight, f.name in names) for f in functions),
        trials=tuple(tried),
        num_rows=len(data_rows),
        without_gold=tuple(e.index + 1 for e in data_rows if e.index not in {gold.row for gold in found.golds}),
        empty_answers=frozenset(gold.row + 1 for gold in found.golds if gold.is_empty),
        extractions=extractions(functions, lab.by_row, found.golds[:num_rows], limits),
        weights_given=options.weights_given,
        correct_fn=evaluated.correct_fn if evaluated else None,
        correct_from=evaluated.correct_from if evaluated else None,
    )
    others = [
        *_of_texts(lab),
        *_of_gold(trials, found),
        *_of_judges(functions, usage, options),
    ]
    summaries = tuple(map(_summary(trials), trials.names))
    findings = check(trials, others, options.accepted)
    return LabReport(findings, trials, tuple(_told(trials, found, options, usage)), summaries)


def _told(
    trials: Trials,
    found: FoundGold,
    options: Options,
    usage: Sequence[Usage],
) -> Iterator[str]:
    """What was taken for granted."""
    yield from found.assumptions
    if not trials.weights_given and len(trials.functions) > 1:
        yield "weights: none are given, so each function counts 1 (a config file says more)"
    num_hangs = sum(map(hangs, trials.trials))
    if num_hangs >= MAX_HANGS:
        yield f"stopped early: {num_hangs} completions ran into the deadline, so many others were not tried"
    if usage:
        num_golds = len(trials.of("gold"))
        asked, tokens = sum(one.calls for one in usage), sum(one.tokens for one in usage)
        yield (
            f"judges: asked {asked:,} times in the first of two passes ({tokens:,} tokens), so only {num_golds} of "
            f"{len(found.golds)} right completions were tried (--rows changes that)"
        )


def _of_judges(functions: Sequence[RewardFunction], usage: Sequence[Usage], options: Options) -> Iterator[Finding]:
    policy = options.config.base_model if options.config else None
    yield from judges_are_set_up(judge_facts(functions, options.judge), policy)
    cost = judge_cost(functions, usage, options.judge, options.config) if options.config else None
    if cost is not None:
        yield from judges_fit_the_budget(cost)


def _own_rows(cases: Sequence[GoldenCase], first: int) -> Iterator[Example]:
    """The rows that cases bring along, numbered after those of the data."""
    for place, case in enumerate(case for case in cases if case.example is not None):
        assert case.example is not None
        yield replace(case.example, index=first + place)


def _of_texts(lab: Lab) -> Iterator[Finding]:
    """Findings of the source texts."""
    for warning in lint_functions(lab.functions, lab.runtime, lab.settings, column_types(lab.examples)):
        place = f"line {warning.line}"
        yield finding(
            warning.check,
            "source_text",
            "info" if warning.check == "G26" else "warning",
            warning.function,
            f"{place}: {warning.message}",
            fix=warning.fix,
        )


def _of_gold(trials: Trials, found: FoundGold) -> Iterator[Finding]:
    """Rows for which nobody knows a right completion."""
    if trials.without_gold and trials.num_rows:
        evidence = [Evidence(row, "row", None, "", "no answer") for row in trials.without_gold]
        yield finding(
            "G03",
            "gold_is_known",
            "warning" if found.golds else "blocking",
            "",
            f"no right completion is known for {len(trials.without_gold)} of {trials.num_rows} rows",
            value=float(len(trials.without_gold)),
            threshold="0",
            fix="Name the column with the answers (--answer-column), or write a function gold(example) into the reward "
            "file.",
            evidence=evidence,
        )


def _summary(trials: Trials) -> Callable[[str], dict[str, Any]]:
    def line(name: str) -> dict[str, Any]:
        def middle(*kinds: Kind) -> float | None:
            return median(value for trial in trials.of(*kinds) if (value := trial.value(name)) is not None)

        weights = {function.name: function.weight for function in trials.functions}
        scores = [score for trial in trials.trials if (score := trial.score(name)) is not None]
        scale = trials.scale(name)
        return {
            "name": name or "reward",
            "weight": weights.get(name),
            "gold": middle("gold"),
            "partial": middle("partial"),
            "wrong": middle("wrong"),
            "garbage": middle("garbage"),
            "hack": middle("hack"),
            "low": scale.low,
            "high": scale.high,
            "num_calls": len(scores),
            "num_failed": sum(score.state != "ok" for score in scores),
            "median_ms": None if not scores else 1000 * (median(score.latency_s for score in scores) or 0.0),
        }

    return line
