"""Rows that are being decoded by a `Network`: their own keys and values in slots, their prompt's stored once.

A row attends to its prefix, shared with the other rows of its group where that pays, and to its own tokens after it,
to each apart, and the two are joined (`two_part_attention.py`). Live rows occupy slots 0..B-1.

Shapes: S slots, C tokens a slot has room for, B live rows, T tokens a pass appends to each, M = B T, K key/value heads,
G query heads for each, D head size, E hidden size, L prefix tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reinforge.policy.attention import PrefixKV, completion_pass, output_head, prefix_pass
from reinforge.policy.logit_gap import logit_gap
from reinforge.policy.network import Network
from reinforge.policy.two_part_attention import add_part, attend_part

ROOM_STEP = 64
"""Slots grow by multiples of this many tokens."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """What a prompt left: keys and values of each layer, [K, L, D]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: int
    is_shared: bool
    """Rows attend to it where it is; otherwise each gets a copy into its slot."""

    @classmethod
    def of(cls, computed: PrefixKV, index: int, *, is_shared: bool) -> Prefix:
        length = int(computed.lengths_N[index])
        keys, values = (tuple(t[index, :, :length] for t in layers) for layers in (computed.keys, computed.values))
        return cls(keys, values, length, is_shared and length > 0)

    def first(self, length: int) -> Prefix:
        """Of its first tokens only."""
        keys, values = (tuple(t[:, :length] for t in layers) for layers in (self.keys, self.values))
        return Prefix(keys, values, length, is_shared=False)

    def followed_by(self, other: Prefix) -> Prefix:
        """Of its tokens and those of another that was computed behind it."""
        keys, values = (
            tuple(torch.cat(both, dim=1) for both in zip(*layers, strict=True))
            for layers in ((self.keys, other.keys), (self.values, other.values))
        )
        return Prefix(keys, values, self.length + other.length, is_shared=False)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.keys + self.values)


class NetworkSlots:
    """Keys and values of live rows, and the step that appends a token to each."""

    def __init__(self, network: Network, num_slots: int) -> None:
        self.network = network
        self._num_slots = num_slots
        self._room = 0
        self._keys = [network.new_keys(num_slots, 0) for _ in network.layers]
        self._values = [network.new_keys(num_slots, 0) for _ in network.layers]
        self._prefix_of_slot: list[Prefix | None] = [None] * num_slots
        self._shared_lengths_S = torch.zeros(num_slots, dtype=torch.int64, device=network.device)
        self._groups: _Groups | None = None

    def clear(self) -> None:
        """All rows have ended: let go of their prefixes."""
        self._prefix_of_slot = [None] * self._num_slots
        self._groups = None

    def place(self, slot: int, prefix: Prefix) -> None:
        """Start a row in a slot."""
        self._set_prefix(slot, prefix if prefix.is_shared else None)
        if not prefix.is_shared:
            self._make_room(prefix.length)
            for own, given in zip(self._keys + self._values, prefix.keys + prefix.values, strict=True):
                own[slot, :, : prefix.length] = given

    def move(self, source: int, target: int, length: int) -> None:
        """Put the row of one slot, `length` tokens long, over another."""
        own_length = length - int(self._shared_lengths_S[source])
        self._set_prefix(target, self._prefix_of_slot[source])
        for own in self._keys + self._values:
            own[target, :, :own_length] = own[source, :, :own_length]

    def taken(self, slot: int, length: int) -> Prefix:
        """A copy of what a row, `length` tokens long, has in its slot and before it."""
        own_length = length - int(self._shared_lengths_S[slot])
        keys, values = (tuple(t[slot, :, :own_length] for t in layers) for layers in (self._keys, self._values))
        own, shared = Prefix(keys, values, own_length, is_shared=False), self._prefix_of_slot[slot]
        return (shared or own.first(0)).followed_by(own)

    def step(self, token_ids_B: Tensor, lengths_B: Tensor) -> Tensor:
        """Append one token to each of the first B slots, which hold `lengths_B` tokens -> logits [B, V]."""
        return self.extend(token_ids_B[:, None], lengths_B)

    def extend(self, token_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Append T tokens to each of the first B slots, which hold `lengths_B` tokens -> logits [M, V], row by row.
        To take back the last ones of a row, give a smaller length the next time."""
        network, (B, T) = self.network, token_ids_BT.shape
        if self._groups is None or self._groups.num_rows != B:
            self._prefix_of_slot[B:] = [None] * (self._num_slots - B)  # frees what nobody attends to any more
            self._groups = _Groups.of(self._prefix_of_slot[:B], network.device)
        heads_per_key = network.num_heads // network.num_kv_heads
        own = _OwnPart.of(lengths_B - self._shared_lengths_S[:B], T, heads_per_key, network.dtype)
        self._make_room(own.limit)
        turns = network.rotation.at(_places(lengths_B, T).flatten())
        hidden_ME = network.embedded(token_ids_BT.flatten())
        for index, layer in enumerate(network.layers):
            query_MKGD, key_MKD, value_MKD = network.token_heads(layer, hidden_ME, turns)
            own.write(self._keys[index], key_MKD)
            own.write(self._values[index], value_MKD)
            keys, values = (t[:B, :, : own.limit] for t in (self._keys[index], self._values[index]))
            # The tokens of a row are further query heads of it, [B, K, T G, D].
            query = query_MKGD if T == 1 else query_MKGD.unflatten(0, (B, T)).transpose(1, 2).flatten(2, 3)
            out, sums = attend_part(query, keys, values, own.mask)
            self._groups.add_prefixes(query, index, out, sums)
            out_MGKD = out if T == 1 else out.unflatten(1, (T, -1)).flatten(0, 1)
            hidden_ME = network.token_out(layer, hidden_ME, out_MGKD)
        return network.logits(network.norm(hidden_ME))

    def _set_prefix(self, slot: int, prefix: Prefix | None) -> None:
        self._prefix_of_slot[slot] = prefix
        self._shared_lengths_S[slot] = 0 if prefix is None else prefix.length
        self._groups = None

    def _make_room(self, num_tokens: int) -> None:
        """Zeros, not whatever memory holds: what is masked counts 0 times its value, and NaN would come through."""
        if num_tokens <= self._room:
            return
        room = max(num_tokens, self._room * 3 // 2)
        self._room, before = -(-room // ROOM_STEP) * ROOM_STEP, self._room
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                tensors[index] = self.network.new_keys(self._num_slots, self._room)
                tensors[index][:, :, :before] = old


@dataclass(frozen=True)
class _OwnPart:
    """Where a step writes in the slots, and what it reads there."""

    rows_B1: Tensor
    places_BT: Tensor
    limit: int
    """Tokens in the longest slot after the step."""
    mask: Tensor | None
    """[B, 1, 1 or T G, limit]; None where all see all: one token for each of slots that hold equally many."""

    @classmethod
    def of(cls, lengths_B: Tensor, T: int, G: int, dtype: torch.dtype) -> _OwnPart:
        """`lengths_B`: tokens in the slots before the step."""
        shortest, longest = (int(bound) for bound in torch.aminmax(lengths_B))
        places_BT, limit, mask, device = _places(lengths_B, T), longest + T, None, lengths_B.device
        if shortest != longest or T > 1:
            hidden_BTC = torch.arange(limit, device=device) > places_BT[..., None]
            mask_BTC = torch.zeros(hidden_BTC.shape, dtype=dtype, device=device)
            mask_BTC.masked_fill_(hidden_BTC, float("-inf"))
            mask = (mask_BTC if T == 1 else mask_BTC.repeat_interleave(G, dim=1))[:, None]
        return cls(torch.arange(len(lengths_B), device=device)[:, None], places_BT, limit, mask)

    def write(self, slots_SKCD: Tensor, given_MKD: Tensor) -> None:
        if self.mask is None:
            slots_SKCD[: len(given_MKD), :, self.limit - 1] = given_MKD
        else:
            slots_SKCD[self.rows_B1, :, self.places_BT] = given_MKD.view(*self.places_BT.shape, *given_MKD.shape[1:])


def _places(lengths_B: Tensor, T: int) -> Tensor:
    """[B, T]: of the tokens that are appended."""
    return lengths_B[:, None] + torch.arange(T, device=lengths_B.device)


class _Groups:
    """Live rows by the prefix they share."""

    def __init__(self, num_rows: int, members: Sequence[tuple[Prefix, list[int]]], device: torch.device) -> None:
        self.num_rows = num_rows
        self._members = members
        order = [row for _, rows in members for row in rows]
        in_order = order == list(range(num_rows))
        self._order: Tensor | None = None if in_order else torch.tensor(order, device=device)

    @classmethod
    def of(cls, prefixes: Sequence[Prefix | None], device: torch.device) -> _Groups:
        rows_of: dict[Prefix, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            if prefix is not None:
                rows_of.setdefault(prefix, []).append(row)
        return cls(len(prefixes), list(rows_of.items()), device)

    def add_prefixes(self, query_BKGD: Tensor, layer: int, out_BGKD: Tensor, sums_BGK: Tensor) -> None:
        """Let the rows attend to their prefixes too, in place."""
        if not self._members:
            return
        if self._order is not None:
            query_BKGD = query_BKGD[self._order]
        B, K, G, D = query_BKGD.shape
        query_KMD = query_BKGD.transpose(0, 1).reshape(K, B * G, D)
        parts, start = [], 0
        for prefix, rows in self._members:
            stop = start + len(rows) * G
            parts.append(
                attend_part(query_KMD[None, :, start:stop], prefix.keys[layer][None], prefix.values[layer][None])
            )
            start = stop
        more_out = torch.cat([out[0] for out, _ in parts]).view(B, G, K, D)
        more_sums = torch.cat([sums[0] for _, sums in parts]).view(B, G, K)
        if self._order is None:
            add_part(out_BGKD, sums_BGK, more_out, more_sums)
            return
        out, sums = out_BGKD[self._order], sums_BGK[self._order]
        add_part(out, sums, more_out, more_sums)
        out_BGKD[self._order], sums_BGK[self._order] = out, sums


@torch.inference_mode()
def step_gap(network: Network, model: PreTrainedModel, seed: int = 0) -> float:
    """`logit_gap` between steps of the slots and the model's own shared-prefix passes, on random ids: rows behind a
    shared and a copied prefix and none, two steps each."""
    generator, device = torch.Generator().manual_seed(seed), network.device
    prefix_NL, row_BT = network.random_ids((3, 9), generator), network.random_ids((4, 2), generator)
    lengths_N, prefix_of_B = (torch.tensor(values, device=device) for values in ([9, 4, 0], [0, 1, 0, 2]))
    computed = network.prefix_pass(prefix_NL, lengths_N)
    prefixes = [Prefix.of(computed, index, is_shared=index == 0) for index in range(3)]
    slots = NetworkSlots(network, 4)
    for slot, index in enumerate(prefix_of_B.tolist()):
        slots.place(slot, prefixes[index])
    hidden_BTE = completion_pass(model, row_BT, prefix_pass(model, prefix_NL, lengths_N), prefix_of_B)
    return max(
        logit_gap(slots.step(row_BT[:, t], lengths_N[prefix_of_B] + t), output_head(model)(hidden_BTE[:, t]))
        for t in range(2)
    )
