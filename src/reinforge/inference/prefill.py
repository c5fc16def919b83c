"""Running the prompts of one call of the sampler: what they have in common once, the rest of each behind it.

Shapes: N prefixes, K key/value heads, L tokens (padded), D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from reinforge.inference.kept_keys import KeptKeys
from reinforge.inference.scheduler import chunks_of_similar_length
from reinforge.insight.memory import PREFILL_TOKENS
from reinforge.policy.attention import PrefixKV, pad
from reinforge.policy.network import Network
from reinforge.policy.prompt_parts import TokenIds, prompt_parts
from reinforge.policy.slots import Prefix


class Prefill:
    """Keys and values of a call's prompts under one adapter, each computed when it is first asked for.

    Without `kept` they depend, to the last bit, on the call's prompts and on which are asked for together.
    """

    def __init__(
        self, network: Network, prompts: Sequence[TokenIds], kept: KeptKeys | None = None, owner: int = 0
    ) -> None:
        """`kept` are keys and values of earlier calls, of which only those of the `owner` are used."""
        self._network, self._kept, self._owner = network, kept, owner
        self._parts, ends = prompt_parts(prompts)
        self._end_of = dict(zip(prompts, ends, strict=True))
        self._computed: dict[int, Prefix] = {}
        self._num_users = [0] * len(self._parts)
        for place in ends:
            self._num_users[place] += 1
        for part in self._parts:
            if part.parent is not None:
                self._num_users[part.parent] += 1

    def own_length(self, prompt: TokenIds) -> int:
        """Tokens of a prompt that it shares with no other."""
        part = self._parts[self._end_of[prompt]]
        return len(part.token_ids) - part.start

    def run(self, prompts: Sequence[TokenIds]) -> list[Prefix]:
        """Keys and values of some of the prompts; each may be asked for as often as the call has it."""
        ends = [self._end_of[prompt] for prompt in prompts]
        for places in self._levels(ends):
            self._compute(places)
        found = [self._computed[place] for place in ends]
        for place in ends:
            self._release(place)
        return found

    def _levels(self, ends: Sequence[int]) -> Iterator[list[int]]:
        """Parts that are missing, those of one depth together."""
        missing: set[int] = set()
        for end in ends:
            place: int | None = end
            while place is not None and place not in self._computed and place not in missing:
                missing.add(place)
                place = self._parts[place].parent
        for depth in sorted({self._parts[place].depth for place in missing}):
            yield sorted(place for place in missing if self._parts[place].depth == depth)

    def _compute(self, places: Sequence[int]) -> None:
        """Parts whose parents are computed."""
        tokens = [self._parts[place].token_ids for place in places]
        before = [self._before(place) for place in places]
        lengths = [len(ids) - _length(prefix) for ids, prefix in zip(tokens, before, strict=True)]
        for chunk in chunks_of_similar_length(range(len(places)), lengths, PREFILL_TOKENS):
            found = run_behind(self._network, [tokens[i] for i in chunk], [before[i] for i in chunk])
            self._computed.update(zip((places[i] for i in chunk), found, strict=True))
        for place in places:
            parent = self._parts[place].parent
            if parent is not None:
                self._release(parent)

    def _before(self, place: int) -> Prefix | None:
        """The longest beginning of a part's tokens that is there already."""
        part = self._parts[place]
        parent = None if part.parent is None else self._computed[part.parent]
        kept = self._kept.longest(self._owner, part.token_ids) if self._kept is not None else None
        return kept if kept is not None and kept.length > part.start else parent

    def _release(self, place: int) -> None:
        self._num_users[place] -= 1
        if not self._num_users[place]:
            del self._computed[place]


def run_behind(network: Network, tokens: Sequence[TokenIds], before: Sequence[Prefix | None]) -> list[Prefix]:
    """Keys and values of tokens of which a beginning is there already."""
    distinct = list(dict.fromkeys(before))
    kind = [distinct.index(prefix) for prefix in before]
    order = sorted(range(len(tokens)), key=kind.__getitem__)  # what stands behind the same, side by side
    own = [tokens[i][_length(before[i]) :] for i in order]
    token_ids_NL, _ = pad(own, network.device)
    behind = None
    if distinct != [None]:
        behind = (_stacked(network, distinct), torch.tensor([kind[i] for i in order], device=network.device))
    lengths_N = torch.tensor([len(ids) for ids in own], device=network.device)
    computed = network.prefix_pass(token_ids_NL, lengths_N, behind=behind)
    found = {i: Prefix.of(computed, row, is_shared=False) for row, i in enumerate(order)}
    return [found[i] if prefix is None else prefix.followed_by(found[i]) for i, prefix in enumerate(before)]


def _stacked(network: Network, prefixes: Sequence[Prefix | None]) -> PrefixKV:
    """Right-padded to the longest; None is a prefix without tokens."""
    lengths_N = torch.tensor([_length(prefix) for prefix in prefixes], device=network.device)
    if len(prefixes) == 1 and (only := prefixes[0]) is not None:
        return PrefixKV(tuple(key[None] for key in only.keys), tuple(value[None] for value in only.values), lengths_N)
    room = int(lengths_N.max())
    keys = [network.new_keys(len(prefixes), room) for _ in network.layers]
    values = [network.new_keys(len(prefixes), room) for _ in network.layers]
    for index, prefix in enumerate(prefixes):
        if prefix is not None:
            for whole, part in zip(keys + values, prefix.keys + prefix.values, strict=True):
                whole[index, :, : prefix.length] = part
    return PrefixKV(tuple(keys), tuple(values), lengths_N)


def _length(prefix: Prefix | None) -> int:
    return prefix.length if prefix is not None else 0
