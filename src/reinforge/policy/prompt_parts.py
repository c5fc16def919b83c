"""What the prompts of one call have in common, as a tree of parts that are computed once each. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

MIN_SAVED_TOKENS = 128
"""A part that several prompts share costs a pass of its own, and pays from so many spared tokens on (measured with 5M
parameters; larger models gain from fewer)."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that are run together, behind those of another part."""

    token_ids: TokenIds
    """From the beginning of the prompt to the end of this part."""
    start: int
    """Tokens of them that are the parents' business."""
    parent: int | None
    """Place of the part it stands behind; always an earlier one."""
    depth: int
    """Number of parts it stands behind."""


def prompt_parts(prompts: Sequence[TokenIds], min_saved: int = MIN_SAVED_TOKENS) -> tuple[list[Part], list[int]]:
    """Parts, parents first, and the place of the part that each prompt ends with. Prompts go apart where their tokens
    do, if what they share up to there saves at least `min_saved` tokens; equal ones never go apart.

    >>> parts, last = prompt_parts([(1, 2, 3, 4), (1, 2, 3, 9), (7,), (7,)], min_saved=3)
    >>> [(part.token_ids[part.start :], part.parent) for part in parts], last
    ([((7,), None), ((1, 2, 3), None), ((9,), 1), ((4,), 1)], [3, 2, 0, 0])
    """
    parts: list[Part] = []
    last_of_prompt = [0] * len(prompts)
    todo: list[tuple[list[int], int | None]] = []
    if prompts:
        todo.append((sorted(range(len(prompts)), key=lambda place: prompts[place]), None))
    while todo:
        places, parent = todo.pop()
        start, depth = (len(parts[parent].token_ids), parts[parent].depth + 1) if parent is not None else (0, 0)
        first, last = prompts[places[0]], prompts[places[-1]]
        common = common_length(first, last)
        is_end = common == len(last)  # sorted: then all are equal
        saves = (len(places) - 1) * (common - start) >= max(1, min_saved)
        if (is_end and (parent is None or common > start)) or saves:
            parts.append(Part(first[:common], start, parent, depth))
            parent = len(parts) - 1
        if is_end:
            for place in places:
                last_of_prompt[place] = parent or 0
            continue
        for _, some in groupby(places, key=lambda place: prompts[place][common : common + 1]):
            todo.append((list(some), parent))
    return parts, last_of_prompt


def common_length(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with.

    >>> common_length((1, 2, 3), (1, 2, 4, 5)), common_length((), (1,))
    (2, 0)
    """
    same, differ = 0, min(len(one), len(other)) + 1
    while differ - same > 1:
        middle = (same + differ) // 2
        if one[same:middle] == other[same:middle]:
            same = middle
        else:
            differ = middle
    return same
