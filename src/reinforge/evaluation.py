"""Evaluation on held-out prompts: the path of training, without a gradient."""

from __future__ import annotations

from collections.abc import Sequence

from reinforge.config import EvalConfig
from reinforge.insight.evaluation import Evaluation, Outcome, PromptOutcomes, evaluate_outcomes
from reinforge.insight.outcome import is_correct
from reinforge.roles import Grader, Sampler
from reinforge.rollout.collect import Look, collect
from reinforge.types import Group, Prompt, SampleRequest

EVALUATION_KEY = -1
"""Takes the place of the step in the keys of randomness: every evaluation of a run draws with the same numbers, so two
of them differ by the policy, not by luck."""


def evaluate(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    grader: Grader,
    settings: EvalConfig,
    seed: int,
    look: Look | None = None,
) -> tuple[Evaluation, tuple[Group, ...]]:
    """Score the sampler's policy on the first `settings.max_prompts` prompts -> (figures, the sampled groups).

    The headline is pass@1 at the training temperature; greedy decoding stands beside it as it is. `look` sees what is
    there of either while it is made.
    """
    chosen = prompts[: settings.max_prompts]
    requests = [
        SampleRequest(prompt, settings.samples_per_prompt, (seed, EVALUATION_KEY, place))
        for place, prompt in enumerate(chosen)
    ]
    epochs = [0] * len(requests)
    groups = collect(requests, epochs, sampler, grader, look=look).groups
    greedy: tuple[Group | None, ...] = (None,) * len(groups)
    if settings.greedy:
        single = [SampleRequest(request.prompt, 1, request.key, greedy=True) for request in requests]
        greedy = collect(single, epochs, sampler, grader, look=look).groups
    outcomes = [
        PromptOutcomes(_outcomes(group, settings), _outcomes(alone, settings)[0] if alone else None)
        for group, alone in zip(groups, greedy, strict=True)
    ]
    return evaluate_outcomes(outcomes), groups


def _outcomes(group: Group, settings: EvalConfig) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(
            reward=grade.reward,
            correct=is_correct(grade, settings.correct_fn, settings.correct_from),
            values=tuple((score.name, score.value) for score in grade.scores),
            truncated=completion.is_truncated,
            failed=tuple(score.name for score in grade.scores if score.state == "error"),
        )
        for completion, grade in zip(group.completions, group.grades, strict=True)
    )
