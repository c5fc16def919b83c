"""Has completions of known worth judged: every pass over the rows, in the sandbox, as in training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from reinforge.config import JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.calls import Case
from reinforge.grading.futures import Progress, awaited, no_progress
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.lint import column_types
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.trials import Kind, Trial
from reinforge.lab.cases import LADDER, GoldenCase
from reinforge.lab.find_gold import FoundGold
from reinforge.lab.gold import Gold
from reinforge.lab.probes import Answers, Probe, fuzz, padded, probes
from reinforge.sandbox.environments import Tell, silent
from reinforge.types import Example, Grade

MAX_TYPED = 40
"""Rows whose right completion is tried with typed columns."""
MAX_HANGS = 5
"""Calls that may run into the deadline before no more are made."""
MAX_JUDGED_FUZZ = 2_000
"""Longest odd completion that a judge is shown: its tokens cost."""


@dataclass(frozen=True)
class Lab:
    """Runs completions through the functions."""

    functions: Sequence[RewardFunction]
    examples: Sequence[Example]
    runtime: RewardFunctionsRuntimeConfig
    settings: Mapping[str, RewardFunctionSettings] = field(default_factory=dict)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    has_judges: bool = False
    progress: Progress = no_progress
    tell: Tell = silent

    def grader(self, runtime: RewardFunctionsRuntimeConfig | None = None) -> RewardFunctionGrader:
        """The functions in processes of their own; to be closed."""
        return RewardFunctionGrader(self.functions, runtime or self.runtime, self.settings, self.tell, self.judge)

    @property
    def by_row(self) -> dict[int, Example]:
        return {example.index: example for example in self.examples}

    def first_pass(
        self, grader: RewardFunctionGrader, found: FoundGold, num_rows: int, cases: Sequence[GoldenCase]
    ) -> list[Trial]:
        """Right completions of every row, all probes of some rows, fuzz on one, and the user's cases."""
        examples, answers = self.by_row, Answers(found.golds)
        chosen = {gold.row for gold in spread(found.golds, num_rows)}
        right: list[tuple[int, list[Probe]]] = []
        for gold in found.golds:
            batch = [Probe("right completion", "gold", gold.text)]
            if gold.row in chosen:
                batch += probes(gold, prompt_text(examples[gold.row]), answers)
                batch += padded(gold) if self.has_judges else []
            right.append((gold.row, batch))
        right.sort(key=lambda batch: len(batch[1]) > 1)  # single ones first: a function that always hangs shows there
        longest = MAX_JUDGED_FUZZ if self.has_judges else math.inf
        # One by one: a completion on which a function hangs must not take the others of its call with it.
        odd = [(gold.row, [probe]) for gold in found.golds[:1] for probe in fuzz(gold) if len(probe.text) <= longest]
        tried = [*self._judged(grader, right, "completions tried"), *self._judged(grader, odd, "odd completions tried")]
        tried.sort(key=lambda trial: (trial.kind == "fuzz", trial.row))
        return [*tried, *self._cases(grader, cases)]

    def _judged(
        self, grader: RewardFunctionGrader, batches: Sequence[tuple[int, list[Probe]]], what: str
    ) -> list[Trial]:
        """Trials in the order of the batches, more and more of them at once. Ends early when a function hangs: with a
        deadline of 10 s, all completions would take hours."""
        tried: list[Trial] = []
        examples, total = self.by_row, sum(len(batch) for _, batch in batches)
        done, at_once = 0, 1
        while done < len(batches) and sum(map(hangs, tried)) < MAX_HANGS:
            chunk = batches[done : done + at_once]
            pending = [grader.grade_case(_case(examples[row], [probe.text for probe in batch])) for row, batch in chunk]
            for (row, batch), future in zip(chunk, pending, strict=True):
                grades = zip(batch, future.result(), strict=True)
                tried += [Trial(row + 1, probe.name, probe.kind, probe.text, grade) for probe, grade in grades]
                self.progress(what, len(tried), total)
            done, at_once = done + len(chunk), 2 * at_once
        return tried

    def _cases(self, grader: RewardFunctionGrader, cases: Sequence[GoldenCase]) -> Iterator[Trial]:
        examples = self.by_row
        own = iter(range(len(self.examples) - num_own(cases), len(self.examples)))
        for number, case in enumerate(cases, start=1):
            row = next(own) if case.row is None else case.row - 1
            if row not in examples:
                raise DataError(f"{case.name} is of row {case.row}, but the data has {len(examples)} rows.")
            is_ladder = case.expected is None
            names = [f"{case.name}, {rung}" for rung in LADDER] if is_ladder else [case.name]
            kind: Kind = "ladder" if is_ladder else "case"
            batch = [Probe(name, kind, text) for name, text in zip(names, case.completions, strict=True)]
            for trial in self._judged(grader, [(row, batch)], case.name):
                yield replace(trial, expected=case.expected, ladder=number if is_ladder else 0)

    def second_pass(self, tried: Sequence[Trial]) -> list[Trial]:
        """The same again in fresh processes, everything in the opposite order. Fuzz, and rows that only have their
        right completion tried, are left out."""
        probed = {trial.row for trial in tried if trial.kind == "garbage"}
        again = [
            trial
            for trial in tried
            if trial.kind not in ("fuzz", "case", "ladder") and trial.row in probed and not hangs(trial)
        ]
        with closing(self.grader()) as grader:
            grades = self._grades(grader, again[::-1])
        return [replace(trial, again=grades.get(id(trial))) for trial in tried]

    def typed_pass(self, tried: Sequence[Trial]) -> list[Trial]:
        """Right completions with columns as they are in the data, where they otherwise are text."""
        texts_only = all(kind == "str" for kind in column_types(self.examples).values())
        if self.runtime.typed_examples or texts_only or not any(f.dialect == "predibase" for f in self.functions):
            return list(tried)
        golds = [trial for trial in tried if trial.kind == "gold" and not hangs(trial)][:MAX_TYPED]
        runtime = self.runtime.model_copy(update={"typed_examples": True})
        with closing(self.grader(runtime)) as grader:
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
        judged = awaited([future for _, future in pending], len(tried), "tried once more", self.progress)
        return {
            id(trial): grade
            for (of_row, _), grades in zip(pending, judged, strict=True)
            for trial, grade in zip(of_row, grades, strict=True)
        }


def hangs(trial: Trial) -> bool:
    """Whether a function ran into its deadline."""
    return any(score.kind == "timeout" for score in trial.grade.scores)


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


def num_own(cases: Sequence[GoldenCase]) -> int:
    """Cases that bring a row of their own: these come after the rows of the data."""
    return sum(case.example is not None for case in cases)
