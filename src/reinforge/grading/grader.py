"""Grades completions with reward functions, each by a scorer of its own (implements roles.Grader)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from reinforge.config import JudgeConfig, RewardFunctionsConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.access_text import access_lines
from reinforge.grading.calls import Case
from reinforge.grading.failures import settle
from reinforge.grading.futures import when_all
from reinforge.grading.judges.judges import Judges
from reinforge.grading.network import Network
from reinforge.grading.reward_function import RewardFunction, load_reward_functions
from reinforge.grading.scorers import Scorer
from reinforge.grading.start import start_scorer
from reinforge.roles import GroupGrading
from reinforge.sandbox import tiers
from reinforge.sandbox.environments import Tell, provide, silent, worker_limits
from reinforge.sandbox.limits import Limits
from reinforge.types import Completion, Grade, Prompt, Score


class RewardFunctionGrader:
    """Judges completions by reward functions; each has processes of its own, all run at once, none can stop a run.

    The order of scores in a grade is the order of the functions, and grades are in the order of their completions,
    whatever finishes first.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        runtime: RewardFunctionsRuntimeConfig | None = None,
        settings: Mapping[str, RewardFunctionSettings] | None = None,
        tell: Tell = silent,
        judge: JudgeConfig | None = None,
        tell_try: Tell = silent,
    ) -> None:
        """`settings` by display name; they hold for every version. `tell` is called with what takes long; `judge` says
        where judges are asked, and `tell_try` hears of every request that is sent to them again."""
        self._tell = tell
        self.packages: tuple[str, ...] = ()
        """`name==version` of the config's packages."""
        self._runtime = runtime or RewardFunctionsRuntimeConfig()
        self._settings = dict(settings or {})
        self._judge = judge or JudgeConfig()
        self.judges = Judges(self._judge, tell, tell_try=tell_try)
        self.network = Network()
        self._scorers: list[Scorer] = []
        try:
            for function in functions:
                self._scorers.append(self._start(function))
        except BaseException:  # a judge without an address: the workers of the functions before it must not stay
            self.close()
            raise

    @property
    def functions(self) -> tuple[RewardFunction, ...]:
        return tuple(scorer.function for scorer in self._scorers)

    def replace(self, functions: Sequence[RewardFunction]) -> None:
        """Judge by these functions from now on. Those that stay keep their warm workers. Only between grades."""
        kept = {scorer.function.version: scorer for scorer in self._scorers if scorer.function in functions}
        for scorer in self._scorers:
            if scorer.function.version not in kept:
                scorer.close()
        self._scorers = [kept.get(function.version) or self._start(function) for function in functions]

    def _start(self, function: RewardFunction) -> Scorer:
        provide(function.packages, self._runtime, self._tell)
        return start_scorer(function, self._runtime, self._settings.get(function.name), self.judges, self.network)

    @classmethod
    def from_config(cls, config: RewardFunctionsConfig, base_dir: Path, tell: Tell = silent) -> RewardFunctionGrader:
        """Install what the functions of a config need (SetupError); load and check them (RewardError)."""
        limits = worker_limits(config.runtime, tell, config.settings)
        functions = load_reward_functions(config.functions, config.weights, base_dir, limits)
        grader = cls(functions, config.runtime, config.settings, tell, config.judge)
        grader.packages = limits.packages
        return grader

    def keep_in(self, folder: Path) -> None:
        """Keep what judges answer and which connections were made in this folder. Before the first grade."""
        self.judges.keep_in(folder)
        self.network.keep_in(folder)

    def access_lines(self) -> list[str]:
        """What each function may reach, for people."""
        limits = Limits.from_config(self._runtime, self._settings)
        return access_lines(self.functions, limits, self._judge, tiers.choose().tier)

    def take_figures(self) -> dict[str, float]:
        """Metrics of judges and connections since the last call."""
        return {**self.judges.take_figures(), **self.network.take_figures()}

    def begin(self, prompt: Prompt, num_completions: int, first_generation: int = 0) -> GroupGrading:
        """See roles.Grader."""
        return _GroupGrading(prompt, num_completions, first_generation, self._scorers, self._grades_of)

    def grade_case(self, case: Case) -> Future[tuple[Grade, ...]]:
        """Start judging; the grades are in the order of `case.texts`."""
        return when_all([scorer.submit(case) for scorer in self._scorers], self._grades_of)

    def _grades_of(self, scores_per_function: list[list[Score]]) -> tuple[Grade, ...]:
        per_completion = zip(*scores_per_function, strict=True)
        return tuple(settle(Grade(tuple(scores)), self._settings) for scores in per_completion)

    def close(self) -> None:
        """End every worker process; grades under way become masked or cancelled."""
        self.judges.close()
        for scorer in self._scorers:
            scorer.close()


class _GroupGrading:
    """Gives a completion to the scorers that judge it alone when it ends, and the whole group to the others when the
    last one has ended (implements roles.GroupGrading)."""

    def __init__(
        self,
        prompt: Prompt,
        num_completions: int,
        first_generation: int,
        scorers: Sequence[Scorer],
        combine: Callable[[list[list[Score]]], tuple[Grade, ...]],
    ) -> None:
        self._prompt = prompt
        self._completions: list[Completion | None] = [None] * num_completions
        self._num_missing = num_completions
        self._first = first_generation
        self._combine = combine
        self._alone = [(i, scorer) for i, scorer in enumerate(scorers) if scorer.judges_each_alone]
        self._together = [(i, scorer) for i, scorer in enumerate(scorers) if not scorer.judges_each_alone]
        self._pending: list[dict[int, Future[list[Score]]]] = [{} for _ in scorers]
        """For each scorer: place of the first completion -> scores from there on."""

    def add(self, completion: Completion) -> None:
        place = completion.generation - self._first
        self._completions[place] = completion
        self._num_missing -= 1
        if self._alone:
            self._submit(self._alone, place, [completion])
        if self._together and not self._num_missing:
            self._submit(self._together, 0, [completion for completion in self._completions if completion is not None])

    def _submit(self, scorers: Sequence[tuple[int, Scorer]], place: int, completions: Sequence[Completion]) -> None:
        case = Case(
            example=self._prompt.example,
            prompt_text=self._prompt.text,
            texts=tuple(completion.text for completion in completions),
            token_ids=tuple(completion.token_ids for completion in completions),
            finish_reasons=tuple(completion.finish_reason for completion in completions),
        )
        for index, scorer in scorers:
            self._pending[index][place] = scorer.submit(case)

    def judged(self, within_s: float) -> Mapping[int, Grade]:
        """See roles.GroupGrading."""
        wait([future for pending in self._pending for future in pending.values()], within_s)
        columns = [
            {
                place: score
                for first in pending
                if pending[first].done()
                for place, score in enumerate(pending[first].result(), first)
            }
            for pending in self._pending
        ]
        places = sorted(set.intersection(*map(set, columns)))
        grades = self._combine([[column[place] for place in places] for column in columns])
        return {self._first + place: grade for place, grade in zip(places, grades, strict=True)}

    def grades(self) -> tuple[Grade, ...]:
        columns = [
            [score for place in sorted(pending) for score in pending[place].result()] for pending in self._pending
        ]
        return self._combine(columns)
