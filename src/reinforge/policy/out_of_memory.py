"""When the device has no memory left: how torch, C++ and oneDNN say so, and what to tell people."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from reinforge.errors import SetupError

_WORDS = (
    "can't allocate memory",  # torch's allocator for the CPU
    "bad_alloc",  # C++
    "could not create a ",  # oneDNN, which makes no memory, primitive or execution when it finds none
    "could not execute a ",
    "out of memory",  # CUDA
    "ALLOC_FAILED",  # its libraries
)


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in an allocation of the CPU's."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(fault, RuntimeError) and any(words in str(fault) for words in _WORDS)


def memory_error(where: str, hint: str, fault: BaseException) -> SetupError:
    """What people are told, with the first line of what the library said."""
    said = (str(fault).splitlines() or [""])[0].strip() or type(fault).__name__
    return SetupError(f"Memory ran out {where} ({said}).", hint=hint)


@contextmanager
def telling_when_memory_runs_out(where: str, hint: str) -> Iterator[None]:
    """Within this block a lack of memory is a SetupError."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not is_out_of_memory(fault):
            raise
        raise memory_error(where, hint, fault) from fault


def give_back() -> None:
    """Free what a failed pass left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
