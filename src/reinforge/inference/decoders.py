"""Three ways to run a model one token further for many rows at once, behind one interface.

`NetworkDecoder` runs our own network for the architectures it knows; rows of a group read one copy of a long prompt.
`SlotDecoder` keeps keys and values of transformers' modules in slots and prefills each prompt once. `PlainDecoder` runs
transformers' own forward over the whole sequences for every token: slow, for models whose attention the slots cannot
compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reinforge.inference.kept_keys import KeptKeys
from reinforge.inference.prefill import Prefill
from reinforge.policy.attention import PrefixKV, SlotCache, pad, plain_logits, prefix_pass
from reinforge.policy.network import Network
from reinforge.policy.prompt_parts import TokenIds
from reinforge.policy.slots import NetworkSlots, Prefix

Extend = Callable[[Tensor, Tensor], Tensor]
"""(token_ids_BT, lengths_B): append T tokens to each of the first B slots -> logits [B T, V] after each. Smaller
lengths in a later call take the last tokens back."""


class Decoder(Protocol):
    """Rows live in slots 0..B-1; each step appends one token to every one of them."""

    device: torch.device
    extend: Extend | None
    """None where a row cannot be given several tokens at once and some of them taken back."""

    def fits(self, num_slots: int, capacity: int) -> bool:
        """Whether so many rows can be decoded, each with so many tokens."""
        ...

    def begin(self, prefixes: Sequence[TokenIds], owners: Sequence[int], kept: KeptKeys | None) -> list[int]:
        """A call with these prefixes (prompts without their last token) -> how many tokens of each are to be run for it
        alone. Equal tokens of another owner (adapter) are another prefix. `kept` may spare the running, and takes what
        rows leave."""
        ...

    def clear(self) -> None:
        """All rows have ended: let go of what only they needed."""
        ...

    def prefill(self, prefixes: Sequence[TokenIds], num_rows: Sequence[int], owner: int) -> list[Any]:
        """Run several of the call's prefixes, of one owner, together; as many rows will start from each."""
        ...

    def place(self, slot: int, prefix: Any) -> None:
        """Start a row in a slot from what `prefill` returned for its prompt."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Put the row of one slot, `length` tokens long, over another."""
        ...

    def leave(self, slot: int, token_ids: TokenIds, owner: int) -> None:
        """The row of a slot, which holds these tokens, has ended."""
        ...

    def step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        """Append one token to each of the first B slots, which hold `lengths_B` (at most `longest`) tokens
        -> logits [B, V] for the next."""
        ...


SHARED_TOKENS = 512
"""From so many tokens (of a prefix, times its rows) on, reading it once costs less than a copy in each row's slot."""


class NetworkRows:
    """Rows of our own network: all of a decoder but its steps."""

    def __init__(self, slots: NetworkSlots, num_slots: int) -> None:
        self.device = slots.network.device
        self._num_slots = num_slots
        self._slots = slots
        self._prefills: dict[int, Prefill] = {}
        self._kept: KeptKeys | None = None
        self.place = self._slots.place
        self.move = self._slots.move

    def fits(self, num_slots: int, capacity: int) -> bool:
        return num_slots <= self._num_slots

    def begin(self, prefixes: Sequence[TokenIds], owners: Sequence[int], kept: KeptKeys | None) -> list[int]:
        self._kept, self._prefills = kept, {}
        for owner in set(owners):
            own = [prefix for prefix, its_owner in zip(prefixes, owners, strict=True) if its_owner == owner]
            self._prefills[owner] = Prefill(self._slots.network, own, kept, owner)
        return [self._prefills[owner].own_length(prefix) for prefix, owner in zip(prefixes, owners, strict=True)]

    def clear(self) -> None:
        self._slots.clear()
        self.begin([], [], None)

    def prefill(self, prefixes: Sequence[TokenIds], num_rows: Sequence[int], owner: int) -> list[Prefix]:
        shared = [rows > 1 and rows * len(ids) >= SHARED_TOKENS for ids, rows in zip(prefixes, num_rows, strict=True)]
        computed = self._prefills[owner].run(prefixes)
        return [replace(prefix, is_shared=is_shared) for prefix, is_shared in zip(computed, shared, strict=True)]

    def leave(self, slot: int, token_ids: TokenIds, owner: int) -> None:
        if self._kept is not None:
            self._kept.put(owner, token_ids, self._slots.taken(slot, len(token_ids)))


class NetworkDecoder(NetworkRows):
    """Our own network; slots grow as their rows do."""

    def __init__(self, network: Network, num_slots: int) -> None:
        super().__init__(NetworkSlots(network, num_slots), num_slots)
        self.extend: Extend | None = self._slots.extend

    def step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        return self._slots.step(token_ids_B, lengths_B)


class SlotDecoder:
    """Preallocated keys and values; the model must use shared-prefix attention."""

    extend: Extend | None = None

    def __init__(self, model: PreTrainedModel, num_slots: int, capacity: int) -> None:
        self._num_slots, self._capacity = num_slots, capacity
        self._model = model
        self.device = next(model.parameters()).device
        self._cache = SlotCache(model, num_slots, capacity)
        self.move = self._cache.move
        self.step = self._cache.step

    def fits(self, num_slots: int, capacity: int) -> bool:
        return num_slots <= self._num_slots and capacity <= self._capacity

    def begin(self, prefixes: Sequence[TokenIds], owners: Sequence[int], kept: KeptKeys | None) -> list[int]:
        return [len(prefix) for prefix in prefixes]

    def clear(self) -> None:
        pass  # slots are all there is

    def prefill(self, prefixes: Sequence[TokenIds], num_rows: Sequence[int], owner: int) -> list[tuple[PrefixKV, int]]:
        token_ids_NL, _ = pad(prefixes, self.device)
        lengths_N = torch.tensor([len(prefix) for prefix in prefixes], device=self.device)
        computed = prefix_pass(self._model, token_ids_NL, lengths_N)
        return [(computed, index) for index in range(len(prefixes))]

    def leave(self, slot: int, token_ids: TokenIds, owner: int) -> None:
        pass  # no row begins where another ended

    def place(self, slot: int, prefix: tuple[PrefixKV, int]) -> None:
        computed, index = prefix
        self._cache.place(slot, computed, index)


class PlainDecoder:
    """Remembers token ids only and computes everything again for each token."""

    extend: Extend | None = None

    def __init__(self, model: PreTrainedModel, num_slots: int) -> None:
        self._model = model
        self.device = next(model.parameters()).device
        self._rows: list[list[int]] = [[] for _ in range(num_slots)]

    def fits(self, num_slots: int, capacity: int) -> bool:
        return num_slots <= len(self._rows)

    def begin(self, prefixes: Sequence[TokenIds], owners: Sequence[int], kept: KeptKeys | None) -> list[int]:
        return [len(prefix) for prefix in prefixes]

    def clear(self) -> None:
        self._rows = [[] for _ in self._rows]

    def prefill(self, prefixes: Sequence[TokenIds], num_rows: Sequence[int], owner: int) -> list[Sequence[int]]:
        return list(prefixes)

    def leave(self, slot: int, token_ids: TokenIds, owner: int) -> None:
        pass  # no row begins where another ended

    def place(self, slot: int, prefix: Sequence[int]) -> None:
        self._rows[slot] = list(prefix)

    def move(self, source: int, target: int, length: int) -> None:
        self._rows[target] = self._rows[source]

    def step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        rows = self._rows[: len(token_ids_B)]
        for row, token_id in zip(rows, token_ids_B.tolist(), strict=True):
            row.append(token_id)
        logits_BSV = plain_logits(self._model, *pad(rows, self.device))
        return logits_BSV[torch.arange(len(rows), device=self.device), lengths_B]
