"""The metrics of a step: pure functions of its groups, and the registry of every metric's meaning.

Every value is finite: one that cannot be computed (a std of one number, a mean of none) is left out, and a non-finite
one is left out and counted in `policy/non_finite`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from reinforge.insight.outcome import GroupOutcome, group_outcome
from reinforge.types import Completion, Group, Score

METRICS: dict[str, str] = {
    "reward/mean": "Mean reward of the step's valid completions (masked ones have none), as it is trained on: a failed "
    "call counts in it as 0, or as what stands in for it. Read it beside reward/error_share.",
    "reward/std": "Standard deviation (Bessel-corrected) of these rewards over the whole step.",
    "reward/group_std_mean": "Mean over groups of the standard deviation inside the group: what advantages divide by.",
    "reward/error_share": "Share of completions on which a reward function failed (0..1).",
    "reward/masked_share": "Share of completions without a reward: grading machinery failed, or no function applied.",
    "reward/<function>/mean": "Mean value of this function, unweighted, where it gave one.",
    "reward/<function>/std": "Standard deviation (Bessel-corrected) of these values over the whole step.",
    "reward/<function>/errors": "Number of calls in which this function failed; each counts as 0 in the reward.",
    "reward/<function>/masked": "Number of calls lost to the grading machinery; their completions are left out.",
    "reward/<function>/latency_mean_s": "Mean seconds of a call.",
    "reward/<function>/latency_max_s": "Seconds of the slowest call.",
    "reward/<function>/<figure>/mean": "Mean of a figure that this function told beside its scores: a line or "
    "dimension of a rubric, a part of a multi grader, an entry of a result's metrics. Failed calls are left out.",
    "reward/<function>/<figure>/std": "Standard deviation (Bessel-corrected) of that figure over the whole step.",
    "group/learning_share": "Share of groups whose rewards differ (0..1): the only ones the policy learns from.",
    "group/zero_variance_share": "Share of groups whose valid rewards are all equal; the five below add up to it.",
    "group/all_right_share": "Share of groups with equal rewards, every completion correct: prompts that are too easy.",
    "group/all_wrong_share": "Share of groups with equal rewards, no completion correct: prompts that are too hard, "
    "or a function that never fires.",
    "group/all_truncated_share": "Share of groups with equal rewards, every completion cut off by max_tokens "
    "and not all correct: no answer was possible.",
    "group/all_error_share": "Share of groups with equal rewards because a reward function failed on every completion.",
    "group/all_equal_share": "Share of groups with equal rewards for correct and incorrect completions alike.",
    "group/dropped": "Number of groups with fewer than two valid completions: nothing to compare.",
    "group/drawn": "Number of groups sampled for the step, with dynamic sampling; other group/... figures are of all.",
    "group/kept_share": "Share of these that are in the batch (0..1); the others are recorded with advantage 0.",
    "group/extended_share": "Share of groups sampled whole, with adaptive groups (0..1).",
    "completion/tokens_mean": "Mean length of a completion in tokens.",
    "completion/tokens_p10": "Length in tokens that 10 % of the completions do not exceed (interpolated).",
    "completion/tokens_p50": "Median length in tokens.",
    "completion/tokens_p90": "Length in tokens that 90 % of the completions do not exceed (interpolated).",
    "completion/tokens_max": "Longest completion in tokens.",
    "completion/terminated_tokens_mean": "Mean length in tokens of the completions that ended by themselves.",
    "completion/truncated_share": "Share of completions cut off by max_tokens (0..1).",
    "completion/distinct_2": "Distinct pairs of neighbouring tokens / all pairs, within a group, mean over groups: "
    "low means repetitive or alike.",
    "completion/unique_share": "Distinct completions / all, within a group, mean over groups: 1 means all differ.",
    "policy/loss": "The loss that was minimised. Near 0 at one update per batch is normal: advantages cancel.",
    "policy/entropy": "Mean entropy of the next-token distribution at completion tokens, in nats.",
    "policy/kl": "Mean KL divergence from the reference per completion token, in nats (k3 estimator).",
    "policy/clip_low_share": "Share of tokens whose ratio was below the clip range with a negative advantage (0..1).",
    "policy/clip_high_share": "Share of tokens whose ratio was above the clip range with a positive advantage (0..1).",
    "policy/clip_region_share": "Share of tokens clipped on either side; 0 at one update per batch.",
    "policy/ratio_max": "Largest ratio of the policy to the one that sampled.",
    "policy/importance_mean": "Mean weight of importance correction, after the cap; near 1 when little is corrected.",
    "policy/importance_max": "Largest ratio of the learner's to the drawn probability, before the cap.",
    "policy/importance_capped_share": "Share of ratios above the cap (0..1); tokens, at sequence level completions.",
    "policy/lag": "Steps between the policy that sampled the batch and the one that learns, with `max_policy_lag`.",
    "policy/grad_norm": "Norm of the gradient before clipping.",
    "policy/learning_rate": "Learning rate of this step.",
    "policy/microbatch_tokens": "Most tokens in one forward and backward pass: lowered when memory runs out.",
    "policy/logprob_gap_mean": "Mean |sampler's - learner's logprob| per token, in nats: a check of the machinery.",
    "policy/logprob_gap_max": "Largest such gap of one token.",
    "policy/trained_tokens": "Number of completion tokens in the loss.",
    "policy/skipped_share": "Share of completions that cost no forward pass because they teach nothing (0..1).",
    "policy/non_finite": "Number of metrics that were infinite or not a number in this step and were left out.",
    "time/rollout_s": "Seconds of sampling.",
    "time/reward_wait_s": "Seconds of waiting for rewards after the last completion was there.",
    "time/update_s": "Seconds of the learner's update.",
    "time/ahead_wait_s": "Seconds of waiting, after the update, for the batch that is drawn beside it (policy lag).",
    "time/publish_s": "Seconds of handing the new adapter to the sampler.",
    "time/record_s": "Seconds of writing the step before this one into run.db.",
    "time/step_s": "Seconds of the whole step.",
    "speed/tokens_per_s": "Sampled completion tokens / time/rollout_s.",
    "speed/guessed_share": "Share of sampled tokens that cost no pass of their own because they were guessed right "
    "(0..1; sampling_params.speculation).",
    "speed/draft_accepted_share": "Share of guessed tokens that were right, where any were guessed (0..1).",
    "speed/<function>/cache_hits": "Number of scores taken from the cache of a pure function instead of a call, or "
    "from what a judge has answered before.",
    "network/connections": "Number of connections that reward functions asked for and that have ended.",
    "network/refused": "Number of these that the rules refused (reward_fns.runtime.allowed_hosts).",
    "network/failed": "Number of these that nobody answered.",
    "network/cut": "Number of these that ended at a limit of bytes or time.",
    "network/sent_bytes": "Bytes sent over them.",
    "network/received_bytes": "Bytes received over them.",
    "gold/changed": "Number of scores of right completions (reward_fns.recheck) that differ from those at the start.",
    "gold/<function>/mean": "Mean value of this function for right completions, where it gave one.",
    "judge/calls": "Number of requests sent to judges, for training; those of a held-out evaluation stand in its file.",
    "judge/questions": "Number of questions asked of judges: equal ones once, however many requests one took.",
    "judge/cached": "Number of questions that judges had answered before.",
    "judge/retries": "Number of requests sent again after a fault.",
    "judge/repairs": "Number of replies that could not be read and were asked for again.",
    "judge/faults": "Number of questions without an answer; their completions are masked.",
    "judge/masked_share": "judge/faults / judge/questions (0..1).",
    "judge/prompt_tokens": "Tokens sent to judges, as the endpoint counts them, else estimated.",
    "judge/completion_tokens": "Tokens generated by judges, likewise.",
    "judge/cost": "What these tokens cost by reward_fns.judge.prices.",
}
"""Name pattern -> meaning, with unit. `<function>` stands for the name of a reward function, `<figure>` for that of one
of its further figures."""

_PATTERNS = [re.compile(re.escape(name).replace("<function>", ".+").replace("<figure>", ".+")) for name in METRICS]
MAX_FIGURES = 32
"""Further figures of a function that become metrics, the first by name: functions choose these names."""


def is_registered(name: str) -> bool:
    """Whether METRICS explains a metric.

    >>> is_registered("reward/format/latency_max_s"), is_registered("reward/format/speed")
    (True, False)
    """
    return any(pattern.fullmatch(name) for pattern in _PATTERNS)


def step_metrics(
    groups: Sequence[Group],
    update: Mapping[str, float],
    times: Mapping[str, float],
    correct_fn: str | None = None,
    correct_from: float = 1.0,
) -> dict[str, float]:
    """Everything that is known of a step: `update` from the learner (`policy/...`), `times` from the loop (`time/...`),
    and what follows from the groups collected for it (none when the step reused an earlier batch)."""
    metrics = {**update, **times}
    if groups:
        metrics |= reward_metrics(groups)
        metrics |= group_metrics(groups, correct_fn, correct_from)
        metrics |= completion_metrics(groups)
        if times.get("time/rollout_s", 0.0) > 0:
            num_tokens = sum(completion.num_tokens for group in groups for completion in group.completions)
            metrics["speed/tokens_per_s"] = num_tokens / times["time/rollout_s"]
    finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    if len(finite) < len(metrics):
        finite["policy/non_finite"] = float(len(metrics) - len(finite))
    return finite


def reward_metrics(groups: Iterable[Group]) -> dict[str, float]:
    """`reward/...`: of the sum, and of each function."""
    grades = [grade for group in groups for grade in group.grades]
    rewards = [grade.reward for grade in grades if grade.reward is not None]
    group_stds = [_std(_valid(group)) for group in groups]
    scores: dict[str, list[Score]] = {}
    for score in (score for grade in grades for score in grade.scores):
        scores.setdefault(score.name, []).append(score)
    metrics = _known(
        {
            "reward/mean": _mean(rewards),
            "reward/std": _std(rewards),
            "reward/group_std_mean": _mean([std for std in group_stds if std is not None]),
            "reward/error_share": _mean([grade.state == "error" for grade in grades]),
            "reward/masked_share": _mean([grade.state == "masked" for grade in grades]),
        }
    )
    for name, of_function in scores.items():
        metrics |= _function_metrics(name, of_function)
    return metrics


def group_metrics(groups: Sequence[Group], correct_fn: str | None, correct_from: float) -> dict[str, float]:
    """`group/...`: what the groups teach, and why some teach nothing."""
    counts = Counter(group_outcome(group, correct_fn, correct_from) for group in groups)
    equal: tuple[GroupOutcome, ...] = ("all_right", "all_wrong", "all_truncated", "all_error", "all_equal")
    metrics = {f"group/{outcome}_share": counts[outcome] / len(groups) for outcome in ("learning", *equal)}
    metrics["group/zero_variance_share"] = sum(counts[outcome] for outcome in equal) / len(groups)
    metrics["group/dropped"] = float(counts["dropped"])
    return metrics


def completion_metrics(groups: Iterable[Group]) -> dict[str, float]:
    """`completion/...`: lengths, truncation, diversity."""
    groups = [group for group in groups if group.completions]
    completions = [completion for group in groups for completion in group.completions]
    lengths = sorted(completion.num_tokens for completion in completions)
    distinct = [distinct_2(group.completions) for group in groups]
    ended = [completion.num_tokens for completion in completions if not completion.is_truncated]
    return _known(
        {
            "completion/tokens_mean": _mean(lengths),
            "completion/tokens_p10": quantile(lengths, 0.1),
            "completion/tokens_p50": quantile(lengths, 0.5),
            "completion/tokens_p90": quantile(lengths, 0.9),
            "completion/tokens_max": quantile(lengths, 1.0),
            "completion/terminated_tokens_mean": _mean(ended),
            "completion/truncated_share": _mean([completion.is_truncated for completion in completions]),
            "completion/distinct_2": _mean([share for share in distinct if share is not None]),
            "completion/unique_share": _mean(
                [
                    len({completion.token_ids for completion in group.completions}) / len(group.completions)
                    for group in groups
                ]
            ),
        }
    )


def distinct_2(completions: Iterable[Completion]) -> float | None:
    """Distinct pairs of neighbouring tokens / all such pairs (distinct-2, Li et al. 2016, arXiv 1510.03055); None
    without a pair.

    >>> loop = Completion(0, (1, 2, 1, 2, 1), "", "stop", (), (), 0)
    >>> distinct_2([loop])
    0.5
    """
    num_pairs, pairs = 0, set[tuple[int, int]]()
    for completion in completions:
        num_pairs += max(completion.num_tokens - 1, 0)
        pairs.update(zip(completion.token_ids, completion.token_ids[1:], strict=False))
    return len(pairs) / num_pairs if num_pairs else None


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The value that `share` of the sorted values do not exceed, linear between neighbours; None of nothing.

    >>> quantile([10, 20, 40], 0.75)
    30.0
    """
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _function_metrics(name: str, scores: Sequence[Score]) -> dict[str, float]:
    values = [score.value for score in scores if score.value is not None]
    num_cached = sum(score.cached for score in scores)
    return _known(
        {
            f"speed/{name}/cache_hits": float(num_cached) if num_cached else None,
            f"reward/{name}/mean": _mean(values),
            f"reward/{name}/std": _std(values),
            f"reward/{name}/errors": float(sum(score.state == "error" for score in scores)),
            f"reward/{name}/masked": float(sum(score.state == "masked" for score in scores)),
            f"reward/{name}/latency_mean_s": _mean([score.latency_s for score in scores]),
            f"reward/{name}/latency_max_s": max(score.latency_s for score in scores),
            **_figure_metrics(name, scores),
        }
    )


def _figure_metrics(name: str, scores: Sequence[Score]) -> dict[str, float | None]:
    figures: dict[str, list[float]] = {}
    for score in scores:
        for figure, value in score.metrics.items() if score.state == "ok" else ():
            figures.setdefault(figure, []).append(value)
    metrics: dict[str, float | None] = {}
    for figure in sorted(figures)[:MAX_FIGURES]:
        metrics[f"reward/{name}/{figure}/mean"] = _mean(figures[figure])
        metrics[f"reward/{name}/{figure}/std"] = _std(figures[figure])
    return metrics


def _valid(group: Group) -> list[float]:
    return [reward for reward in group.rewards_G if reward is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    """Bessel-corrected; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _known(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}
