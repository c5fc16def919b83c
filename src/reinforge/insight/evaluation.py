"""Held-out evaluation in numbers: pass@1 with an honest interval, the mean of each function, greedy beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_Z95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One completion of a held-out prompt."""

    reward: float | None
    """None when masked: the completion does not count."""
    correct: bool | None
    """None when the function that tells failed or does not apply: left out of pass@1, and counted."""
    values: tuple[tuple[str, float | None], ...] = ()
    """(function, value) where it gave one."""
    truncated: bool = False
    failed: tuple[str, ...] = ()
    """Functions that failed on it; each counts as 0 in the reward, or as what stands in for it."""


@dataclass(frozen=True, slots=True)
class PromptOutcomes:
    """What came of one held-out prompt."""

    sampled: tuple[Outcome, ...]
    """At the training temperature."""
    greedy: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one held-out evaluation."""

    pass_at_1: float | None
    """Chance that one sampled completion is correct, every prompt weighing the same; None when nothing was valid.
    Completions of which that is not known are left out: see `num_left_out`."""
    ci95: tuple[float, float] | None
    reward_mean: float | None
    """Of sampled completions, every prompt weighing the same; failed calls count as they do in training: see
    `errors`."""
    function_means: dict[str, float]
    """Of the values the functions gave; a failed call gives none."""
    errors: dict[str, int]
    """Function -> failed calls on sampled completions, where there were any."""
    truncated_share: float | None
    greedy_pass_at_1: float | None
    greedy_ci95: tuple[float, float] | None
    num_prompts: int
    """With at least one valid sampled completion."""
    num_samples: int
    """Valid sampled completions."""
    num_left_out: int = 0
    """Sampled completions that are not in pass@1: masked, or the function that tells what is correct gave no value."""

    def as_json(self, step: int) -> dict[str, Any]:
        """For `Run.save_evaluation`; `score` is the headline."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {"step": step, "score": self.pass_at_1, **fields}


def evaluate_outcomes(prompts: Sequence[PromptOutcomes]) -> Evaluation:
    """Sum up a held-out evaluation. Masked completions, and prompts without a valid one, are left out; so
    are, of pass@1, those of which it is not known whether they are correct.

    Example:
        >>> right, wrong = Outcome(1.0, True, (("f", 1.0),)), Outcome(0.0, False, (("f", 0.0),))
        >>> result = evaluate_outcomes([PromptOutcomes((right, wrong), greedy=right), PromptOutcomes((right, right))])
        >>> result.pass_at_1, result.function_means, result.greedy_pass_at_1
        (0.75, {'f': 0.75}, 1.0)
    """
    sampled = [valid for prompt in prompts if (valid := _valid(prompt.sampled))]
    greedy = [[prompt.greedy] for prompt in prompts if prompt.greedy is not None and prompt.greedy.reward is not None]
    outcomes = [outcome for valid in sampled for outcome in valid]
    correct = [known for valid in sampled if (known := _known(valid))]
    correct_greedy = [known for valid in greedy if (known := _known(valid))]
    return Evaluation(
        pass_at_1=_mean([_mean(row) for row in correct]),
        ci95=clustered_interval(correct),
        reward_mean=_mean([_mean([outcome.reward for outcome in valid]) for valid in sampled]),
        function_means=_function_means(sampled),
        errors=dict(Counter(name for outcome in outcomes for name in outcome.failed)),
        truncated_share=_mean([outcome.truncated for outcome in outcomes]),
        greedy_pass_at_1=_mean([_mean(row) for row in correct_greedy]),
        greedy_ci95=clustered_interval(correct_greedy),
        num_prompts=len(sampled),
        num_samples=len(outcomes),
        num_left_out=sum(len(prompt.sampled) for prompt in prompts) - sum(map(len, correct)),
    )


def clustered_interval(correct: Sequence[Sequence[bool]]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean over prompts of each prompt's share of correct completions.

    Completions of one prompt resemble each other, so prompts are the independent units. With p_i the share of prompt i
    of m, p their mean, the squared standard error is

        SE^2 = sum (p_i - p)^2 / (m (m - 1))      (clustered standard error: Miller 2024, arXiv 2411.00640, section 2.2)

    Wilson's score interval is then taken at the effective sample size n = p (1 - p) / SE^2, kept within m..all
    completions (Korn and Graubard 1998; compared with others for clustered data by Franco et al. 2019). Unlike
    p +- 1.96 SE it stays within 0..1 and does not shrink to a point when every completion is right, or none.
    None for no prompt.

    >>> low, high = clustered_interval([[True] * 4] * 30)
    >>> round(low, 3), round(high, 3)
    (0.886, 1.0)
    """
    shares = [sum(row) / len(row) for row in correct if row]
    if not shares:
        return None
    num_prompts = len(shares)
    mean = math.fsum(shares) / num_prompts
    spread = math.fsum((share - mean) ** 2 for share in shares)
    most = sum(len(row) for row in correct)
    num = float(num_prompts)
    if num_prompts > 1 and 0.0 < mean < 1.0:
        num = mean * (1 - mean) * num_prompts * (num_prompts - 1) / spread if spread > 0 else most
    return _wilson(mean, min(max(num, num_prompts), most))


def _wilson(mean: float, num: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share seen in `num` independent trials."""
    shrink = 1 + _Z95**2 / num
    middle = (mean + _Z95**2 / (2 * num)) / shrink
    half = _Z95 / shrink * math.sqrt(mean * (1 - mean) / num + _Z95**2 / (4 * num**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _valid(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.reward is not None]


def _known(outcomes: Sequence[Outcome]) -> list[bool]:
    return [outcome.correct for outcome in outcomes if outcome.correct is not None]


def _function_means(sampled: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """Every prompt weighs the same; prompts the function does not apply to are left out."""
    per_prompt: dict[str, list[float]] = {}
    for outcomes in sampled:
        values: dict[str, list[float]] = {}
        for name, value in (pair for outcome in outcomes for pair in outcome.values):
            if value is not None:
                values.setdefault(name, []).append(value)
        for name, of_function in values.items():
            per_prompt.setdefault(name, []).append(math.fsum(of_function) / len(of_function))
    return {name: math.fsum(means) / len(means) for name, means in per_prompt.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
