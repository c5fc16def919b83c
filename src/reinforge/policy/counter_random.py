"""Randomness as a function: a 64-bit key and a counter give a number, whatever was drawn before.

So the order in which completions, rewards or micro-batches come can never change a result, and a resumed run draws what
the uninterrupted one would have. The mixer is splitmix64 (Steele, Lea, Flood 2014), on int64 tensors that wrap.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def stream_key(*parts: int | str) -> int:
    """A signed 64-bit key for one stream, e.g. (seed, step, place in the batch, generation).

    >>> stream_key(0, 1) == stream_key(0, 1), stream_key(0, 1) == stream_key(1, 0)
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mix(keys: Tensor, counter: Tensor | int) -> Tensor:
    """Keys of the streams' `counter`-th elements; int64, broadcast."""
    x = keys + (torch.as_tensor(counter, device=keys.device) + 1) * _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(keys: Tensor, counter: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float64 with 53 random bits; shapes broadcast.

    >>> keys = torch.tensor([stream_key(7, g) for g in range(3)])
    >>> bool((uniform(keys, 5) == uniform(keys[:, None], torch.arange(9))[:, 5]).all())
    True
    """
    return _shift_right(mix(keys, counter), 11).to(torch.float64) * 2.0**-53


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: int64's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
