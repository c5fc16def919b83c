"""Checks of completions that are not right, or not quite: G05, G06, G07, G24, G28."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from reinforge.insight.findings import (
    TOLERANCE,
    Finding,
    earned,
    evidence_of,
    finding,
    label,
    one_per_probe,
    probes_in_words,
    rows_in_words,
)
from reinforge.insight.trials import TEXT_BEFORE, TEXT_BEHIND, Trial, Trials, median


def garbage_scores_low(trials: Trials) -> Iterator[Finding]:
    """G05: what is worth nothing gets less than half, and a wrong answer less than a right one."""
    name = trials.whole
    scale = trials.scale(name)
    if scale.span <= 0:
        return
    high = [trial for trial in trials.of("garbage") if (trial.value(name) or 0.0) >= scale.at(0.5)]
    if high:
        yield finding(
            "G05",
            "garbage_scores_low",
            "blocking",
            name,
            f"worthless completions get half of the marks or more: {probes_in_words(high)}",
            value=max(trial.value(name) or 0.0 for trial in high),
            threshold=f"below {scale.at(0.5):.3g}",
            fix="Give nothing for what says nothing; let functions about form count little beside those about content.",
            evidence=evidence_of(one_per_probe(high), name),
        )
    yield from _wrong_answers(trials, name)


def _wrong_answers(trials: Trials, name: str) -> Iterator[Finding]:
    golds = {trial.row: trial for trial in trials.of("gold")}
    wrong = [trial for trial in trials.of("wrong") if trial.row in golds and trial.value(name) is not None]
    span = trials.scale(name).span
    like_gold = [trial for trial in wrong if earned(trial, name) >= earned(golds[trial.row], name) - 0.1 * span]
    like_gold = [trial for trial in like_gold if earned(golds[trial.row], name) > trials.scale(name).at(0.5)]
    half = [trial for trial in wrong if earned(trial, name) > trials.scale(name).at(0.5) + 1e-9]
    if like_gold:
        yield finding(
            "G05",
            "wrong_answer_scores_low",
            "blocking" if len(like_gold) > 0.1 * len(wrong) else "warning",
            name,
            f"the right completion of another row gets as much as that of the row itself on {len(like_gold)} of "
            f"{len(wrong)} rows: answers are not compared",
            value=len(like_gold) / len(wrong),
            threshold="0",
            fix="Compare the answer with the row's own.",
            evidence=evidence_of(like_gold, name),
        )
    elif half:
        yield finding(
            "G05",
            "wrong_answer_scores_low",
            "warning" if trials.weights_given else "info",
            name,
            f"a wrong answer in the right form gets more than half of the marks on {len(half)} of {len(wrong)} rows",
            value=median(earned(trial, name) for trial in half),
            threshold=f"at most {trials.scale(name).at(0.5):.3g}",
            fix="Give the functions about form less weight.",
            evidence=evidence_of(half, name),
        )


def hacks_score_low(trials: Trials) -> Iterator[Finding]:
    """G06: completions made to please the function get clearly less than a right one (S4-082)."""
    name = trials.whole
    scale, golds = trials.scale(name), {trial.row: trial for trial in trials.of("gold")}
    won = [
        trial
        for trial in trials.of("hack")
        if trial.row in golds
        and trial.value(name) is not None
        and earned(golds[trial.row], name) > scale.at(0.5)
        and earned(trial, name) >= earned(golds[trial.row], name) - 0.1 * scale.span
    ]
    if won:
        yield finding(
            "G06",
            "hacks_score_low",
            "warning",
            name,
            f"tricks get as much as a right completion: {probes_in_words(won)}",
            value=max(earned(trial, name) for trial in won),
            threshold="0.1 of the range below a right completion",
            fix="Take exactly one answer, from the place it belongs in, and compare all of it.",
            evidence=evidence_of(one_per_probe(won), name),
        )
    yield from _constant(trials, name)


def _constant(trials: Trials, name: str) -> Iterator[Finding]:
    """G28: what always giving the most frequent answer earns (S4-080, S4-083)."""
    values = [value for trial in trials.of("constant") if (value := trial.value(name)) is not None]
    scale = trials.scale(name)
    if not values or scale.span <= 0:
        return
    mean = sum(values) / len(values)
    wrong = median(value for trial in trials.of("wrong") if (value := trial.value(name)) is not None) or 0.0
    if mean >= scale.at(0.5) and mean > wrong + 0.1 * scale.span:
        yield finding(
            "G28",
            "constant_answer",
            "warning",
            name,
            f"giving the most frequent answer of the data to every row gets {mean:.3g} on average",
            value=mean,
            threshold=f"below {scale.at(0.5):.3g}",
            fix="Balance the answers of the data, or give rare ones more weight.",
            evidence=evidence_of(trials.of("constant")[:1], name),
        )


def ladder_is_monotone(trials: Trials) -> Iterator[Finding]:
    """G07: better completions get more. The user's ladders strictly; gold, half of it, and one worth nothing at least
    not the other way round. (Another row's answer may well be nearer than half of the row's own.)"""
    name = trials.whole
    margin = TOLERANCE * trials.scale(name).span
    ladders: dict[int, list[Trial]] = {}
    for trial in trials.of("ladder"):
        ladders.setdefault(trial.ladder, []).append(trial)
    turned = [rungs for rungs in ladders.values() if _is_broken(rungs, name, lambda better, worse: better > worse)]
    if turned:
        yield _ladder_finding(name, "great, fair and poor", turned, len(ladders))
    made = list(_made_ladders(trials))
    turned = [rungs for rungs in made if _is_broken(rungs, name, lambda better, worse: better >= worse - margin)]
    if turned:
        yield _ladder_finding(name, "right, half right and worthless", turned, len(made))


def _made_ladders(trials: Trials) -> Iterator[list[Trial]]:
    golds = {trial.row: trial for trial in trials.of("gold")}
    nothing = {trial.row: trial for trial in trials.of("garbage")}
    for half in trials.of("partial"):
        if half.row in golds:
            yield [golds[half.row], half, *([nothing[half.row]] if half.row in nothing else [])]


def _is_broken(rungs: list[Trial], name: str, in_order: Callable[[float, float], bool]) -> bool:
    values = [earned(trial, name) for trial in rungs]
    return not all(in_order(better, worse) for better, worse in pairwise(values))


def _ladder_finding(name: str, what: str, turned: list[list[Trial]], num_all: int) -> Finding:
    return finding(
        "G07",
        "ladder_is_monotone",
        "blocking" if len(turned) > 0.1 * num_all else "warning",
        name,
        f"{what} completions are not in this order of {label(name)} in {len(turned)} of {num_all} cases",
        value=len(turned) / num_all,
        threshold="0",
        fix="Look at the completions below: which part of the score goes the wrong way?",
        evidence=[evidence for rungs in turned for evidence in evidence_of(rungs, name)],
    )


WHITE_SPACE_PROBES = {"line break behind", "line break before", "spaces around the answer"}
"""What they cost matters little: told as info."""


def near_gold_scores_alike(trials: Trials) -> Iterator[Finding]:
    """G24: other spellings of a right completion keep its score, and text before it costs what text behind it does
    (S4-034)."""
    name = trials.whole
    golds = {trial.row: trial for trial in trials.of("gold")}
    margin = TOLERANCE * trials.scale(name).span
    lost = [
        trial
        for trial in trials.of("same")
        if trial.row in golds and earned(trial, name) < earned(golds[trial.row], name) - margin
    ]
    if lost:
        least = min(earned(trial, name) for trial in lost)
        yield finding(
            "G24",
            "near_gold_scores_alike",
            "info" if {trial.probe for trial in lost} <= WHITE_SPACE_PROBES else "warning",
            name,
            f"right completions in another spelling get less, down to {least:.3g}: {probes_in_words(lost)}",
            value=least,
            threshold=f"within {TOLERANCE:g} of the range of the right completion",
            fix="Read the answer more tolerantly, or say in the prompt which spelling you want.",
            evidence=evidence_of(one_per_probe(lost), name),
        )
    yield from _around(trials, name, golds, margin)


MARKS = ("<", "{", "[", "`")
"""What a right completion of a fixed form begins with; where it begins with free text, more of it costs nothing."""


def _around(trials: Trials, name: str, golds: dict[int, Trial], margin: float) -> Iterator[Finding]:
    def loses(probe: str) -> dict[int, bool]:
        return {
            trial.row: earned(trial, name) < earned(golds[trial.row], name) - margin
            for trial in trials.of("damaged")
            if trial.probe == probe and trial.row in golds and golds[trial.row].text.lstrip()[:1] in MARKS
        }

    before, after = loses(TEXT_BEFORE), loses(TEXT_BEHIND)
    rows = [row for row in before if row in after and before[row] != after[row]]
    if 2 * len(rows) > len(before):
        free, costs = ("before", "behind") if after[rows[0]] else ("behind", "before")
        shown = [t for t in trials.of("damaged") if t.row in rows and t.probe in (TEXT_BEFORE, TEXT_BEHIND)]
        yield finding(
            "G24",
            "text_around_gold",
            "warning",
            name,
            f"text {costs} a right completion costs marks, text {free} it does not ({rows_in_words(rows)})",
            value=float(len(rows)),
            threshold="the same on both sides",
            fix="Match the whole completion, from its first character to its last.",
            evidence=evidence_of(shown, name),
        )
