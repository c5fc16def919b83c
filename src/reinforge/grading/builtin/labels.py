"""Classification: is the label right?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from reinforge.grading.builtin.answers import plain_text
from reinforge.grading.builtin.reading import (
    Unreadable,
    answer_of,
    choice_option,
    names_option,
    number_option,
    shown,
    text_of,
)
from reinforge.grading.builtin.result import Result, refused


def label(
    *,
    input: Any,
    reference: Any,
    classes: Sequence[str] | Mapping[str, float],
    tag: str = "",
    after: str = "",
    pick: Literal["whole", "only"] = "whole",
) -> Result:
    """The weight of the reference's class when the answer is that class, else 0 (S4-067).

    `reference`: the right class.
    `classes`: their names, each with weight 1, or a table of name: weight. Weights below 1 for frequent classes keep a
    model from guessing the most frequent one (S4-083).
    `tag`, `after`: where the answer stands, as in exact_answer.
    `pick`: "whole": the answer is a class and nothing else. "only": it may be a sentence that names exactly one class,
    as a whole word; one that names two is wrong, whichever it means.

    Case, runs of white space, and quotes, stars or full stops around the answer do not count.

    >>> label(input="**Spam**", reference="spam", classes=["spam", "ham"]).score
    1.0
    >>> label(input="It is ham.", reference="ham", classes={"spam": 1.0, "ham": 0.25}, pick="only").score
    0.25
    >>> label(input="spam or ham", reference="ham", classes=["spam", "ham"], pick="only")
    Result(score=0.0, reason='names 2 classes: ham, spam', metrics={})
    """
    choice_option("pick", pick, ("whole", "only"))
    weights = _weights(classes)
    wanted = _plain(text_of(reference))
    if wanted not in weights:
        raise ValueError(f"reference: {shown(reference)} is none of the classes {', '.join(weights)}")
    answer = answer_of(input, tag, after)
    if isinstance(answer, Unreadable):
        return refused(answer.reason)
    named = _named(answer, weights) if pick == "only" else {_plain(answer)} & set(weights)
    if len(named) != 1:
        names = f"names {len(named)} classes: {', '.join(sorted(named))}"
        return refused(names if named else f"{shown(answer)} is none of the classes")
    (found,) = named
    return Result(weights[wanted]) if found == wanted else refused(f"{found}, not {wanted}")


def _weights(classes: object) -> dict[str, float]:
    """By plain name."""
    table = classes if isinstance(classes, Mapping) else dict.fromkeys(names_option("classes", classes), 1.0)
    weights = {_plain(str(name)): number_option(f"classes.{name}", weight, 0.0) for name, weight in table.items()}
    if len(weights) < len(table) or len(weights) < 2 or "" in weights:
        raise ValueError(f"classes: at least two different names are needed, not {shown(classes)}")
    return weights


def _plain(text: str) -> str:
    return plain_text(text).strip("\"'`*_.:; ")


def _named(answer: str, weights: Mapping[str, float]) -> set[str]:
    """The classes a text names. Where one name is part of another ("spam", "not spam") the longer one is meant."""
    longest_first = sorted(weights, key=len, reverse=True)
    words = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    return set(words.findall(" ".join(answer.casefold().split())))
