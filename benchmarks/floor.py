"""The least time the arithmetic of a step can take on this machine: its FLOPs at the measured rate of a matrix product
of the same shape, plus, where decoding reads more than it computes, its bytes at the measured bandwidth.

Counts what the algorithm needs (prompts once for each group, no padding, no recomputation) and nothing else: no
normalisation, no activation functions, no sampling, no Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from protocol import gpu_time
from workload import LORA_RANK, Job, ModelSize, completion_lengths

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Rates:
    """What one thread of this machine does, or its GPU."""

    wide_flops: float
    """FLOP/s of products with 2048 rows: training and prefill."""
    narrow_flops: float
    """The same with as many rows as are decoded together, from weights that do not fit the nearest cache."""
    read_bytes: float
    """Bytes/s of reading memory."""


@dataclass(frozen=True)
class Floor:
    """Seconds of one step."""

    prefill_s: float
    decode_s: float
    update_s: float

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s + self.update_s


def linear_parameters(size: ModelSize) -> int:
    """Of all layers, without embedding and output head."""
    head_size = size.hidden_size // size.num_attention_heads
    keys = size.num_key_value_heads * head_size
    attention = 2 * size.hidden_size * size.hidden_size + 2 * size.hidden_size * keys
    return size.num_hidden_layers * (attention + 3 * size.hidden_size * size.intermediate_size)


def lora_parameters(size: ModelSize) -> int:
    head_size = size.hidden_size // size.num_attention_heads
    hidden, keys, wide = size.hidden_size, size.num_key_value_heads * head_size, size.intermediate_size
    per_layer = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + wide)
    return size.num_hidden_layers * LORA_RANK * per_layer


def step_floor(job: Job, rates: Rates) -> Floor:
    """Of one GRPO step with forced lengths.

    A token's forward pass costs 2 FLOPs for each weight, adapters merged in; its backward pass 2 for each weight (the
    gradient of the inputs only) and 4 for each of an adapter (what goes through A and B, and their gradients).
    Attending to S keys costs 4 S E, and 10 S E backward, where the kernel computes the scores again; E is the hidden
    size. Groups whose rewards are equal cost no update.
    """
    size, shape = job.size, job.shape
    lengths = completion_lengths(shape, job.num_rows)
    tokens, prompt_tokens = sum(lengths), job.prompts_per_step * shape.prompt_tokens
    frozen, trained, head = linear_parameters(size), lora_parameters(size), size.vocab_size * size.hidden_size
    per_key = 4 * size.hidden_size * size.num_hidden_layers
    keys_of_prompts = job.prompts_per_step * shape.prompt_tokens**2 / 2
    keys_of_rows = sum(length * (shape.prompt_tokens + length / 2) for length in lengths)

    prefill = 2 * frozen * prompt_tokens + per_key * keys_of_prompts
    decode = 2 * (frozen + head) * tokens + per_key * keys_of_rows
    cache_row = 2 * size.num_key_value_heads * (size.hidden_size // size.num_attention_heads) * BYTES[job.dtype]
    cache_bytes = cache_row * size.num_hidden_layers * keys_of_rows
    per_token = 4 * frozen + 4 * trained
    update = per_token * (tokens + prompt_tokens) + 4 * head * tokens
    update += 3.5 * per_key * (keys_of_prompts + keys_of_rows)
    update *= 1 - shape.equal_share
    return Floor(
        prefill_s=prefill / rates.wide_flops,
        decode_s=decode / rates.narrow_flops + cache_bytes / rates.read_bytes,
        update_s=update / rates.wide_flops,
    )


def measure_rates(size: ModelSize, rows: int, device: str = "cpu") -> Rates:
    """On one thread in float32, or on a GPU in bfloat16; best of several; takes a few seconds."""
    import torch

    from reinforge.policy.products import linear

    torch.set_num_threads(1)
    on_device = {"device": device, "dtype": torch.float32 if device == "cpu" else torch.bfloat16}
    matrices = [
        torch.randn(size.intermediate_size, size.hidden_size, **on_device) for _ in range(5 * size.num_hidden_layers)
    ]
    now = time.process_time if device == "cpu" else gpu_time

    def flops(rows: int, repeats: int) -> float:
        x = torch.randn(rows, size.hidden_size, **on_device)

        def work() -> None:
            for matrix in matrices:
                linear(x, matrix)  # by the faster of torch's two libraries

        return 2 * rows * matrices[0].numel() * len(matrices) / _best_s(work, repeats, now)

    memory = torch.randn(64 << 20, **on_device)
    read = memory.nbytes / _best_s(lambda: memory.sum(), 5, now)
    return Rates(wide_flops=flops(2048, 10), narrow_flops=flops(rows, 100), read_bytes=read)


def _best_s(work: Callable[[], object], repeats: int, now: Callable[[], float]) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = now()
        work()
        best = min(best, now() - began)
    return best
