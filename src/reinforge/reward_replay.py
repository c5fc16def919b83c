"""Reward replay: the completions of a run under other reward functions, before anything is applied.

Stored scores are taken where the functions are the same; the others judge again in the sandbox, group by group as they
did while the run trained, with the rows the run began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import cast

from reinforge.api import stored_config, stored_rows
from reinforge.config import GRPOConfig
from reinforge.data.load import fingerprint, load_data
from reinforge.errors import DataError, UsageError
from reinforge.grading.calls import Case
from reinforge.grading.failures import settle
from reinforge.grading.futures import Progress, awaited, no_progress
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import RewardFunction
from reinforge.grading.score_shift import FunctionMove, ScoreShift
from reinforge.insight.replay import ReplayedCompletion, ReplayedGroup, ReplayReport, report
from reinforge.learner.advantage import advantages
from reinforge.reward_updates import run_functions
from reinforge.run_store import Run
from reinforge.run_store.records import CompletionRow, ScoreRow
from reinforge.types import Example, FinishReason, Grade, Score

_UNSETTLED = {"on_error": "zero", "default": None, "fallback": None}
LAST_STEPS = 20
"""Replayed unless told otherwise."""


def shift_of(found: ReplayReport) -> ScoreShift:
    """The figures of a replay that are kept with an update."""
    moves = {
        one.name: FunctionMove(one.mean_before, one.mean_after, one.errors_before, one.errors_after)
        for one in found.functions
    }
    return ScoreShift(
        first_step=found.first_step,
        last_step=found.last_step,
        num_completions=found.num_completions,
        reward_before=found.reward_mean_before,
        reward_after=found.reward_mean_after,
        reward_std_before=found.reward_std_before,
        pairs_turned=found.pairs_turned,
        silenced=found.num_silenced / found.num_groups,
        functions=moves,
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """The completions of one prompt in one step, as the run holds them."""

    rows: tuple[CompletionRow, ...]
    scores: tuple[tuple[Score, ...], ...]
    """[G]"""

    def scores_of(self, name: str) -> list[Score | None]:
        """[G] None where a completion has no such score."""
        return [next((score for score in scores if score.name == name), None) for scores in self.scores]


def replay(
    run: Run,
    functions: Sequence[RewardFunction],
    last: int = LAST_STEPS,
    *,
    num_most_changed: int = 10,
    unsafe_no_sandbox: bool = False,
    progress: Progress = no_progress,
) -> ReplayReport:
    """Judge the completions of the last `last` steps by `functions` and compare with what the run stored.

    Of these steps only those count that the run's present functions judged, where there are any: what an earlier change
    moved is not laid to this one. The run is only read. `functions` are all that would judge, also those that stay as
    they are; the length penalty (`overlong`) stays in any case. Raises DataError when the run's data is not what it
    was.
    """
    config = stored_config(run)
    if unsafe_no_sandbox:
        runtime = config.reward_fns.runtime.model_copy(update={"unsafe_no_sandbox": True})
        config = config.model_copy(update={"reward_fns": config.reward_fns.model_copy(update={"runtime": runtime})})
    steps = _steps(run)[-last:]
    if not steps:
        raise UsageError(f"{run.path} has no completions yet.", hint="Replay it after its first step.")
    stored = {step: list(_groups(run, step)) for step in steps}
    scores = _judge(run, config, functions, [group for groups in stored.values() for group in groups], progress)
    after = iter(scores)
    groups: list[ReplayedGroup] = []
    for of_step in stored.values():
        grades_PG = [next(after) for _ in of_step]
        rewards_PG = [[grade.reward for grade in grades] for grades in grades_PG]
        advantages_PG = advantages(rewards_PG, config.scale_rewards)
        groups += map(_replayed, of_step, grades_PG, advantages_PG)
    return report(groups, num_most_changed=num_most_changed)


def _steps(run: Run) -> list[int]:
    """With completions: those since the last change of the functions, all of them where there are none since."""
    steps = [row.step for row in run.steps() if row.num_completions]
    changed_after = max((update.step for update in run.reward_updates()), default=0)
    return [step for step in steps if step > changed_after] or steps


def _groups(run: Run, step: int) -> Iterator[_Stored]:
    rows = run.completions(step=step, limit=-1)
    scores = run.scores(row.id for row in rows)
    for _, of_place in groupby(rows, key=lambda row: row.place):
        group = tuple(of_place)
        yield _Stored(group, tuple(tuple(map(_score, scores[row.id])) for row in group))


def _score(row: ScoreRow) -> Score:
    values = asdict(row)
    del values["completion"]
    return Score(**values)


def _judge(
    run: Run, config: GRPOConfig, functions: Sequence[RewardFunction], groups: Sequence[_Stored], progress: Progress
) -> list[tuple[Grade, ...]]:
    """[groups][G] What `functions` say of every completion."""
    known = {function.version: function for function in _ever_known(run)}
    changed = [function for function in functions if not _is_stored(function, groups, known)]
    judged: list[tuple[Grade, ...]] = [() for _ in groups]
    if changed:
        examples = _examples(run, config)
        prompts = run.prompts([group.rows[0].example for group in groups])
        rewards = config.reward_fns
        # What becomes of failed scores is settled below, where those of the other functions are at hand.
        alone = {name: own.model_copy(update=_UNSETTLED) for name, own in rewards.settings.items()}
        with closing(RewardFunctionGrader(changed, rewards.runtime, alone, judge=rewards.judge)) as grader:
            pending: list[Future[tuple[Grade, ...]]] = []
            for group in groups:
                example = group.rows[0].example
                case = _case(run, group.rows, examples[example], prompts[example].text, changed)
                pending.append(grader.grade_case(case))
            num_completions = sum(len(group.rows) for group in groups)
            judged = awaited(pending, num_completions, "completions judged again", progress)
    own = {function.name for function in known.values()}
    return [
        tuple(
            settle(_merged(functions, own, scores, judged[at][place] if changed else None), config.reward_fns.settings)
            for place, scores in enumerate(group.scores)
        )
        for at, group in enumerate(groups)
    ]


def _ever_known(run: Run) -> Iterator[RewardFunction]:
    yield from run_functions(run)
    for update in run.reward_updates():
        yield from run_functions(run, update.functions)


def _is_stored(function: RewardFunction, groups: Sequence[_Stored], known: Mapping[str, RewardFunction]) -> bool:
    """Whether every one of these completions was judged by the same text already; the weight does not matter."""

    def is_same(score: Score | None) -> bool:
        other = None if score is None else known.get(score.version)
        return other is not None and _text_of(other) == _text_of(function)

    return all(is_same(score) for group in groups for score in group.scores_of(function.name))


def _text_of(function: RewardFunction) -> tuple[str, str, str]:
    return function.source, function.function_name, function.dialect


def _merged(functions: Sequence[RewardFunction], own: set[str], stored: Sequence[Score], judged: Grade | None) -> Grade:
    """The scores in the order of the functions: judged anew, or as stored. Scores that come from no function of the
    run (the length penalty) stay at the end."""
    anew = {score.name: score for score in judged.scores} if judged else {}
    before = {score.name: score for score in stored}
    scores = [
        anew[function.name]
        if function.name in anew
        else replace(before[function.name], version=function.version, weight=function.weight, stand_in=None)
        for function in functions
    ]
    named = own | {function.name for function in functions}
    return Grade((*scores, *(score for score in stored if score.name not in named)))


def _case(
    run: Run,
    rows: Sequence[CompletionRow],
    example: Example,
    prompt_text: str,
    functions: Sequence[RewardFunction],
) -> Case:
    takes_ids = [f for f in functions if f.takes_token_ids and "completion_ids" in f.source]
    token_ids: list[tuple[int, ...]] = []
    for row in rows:
        tokens = run.tokens(row.id) if takes_ids else None
        if takes_ids and tokens is None:
            raise UsageError(
                f"{takes_ids[0].name} takes completion_ids, and those of step {row.step} are no longer kept.",
                hint="Replay fewer steps: --last N. (keep_tokens_steps says how many a run keeps.)",
            )
        token_ids.append(() if tokens is None else tokens.token_ids)
    reasons = tuple(cast(FinishReason, row.finish_reason) for row in rows)
    return Case(example, prompt_text, tuple(row.text for row in rows), tuple(token_ids), reasons)


def _examples(run: Run, config: GRPOConfig) -> dict[int, Example]:
    """The training rows by their number; DataError when they are not those the run began with."""
    train, heldout = load_data(config.data, Path(run.about["base_dir"]), config.seed, stored_rows(run))
    if fingerprint([*train, *heldout]) != run.about["fingerprints"]["data"]:
        raise DataError(
            f"The data of {run.path} is not what the run began with (its hash differs).",
            hint="Put it back as it was: the rows hold what reward functions compare with.",
        )
    return {example.index: example for example in train}


def _replayed(stored: _Stored, grades: Sequence[Grade], advantages_G: Sequence[float]) -> ReplayedGroup:
    return [
        ReplayedCompletion(
            id=row.id,
            step=row.step,
            example=row.example,
            generation=row.generation,
            text=row.text,
            before=Grade(scores),
            after=grade,
            advantage_before=row.advantage,
            advantage_after=advantage,
        )
        for row, scores, grade, advantage in zip(stored.rows, stored.scores, grades, advantages_G, strict=True)
    ]
