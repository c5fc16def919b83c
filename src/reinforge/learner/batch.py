"""From a batch of groups to the micro-batches one optimizer step runs through.

A *chunk* is some groups whose prompts are run together, once; its completions follow in micro-batches, sorted by length
so that little is padded. Rows that cannot change the gradient are left out. How a step is split never changes it.

Shapes: B rows of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reinforge.learner.loss import LossSettings, StepSize, needs_all_rows
from reinforge.policy.counter_random import mix, stream_key
from reinforge.policy.prompt_parts import common_length
from reinforge.types import Batch, Completion


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to learn from."""

    place: tuple[int, int]
    """(group, generation) in the batch."""
    prompt_ids: tuple[int, ...]
    completion: Completion
    advantage: float
    old_logprobs: tuple[float, ...] | None
    """[T] Before the first update on the batch: None."""

    @property
    def length(self) -> int:
        return self.completion.num_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """Groups whose prompts are run once, together."""

    prompts: tuple[tuple[int, ...], ...]
    """Their token ids."""
    prompt_of_group: dict[int, int]
    """Place of a group in the batch -> place of its prompt in `prompts`."""
    microbatches: tuple[tuple[Row, ...], ...]
    num_common: int = 0
    """All prompts begin with the same so many tokens, which are run once."""


def step_size(batch: Batch, settings: LossSettings) -> StepSize:
    """What the whole step divides by: all completions, whether computed or not."""
    completions = [c for group in batch.groups for c in group.completions]
    return StepSize.of([c.num_tokens for c in completions], [c.is_truncated for c in completions], settings)


def rows_to_compute(batch: Batch, settings: LossSettings) -> list[Row]:
    """The completions that can change the gradient: in the loss, and with an advantage or a KL penalty."""
    everything = needs_all_rows(settings)
    rows = []
    for p, (group, advantages_G) in enumerate(zip(batch.groups, batch.advantages_PG, strict=True)):
        for g, (completion, advantage) in enumerate(zip(group.completions, advantages_G, strict=True)):
            in_loss = completion.num_tokens > 0 and not (settings.mask_truncated and completion.is_truncated)
            if in_loss and (everything or advantage != 0.0):
                old = batch.old_logprobs_PGT[p][g] if batch.old_logprobs_PGT is not None else None
                rows.append(Row((p, g), group.prompt.token_ids, completion, advantage, old))
    return rows


MIN_SAVED_TOKENS = 256
"""What the prompts have in common costs passes and parts of attention of its own, and pays from so many spared tokens
on."""
MAX_PACKED_PADDING = 1.5
"""Where padding is left out of everything but attention, the padded size may exceed the budget by this factor."""


def plan(rows: Sequence[Row], tokens_per_microbatch: int, *, shared_prefix: bool, packed: bool = False) -> list[Chunk]:
    """Chunks of groups of similar prompt length, each with length-sorted micro-batches under the token budget.

    Without a shared prefix a row costs its prompt too, and prompts are not run apart. With `packed` (our own network)
    the budget counts real tokens, otherwise padding too; and a long beginning of all prompts is counted and run once.
    """
    slack = MAX_PACKED_PADDING if packed else 1.0
    by_group: dict[int, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.place[0], []).append(row)
    order = sorted(by_group, key=lambda p: (len(by_group[p][0].prompt_ids), p))
    chunks = []
    num_common = _num_common([by_group[p][0].prompt_ids[:-1] for p in order]) if shared_prefix and packed else 0
    lengths = [len(by_group[p][0].prompt_ids) - num_common if shared_prefix else 1 for p in order]
    prompt_budget = tokens_per_microbatch
    if num_common:  # together within the budget, or within the longest prompt where that exceeds it
        prompt_budget = max(prompt_budget, num_common + max(lengths)) - num_common
    for places in _under_budget(lengths, prompt_budget, slack):
        groups = [order[i] for i in places]
        chunk_rows = [row for p in groups for row in by_group[p]]
        chunks.append(
            Chunk(
                prompts=tuple(by_group[p][0].prompt_ids for p in groups),
                prompt_of_group={p: i for i, p in enumerate(groups)},
                microbatches=tuple(_microbatches(chunk_rows, tokens_per_microbatch, shared_prefix, slack)),
                num_common=num_common if len(groups) > 1 else 0,
            )
        )
    return chunks


def _num_common(prefixes: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prefixes begin with, 0 where running them once does not pay."""
    if not prefixes:
        return 0
    num_common = common_length(min(prefixes), max(prefixes))
    return num_common if (len(prefixes) - 1) * num_common >= MIN_SAVED_TOKENS else 0


@dataclass(frozen=True, slots=True)
class RowTensors:
    """A micro-batch of completions as tensors; all [B, T], right-padded with 0."""

    input_ids_BT: Tensor
    """Last prompt token, then all completion tokens but the last."""
    target_ids_BT: Tensor
    """The completion's tokens: target t is predicted at input t."""
    mask_BT: Tensor
    """True at the completion's tokens."""
    sampled_BT: Tensor
    """Plain logprobs from the sampler."""
    drawn_BT: Tensor
    """The sampler's logprobs in the distribution it drew from, after top_p and top_k."""
    old_BT: Tensor | None
    """Logprobs of the learner's first pass over this batch, if it has been."""
    advantages_B: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> RowTensors:
        T = max(row.length for row in rows)

        def ids(values: Iterator[tuple[int, ...]]) -> Tensor:
            return torch.tensor([[*v, *[0] * (T - len(v))] for v in values], dtype=torch.long, device=device)

        def floats(values: Iterator[tuple[float, ...]]) -> Tensor:
            padded = [[*v, *[0.0] * (T - len(v))] for v in values]
            return torch.tensor(padded, dtype=torch.float32, device=device)

        lengths_B = torch.tensor([row.length for row in rows], device=device)
        has_old = rows[0].old_logprobs is not None
        return cls(
            input_ids_BT=ids((row.prompt_ids[-1], *row.completion.token_ids[:-1]) for row in rows),
            target_ids_BT=ids(row.completion.token_ids for row in rows),
            mask_BT=torch.arange(T, device=device)[None, :] < lengths_B[:, None],
            sampled_BT=floats(row.completion.logprobs for row in rows),
            drawn_BT=floats(row.completion.sampled_logprobs for row in rows),
            old_BT=floats(row.old_logprobs or () for row in rows) if has_old else None,
            advantages_B=torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
        )


def completion_keys(rows: Sequence[Row], seed: int, length: int, device: torch.device) -> Tensor:
    """Dropout keys [B, length] of the rows' input tokens: a function of completion and position."""
    keys = [_key(seed, row, row.place[1]) for row in rows]
    return mix(torch.tensor(keys, device=device)[:, None], torch.arange(length, device=device))


def prompt_keys(rows: Sequence[Row], seed: int, length: int, device: torch.device) -> Tensor:
    """Dropout keys [N, length] of prompt tokens, one row of the result for each given row: a function of prompt and
    position, equal for all completions of a prompt."""
    keys = [_key(seed, row, -1) for row in rows]
    return mix(torch.tensor(keys, device=device)[:, None], torch.arange(length, device=device))


def _key(seed: int, row: Row, generation: int) -> int:
    return stream_key("dropout", seed, row.completion.policy_version, row.place[0], generation)


def _microbatches(rows: Sequence[Row], budget: int, shared_prefix: bool, slack: float) -> Iterator[tuple[Row, ...]]:
    def cost(row: Row) -> int:
        return row.length if shared_prefix else row.length + len(row.prompt_ids)

    # First-fit decreasing saves a pass now and then, but mixes lengths: 9 % more CPU seconds on log-normal ones.
    ordered = sorted(rows, key=lambda row: (cost(row), row.place))
    for places in _under_budget([cost(row) for row in ordered], budget, slack):
        # Rows of one prompt next to each other: they are attended to it together.
        yield tuple(sorted((ordered[i] for i in places), key=lambda row: row.place))


def _under_budget(lengths: Sequence[int], budget: int, slack: float = 1.0) -> Iterator[range]:
    """Cut ascending lengths into runs of at least one whose sum stays within the budget, and whose padded size (count *
    longest) stays within slack * budget.

    >>> [list(r) for r in _under_budget([1, 2, 2, 5, 9], budget=6)]
    [[0, 1, 2], [3], [4]]
    >>> [list(r) for r in _under_budget([1, 2, 2, 5, 9], budget=10, slack=2)]
    [[0, 1, 2, 3], [4]]
    """
    start, total = 0, 0
    for end, length in enumerate(lengths):
        if end > start and (total + length > budget or (end + 1 - start) * length > slack * budget):
            yield range(start, end)
            start, total = end, 0
        total += length
    if lengths:
        yield range(start, len(lengths))
