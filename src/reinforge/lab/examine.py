"""Puts reward functions on trial: finds out what a right completion is, has all probes judged, and sums up.

Everything that is code of the user runs in the sandbox, as it would in training; what it says is judged by the pure
checks of insight/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from reinforge.config import JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.calls import Case
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.lint import column_types, lint_functions
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.findings import Evidence, Finding, Verdict, finding
from reinforge.insight.lab import check
from reinforge.insight.trials import FunctionInfo, Kind, Trial, Trials, median
from reinforge.lab.cases import LADDER, GoldenCase
from reinforge.lab.extractors import extractions
from reinforge.lab.find_gold import FoundGold, GoldOptions, find_gold
from reinforge.lab.gold import Gold
from reinforge.lab.probes import Answers, Probe, fuzz, probes
from reinforge.sandbox.limits import Limits
from reinforge.types import Example, Grade

NUM_ROWS = 40
"""Rows that get all probes; right completions are tried on every row."""
TIMEOUT_S = 10.0
"""Of a call in the lab, unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """How thoroughly functions are tried."""

    gold: GoldOptions = field(default_factory=GoldOptions)
    num_rows: int = NUM_ROWS
    cases: Sequence[GoldenCase] = ()
    accepted: Collection[str] = ()
    """Findings the user knows of: `G03`, `G03:name`."""
    weights_given: bool = True
    """See Trials."""
    correct_fn: str | None = None
    correct_from: float | None = None
    """What evaluations count as correct; None when no config says."""


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
    judge: JudgeConfig | None = None,
) -> LabReport:
    """Try `functions` on right, wrong, worthless and odd completions of these rows. `judge`: where judges are asked."""
    options = options or Options()
    runtime = runtime or RewardFunctionsRuntimeConfig(timeout_s=TIMEOUT_S)
    examples = [*examples, *_own_rows(options.cases, len(examples))]
    if not examples:
        raise DataError("there are no rows to try the functions on.", hint="Name a data set: --data F.")
    own_rows = {example.index for example in examples[len(examples) - _num_own(options.cases) :]}
    data_rows = [example for example in examples if example.index not in own_rows]
    lab = _Lab(functions, examples, runtime, dict(settings or {}), judge)
    packages = next((function.packages for function in functions if function.packages), ())
    limits = replace(Limits.from_config(runtime), packages=packages)
    with closing(RewardFunctionGrader(functions, runtime, lab.settings, judge=judge)) as grader:
        found = find_gold(functions, data_rows, options.gold, grader, limits)
        tried = lab.first_pass(grader, found, options)
    if found.golds:
        tried = lab.second_pass(tried)
        tried = lab.typed_pass(tried)
    trials = Trials(
        functions=tuple(FunctionInfo(f.name, f.weight, is_judge(f)) for f in functions),
        trials=tuple(tried),
        num_rows=len(data_rows),
        without_gold=tuple(e.index + 1 for e in data_rows if e.index not in {gold.row for gold in found.golds}),
        empty_answers=frozenset(gold.row + 1 for gold in found.golds if gold.is_empty),
        extractions=extractions(functions, lab.by_row, found.golds[: options.num_rows], limits),
        weights_given=options.weights_given,
        correct_fn=options.correct_fn,
        correct_from=options.correct_from,
    )
    others = [*_of_texts(functions, examples, runtime), *_of_gold(trials, found)]
    told = found.assumptions
    if not options.weights_given and len(functions) > 1:
        told = (*told, "weights: none are given, so each function counts 1 (a config file says more)")
    summaries = tuple(map(_summary(trials), trials.names))
    return LabReport(check(trials, others, options.accepted), trials, told, summaries)


def is_judge(function: RewardFunction) -> bool:
    """Whether a model has a say in it."""
    kinds = ("score_model", "label_model", "rubric")
    return function.dialect == "grader" and any(f'"type": "{kind}"' in function.source for kind in kinds)


def _num_own(cases: Sequence[GoldenCase]) -> int:
    return sum(case.example is not None for case in cases)


def _own_rows(cases: Sequence[GoldenCase], first: int) -> Iterator[Example]:
    """The rows that cases bring along, numbered after those of the data."""
    for place, case in enumerate(case for case in cases if case.example is not None):
        assert case.example is not None
        yield replace(case.example, index=first + place)


@dataclass(frozen=True)
class _Lab:
    """Runs completions through the functions."""

    functions: Sequence[RewardFunction]
    examples: Sequence[Example]
    runtime: RewardFunctionsRuntimeConfig
    settings: dict[str, RewardFunctionSettings]
    judge: JudgeConfig | None

    @property
    def by_row(self) -> dict[int, Example]:
        return {example.index: example for example in self.examples}

    def first_pass(self, grader: RewardFunctionGrader, found: FoundGold, options: Options) -> list[Trial]:
        """Right completions of every row, all probes of some rows, fuzz on one, and the user's cases."""
        examples, answers = self.by_row, Answers(found.golds)
        chosen = {gold.row for gold in spread(found.golds, options.num_rows)}
        batches: list[tuple[int, list[Probe]]] = []
        for gold in found.golds:
            right = [Probe("right completion", "gold", gold.text)]
            prompt = prompt_text(examples[gold.row])
            batches.append((gold.row, right + (probes(gold, prompt, answers) if gold.row in chosen else [])))
        # One by one: a completion on which a function hangs must not take the others of its call with it.
        batches += [(found.golds[0].row, [probe]) for probe in fuzz(found.golds[0])] if found.golds else []
        tried = _judged(grader, examples, batches)
        return [*tried, *self._cases(grader, options.cases)]

    def _cases(self, grader: RewardFunctionGrader, cases: Sequence[GoldenCase]) -> Iterator[Trial]:
        examples = self.by_row
        own = iter(range(len(self.examples) - _num_own(cases), len(self.examples)))
        for number, case in enumerate(cases, start=1):
            row = next(own) if case.row is None else case.row - 1
            if row not in examples:
                raise DataError(f"{case.name} is of row {case.row}, but the data has {len(examples)} rows.")
            is_ladder = case.expected is None
            names = [f"{case.name}, {rung}" for rung in LADDER] if is_ladder else [case.name]
            kind: Kind = "ladder" if is_ladder else "case"
            batch = [Probe(name, kind, text) for name, text in zip(names, case.completions, strict=True)]
            for trial in _judged(grader, examples, [(row, batch)]):
                yield replace(trial, expected=case.expected, ladder=number if is_ladder else 0)

    def second_pass(self, tried: Sequence[Trial]) -> list[Trial]:
        """The same again in fresh processes, everything in the opposite order. Fuzz, and rows that only have their
        right completion tried, are left out."""
        probed = {trial.row for trial in tried if trial.kind == "garbage"}
        again = [trial for trial in tried if trial.kind not in ("fuzz", "case", "ladder") and trial.row in probed]
        with closing(RewardFunctionGrader(self.functions, self.runtime, self.settings, judge=self.judge)) as grader:
            grades = self._grades(grader, again[::-1])
        return [replace(trial, again=grades.get(id(trial))) for trial in tried]

    def typed_pass(self, tried: Sequence[Trial]) -> list[Trial]:
        """Right completions with columns as they are in the data, where they otherwise are text."""
        texts_only = all(kind == "str" for kind in column_types(self.examples).values())
        if self.runtime.typed_examples or texts_only or not any(f.dialect == "predibase" for f in self.functions):
            return list(tried)
        golds = [trial for trial in tried if trial.kind == "gold"][:NUM_ROWS]
        runtime = self.runtime.model_copy(update={"typed_examples": True})
        with closing(RewardFunctionGrader(self.functions, runtime, self.settings, judge=self.judge)) as grader:
            grades = self._grades(grader, golds)
        return [replace(trial, typed=grades.get(id(trial))) for trial in tried]

    def _grades(self, grader: RewardFunctionGrader, tried: Sequence[Trial]) -> dict[int, Grade]:
        """Grades by the identity of the trial."""
        examples = self.by_row
        by_row: dict[int, list[Trial]] = {}
        for trial in tried:
            by_row.setdefault(trial.row - 1, []).append(trial)
        pending = [
            (of_row, grader.grade_case(_case(examples[row], [trial.text for trial in of_row])))
            for row, of_row in by_row.items()
        ]
        return {
            id(trial): grade for of_row, future in pending for trial, grade in zip(of_row, future.result(), strict=True)
        }


def _judged(
    grader: RewardFunctionGrader, examples: Mapping[int, Example], batches: Sequence[tuple[int, list[Probe]]]
) -> list[Trial]:
    pending = [grader.grade_case(_case(examples[row], [probe.text for probe in batch])) for row, batch in batches]
    return [
        Trial(row + 1, probe.name, probe.kind, probe.text, grade)
        for (row, batch), future in zip(batches, pending, strict=True)
        for probe, grade in zip(batch, future.result(), strict=True)
    ]


def _case(example: Example, texts: Sequence[str]) -> Case:
    return Case(example, prompt_text(example), tuple(texts), ((),) * len(texts))


def prompt_text(example: Example) -> str:
    """The prompt without a chat template: of chat messages, what the user said last."""
    if isinstance(example.prompt, str):
        return example.prompt
    said = [message.get("content") for message in example.prompt if message.get("role") == "user"]
    return str(said[-1]) if said else str(list(example.prompt))


def spread(golds: Sequence[Gold], most: int) -> list[Gold]:
    """At most so many, evenly over the data; rows whose answer is empty first, as they go wrong most easily."""
    if len(golds) <= most:
        return list(golds)
    empty = [gold for gold in golds if gold.is_empty][: max(1, most // 4)]
    others = [gold for gold in golds if not gold.is_empty]
    wanted = most - len(empty)
    return [*empty, *(others[place * len(others) // wanted] for place in range(min(wanted, len(others))))]


def _of_texts(
    functions: Sequence[RewardFunction], examples: Sequence[Example], runtime: RewardFunctionsRuntimeConfig
) -> Iterator[Finding]:
    """Findings of the source texts."""
    for warning in lint_functions(functions, typed=runtime.typed_examples, columns=column_types(examples)):
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
