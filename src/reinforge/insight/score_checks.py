"""Checks of the scores as numbers: G08 to G15, G25."""

from __future__ import annotations

import math
from collections.abc import Iterator

from reinforge.insight.findings import (
    Evidence,
    Finding,
    earned,
    evidence_of,
    finding,
    label,
    one_per_probe,
    probes_in_words,
)
from reinforge.insight.trials import TOTAL, FunctionInfo, Kind, Trial, Trials, median, value_in

NOT_FINITE = ("not_finite", "out_of_range")
SLOW_S, TOO_SLOW_S = 5.0, 120.0
"""95th percentile of a call; 120 s is where OpenAI's graders are cut off."""
JUDGE_SHARE = 0.1
"""Of its range that a judge's score of the same completion may differ by."""
DOMINANT = 0.9


def scores_are_numbers(trials: Trials) -> Iterator[Finding]:
    """G08: numeric, finite, within 0 to 1 (S0-121, S0-133)."""
    for function in trials.functions:
        failed = [(trial, score) for trial in trials.trials if (score := trial.score(function.name)) is not None]
        infinite = [trial for trial, score in failed if score.kind in NOT_FINITE]
        other = [trial for trial, score in failed if score.kind in ("not_a_number", "not_a_result")]
        if infinite:
            yield _not_numbers(function, "blocking", "no finite number", infinite)
        if other:
            yield _not_numbers(function, "warning", "no number", other)
        outside = [
            trial
            for trial in trials.trials
            if trial.kind != "fuzz" and not 0.0 <= earned(trial, function.name) <= 1.0 + 1e-9
        ]
        if outside:
            scale = trials.scale(function.name)
            yield finding(
                "G08",
                "scores_in_range",
                "warning",
                function.name,
                f"{function.name} gives {scale.low:.3g} to {scale.high:.3g}",
                value=scale.high if scale.high > 1 else scale.low,
                threshold="0 (wrong) to 1 (right)",
                fix="Other ranges work; weights are easier to read when every function gives 0 to 1.",
                evidence=evidence_of(one_per_probe(outside), function.name),
            )


def _not_numbers(function: FunctionInfo, verdict: str, what: str, trials: list[Trial]) -> Finding:
    scores = [score for trial in trials if (score := trial.score(function.name)) is not None]
    return finding(
        "G08",
        "scores_are_numbers",
        "blocking" if verdict == "blocking" else "warning",
        function.name,
        f"{function.name} returns {what} for {len(trials)} completions: {scores[0].message}",
        value=float(len(trials)),
        threshold="0",
        fix="Return a finite number in every case, 0.0 for what cannot be scored.",
        evidence=[
            Evidence(trial.row, trial.probe, None, trial.text, score.message)
            for trial, score in zip(trials, scores, strict=True)
        ],
    )


def scores_repeat(trials: Trials) -> Iterator[Finding]:
    """G09: the same completion gets the same score again, in a fresh process and in another order (S0-065)."""
    for function in trials.functions:
        differences = [
            (abs(first - second), trial)
            for trial in trials.trials
            if trial.again is not None
            and (first := trial.value(function.name)) is not None
            and (second := value_in(trial.again, function.name)) is not None
        ]
        allowed = JUDGE_SHARE * trials.scale(function.name).span if function.is_judge else 1e-9
        changed = sorted((d for d in differences if d[0] > allowed), key=lambda d: -d[0])
        if changed:
            yield finding(
                "G09",
                "scores_repeat",
                "warning",
                function.name,
                f"{function.name} scores {len(changed)} of {len(differences)} completions differently the second time, "
                f"by up to {changed[0][0]:.3g}",
                value=changed[0][0],
                threshold="the same score" if not function.is_judge else f"within {allowed:.3g}",
                fix="Seed what is random, keep nothing in globals between calls, and read no clock.",
                evidence=[
                    Evidence(
                        trial.row,
                        trial.probe,
                        trial.value(function.name),
                        trial.text,
                        f"then {value_in(trial.again, function.name):.3g}" if trial.again else "",
                    )
                    for _, trial in changed
                ],
            )


def calls_are_quick(trials: Trials) -> Iterator[Finding]:
    """G10: 95 of 100 calls within 5 s."""
    for function in trials.functions:
        timed = [
            score.latency_s
            for trial in trials.trials
            if trial.kind != "fuzz" and (score := trial.score(function.name)) is not None and not score.cached
        ]
        if not timed:
            continue
        p95 = sorted(timed)[min(len(timed) - 1, math.ceil(0.95 * len(timed)) - 1)]
        if p95 > SLOW_S:
            yield finding(
                "G10",
                "calls_are_quick",
                "blocking" if p95 > TOO_SLOW_S else "warning",
                function.name,
                f"95 of 100 calls of {function.name} take up to {p95:.1f} s (half of them {median(timed):.1f} s)",
                value=p95,
                threshold=f"at most {SLOW_S:g} s; blocking above {TOO_SLOW_S:g} s",
                fix="The model waits for it. Do the slow part once per row, or raise reward_fns.runtime.workers.",
            )


SOUND: tuple[Kind, ...] = ("gold", "partial", "wrong", "constant", "same", "case", "ladder")
"""Completions of the right form: a function that fails on these fails in training, whatever the model learns."""


def calls_succeed(trials: Trials) -> Iterator[Finding]:
    """G11: calls that fail, by kind. On completions of no sound form it only warns (S0-068, S0-089)."""
    for function in trials.functions:
        for sound in (True, False):
            yield from _failures(function, [t for t in trials.trials if (t.kind in SOUND) == sound], sound)


def _failures(function: FunctionInfo, tried: list[Trial], sound: bool) -> Iterator[Finding]:
    by_kind: dict[str, list[Trial]] = {}
    for trial in tried:
        score = trial.score(function.name)
        if score is not None and score.state != "ok":
            by_kind.setdefault(score.kind, []).append(trial)
    num_failed, what = sum(map(len, by_kind.values())), "well-formed" if sound else "malformed"
    for kind, failed in by_kind.items():
        first = failed[0].score(function.name)
        cause = "" if first is None else first.message.strip().partition("\n")[0]
        share = len(failed) / len(tried)
        yield finding(
            "G11",
            "calls_succeed" if sound else "calls_survive_anything",
            "blocking" if sound and num_failed > 0.1 * len(tried) else "warning",
            function.name,
            f"{function.name}: {kind} on {len(failed)} of {len(tried)} {what} completions ({cause}): "
            f"{probes_in_words(failed)}",
            value=share,
            threshold="0; blocking above 0.1" if sound else "0",
            fix="Return 0.0 for what the function cannot read; errors count as 0, and too many of them stop a run."
            if kind != "timeout"
            else "Make it fast on any text: a completion like this one holds up the whole step.",
            evidence=evidence_of(one_per_probe(failed), function.name),
        )


def scores_are_graded(trials: Trials) -> Iterator[Finding]:
    """G12: more than two values, so that better completions can be told apart (S0-091, S4-081)."""
    values = {name: _different(trials, name) for name in trials.names}
    whole = trials.whole
    if len(values[whole]) == 2:
        shown = " and ".join(f"{value:.3g}" for value in sorted(values[whole]))
        yield finding(
            "G12",
            "scores_are_graded",
            "warning",
            whole,
            f"{label(whole)} has only the values {shown}",
            value=2.0,
            threshold="more than 2",
            fix="Give part of the marks for part of the way: groups that all score the same teach nothing.",
        )
    two = [name for name in values if name != whole and len(values[name]) == 2]
    if two:
        yield finding(
            "G12",
            "scores_are_graded",
            "info",
            TOTAL,
            f"only two values each: {', '.join(two)}",
            value=2.0,
            threshold="more than 2",
            fix="Marks for part of the way teach faster.",
        )


def _different(trials: Trials, name: str) -> set[float]:
    return {
        round(value, 9)
        for trial in trials.trials
        if trial.kind not in ("fuzz", "case") and (value := trial.value(name)) is not None
    }


def no_function_dominates(trials: Trials) -> Iterator[Finding]:
    """G13: no weighted part makes up more than 90 % of the reward's variance, and none has no variance (S0-067)."""
    counted = [t for t in trials.trials if t.kind not in ("fuzz", "case") and t.grade.reward is not None]
    if len(counted) < 2:
        return
    variances = {
        function.name: function.weight**2 * _variance([earned(trial, function.name) for trial in counted])
        for function in trials.functions
    }
    total = sum(variances.values())
    for function in trials.functions:
        values = {earned(trial, function.name) for trial in counted}
        if len(values) == 1 and values != {0.0}:
            yield finding(
                "G13",
                "dead_reward",
                "warning",
                function.name,
                f"{function.name} gives every one of {len(counted)} completions {values.pop():.3g}: it teaches nothing",
                value=0.0,
                threshold="a variance above 0",
                fix="Remove it, or make it look at the completion.",
            )
        share = variances[function.name] / total if total else 0.0
        if len(trials.functions) > 1 and share > DOMINANT:
            yield finding(
                "G13",
                "no_function_dominates",
                "warning" if trials.weights_given else "info",
                function.name,
                f"{function.name} makes up {share:.0%} of the reward's variance",
                value=share,
                threshold=f"at most {DOMINANT:.0%}",
                fix="The others hardly count: change the weights if they should.",
            )


def _variance(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def weights_sum_to_one(trials: Trials) -> Iterator[Finding]:
    """G14: a reward of 1 then means right in every respect."""
    total = math.fsum(function.weight for function in trials.functions)
    if trials.weights_given and len(trials.functions) > 1 and abs(total - 1) > 1e-9:
        yield finding(
            "G14",
            "weights_sum_to_one",
            "info",
            TOTAL,
            f"the weights sum to {total:.3g}",
            value=total,
            threshold="1",
            fix="Any sum trains the same way; with 1, a reward of 1 means right in every respect.",
        )


def form_and_content(trials: Trials) -> Iterator[Finding]:
    """G15: at least one function about form and one about content (S0-178), told by what they do: content tells a right
    answer from a wrong one in the same form, form tells a right completion from a cut-off or bare one."""
    judges = [function.name for function in trials.functions if function.is_judge]
    content = [f.name for f in trials.functions if _prefers_gold(trials, f.name, "wrong")]
    form = [f.name for f in trials.functions if _prefers_gold(trials, f.name, "damaged")]
    if not trials.of("gold") or not trials.of("wrong") or judges:
        return
    if not content:
        yield finding(
            "G15",
            "form_and_content",
            "warning",
            TOTAL,
            "no function tells a right answer from a wrong one in the same form",
            value=0.0,
            threshold="at least 1",
            fix="Add a function that compares the answer with the row's.",
        )
    if not form:
        yield finding(
            "G15",
            "form_and_content",
            "info",
            TOTAL,
            "no function cares about the form of a completion",
            value=0.0,
            threshold="at least 1",
            fix="A small reward for the form (tag_format, say) gives the first steps something to learn from.",
        )


def _prefers_gold(trials: Trials, name: str, kind: str) -> bool:
    margin = 0.1 * trials.scale(name).span
    golds = {trial.row: trial for trial in trials.of("gold")}
    others = [trial for trial in trials.trials if trial.kind == kind and trial.row in golds]
    less = [trial for trial in others if earned(trial, name) < earned(golds[trial.row], name) - margin]
    return margin > 0 and (4 * len(less) > len(others) if kind == "damaged" else 2 * len(less) > len(others))


def columns_are_read_back(trials: Trials) -> Iterator[Finding]:
    """G25: a function that gives right completions more when columns keep their types takes text for what it is not
    (S0-100..103)."""
    for function in trials.functions:
        name = function.name
        margin = 0.1 * max(trials.scale(name).span, max((earned_typed(t, name) for t in trials.trials), default=0.0))
        better = [
            t for t in trials.of("gold") if t.typed is not None and earned_typed(t, name) > earned(t, name) + margin
        ]
        if better:
            yield finding(
                "G25",
                "columns_are_read_back",
                "blocking" if 2 * len(better) >= len(trials.of("gold")) else "warning",
                name,
                f"right completions get {earned(better[0], name):.3g} from {name}, and "
                f"{earned_typed(better[0], name):.3g} if columns keep their types: it takes text for numbers or lists",
                value=earned(better[0], name),
                threshold="the same",
                fix="Read columns back (reinforge rewards helpers), or set reward_fns.runtime.typed_examples: true.",
                evidence=evidence_of(better, name),
            )


def earned_typed(trial: Trial, name: str) -> float:
    return 0.0 if trial.typed is None else value_in(trial.typed, name) or 0.0
