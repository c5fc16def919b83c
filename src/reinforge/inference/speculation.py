"""Guessing the next tokens of rows, so that one pass can decode several of them. Pure bookkeeping, no tensors.

A draft is what followed the same last tokens before: in an earlier completion of the same prompt, in the prompt, or in
the row itself. The engine runs a draft in one pass and draws at each of its places the token that it would have drawn
there anyway, with the random number of that place. As long as the drawn token is the drafted one, the next place is
valid too; the first other token is drawn from the right distribution all the same, and kept. For a draft that is
certain this is rejection sampling (Leviathan et al. 2023, arXiv 2211.17192: accept with min(1, p / q), here q = 1, else
draw from the rest), with the one difference that the completion itself, and not only its distribution, is what it would
have been without.

How far to guess follows from counts alone, never from clocks: equal runs guess alike, so they round alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reinforge.inference.scheduler import Row
from reinforge.types import SampleRequest

MAX_ROWS = 4
"""Live rows up to which it is tried: with more, guessed tokens and the bookkeeping cost more of what they save."""
MAX_DRAFT = 12
"""Longest draft."""
MAX_INDEXED = 8192
"""Tokens of a prompt's ended completions that are looked at: half a kilobyte and a microsecond each."""
PASS_COST, TOKEN_COST = 0.25, 0.03
"""A pass with drafts costs as much as 1 + PASS_COST + TOKEN_COST * (tokens drafted for all rows) passes without
(benchmarks/speculation.py; on models of 0.6M to 50M parameters)."""
MIN_GAIN = 1.05
"""Tokens per cost, against a pass without drafts, from which on they are used."""
_LONGEST = 4
"""Most last tokens that are compared."""
_DOUBTS = 2
"""Failures every count of acceptance begins with."""
_MEMORY = 64
"""Trials after which the older ones count half."""


def guesses_pay(device_type: str) -> bool:
    """On CPUs, where the costs were measured."""
    return device_type == "cpu"


@dataclass(frozen=True, slots=True)
class Draft:
    """A guess at one row's next tokens."""

    tokens: Sequence[int] = ()
    matched: int = 0
    """Last tokens that were found again."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """For each live row one, of which the pass should run the first `length` tokens."""

    of_rows: Sequence[Draft]
    length: int


class Speculation:
    """What one call of `sample` has seen, and how well it could be guessed from that."""

    def __init__(self, requests: Sequence[SampleRequest], max_tokens: int) -> None:
        self._requests = requests
        self._max_tokens = max_tokens
        self._num_left = [request.num_generations for request in requests]
        self._ended: dict[int, list[Row]] = {}
        self._indexes: dict[int, Index] = {}
        self._num_indexed: dict[tuple[int, int], int] = {}
        self._acceptance = Acceptance()

    def end(self, row: Row) -> None:
        """A row has ended. With the last one of its prompt, all is forgotten that was kept for them."""
        self._num_left[row.request] -= 1
        if not self._num_left[row.request]:
            self._ended.pop(row.request, None)
            self._indexes.pop(row.request, None)
        elif row.request not in self._indexes:
            self._ended.setdefault(row.request, []).append(row)

    def drafts(self, live: Sequence[Row]) -> Drafts:
        """Guesses for rows in the tail."""
        of_rows = [self._draft(row) for row in live]
        return Drafts(of_rows, self._acceptance.best_length(of_rows))

    def count(self, drafts: Drafts, drawn: Sequence[Sequence[int]]) -> None:
        """Learn from the tokens each row was given. Of a draft that was not run the first token is judged too."""
        for draft, tokens in zip(drafts.of_rows, drawn, strict=True):
            self._acceptance.count(draft, tokens)

    def _draft(self, row: Row) -> Draft:
        prompt = self._requests[row.request].prompt.token_ids
        index = self._indexes.get(row.request) or self._new_index(row.request, prompt)
        key, before = (row.request, row.generation), prompt[-_LONGEST:]
        index.add(row.token_ids, self._num_indexed.get(key, 0), before)
        self._num_indexed[key] = len(row.token_ids)
        return index.draft(row.token_ids, before, min(MAX_DRAFT, self._max_tokens - len(row.token_ids) - 1))

    def _new_index(self, request: int, prompt: Sequence[int]) -> Index:
        index = self._indexes[request] = Index()
        index.add(prompt, 0, ())
        room = MAX_INDEXED
        for row in self._ended.pop(request, ()):
            room -= len(row.token_ids)
            if room >= 0:
                index.add(row.token_ids, 0, prompt[-_LONGEST:])
        return index


class Index:
    """Where each run of up to four tokens was last followed by what.

    >>> index = Index()
    >>> index.add([5, 6, 7, 8], 0, ())
    >>> index.draft([1, 6], (), 9)
    Draft(tokens=[7, 8], matched=1)
    """

    def __init__(self) -> None:
        self._followed_at: dict[tuple[int, ...], tuple[Sequence[int], int]] = {}

    def add(self, tokens: Sequence[int], start: int, before: Sequence[int]) -> None:
        """Take in tokens from `start` on, which come after those before it and, at the beginning, after `before`. The
        sequence is kept, not copied, and may grow."""
        lead = _last(tokens[max(start - _LONGEST, 0) : start], before)
        text = [*lead, *tokens[start:]]
        for end in range(len(lead), len(text)):
            place = (tokens, start + end - len(lead))
            for length in range(1, min(_LONGEST, end) + 1):
                self._followed_at[tuple(text[end - length : end])] = place

    def draft(self, tokens: Sequence[int], before: Sequence[int], max_length: int) -> Draft:
        """What followed the longest run of last tokens that was seen before."""
        suffix = _last(tokens[-_LONGEST:], before)
        for length in range(len(suffix), 0, -1):
            found = self._followed_at.get(suffix[-length:])
            if found is not None:
                return Draft(_copied(*found, max_length, is_own=found[0] is tokens), length)
        return Draft()


class Acceptance:
    """How often a drafted token was drawn, by the number of tokens before it that had been found again."""

    def __init__(self) -> None:
        self._tried = [0.0] * (_LONGEST + 1)
        self._kept = [0.0] * (_LONGEST + 1)

    def count(self, draft: Draft, drawn: Sequence[int]) -> None:
        for place, (guessed, token) in enumerate(zip(draft.tokens, drawn, strict=False)):
            matched = min(draft.matched + place, _LONGEST)
            if self._tried[matched] >= _MEMORY:
                self._tried[matched] /= 2
                self._kept[matched] /= 2
            self._tried[matched] += 1
            if guessed != token:
                return
            self._kept[matched] += 1

    def share(self, matched: int) -> float:
        """Expected; low until there is evidence."""
        return self._kept[matched] / (self._tried[matched] + _DOUBTS)

    def best_length(self, drafts: Sequence[Draft]) -> int:
        """Tokens of each draft to run: those that give most tokens per cost; 0 where drafts do not pay."""
        shares = [self.share(matched) for matched in range(_LONGEST + 1)]
        alive = [1.0] * len(drafts)
        tokens, best, best_length = float(len(drafts)), MIN_GAIN * len(drafts), 0
        for length in range(1, MAX_DRAFT + 1):
            for row, draft in enumerate(drafts):
                is_there = length <= len(draft.tokens)
                alive[row] *= shares[min(draft.matched + length - 1, _LONGEST)] if is_there else 0.0
            more = sum(alive)
            if more == 0.0:
                break
            tokens += more
            per_cost = tokens / (1 + PASS_COST + TOKEN_COST * len(drafts) * length)
            if per_cost > best:
                best, best_length = per_cost, length
        return best_length


def num_accepted(drafted: Sequence[int], drawn: Sequence[int]) -> int:
    """Drafted tokens that were drawn, up to the first that was not.

    >>> num_accepted([4, 5, 6], [4, 5, 7, 6]), num_accepted([], [4])
    (2, 0)
    """
    for place, (guessed, token) in enumerate(zip(drafted, drawn, strict=False)):
        if guessed != token:
            return place
    return min(len(drafted), len(drawn))


def _last(tokens: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    """The last tokens of both together."""
    return (*before, *tokens)[-_LONGEST:]


def _copied(source: Sequence[int], start: int, max_length: int, *, is_own: bool) -> list[int]:
    """What stands there. A row that repeats itself is expected to go on with it: past its end, the copy reads itself.

    >>> row = [1, 2, 3, 2]
    >>> _copied(row, 2, 5, is_own=True), _copied(row, 2, 5, is_own=False)
    ([3, 2, 3, 2, 3], [3, 2])
    """
    copied = list(source[start : start + max(max_length, 0)])
    while is_own and len(copied) < max_length:
        copied.append(copied[start - len(source)])
    return copied
