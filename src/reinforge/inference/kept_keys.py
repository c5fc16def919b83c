"""Keys and values of recent rows, for prompts that begin with the same tokens: the turns of a conversation.

They belong to one base model and the adapters on it: whoever loads other weights begins with an empty store.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict

from reinforge.policy.prompt_parts import TokenIds, common_length
from reinforge.policy.slots import Prefix

MIN_REUSED_TOKENS = 16
"""Fewer are as fast run again."""


class KeptKeys:
    """At most so many bytes of them, the least recently used dropped first. Those of one owner (an adapter) are found
    by no other."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._by_use: OrderedDict[tuple[int, TokenIds], Prefix] = OrderedDict()
        self._sorted: list[tuple[int, TokenIds]] = []

    def longest(self, owner: int, token_ids: TokenIds) -> Prefix | None:
        """Of the longest beginning of these tokens that is kept; None where none is worth it."""
        place = bisect_left(self._sorted, (owner, token_ids))  # what shares most with them stands beside their place
        beside = [key for key in self._sorted[max(0, place - 1) : place + 1] if key[0] == owner]
        shared, best = max(((common_length(key[1], token_ids), key) for key in beside), default=(0, (owner, ())))
        if shared < MIN_REUSED_TOKENS:
            return None
        self._by_use.move_to_end(best)
        return self._by_use[best].first(shared)

    def put(self, owner: int, token_ids: TokenIds, prefix: Prefix) -> None:
        """Keep what was computed for these tokens, instead of what they continue."""
        key = (owner, token_ids)
        place = bisect_left(self._sorted, key)
        for other in self._sorted[max(0, place - 1) : place + 1]:
            if other[0] == owner and other[1] == token_ids[: len(other[1])]:
                self._drop(other)
        insort(self._sorted, key)
        self._by_use[key] = prefix
        self._num_bytes += prefix.num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._by_use)))

    def _drop(self, key: tuple[int, TokenIds]) -> None:
        self._num_bytes -= self._by_use.pop(key).num_bytes
        del self._sorted[bisect_left(self._sorted, key)]
