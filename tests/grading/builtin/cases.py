"""What each grader of the sources must answer, worked out by hand from the requirement.

The tests check these values, and docs/reference/builtin_graders.md shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call and what it must answer."""

    what: str
    """In words, for the page."""
    arguments: Mapping[str, Any]
    """Of this call; those of its use come first."""
    score: float | str
    """A text is part of the ValueError that must be raised instead."""


@dataclass(frozen=True)
class Use:
    """One grader of the sources, and the built-in that does its work."""

    grader: str
    title: str
    requirements: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[Case, ...] = ()


def use(grader: str, title: str, requirements: str, options: Mapping[str, Any], *cases: tuple[Any, ...]) -> Use:
    return Use(grader, title, requirements, options, tuple(Case(*case) for case in cases))


def pair(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


BLOCK, ADDRESS = pair("BLOCK_SIZE", "8"), pair("ADDR_WIDTH", "4")

GOOD_PLAN = "<plan>read the guide</plan>\n<code>pay()</code>"

SETS = (
    use(
        "set_f1",
        "ChipStack: signals bound to values",
        "S4-010..018",
        {"keys": ["name", "value"], "field": "predicted"},
        (
            "the gold list in another order",
            {"input": {"predicted": [ADDRESS, BLOCK]}, "reference": [BLOCK, ADDRESS]},
            1.0,
        ),
        ("one of two found: P 1, R 1/2", {"input": {"predicted": [BLOCK]}, "reference": [BLOCK, ADDRESS]}, 2 / 3),
        (
            "right name, wrong value beside a right pair: P 1/2, R 1/2",
            {"input": {"predicted": [BLOCK, pair("ADDR_WIDTH", "5")]}, "reference": [BLOCK, ADDRESS]},
            0.5,
        ),
        (
            "one pair said three times: P 1/3, R 1/2",
            {"input": {"predicted": [BLOCK] * 3}, "reference": [BLOCK, ADDRESS]},
            0.4,
        ),
        (
            "a pair expected twice, said once: P 1, R 1/2",
            {"input": {"predicted": [BLOCK]}, "reference": [BLOCK] * 2},
            2 / 3,
        ),
        ("rightly nothing: empty gold, empty list", {"input": {"predicted": []}, "reference": []}, 1.0),
        ("empty gold, one pair said", {"input": {"predicted": [BLOCK]}, "reference": []}, 0.0),
        ("gold, and an empty list said", {"input": {"predicted": []}, "reference": [BLOCK]}, 0.0),
        ("empty gold, but no list at all", {"input": "nothing to wire", "reference": []}, 0.0),
        (
            "a gold pair without its value",
            {"input": {"predicted": []}, "reference": [{"name": "A"}]},
            "lacks one of the keys",
        ),
    ),
)

TAGS = (
    use(
        "tag_format",
        "Predibase format reward: thinking, then answer",
        "S0-016",
        {"tags": ["think", "answer"]},
        ("both blocks", {"input": "<think>9+5=14</think><answer>1+(9+5)</answer>"}, 1.0),
        ("both blocks, lines between them", {"input": "<think>\n9+5\n</think>\n\n<answer>14</answer>\n"}, 1.0),
        ("cut off in the answer", {"input": "<think>9+5=14</think><answer>1+(9"}, 0.0),
        ("text after the answer", {"input": "<think>a</think><answer>b</answer> Done!"}, 0.0),
        ("blocks in the wrong order", {"input": "<answer>b</answer><think>a</think>"}, 0.0),
        ("two answers", {"input": "<think>a</think><answer>b</answer><answer>c</answer>"}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "tag_format",
        "GSM8K strict format, as the system prompt asks for it",
        "S2-011, S2-021, S2-054",
        {"tags": ["reasoning", "answer"], "layout": "lines"},
        (
            "each tag on a line of its own",
            {"input": "<reasoning>\n48/2=24\n</reasoning>\n<answer>\n72\n</answer>\n"},
            1.0,
        ),
        (
            "the printed pattern's blank line between the blocks",
            {"input": "\n<reasoning>\n24\n</reasoning>\n\n<answer>\n72\n</answer>\n"},
            1.0,
        ),
        ("tags share lines with their text", {"input": "<reasoning>24</reasoning>\n<answer>72</answer>"}, 0.0),
        ("a word before", {"input": "Sure!\n<reasoning>\n24\n</reasoning>\n<answer>\n72\n</answer>"}, 0.0),
        ("the answer block is missing", {"input": "<reasoning>\n24\n</reasoning>\n72"}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "tag_format",
        "GSM8K soft format",
        "S2-022",
        {"tags": ["reasoning", "answer"], "layout": "loose"},
        ("text around and between", {"input": "Well: <reasoning>1+1</reasoning> so <answer>2</answer>."}, 1.0),
        ("strict layout", {"input": "<reasoning>\n1\n</reasoning>\n<answer>\n2\n</answer>"}, 1.0),
        (
            "a second answer after the first",
            {"input": "<reasoning>1</reasoning><answer>2</answer><answer>3</answer>"},
            1.0,
        ),
        ("answer first", {"input": "<answer>2</answer><reasoning>1</reasoning>"}, 0.0),
        ("reasoning not closed", {"input": "<reasoning>1 <answer>2</answer>"}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "tag_count",
        "GSM8K tag count: a quarter of the 0.5 for each tag",
        "S2-023",
        {"tags": ["reasoning", "answer"]},
        ("all four tags once", {"input": "<reasoning>1</reasoning><answer>2</answer>"}, 1.0),
        ("the last one is missing", {"input": "<reasoning>1</reasoning><answer>2"}, 0.75),
        ("one closing tag twice", {"input": "<reasoning>1</reasoning></reasoning><answer>2</answer>"}, 0.75),
        ("answer block only", {"input": "<answer>2</answer>"}, 0.5),
        ("every tag repeated to gather points", {"input": "<reasoning></reasoning><answer></answer>" * 2}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "tag_count",
        "Medical reasoning: half for each block",
        "S3-017, S3-021",
        {"tags": ["reasoning", "RichMediaReference"], "count": "blocks"},
        ("both blocks", {"input": "<reasoning>a</reasoning><RichMediaReference>b</RichMediaReference>"}, 1.0),
        (
            "the answer's block first",
            {"input": "<RichMediaReference>b</RichMediaReference><reasoning>a</reasoning>"},
            1.0,
        ),
        ("one block", {"input": "<reasoning>a</reasoning> b"}, 0.5),
        ("one block, the other not closed", {"input": "<reasoning>a</reasoning><RichMediaReference>b"}, 0.5),
        ("closed before it is opened", {"input": "</reasoning>a<reasoning>"}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "tag_ladder",
        "Runloop: plan and code",
        "S4-028",
        {"tags": ["plan", "code"]},
        ("a perfect reply", {"input": GOOD_PLAN}, 1.0),
        ("no tag at all", {"input": "pay()"}, 0.0),
        ("a tag is missing", {"input": "<plan>read</plan><code>pay()"}, 0.0),
        ("wrong order: present only", {"input": "<code>pay()</code><plan>read</plan>"}, 0.1),
        ("a stray tag: present, order", {"input": f"{GOOD_PLAN}\n</code>"}, 0.2),
        ("a last word: present, order, once", {"input": f"{GOOD_PLAN}\nDone."}, 0.4),
        ("empty plan: up to the plan", {"input": "<plan> </plan><code>pay()</code>"}, 0.6),
        ("empty code: up to the code", {"input": "<plan>read</plan><code></code>"}, 0.7),
        ("a word between the sections", {"input": "<plan>read</plan> so <code>pay()</code>"}, 0.8),
        ("text before the plan is not looked at, as printed (S4-034)", {"input": f"Sure! {GOOD_PLAN}"}, 1.0),
        (
            "... and costs what you give it",
            {"input": f"Sure! {GOOD_PLAN}", "rungs": {"before": 0.25}},
            0.8,
        ),
        ("empty", {"input": ""}, 0.0),
    ),
)

COMPOSITES = (
    use(
        "gate",
        "Runloop: format, and only then the mean with the code's score",
        "S4-029",
        {},
        ("format not reached: its score", {"a": 0.8, "b": 1.0}, 0.8),
        ("format reached, half the calls found", {"a": 1.0, "b": 0.5}, 0.75),
        ("format reached, no code block (its score is 0)", {"a": 1.0, "b": 0.0}, 0.5),
        ("everything right", {"a": 1.0, "b": 1.0}, 1.0),
        ("nothing right", {"a": 0.0, "b": 0.0}, 0.0),
        ("a closed gate that never passes an open one", {"a": 0.8, "b": 1.0, "below": "share"}, 0.4),
        ("A did not score", {"a": None, "b": 1.0}, "a: a number is needed"),
    ),
    use(
        "gate",
        "Medical reasoning: an empty or copied completion gets -1 at once",
        "S3-023, S3-026",
        {"share": 0.0, "below": -1.0},
        ("copied or empty", {"a": 0.0, "b": 0.9}, -1.0),
        ("judged", {"a": 1.0, "b": 0.55}, 0.55),
        ("judged badly", {"a": 1.0, "b": -0.2}, -0.2),
        ("a doubtful A is closed", {"a": 0.99, "b": 0.9}, -1.0),
        ("... unless less is enough", {"a": 0.99, "b": 0.9, "at_least": 0.5}, 0.9),
        ("copied, and judged as bad", {"a": 0.0, "b": -1.0}, -1.0),
    ),
    use(
        "combine",
        "Medical reasoning: similarity, fluency, tags",
        "S3-024, S3-025",
        {"weights": {"similarity": 0.5, "fluency": 0.4, "tags": 0.1}, "clip": [-1, 1]},
        ("all perfect", {"scores": {"similarity": 1.0, "fluency": 1.0, "tags": 1.0}}, 1.0),
        ("tags only", {"scores": {"similarity": 0.0, "fluency": 0.0, "tags": 1.0}}, 0.1),
        (
            "no similarity to an empty reply (S3-019)",
            {"scores": {"similarity": -1.0, "fluency": 0.0, "tags": 0.0}},
            -0.5,
        ),
        ("a typical reply", {"scores": {"similarity": 0.8, "fluency": 0.5, "tags": 0.5}}, 0.65),
        ("above the clip", {"scores": {"similarity": 1.0, "fluency": 3.0, "tags": 1.0}}, 1.0),
        ("below the clip", {"scores": {"similarity": -1.0, "fluency": -2.0, "tags": 0.0}}, -1.0),
        ("a weight without its score", {"scores": {"similarity": 1.0, "tags": 1.0}}, "no score is named 'fluency'"),
    ),
)

USES = (*SETS, *TAGS, *COMPOSITES)
