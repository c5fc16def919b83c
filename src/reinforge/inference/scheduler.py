"""Which row decodes in which slot, and which prompts are prefilled when. Pure bookkeeping, no tensors.

A row is one completion on its way. Live rows occupy slots 0..n-1 without holes: a newly admitted row takes slot n, and
when rows end, the last live rows move into their slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reinforge.types import SampleRequest

PADDING_FREE_LENGTH = 64
"""Prompts up to this length are padded together whatever their lengths: another forward pass would cost more."""


@dataclass(slots=True)
class Row:
    """One completion on its way."""

    request: int
    """Place of its request."""
    generation: int
    greedy: bool
    num_prefix: int
    """Prompt tokens but the last: what the prefill puts into the slot."""
    next_token: int
    """Input of the next decode step: the last prompt token, then the latest drawn one."""
    stream: int = 0
    """Key of its random numbers."""
    policy_version: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled_logprobs: list[float] = field(default_factory=list)

    @property
    def num_cached(self) -> int:
        """Tokens in the slot: the prefix and every input so far."""
        return self.num_prefix + len(self.token_ids)


class Scheduler:
    """Moves rows from waiting to live to ended, in the order of requests and generations.

    >>> from reinforge.types import Example, Prompt
    >>> prompt = Prompt(Example(0, "Hi"), "Hi", (5, 6))
    >>> scheduler = Scheduler([SampleRequest(prompt, 3, (0,))], num_slots=2)
    >>> [row.generation for row in scheduler.admit()], scheduler.end([0]), [row.generation for row in scheduler.live]
    ([0, 1], [(1, 0)], [1])
    """

    def __init__(
        self, requests: Sequence[SampleRequest], num_slots: int, own_lengths: Sequence[int] | None = None
    ) -> None:
        """`own_lengths` are the tokens of each prompt's prefix that are run for it alone; without it all are."""
        self.live: list[Row] = []
        """live[slot]"""
        self._num_slots = num_slots
        self._waiting = deque(
            Row(place, generation, request.greedy, request.prompt.num_tokens - 1, request.prompt.token_ids[-1])
            for place, request in enumerate(requests)
            for generation in request.generations
        )
        self._num_unplaced = [request.num_generations for request in requests]
        self._prefix_lengths = [request.prompt.num_tokens - 1 for request in requests]
        self._own_lengths = self._prefix_lengths if own_lengths is None else own_lengths

    @property
    def is_done(self) -> bool:
        return not self.live and not self._waiting

    def admit(self) -> list[Row]:
        """Give free slots to waiting rows: they become the last live rows."""
        admitted = [self._waiting.popleft() for _ in range(min(self._num_slots - len(self.live), len(self._waiting)))]
        self.live.extend(admitted)
        return admitted

    def place(self, row: Row) -> bool:
        """Count a row whose prefix was copied into its slot; True when it was the last one of its request."""
        self._num_unplaced[row.request] -= 1
        return self._num_unplaced[row.request] == 0

    def prefills(self, admitted: Iterable[Row], ready: Iterable[int], max_tokens: int) -> list[list[int]]:
        """Requests to prefill for the admitted rows, in chunks of at most `max_tokens` padded tokens of their own (one
        prompt may be longer). Requests in `ready` have theirs. Room left is used for the requests that come next, so
        that slots that free up one by one do not cause prefills of one prompt each.
        """
        known = set(ready)
        needed = list(dict.fromkeys(row.request for row in admitted if row.request not in known))
        if not needed:
            return []
        room = max_tokens - sum(self._prefix_lengths[request] for request in needed)
        for request in dict.fromkeys(row.request for row in self._waiting):
            if request in known or request in needed:
                continue
            room -= self._prefix_lengths[request]
            if room < 0:
                break
            needed.append(request)
        return chunks_of_similar_length(needed, self._own_lengths, max_tokens)

    def end(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Remove the rows in these slots -> moves (from slot, to slot) that close the holes, none touching another."""
        ended = set(slots)
        num_left = len(self.live) - len(ended)
        holes = [slot for slot in slots if slot < num_left]
        tail = [slot for slot in range(num_left, len(self.live)) if slot not in ended]
        moves = list(zip(tail, holes, strict=True))
        for source, target in moves:
            self.live[target] = self.live[source]
        del self.live[num_left:]
        return moves


def chunks_of_similar_length(places: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split places (indices into `lengths`) into chunks whose padded size is at most `max_tokens` and, beyond short
    prompts, at most twice the real one.

    >>> chunks_of_similar_length([0, 1, 2, 3], [500, 10, 300, 20], max_tokens=1000)
    [[0, 2], [3, 1]]
    """
    chunks: list[list[int]] = []
    for place in sorted(places, key=lambda place: -lengths[place]):
        if chunks:
            longest = lengths[chunks[-1][0]]
            fits = (len(chunks[-1]) + 1) * longest <= max_tokens
            if fits and (longest <= PADDING_FREE_LENGTH or 2 * lengths[place] >= longest):
                chunks[-1].append(place)
                continue
        chunks.append([place])
    return chunks
