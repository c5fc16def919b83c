"""Graders of layout: is the completion made of the blocks it was asked for? A block is `<tag>...</tag>`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from reinforge.grading.builtin.reading import choice_option, names_option, number_option, shown, tag_name, text_of
from reinforge.grading.builtin.result import Result

LAYOUTS = ("exact", "lines", "loose")
RUNGS = {"present": 0.1, "order": 0.1, "once": 0.2, "after": 0.2, "filled": 0.2, "between": 0.2, "before": 0.0}
"""Of tag_ladder, in the order they are climbed, with the weights of S4-028."""


def tag_format(
    *, input: Any, tags: Sequence[str] = ("think", "answer"), layout: Literal["exact", "lines", "loose"] = "exact"
) -> Result:
    """1 when the completion has the blocks of `tags` in their order, else 0.

    `tags`: their names, in the order of the blocks.
    `layout`: "exact": each tag once and nothing but white space outside the blocks (S0-016). "lines": also each tag on
    a line of its own (S2-011, S2-021). "loose": the blocks follow each other somewhere in the text (S2-022).

    >>> tag_format(input="<think>2+2</think> <answer>4</answer>").score
    1.0
    >>> tag_format(input="So: <think>2+2</think> <answer>4</answer>")
    Result(score=0.0, reason='text before <think>', metrics={})
    >>> tag_format(input="four")
    Result(score=0.0, reason='no <think>', metrics={})
    """
    choice_option("layout", layout, LAYOUTS)
    marks = marks_of(tags)
    text = text_of(input)
    fault = _out_of_order(text, marks)
    if not fault and layout != "loose":
        fault = _repeated(text, marks) or _before(text, marks) or _between(text, marks) or _after(text, marks)
    if not fault and layout == "lines":
        fault = _sharing_a_line(text, marks)
    return Result(0.0 if fault else 1.0, fault)


def tag_count(
    *, input: Any, tags: Sequence[str] = ("think", "answer"), count: Literal["tags", "blocks"] = "tags"
) -> Result:
    """The share of the tags that are there: a smooth way up to the format.

    `tags`: their names.
    `count`: "tags": each opening and closing tag counts when it occurs exactly once (S2-023). "blocks": each block
    counts when there is at least one (S3-021).

    >>> tag_count(input="<think>2+2</think><answer>4").score
    0.75
    >>> tag_count(input="<think>2+2</think><answer>4", count="blocks")
    Result(score=0.5, reason='1 of 2: not <answer>...</answer>', metrics={})
    >>> tag_count(input=None).score
    0.0
    """
    choice_option("count", count, ("tags", "blocks"))
    marks = marks_of(tags)
    text = text_of(input)
    if count == "tags":
        there = {mark: text.count(mark) == 1 for mark in marks}
    else:
        there = {f"{pair[0]}...{pair[1]}": not _out_of_order(text, pair) for pair in _pairs(marks)}
    missing = [mark for mark, found in there.items() if not found]
    reason = f"{len(there) - len(missing)} of {len(there)}: not {', '.join(missing)}" if missing else ""
    return Result(1 - len(missing) / len(there), reason)


def tag_ladder(
    *, input: Any, tags: Sequence[str] = ("plan", "code"), rungs: Mapping[str, float] | None = None
) -> Result:
    """Climbs rung by rung to the format and stops at the first that fails (S4-028); the score is the climbed share.

    | rung | weight | holds when |
    |---|---|---|
    | present | 0.1 | every opening and closing tag occurs |
    | order | 0.1 | they follow each other |
    | once | 0.2 | none occurs twice |
    | after | 0.2 | nothing but white space follows the last closing tag |
    | filled | 0.2 | no block is empty; the weight is shared out over the blocks, in their order |
    | between | 0.2 | nothing but white space lies between two blocks |
    | before | 0 | nothing but white space comes before the first tag; only where it is given a weight |

    `tags`: their names, in the order of the blocks.
    `rungs`: other weights by name; a rung of weight 0 is not checked.

    >>> tag_ladder(input="<plan>read</plan>\\n<code>go()</code>").score
    1.0
    >>> tag_ladder(input="<plan>read</plan> then <code>go()</code>")
    Result(score=0.8, reason='between: text between </plan> and <code>', metrics={})
    >>> tag_ladder(input="go()")
    Result(score=0.0, reason='present: no <plan>', metrics={})
    """
    weights = _rung_weights(rungs)
    marks = marks_of(tags)
    text = text_of(input)
    checks = [(rung, weight, check) for rung, weight, check in _rung_checks(marks, weights) if weight]
    climbed = []
    fault = ""
    for rung, weight, check in checks:
        fault = check(text, marks)
        if fault:
            fault = f"{rung}: {fault}"
            break
        climbed.append(weight)
    return Result(math.fsum(climbed) / math.fsum(weight for _, weight, _ in checks), fault)


Check = Callable[[str, tuple[str, ...]], str]
"""What is wrong with a text, or ""; those after `_out_of_order` may take it for granted that the tags are there."""


def _rung_weights(rungs: object) -> dict[str, float]:
    if rungs is None:
        return RUNGS
    if not isinstance(rungs, Mapping) or not rungs or not set(rungs) <= set(RUNGS):
        raise ValueError(f"rungs: weights by name ({', '.join(RUNGS)}) are needed, not {shown(rungs)}")
    weights = RUNGS | {name: number_option(f"rungs.{name}", weight, 0.0) for name, weight in rungs.items()}
    if not any(weights.values()):
        raise ValueError("rungs: at least one needs a weight above 0")
    return weights


def _rung_checks(marks: tuple[str, ...], weights: Mapping[str, float]) -> Iterator[tuple[str, float, Check]]:
    yield "present", weights["present"], _absent
    yield "order", weights["order"], _out_of_order
    yield "once", weights["once"], _repeated
    yield "after", weights["after"], _after
    for opening, closing in _pairs(marks):
        yield "filled", weights["filled"] * 2 / len(marks), partial(_empty, opening, closing)
    yield "between", weights["between"], _between
    yield "before", weights["before"], _before


def marks_of(tags: Sequence[str]) -> tuple[str, ...]:
    """The opening and closing marks of tags, in the order a completion should have them.

    >>> marks_of(["plan", "code"])
    ('<plan>', '</plan>', '<code>', '</code>')
    """
    names = [tag_name(tag) for tag in names_option("tags", tags, at_least=1)]
    if len(set(names)) < len(names):
        raise ValueError(f"tags: no name may stand twice in {shown(tags)}")
    return tuple(mark for name in names for mark in (f"<{name}>", f"</{name}>"))


def _pairs(marks: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return zip(marks[::2], marks[1::2], strict=True)


def _absent(text: str, marks: tuple[str, ...]) -> str:
    return next((f"no {mark}" for mark in marks if mark not in text), "")


def _out_of_order(text: str, marks: tuple[str, ...]) -> str:
    """One pass: a pattern with `.*?` between the tags can be forced to the fourth power of the length."""
    start = 0
    for mark in marks:
        found = text.find(mark, start)
        if found < 0:
            return f"{mark} out of order" if mark in text else f"no {mark}"
        start = found + len(mark)
    return ""


def _repeated(text: str, marks: tuple[str, ...]) -> str:
    counts = ((mark, text.count(mark)) for mark in marks)
    return next((f"{count} times {mark}" for mark, count in counts if count > 1), "")


def _before(text: str, marks: tuple[str, ...]) -> str:
    return f"text before {marks[0]}" if text[: text.find(marks[0])].strip() else ""


def _after(text: str, marks: tuple[str, ...]) -> str:
    return f"text after {marks[-1]}" if text.rpartition(marks[-1])[2].strip() else ""


def _between(text: str, marks: tuple[str, ...]) -> str:
    for closing, opening in zip(marks[1::2], marks[2::2], strict=False):
        gap = text.partition(closing)[2].partition(opening)[0]
        if gap.strip():
            return f"text between {closing} and {opening}"
    return ""


def _empty(opening: str, closing: str, text: str, marks: tuple[str, ...]) -> str:
    return "" if text.partition(opening)[2].partition(closing)[0].strip() else f"nothing in {opening}{closing}"


def _sharing_a_line(text: str, marks: tuple[str, ...]) -> str:
    lines = {line.strip() for line in text.split("\n")}
    return next((f"{mark} is not on a line of its own" for mark in marks if mark not in lines), "")
