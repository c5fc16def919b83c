"""Graders of how a completion is worded, whatever it says: copied, repetitive, too short or too long."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from reinforge.grading.builtin.reading import choice_option, number_option, text_of
from reinforge.grading.builtin.result import Result, refused

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]{{1,16}}")
_TOKEN = re.compile(rf"{_WORD.pattern}|[^\w\s]")
"""A word, of which no more than 16 letters make one token, a letter of a script without spaces, or a sign."""


def copied_prompt(*, input: Any, reference: Any, max_share: float = 0.8, run: int = 8) -> Result:
    """1 for a completion of its own, 0 for one that is empty or a copy of its prompt (S3-023): one of whose words a
    larger share than `max_share` stands in the prompt too, in runs of at least `run` words.

    `reference`: the prompt, as a text or as chat messages.
    `max_share`: of the words, from 0 to 1.
    `run`: the shortest run of words that counts as copied; a prompt of fewer words is one run.

    >>> copied_prompt(input="It thins the blood.", reference="Is aspirin good for the heart?").score
    1.0
    >>> copied_prompt(input="Is aspirin good for the heart?", reference="Is aspirin good for the heart?")
    Result(score=0.0, reason='100% of the words are copied from the prompt', metrics={'share': 1.0})
    >>> copied_prompt(input=" ", reference="Is aspirin good for the heart?")
    Result(score=0.0, reason='empty', metrics={})
    """
    max_share, longest = number_option("max_share", max_share, 0.0, 1.0), int(number_option("run", run, 1, 100))
    prompt = _WORD.findall(_prompt_text(reference).casefold())
    text = text_of(input)
    if not text.strip():
        return refused("empty")
    words = _WORD.findall(text.casefold())
    size = min(longest, len(prompt))
    share = _share_in_runs(words, prompt, size) if 0 < size <= len(words) else 0.0
    metrics = {"share": share}
    if share <= max_share:
        return Result(1.0, "", metrics)
    return Result(0.0, f"{share:.0%} of the words are copied from the prompt", metrics)


def _prompt_text(reference: object) -> str:
    """A prompt's text: that of its messages, one after the other, where it is a chat."""
    if not isinstance(reference, (list, tuple)):
        return text_of(reference)
    contents = [message.get("content") if isinstance(message, Mapping) else message for message in reference]
    return "\n".join(text_of(content) for content in contents)


def _share_in_runs(words: Sequence[str], prompt: Sequence[str], size: int) -> float:
    known = set(_runs(prompt, size))
    covered_to = num_covered = 0
    for start, run in enumerate(_runs(words, size)):
        if run in known:
            num_covered += start + size - max(start, covered_to)
            covered_to = start + size
    return num_covered / len(words)


def _runs(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[offset:] for offset in range(size)), strict=False))


def repetition(*, input: Any, run: int = 4) -> Result:
    """The share of a completion's runs of `run` words that are distinct: 1 where nothing is said twice, near 0 in a
    loop.

    `run`: number of words in a run.

    Signs count as words, words longer than 16 letters as several, and each letter of a script without spaces as one.
    A completion of fewer words repeats nothing.

    >>> repetition(input="the cat sat on the mat").score
    1.0
    >>> repetition(input="no no no no no no no no")
    Result(score=0.2, reason='1 of 5 runs of 4 words are distinct', metrics={})
    >>> repetition(input="").reason
    'empty'
    """
    size = int(number_option("run", run, 1, 100))
    text = text_of(input)
    if not text.strip():
        return refused("empty")
    runs = _runs(_TOKEN.findall(text.casefold()), size)
    if not runs:
        return Result(1.0)
    distinct = len(set(runs))
    reason = "" if distinct == len(runs) else f"{distinct} of {len(runs)} runs of {size} words are distinct"
    return Result(distinct / len(runs), reason)


def length(
    *,
    input: Any,
    at_least: float = 1,
    at_most: float | None = None,
    fade: float = 0,
    unit: Literal["words", "characters"] = "words",
) -> Result:
    """1 when a completion is from `at_least` to `at_most` units long; outside, 1 less a `fade`-th for each unit too
    many or too few, at least 0. Without `fade` it is 0 at once. An empty completion always is.

    `at_least`, `at_most`: units wanted; without `at_most` there is no upper end.
    `fade`: units beyond them at which the score has fallen to 0.
    `unit`: "words" (separated by white space) or "characters".

    >>> length(input="one two three", at_most=3).score, length(input="one two three four", at_most=3).score
    (1.0, 0.0)
    >>> length(input="one two three four", at_most=3, fade=4)
    Result(score=0.75, reason='4 words, at most 3 wanted', metrics={'length': 4.0})
    >>> length(input=None).score
    0.0
    """
    choice_option("unit", unit, ("words", "characters"))
    lowest = number_option("at_least", at_least, 0.0)
    highest = None if at_most is None else number_option("at_most", at_most, lowest)
    fade = number_option("fade", fade, 0.0)
    text = text_of(input)
    if not text.strip():
        return refused("empty")
    size = float(len(text.split()) if unit == "words" else len(text))
    metrics = {"length": size}
    if size < lowest:
        off, reason = lowest - size, f"{size:g} {unit}, at least {lowest:g} wanted"
    elif highest is not None and size > highest:
        off, reason = size - highest, f"{size:g} {unit}, at most {highest:g} wanted"
    else:
        return Result(1.0, "", metrics)
    return Result(max(0.0, 1 - off / fade) if fade else 0.0, reason, metrics)
