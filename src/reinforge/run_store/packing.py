"""Texts and token arrays as compact bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from reinforge.types import Completion

_HEADER = struct.Struct("<BI")
_WIDE_IDS, _WIDE_FLOATS, _TWO_LOGPROBS = 1, 2, 4


def pack_text(text: str) -> bytes:
    r"""zlib of UTF-8; lone surrogates survive.

    >>> unpack_text(pack_text("half an emoji: \ud83d")) == "half an emoji: \ud83d"
    True
    """
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


def unpack_text(data: bytes) -> str:
    """What `pack_text` was given."""
    return zlib.decompress(data).decode("utf-8", "surrogatepass")


def plain_text(text: str) -> str:
    r"""A text SQLite can store as it is: lone surrogates become visible escapes.

    >>> plain_text("bad \ud83d")
    'bad \\ud83d'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def pack_tokens(completion: Completion) -> bytes:
    """Token ids and both logprobs of a completion, exactly.

    Ids take 2 bytes where they fit, logprobs 4 where float32 holds them exactly (a sampler's do), and the second array
    is left out where it equals the first (no top_p, no top_k).
    """
    ids, logprobs, sampled = completion.token_ids, completion.logprobs, completion.sampled_logprobs
    two = sampled != logprobs
    wide_ids = bool(ids) and max(ids) > 0xFFFF
    floats = logprobs + sampled if two else logprobs
    narrow = struct.pack(f"<{len(floats)}f", *floats)
    wide_floats = struct.unpack(f"<{len(floats)}f", narrow) != floats
    flags = wide_ids * _WIDE_IDS | wide_floats * _WIDE_FLOATS | two * _TWO_LOGPROBS
    packed_ids = struct.pack(f"<{len(ids)}{'I' if wide_ids else 'H'}", *ids)
    return _HEADER.pack(flags, len(ids)) + packed_ids + (_wide(floats) if wide_floats else narrow)


def unpack_tokens(data: bytes) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Token ids, logprobs and sampled logprobs as `pack_tokens` was given them."""
    flags, num = _HEADER.unpack_from(data)
    id_format = f"<{num}{'I' if flags & _WIDE_IDS else 'H'}"
    ids = struct.unpack_from(id_format, data, _HEADER.size)
    num_floats = 2 * num if flags & _TWO_LOGPROBS else num
    float_format = f"<{num_floats}{'d' if flags & _WIDE_FLOATS else 'f'}"
    floats = struct.unpack_from(float_format, data, _HEADER.size + struct.calcsize(id_format))
    return ids, floats[:num], floats[num:] if flags & _TWO_LOGPROBS else floats[:num]


def _wide(floats: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(floats)}d", *floats)
