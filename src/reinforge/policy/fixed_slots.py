"""Decode steps in few shapes and in buffers that never move, so that a CUDA graph can be recorded of each shape.

Rows are rounded up to a bucket, and so is the part of the slots that is attended to. What a bucket has beyond the live
rows is computed on token 0 at place 0 of slots that nobody uses, and left out of the result. Every row gets a copy of
its prompt into its slot: which rows share one changes from step to step.

Shapes: as in `slots.py`; R rows of a bucket, C tokens of a slot that are attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reinforge.policy import slots
from reinforge.policy.network import Network
from reinforge.policy.slots import NetworkSlots, Prefix

Compute = Callable[[int, int], Tensor]
"""(R, C) -> logits [R, V] of the step that stands in the buffers."""


class FixedSlots(NetworkSlots):
    """Slots that have all their room from the beginning."""

    def __init__(
        self, network: Network, num_slots: int, capacity: int, runner: Callable[[Compute], Compute] | None = None
    ) -> None:
        """`capacity` in tokens of a slot. `runner` takes the computation of a step and gives what is called instead."""
        super().__init__(network, num_slots)
        self.capacity = capacity
        self._make_room(capacity)
        self._turns_CD = network.rotation.table(self._room)
        self._token_ids_S = torch.zeros(num_slots, dtype=torch.int64, device=network.device)
        self._lengths_S = torch.zeros_like(self._token_ids_S)
        self._rows_S, self._places_C = (torch.arange(count, device=network.device) for count in (num_slots, self._room))
        self._computed: Compute = self._compute if runner is None else runner(self._compute)

    def place(self, slot: int, prefix: Prefix) -> None:
        super().place(slot, replace(prefix, is_shared=False))

    def fixed_step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        """As `step`; `longest` is the largest of the lengths. The result holds until the next step."""
        B = len(token_ids_B)
        rows, room = bucket(B, 1, self._num_slots), bucket(longest + 1, slots.ROOM_STEP, self._room)
        for buffer, given in ((self._token_ids_S, token_ids_B), (self._lengths_S, lengths_B)):
            buffer[:B] = given
            buffer[B:rows] = 0
        return self._computed(rows, room)[:B]

    def _compute(self, rows: int, room: int) -> Tensor:
        network, lengths_R, rows_R = self.network, self._lengths_S[:rows], self._rows_S[:rows]
        hidden_RC = self._places_C[:room] > lengths_R[:, None]
        mask = torch.zeros(rows, 1, 1, room, dtype=network.dtype, device=network.device)
        mask.masked_fill_(hidden_RC[:, None, None], float("-inf"))
        cos, sin = self._turns_CD.index_select(0, lengths_R).chunk(2, dim=-1)
        hidden_RE = network.embedded(self._token_ids_S[:rows])
        for layer, own_keys, own_values in zip(network.layers, self._keys, self._values, strict=True):
            query_RKGD, key_RKD, value_RKD = network.token_heads(layer, hidden_RE, (cos, sin))
            own_keys[rows_R, :, lengths_R] = key_RKD
            own_values[rows_R, :, lengths_R] = value_RKD
            keys, values = own_keys[:rows, :, :room], own_values[:rows, :, :room]
            out_RKGD = F.scaled_dot_product_attention(query_RKGD, keys, values, attn_mask=mask)
            hidden_RE = network.token_out(layer, hidden_RE, out_RKGD.transpose(1, 2))
        return network.logits(network.norm(hidden_RE))


def bucket(count: int, step: int, largest: int) -> int:
    """The smallest of step * (1, 2, 3, 4, 6, 8, 12, 16 ..) that is at least `count`, but not above `largest`.

    >>> [bucket(count, 1, 10) for count in range(1, 11)], bucket(65, 64, 1000)
    ([1, 2, 3, 4, 6, 6, 8, 8, 10, 10], 128)
    """
    size = 1
    while size * step < count:
        is_power = size & (size - 1) == 0
        size = size + max(1, size // 2) if is_power else size * 4 // 3
    return min(size * step, largest)
