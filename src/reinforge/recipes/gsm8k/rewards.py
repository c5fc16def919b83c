"""Reward functions of the GSM8K recipe, standard library only: they run in a sandboxed worker.

All take TRL's form `(prompts, completions, **columns) -> list[float]`. A completion is a text, or a chat message in a
list when the prompt is one. A reply built from the gold answer in the layout of the system prompt earns 4.0:
correctness 2.0 and 0.5 from each of the others.
"""

import re
from typing import Any

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
_LAYOUT = re.compile(r"<reasoning>\n.*\n</reasoning>\n<answer>\n.*\n</answer>", re.S)


def correctness_reward(prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any) -> list[float]:
    """2.0 when the extracted answer equals the gold one as a written number, else 0.0: the main signal.

    >>> correctness_reward([""], ["<answer>\\n$1,234\\n</answer>"], answer=["So she has 1234.\\n#### 1,234"])
    [2.0]
    """
    golds = [plain_number(text.rpartition("####")[2]) for text in answer]
    found = [plain_number(extract_xml_answer(_text(completion))) for completion in completions]
    return [2.0 if own == gold != "" else 0.0 for own, gold in zip(found, golds, strict=True)]


def int_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """0.5 when the extracted answer is a whole number, else 0.0.

    Mended: "all digits" gave nothing for the five negative gold answers and for 1,234; a minus sign and the commas
    are allowed now.

    >>> int_reward([""] * 3, ["<answer>-3</answer>", "<answer>three</answer>", "<answer>²</answer>"])
    [0.5, 0.0, 0.0]
    """
    found = [plain_number(extract_xml_answer(_text(completion))) for completion in completions]
    return [0.5 if re.fullmatch("-?[0-9]+", own) else 0.0 for own in found]


def strict_format_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """0.5 when the reply is laid out exactly as the system prompt asks: each tag once, on a line of its own, and
    nothing outside but white space.

    Mended: the original pattern wanted a blank line between the blocks and line ends around them, which the system
    prompt does not ask for, so it never matched.

    >>> strict_format_reward([""], ["<reasoning>\\n1 + 1 = 2\\n</reasoning>\\n<answer>\\n2\\n</answer>"])
    [0.5]
    """
    texts = [_text(completion).strip() for completion in completions]
    # Counting first also keeps the pattern linear: it meets each tag once.
    return [0.5 if all(text.count(tag) == 1 for tag in TAGS) and _LAYOUT.fullmatch(text) else 0.0 for text in texts]


def soft_format_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """0.5 when a reasoning block is followed by an answer block anywhere in the reply, else 0.0.

    The same as searching `<reasoning>.*?</reasoning>.*?<answer>.*?</answer>`, in one pass instead of the fourth power
    of the length that a reply of repeated tags can force.

    >>> soft_format_reward([""], ["Well: <reasoning>1 + 1</reasoning> so <answer>2</answer>."])
    [0.5]
    """
    return [0.5 if _in_order(_text(completion)) else 0.0 for completion in completions]


def xml_count_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """0.125 for each of the four tags that occurs exactly once: a smooth way up to the format.

    >>> xml_count_reward([""], ["<reasoning>1 + 1</reasoning><answer>2"])
    [0.375]
    """
    return [0.125 * sum(_text(completion).count(tag) == 1 for tag in TAGS) for completion in completions]


def extract_xml_answer(text: str) -> str:
    """What stands between the last `<answer>` and its `</answer>`; "" when either is missing.

    Mended: the original returned the text after `</answer>`, which is empty on a perfect reply, so that no reply could
    ever be correct.

    >>> extract_xml_answer("<answer>\\n72\\n</answer>")
    '72'
    """
    _, opened, rest = text.rpartition("<answer>")
    inner, closed, _ = rest.partition("</answer>")
    return inner.strip() if opened and closed else ""


def extract_hash_answer(text: str) -> str:
    """The gold answer of a GSM8K solution: the number after `####`; "" when there is none.

    Mended: the original split at `###`, which left `# 72`, and kept the comma of 1,234.

    >>> extract_hash_answer("48 + 24 = 72.\\n#### 72"), extract_hash_answer("no mark")
    ('72', '')
    """
    _, mark, gold = text.rpartition("####")
    return plain_number(gold) if mark else ""


def plain_number(text: str) -> str:
    """A number as it is compared: without $, thousands commas, white space around it and a full stop at its end.

    Mended: the original dropped every dot, which made 725 of 72.5.

    >>> [plain_number(text) for text in (" $1,234. ", "72.5", "-$3", "a, b")]
    ['1234', '72.5', '-3', 'a, b']
    """
    text = re.sub(r"[.\s]+\Z", "", text.replace("$", "")).lstrip()
    return re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)


def _text(completion: Any) -> str:
    """The reply itself: a chat completion is a list with one message."""
    return completion if isinstance(completion, str) else completion[0]["content"]


def _in_order(text: str) -> bool:
    """Whether the four tags occur in their order, other text between them."""
    start = 0
    for tag in TAGS:
        found = text.find(tag, start)
        if found < 0:
            return False
        start = found + len(tag)
    return True
