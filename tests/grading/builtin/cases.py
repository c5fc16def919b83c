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
        ("... and said twice", {"input": {"predicted": [BLOCK] * 2}, "reference": [BLOCK] * 2}, 1.0),
        ("rightly nothing: empty gold, empty list", {"input": {"predicted": []}, "reference": []}, 1.0),
        ("empty gold, one pair said", {"input": {"predicted": [BLOCK]}, "reference": []}, 0.0),
        ("gold, and an empty list said", {"input": {"predicted": []}, "reference": [BLOCK]}, 0.0),
        (
            "the JSON comes after the thoughts",
            {"input": '<think>8?</think>{"predicted": []}', "reference": [], "after": "</think>"},
            1.0,
        ),
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
        ("a gate that opens earlier", {"a": 0.6, "b": 1.0, "at_least": 0.5}, 0.8),
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

PASSAGES = (
    use(
        "span_f1",
        "Harvey: passages copied out of a contract",
        "S4-049..054",
        {"field": "passages"},
        ("both, in another order", {"input": {"passages": ["wxyz", "abcd"]}, "reference": ["abcd", "wxyz"]}, 1.0),
        ("one of two: P 1, R 1/2", {"input": {"passages": ["abcd"]}, "reference": ["abcd", "wxyz"]}, 2 / 3),
        ("one letter off: 6 of 8 letters in common", {"input": {"passages": ["abcx"]}, "reference": ["abcd"]}, 0.75),
        (
            "an unrelated one beside it: P 1/2, R 1",
            {"input": {"passages": ["abcd", "wxyz"]}, "reference": ["abcd"]},
            2 / 3,
        ),
        ("rightly none: empty gold, empty list", {"input": {"passages": []}, "reference": []}, 1.0),
        ("... null is a list without entries too", {"input": {"passages": None}, "reference": None}, 1.0),
        ("empty gold, one passage", {"input": {"passages": ["abcd"]}, "reference": []}, 0.0),
        ("gold, and an empty list", {"input": {"passages": []}, "reference": ["abcd"]}, 0.0),
        ("no such field", {"input": {"answer": ["abcd"]}, "reference": ["abcd"]}, 0.0),
        (
            "must be copied exactly: a near quote counts nothing",
            {"input": {"passages": ["abcx"]}, "reference": ["abcd"], "source": "abcd wxyz"},
            0.0,
        ),
        (
            "... a true one beside it does: P 1/2, R 1",
            {"input": {"passages": ["abcx", "abcd"]}, "reference": ["abcd"], "source": "abcd wxyz"},
            2 / 3,
        ),
        ("an empty gold passage", {"input": {"passages": []}, "reference": [""]}, "texts that are not empty"),
    ),
)

CODES = (
    use(
        "icd_codes",
        "Ambience: ICD-10 codes of a visit",
        "S4-044, S4-045",
        {"exclusive": [["E10", "E11"]]},
        ("the same set, written otherwise", {"input": '["i10", "E119"]', "reference": ["E11.9", "I10"]}, 1.0),
        ("one of two: P 1, R 1/2", {"input": '["I10"]', "reference": ["E11.9", "I10"]}, 2 / 3),
        ("right category, wrong detail: E11 of E118", {"input": '["E11.8"]', "reference": ["E11.9"]}, 0.75),
        ("the category alone", {"input": '["E11"]', "reference": ["E11.9"]}, 0.75),
        ("... where only equal codes count", {"input": '["E11"]', "reference": ["E11.9"], "prefix": 0}, 0.0),
        ("another category", {"input": '["E13.9"]', "reference": ["E11.9"]}, 0.0),
        ("each code is paired once: P 1/2, R 1", {"input": '["E11.9", "E11.8"]', "reference": ["E11.9"]}, 2 / 3),
        (
            "type 1 and type 2 together: P 1/2, R 1, then half of it",
            {"input": '["E11.9", "E10.9"]', "reference": ["E11.9"]},
            1 / 3,
        ),
        ("rightly none: empty gold, empty list", {"input": "[]", "reference": []}, 1.0),
        ("empty gold, one code", {"input": '["I10"]', "reference": []}, 0.0),
        ("no list", {"input": "I10 and E11.9", "reference": ["I10", "E11.9"]}, 0.0),
        ("gold that excludes itself", {"input": "[]", "reference": ["E10.9", "E11.9"]}, "which exclude each other"),
    ),
)

CHARGE = {"file_path_mask": "/home/user/testbed/src", "pattern": "stripe.charges.create($$$)"}
REFUND = {"file_path_mask": "/home/user/testbed/src", "pattern": "stripe.refunds.create($$$)"}
PAY = "```ts src/pay.ts\nconst c = await stripe.charges.create({amount: 5, currency: 'usd'})\n```"

CODE = (
    use(
        "ast_grep",
        "Runloop: the calls of an integration",
        "S4-021..027, S4-031, S4-034",
        {"root": "/home/user/testbed/", "labelled": True},
        ("the call is there", {"input": PAY, "reference": [CHARGE]}, 1.0),
        ("one object instead of a list", {"input": PAY, "reference": CHARGE}, 1.0),
        ("one call of two", {"input": PAY, "reference": [CHARGE, REFUND]}, 0.5),
        (
            "the call stands in a comment",
            {"input": "```ts src/pay.ts\n// stripe.charges.create({amount: 5})\n```", "reference": [CHARGE]},
            0.0,
        ),
        ("in another folder", {"input": PAY.replace("src/", "test/"), "reference": [CHARGE]}, 0.0),
        (
            "a text that must stand beside it is missing",
            {"input": PAY, "reference": [CHARGE | {"additional_greps": ["currency", "eur"]}]},
            0.0,
        ),
        (
            "with its parameters",
            {"input": PAY, "reference": [CHARGE | {"pattern": "stripe.charges.create({amount: $N, currency: 'usd'})"}]},
            1.0,
        ),
        ("no code block", {"input": "stripe.charges.create({amount: 5})", "reference": [CHARGE]}, 0.0),
        ("one block of two has no label", {"input": f"{PAY}\n```\nnpm start\n```", "reference": [CHARGE]}, 0.0),
        ("a language alone: no path", {"input": PAY.replace(" src/pay.ts", ""), "reference": [CHARGE]}, 0.0),
        (
            "... which is enough where labels are not asked for",
            {"input": PAY.replace(" src/pay.ts", ""), "reference": "stripe.charges.create($$$)", "labelled": False},
            1.0,
        ),
        ("a language that does not count", {"input": PAY.replace("ts src", "python src"), "reference": [CHARGE]}, 0.0),
        ("empty gold: a row that can never score", {"input": PAY, "reference": []}, "at least one pattern"),
    ),
)


def event(title: str, start: int, end: int, driver: str = "Ann") -> dict[str, Any]:
    return {"title": title, "kind": "event", "day": 5, "start": start, "end": end, "driver": driver}


DENTIST, PICKUP = event("Dentist", 9, 10), event("Pick up Tom", 10, 11)
MILK = {"title": "Buy milk", "kind": "list", "day": 5}

RECORDS = (
    use(
        "record_checks",
        "Milo: calendar and list entries",
        "S4-036..041",
        {"required": ["title", "day"], "category": "kind", "start": "start", "end": "end", "who": "driver"},
        ("all as expected", {"input": [MILK, DENTIST], "reference": [DENTIST, MILK]}, 1.0),
        ("one of two", {"input": [MILK], "reference": [DENTIST, MILK]}, 0.5),
        ("a list entry as an event: 2/3", {"input": [MILK | {"kind": "event"}], "reference": [MILK]}, 2 / 3),
        ("half complete: (1/2 + 1 + 1) / 3", {"input": [MILK | {"day": ""}], "reference": [MILK]}, 5 / 6),
        ("a duplicate: 1 of 2", {"input": [MILK, MILK], "reference": [MILK]}, 0.5),
        ("an invented one: 1 of 2", {"input": [MILK, event("Golf", 15, 16)], "reference": [MILK]}, 0.5),
        (
            "both at once for one driver: 2/3 of each",
            {"input": [DENTIST, event("Pick up Tom", 9, 11)], "reference": [DENTIST, PICKUP]},
            2 / 3,
        ),
        (
            "... nobody is needed twice",
            {"input": [DENTIST, event("Pick up Tom", 9, 11, "Bob")], "reference": [DENTIST, PICKUP]},
            1.0,
        ),
        (
            "in conflict with the calendar: 2/3",
            {"input": [event("Dentist", 12, 13)], "reference": [DENTIST], "existing": [event("Lunch", 12, 14)]},
            2 / 3,
        ),
        (
            "a conflict that the messages themselves hold",
            {"input": [DENTIST, event("Concert", 9, 10)], "reference": [DENTIST, event("Concert", 9, 10)]},
            1.0,
        ),
        ("rightly nothing: empty gold, empty list", {"input": "[]", "reference": []}, 1.0),
        ("empty gold, one entry", {"input": [MILK], "reference": []}, 0.0),
        ("no list", {"input": "Dentist on Monday at nine", "reference": [DENTIST]}, 0.0),
    ),
)

SPAM = {"type": "object", "required": ["spam"], "properties": {"spam": {"type": "boolean"}}}

SCHEMAS = (
    use(
        "json_schema",
        "Structured output: JSON under a schema",
        "S0-062, S0-154, S4-009",
        {"schema": SPAM},
        ("valid", {"input": '{"spam": true}'}, 1.0),
        ("valid, in a code fence", {"input": '```json\n{"spam": false}\n```'}, 1.0),
        ("... where no fence is allowed", {"input": '```json\n{"spam": false}\n```', "fence": False}, 0.0),
        ("JSON of another type", {"input": '{"spam": "yes"}'}, 0.0),
        ("... which earns what you say", {"input": '{"spam": "yes"}', "parses": 0.25}, 0.25),
        ("cut off", {"input": '{"spam": tr'}, 0.0),
        ("NaN is no JSON", {"input": "NaN", "schema": {"type": "number"}}, 0.0),
        ("text before the JSON", {"input": 'Here: {"spam": true}'}, 0.0),
        ("empty", {"input": ""}, 0.0),
        ("a schema that is none", {"input": "{}", "schema": {"type": "boolian"}}, "schema: "),
        (
            "a schema elsewhere is never fetched",
            {"input": "{}", "schema": {"$ref": "http://127.0.0.1:9/schema.json"}},
            "nothing is fetched",
        ),
    ),
)

ANSWERS = (
    use(
        "exact_answer",
        "GSM8K correctness: the number inside the answer tags",
        "S2-013, S2-014, S2-019, S2-052, S2-053",
        {"tag": "answer", "reference_after": "####", "compare": "number"},
        ("the gold answer", {"input": "<answer>\n72\n</answer>", "reference": "48 + 24 = 72\n#### 72"}, 1.0),
        ("written with dollar and comma", {"input": "<answer>$1,234.</answer>", "reference": "#### 1234"}, 1.0),
        (
            "a decimal keeps its point (the printed code made 725 of it)",
            {"input": "<answer>725</answer>", "reference": "#### 72.5"},
            0.0,
        ),
        ("another number", {"input": "<answer>72.5</answer>", "reference": "#### 72"}, 0.0),
        ("right, but outside the tags", {"input": "<answer></answer> 72", "reference": "#### 72"}, 0.0),
        ("the last answer counts", {"input": "<answer>72</answer><answer>5</answer>", "reference": "#### 72"}, 0.0),
        ("a sentence around it", {"input": "<answer>It is 72</answer>", "reference": "#### 72"}, 0.0),
        ("empty gold", {"input": "<answer></answer>", "reference": "####"}, "the answer is empty"),
        ("gold without the mark", {"input": "<answer>72</answer>", "reference": "72"}, "no '####' in '72'"),
    ),
    use(
        "is_number",
        "GSM8K: is the answer all digits?",
        "S2-020",
        {"tag": "answer", "kind": "digits"},
        ("digits", {"input": "<answer>72</answer>"}, 1.0),
        ("digits on a line of their own", {"input": "<answer>\n072\n</answer>"}, 1.0),
        ("a minus sign is no digit", {"input": "<answer>-3</answer>"}, 0.0),
        ("... but part of a whole number", {"input": "<answer>-3</answer>", "kind": "integer"}, 1.0),
        ("a word", {"input": "<answer>seventy</answer>"}, 0.0),
        ("digits of another script", {"input": "<answer>٧٢</answer>"}, 0.0),
        ("nothing in the tags", {"input": "<answer></answer>"}, 0.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "numeric_close",
        "Numeric accuracy: within 1 %, falling to 0 at 9 %",
        "S4-059, S0-104",
        {"rel_tol": 0.01, "reach": 9.0, "pick": "last"},
        ("exact", {"input": "The basis is $1,200.", "reference": 1200}, 1.0),
        ("on the edge of the tolerance", {"input": "1212", "reference": 1200}, 1.0),
        ("5 % off: halfway down", {"input": "1260", "reference": "1,200"}, 0.5),
        ("9 % off", {"input": "1308", "reference": 1200}, 0.0),
        ("far off", {"input": "12", "reference": 1200}, 0.0),
        ("no number", {"input": "a lot", "reference": 1200}, 0.0),
        ("wrong sign", {"input": "-1200", "reference": 1200}, 0.0),
        ("a gold of 0 knows no percentage", {"input": "0.1", "reference": 0}, 0.0),
        ("empty gold", {"input": "1200", "reference": ""}, "a number is needed"),
    ),
)

EQUATIONS = (
    use(
        "equation",
        "Countdown: reach the target",
        "S0-017..021",
        {"reference": 15, "numbers": [9, 1, 5]},
        ("it does", {"input": "<think>9+5=14</think><answer>1 + (9+5)</answer>"}, 1.0),
        ("through a fraction", {"input": "<answer>6/(5/4-1)</answer>", "reference": 24, "numbers": "6 5 4 1"}, 1.0),
        ("a third is exact here", {"input": "<answer>1/3*3</answer>", "reference": "1", "numbers": "[1, 3, 3]"}, 1.0),
        ("misses the target", {"input": "<answer>9+5-1</answer>"}, 0.0),
        ("misses it by less than 0.00001", {"input": "<answer>9*1/5</answer>", "reference": "1.800009"}, 1.0),
        ("misses it by 0.00001", {"input": "<answer>9*1/5</answer>", "reference": "1.80001"}, 0.0),
        ("leaves a number out", {"input": "<answer>9+5</answer>", "reference": 14}, 0.0),
        ("... which may be allowed", {"input": "<answer>9+5</answer>", "reference": 14, "use": "any"}, 1.0),
        ("uses a number twice", {"input": "<answer>9+5+1+1-1</answer>"}, 0.0),
        ("glues digits together", {"input": "<answer>15*9/9</answer>"}, 0.0),
        ("the target alone", {"input": "<answer>15</answer>"}, 0.0),
        ("divides by zero", {"input": "<answer>9/(5-5*1)</answer>", "numbers": [9, 5, 5, 1]}, 0.0),
        ("a power", {"input": "<answer>9**1+5</answer>", "reference": 14}, 0.0),
        ("code", {"input": "<answer>exit()</answer>"}, 0.0),
        ("no answer tags", {"input": "1+(9+5)"}, 0.0),
        ("a row without numbers", {"input": "<answer>1</answer>", "numbers": []}, "a list of numbers"),
    ),
)

MATHEMATICS = (
    use(
        "math_equal",
        "Mathematics: equal whatever the notation",
        "S0-061, S1-001",
        {"tag": "answer"},
        ("a fraction and its decimal", {"input": "<answer>0.5</answer>", "reference": "\\frac{1}{2}"}, 1.0),
        ("a square multiplied out", {"input": "<answer>x^2+2x+1</answer>", "reference": "$(x+1)^2$"}, 1.0),
        ("a set in another order", {"input": "<answer>\\{2, 1\\}</answer>", "reference": "$\\{1, 2\\}$"}, 1.0),
        ("open and closed are not the same", {"input": "<answer>$[0,1]$</answer>", "reference": "$[0,1)$"}, 0.0),
        ("another number", {"input": "<answer>0.51</answer>", "reference": "1/2"}, 0.0),
        ("right, but outside the tags", {"input": "1/2", "reference": "1/2"}, 0.0),
        ("a boxed answer in a text", {"input": "so \\boxed{72}, I think", "reference": 72, "tag": ""}, 1.0),
        ("no mathematics", {"input": "I do not know.", "reference": 72, "tag": ""}, 0.0),
        ("empty gold", {"input": "<answer>1</answer>", "reference": ""}, "no mathematics in"),
    ),
)

LABELS = (
    use(
        "label",
        "SafetyKit: a policy decision, the rare class weighing more",
        "S4-065..067, S4-083",
        {"classes": {"allowed": 0.25, "fraud": 1.0, "not fraud but spam": 1.0}, "pick": "only"},
        ("right", {"input": "fraud", "reference": "fraud"}, 1.0),
        ("right, the frequent class", {"input": "Allowed.", "reference": "allowed"}, 0.25),
        ("right, in a sentence", {"input": "I would say this is **fraud**.", "reference": "fraud"}, 1.0),
        ("a name inside a longer one", {"input": "not fraud but spam", "reference": "not fraud but spam"}, 1.0),
        ("wrong", {"input": "allowed", "reference": "fraud"}, 0.0),
        ("every class at once", {"input": "allowed, fraud", "reference": "fraud"}, 0.0),
        ("part of a word", {"input": "fraudulent", "reference": "fraud"}, 0.0),
        ("none", {"input": "I cannot tell.", "reference": "fraud"}, 0.0),
        ("empty", {"input": "", "reference": "fraud"}, 0.0),
        ("empty gold", {"input": "fraud", "reference": ""}, "none of the classes"),
    ),
)

ASPIRIN = "Is aspirin good for cardiovascular function?"

WORDING = (
    use(
        "copied_prompt",
        "Medical reasoning: empty replies and copies of the prompt",
        "S3-023",
        {"reference": ASPIRIN},
        ("a reply of its own", {"input": "It lowers the risk of clots."}, 1.0),
        ("a short reply with a word of the prompt", {"input": "Aspirin"}, 1.0),
        ("the prompt", {"input": ASPIRIN}, 0.0),
        ("the prompt, shouted", {"input": ASPIRIN.upper() + "!!!"}, 0.0),
        ("the prompt, then one word: 6 of 7", {"input": f"{ASPIRIN} Yes."}, 0.0),
        ("the prompt, then an answer: 6 of 12", {"input": f"{ASPIRIN} It lowers the risk of clots."}, 1.0),
        ("the prompt as chat messages", {"input": ASPIRIN, "reference": [{"role": "user", "content": ASPIRIN}]}, 0.0),
        ("no prompt to copy", {"input": "Yes.", "reference": ""}, 1.0),
        ("empty", {"input": " \n"}, 0.0),
    ),
    use(
        "repetition",
        "Suspicious patterns: saying the same again and again",
        "S0-081, S0-140",
        {},
        ("nothing twice", {"input": "the cat sat on the mat"}, 1.0),
        ("one word eight times: 1 of 5 runs", {"input": "no no no no no no no no"}, 0.2),
        ("a sentence twice: 5 of 7 runs", {"input": "the cat sat down. the cat sat down."}, 5 / 7),
        ("one letter 64 times: 4 words of 16", {"input": "a" * 64}, 1.0),
        ("... 128 times: 1 of 5 runs", {"input": "a" * 128}, 0.2),
        ("too short to repeat", {"input": "yes"}, 1.0),
        ("empty", {"input": ""}, 0.0),
    ),
    use(
        "length",
        "Length shaping: at most 4 words, fading over 4 more",
        "S0-140, S3-042",
        {"at_most": 4, "fade": 4},
        ("short enough", {"input": "one two three four"}, 1.0),
        ("one too many", {"input": "one two three four five"}, 0.75),
        ("three too many", {"input": "one two three four five six seven"}, 0.25),
        ("twice as long", {"input": "one two three four " * 2}, 0.0),
        ("a thousand words", {"input": "one " * 1000}, 0.0),
        ("one too few of the two wanted", {"input": "one", "at_least": 2}, 0.75),
        ("... at once 0 without fading", {"input": "one", "at_least": 2, "fade": 0}, 0.0),
        ("empty", {"input": ""}, 0.0),
        ("an order that cannot be kept", {"input": "one", "at_least": 5}, "at_most: a number from 5 on"),
    ),
)

USES = (
    *SETS,
    *PASSAGES,
    *CODES,
    *RECORDS,
    *LABELS,
    *ANSWERS,
    *EQUATIONS,
    *MATHEMATICS,
    *TAGS,
    *CODE,
    *SCHEMAS,
    *WORDING,
    *COMPOSITES,
)
