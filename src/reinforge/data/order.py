"""The endless, seeded order in which prompts are drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_ROUNDS = 90
"""Enough for any data set: about 6 per doubling of the number of prompts, to 2**15 with full mixing proven in the paper
and far beyond in practice (Ethereum shuffles its million validators with 90)."""


@dataclass(frozen=True, slots=True)
class PromptOrder:
    """Position k of the order -> (index of the prompt, epoch): each epoch is a permutation of its own.

    A swap-or-not shuffle (Hoang, Morris, Rogaway 2012) keyed by (seed, epoch): it computes one place of a permutation
    without making the others, so any position is reached without memory and without playing back the ones before.
    SHA-256 makes it equal on every machine and Python version.

    >>> order = PromptOrder(num_prompts=3, seed=0)
    >>> sorted(order.at(position) for position in range(6))
    [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    """

    num_prompts: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError("an order needs at least one prompt")

    def at(self, position: int) -> tuple[int, int]:
        """(index of the prompt, epoch) at a position from 0 on."""
        epoch, index = divmod(position, self.num_prompts)
        for round_number in range(_ROUNDS):
            key = f"{self.seed},{epoch},{round_number}"
            partner = (_hash(key) - index) % self.num_prompts
            if _hash(f"{key},{max(index, partner)}") % 2:
                index = partner
        return index, epoch


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
