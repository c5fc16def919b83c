"""Checks of what right completions earn: G03, G04, G22, G27."""

from __future__ import annotations

from collections.abc import Iterator

from reinforge.insight.findings import (
    TOLERANCE,
    Evidence,
    Finding,
    Verdict,
    earned,
    evidence_of,
    finding,
    label,
    rows_in_words,
)
from reinforge.insight.trials import TOTAL, Extraction, Trial, Trials, median

GOLD_FIX = (
    "If these completions are what you want, correct the function; if not, say how a right one looks: --gold-template, "
    "--answer-column, or a function gold(example) in the reward file."
)


def gold_scores_full(trials: Trials) -> Iterator[Finding]:
    """G03: a right completion gets full marks, on every row (S2-052, S4-018, S4-054)."""
    golds = trials.of("gold")
    for name in trials.names if golds else ():
        values = [value for trial in golds if (value := trial.value(name)) is not None]
        if not values:
            continue
        if _never_fires(trials, name):
            yield _dead(trials, name, golds)
        elif (found := _gold_not_full(trials, name, golds)) is not None:
            yield found
        else:
            yield from _dead_rows(trials, name, golds)


def _never_fires(trials: Trials, name: str) -> bool:
    return not any(trial.value(name) for trial in trials.trials)


def _dead(trials: Trials, name: str, golds: tuple[Trial, ...]) -> Finding:
    counts_nothing = any(function.name == name and function.weight == 0 for function in trials.functions)
    return finding(
        "G03",
        "gold_scores_full",
        "warning" if counts_nothing else "blocking",
        name,
        f"{label(name)} is 0 for every one of {len(golds)} right completions and of "
        f"{len(trials.trials) - len(golds)} others: it can never be earned",
        value=0.0,
        threshold="full marks for a right completion",
        fix=f"{GOLD_FIX} A penalty that no probe sets off: --ignore G03:{name or 'reward'}.",
        evidence=evidence_of(golds, name),
    )


def _gold_not_full(trials: Trials, name: str, golds: tuple[Trial, ...]) -> Finding | None:
    """Right completions get less than others do."""
    scale = trials.scale(name)
    middle = median(value for trial in golds if (value := trial.value(name)) is not None)
    if middle is None or middle >= scale.at(1 - TOLERANCE):
        return None
    beaten = _beaten(trials, name, golds)
    if not beaten:
        return None
    blocks = name == trials.whole or _tells_right_from_wrong(trials, name)
    better = max((other for _, other in beaten), key=lambda other: earned(other, name))
    return finding(
        "G03",
        "gold_scores_full",
        "blocking" if blocks and 2 * len(beaten) >= len(trials.of("gold")) else "warning",
        name,
        f"right completions get {middle:.3g} (median), and {better.probe} gets {better.value(name):.3g} "
        f"from {label(name)}",
        value=middle,
        threshold=f"{scale.high:.3g}, the most it gave",
        fix=GOLD_FIX
        if blocks
        else f"Fine if {label(name)} is about form or length only; it then rewards {better.probe}.",
        evidence=[
            evidence for gold, other in beaten for evidence in (*evidence_of([gold], name), *evidence_of([other], name))
        ],
    )


def _beaten(trials: Trials, name: str, golds: tuple[Trial, ...]) -> list[tuple[Trial, Trial]]:
    """(gold, the best other completion of its row) where that gets clearly more."""
    margin = TOLERANCE * trials.scale(name).span
    best: dict[int, Trial] = {}
    for trial in trials.trials:
        if trial.kind not in ("gold", "fuzz", "case", "ladder") and trial.value(name) is not None:
            leader = best.get(trial.row)
            if leader is None or earned(trial, name) > earned(leader, name):
                best[trial.row] = trial
    return [
        (gold, best[gold.row])
        for gold in golds
        if gold.row in best and earned(best[gold.row], name) > earned(gold, name) + margin
    ]


def _tells_right_from_wrong(trials: Trials, name: str) -> bool:
    right = median(value for trial in trials.of("gold") if (value := trial.value(name)) is not None)
    wrong = median(value for trial in trials.of("wrong") if (value := trial.value(name)) is not None)
    return right is not None and wrong is not None and right - wrong > 0.1 * trials.scale(name).span


def _dead_rows(trials: Trials, name: str, golds: tuple[Trial, ...]) -> Iterator[Finding]:
    """Rows on which even a right completion gets the lowest score. Where the right answer is nothing, the function
    punishes the model for every right abstention: that blocks."""
    scale = trials.scale(name)
    dead = [trial for trial in golds if earned(trial, name) <= scale.at(0.01)]
    empty = [trial for trial in dead if trial.row in trials.empty_answers]
    full = [trial for trial in dead if trial.row not in trials.empty_answers]
    if empty:
        yield finding(
            "G03",
            "dead_row",
            "blocking",
            name,
            f"{rows_in_words(trial.row for trial in empty)}: the right answer is empty, and giving it gets "
            f"{label(name)} {earned(empty[0], name):.3g}: a right abstention can never be earned",
            value=float(len(empty)),
            threshold="0 rows",
            fix="Score 1 when both the answer and the reference are empty (built-in graders: empty_match).",
            evidence=evidence_of(empty, name),
        )
    if full:
        yield finding(
            "G03",
            "dead_row",
            "warning",
            name,
            f"{rows_in_words(trial.row for trial in full)}: even a right completion gets {label(name)} "
            f"{earned(full[0], name):.3g}",
            value=float(len(full)),
            threshold="0 rows",
            fix=f"Look at what is special about these rows: the data, or what {label(name)} expects of it.",
            evidence=evidence_of(full, name),
        )


def gold_survives_extraction(trials: Trials) -> Iterator[Finding]:
    """G04: helpers that find the answer in a text find the one that is there (S2-053)."""
    by_helper: dict[tuple[str, str], list[Extraction]] = {}
    for one in trials.extractions:
        by_helper.setdefault((one.helper, one.source), []).append(one)
    for (helper, source), extractions in by_helper.items():
        # One that leaves $18 as it is leaves all spellings as they are: that is for its caller to compare.
        keeps = not any(one.variant == "dollars" and one.returned == one.expected for one in extractions)
        wrong = [one for one in extractions if not _is_right(one, keeps)]
        lost = [one for one in wrong if not _is_same_number(one)]
        spelled = [one for one in wrong if _is_same_number(one)]
        kinds_of: tuple[tuple[list[Extraction], Verdict, str], ...] = (
            (lost, "blocking", "does not return the answer"),
            (spelled, "warning", "keeps another spelling of the answer"),
        )
        for found, verdict, what in kinds_of:
            if found:
                kinds = ", ".join(dict.fromkeys(one.variant for one in found if one.variant))
                yield finding(
                    "G04",
                    "gold_survives_extraction",
                    verdict,
                    "",
                    f"{helper} {what} for {len(found)} of {len(extractions)} texts ({source}"
                    f"{'; ' + kinds if kinds else ''}): {found[0].returned!r} for {found[0].expected!r}",
                    value=len(found) / len(extractions),
                    threshold="0",
                    fix=f"Correct {helper}: what it takes out of a text must be the answer, as the rewards compare it.",
                    evidence=[_as_evidence(one) for one in found],
                )


def _as_evidence(one: Extraction) -> Evidence:
    got = one.fault if one.returned is None else repr(one.returned)
    return Evidence(one.row, one.variant or one.source, None, one.text, f"{got}, not {one.expected!r}")


def _is_right(one: Extraction, keeps: bool) -> bool:
    returned = None if one.returned is None else one.returned.strip()
    return returned == one.expected or (keeps and returned == one.written)


def _is_same_number(one: Extraction) -> bool:
    """Only spelled otherwise: with thousands commas, say."""
    return one.returned is not None and _number(one.returned) == _number(one.expected) is not None


def _number(text: str) -> float | None:
    try:
        return float(text.strip().replace(",", "").removeprefix("$"))
    except ValueError:
        return None


def gold_counts_as_correct(trials: Trials) -> Iterator[Finding]:
    """G22: what evaluations count as correct includes right completions; else pass@1 stays 0."""
    golds = trials.of("gold")
    if trials.correct_from is None or not golds:
        return
    name = TOTAL if trials.correct_fn is None else trials.correct_fn
    values = [(trial, trial.value(name)) for trial in golds]
    missed = [trial for trial, value in values if value is None or value < trials.correct_from - 1e-9]
    if missed:
        yield finding(
            "G22",
            "gold_counts_as_correct",
            "blocking" if 2 * len(missed) >= len(golds) else "warning",
            name,
            f"{len(missed)} of {len(golds)} right completions do not count as correct in evaluations: {label(name)} "
            f"gives them {earned(missed[0], name):.3g}",
            value=missed[0].value(name),
            threshold=f"at least eval.correct_from = {trials.correct_from:g}",
            fix="Set eval.correct_fn to the function that tells right from wrong, eval.correct_from to its full marks.",
            evidence=evidence_of(missed, name),
        )


def cases_get_their_scores(trials: Trials) -> Iterator[Finding]:
    """G27: the user's golden cases (S0-093)."""
    cases = trials.of("case")
    for name in (*(function.name for function in trials.functions), TOTAL):
        judged = [(trial, trial.expected[name]) for trial in cases if trial.expected and name in trial.expected]
        missed = [
            (trial, low, high)
            for trial, (low, high) in judged
            if (value := trial.value(name)) is None or not low - 1e-9 <= value <= high + 1e-9
        ]
        if missed:
            yield finding(
                "G27",
                "cases_get_their_scores",
                "blocking",
                name,
                f"{len(missed)} of {len(judged)} golden cases do not get the score of {label(name)} they should",
                value=len(missed) / len(judged),
                threshold="0",
                fix="Correct the function, or the case.",
                evidence=[
                    Evidence(trial.row, trial.probe, trial.value(name), trial.text, f"should be {_range(low, high)}")
                    for trial, low, high in missed
                ],
            )


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
