"""The learner in this process: one optimizer step from a batch of graded groups.

Shapes: N prompts of a chunk, B rows of a micro-batch, T tokens of the longest, M completion tokens of a micro-batch,
E hidden size, L prefix tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from reinforge.config import GRPOConfig
from reinforge.errors import ReinforgeError
from reinforge.insight.memory import CPU_TOKENS, GPU_TOKENS
from reinforge.learner import checkpoint
from reinforge.learner.batch import (
    Chunk,
    Row,
    RowTensors,
    completion_keys,
    plan,
    prompt_keys,
    rows_to_compute,
    step_size,
)
from reinforge.learner.logprob import logprobs_of_logits, token_logprobs
from reinforge.learner.loss import LossSettings, LossSums, policy_loss
from reinforge.learner.optimizer import make_optimizer
from reinforge.learner.schedule import learning_rate_at
from reinforge.policy import attention
from reinforge.policy.attention import PrefixKV
from reinforge.policy.model import Policy
from reinforge.policy.network import prompts_pass
from reinforge.policy.out_of_memory import give_back, is_out_of_memory, memory_error, telling_when_memory_runs_out
from reinforge.types import Adapter, Batch, Group, Update

_SHORTEN = "Begin anew with a lower sampling_params.max_tokens or data.max_prompt_tokens."
_RECOMPUTE = (
    "Go on with less memory and more arithmetic: reinforge runs resume RUN -o gradient_checkpointing=true. "
    "Or begin anew with a lower sampling_params.max_tokens or data.max_prompt_tokens."
)


class LocalLearner:
    """Implements roles.Learner for one process and one device."""

    def __init__(
        self,
        policy: Policy,
        config: GRPOConfig,
        *,
        max_tokens: int,
        learning_rate: float,
        tokens_per_microbatch: int | None = None,
        recorded_tokens: Mapping[int, int] | None = None,
    ) -> None:
        """`tokens_per_microbatch` are those planned for this run; those of the config otherwise. `recorded_tokens` are
        what memory left of them from a step on, in the run that is being resumed."""
        self.policy = policy
        self.config = config
        self.settings = LossSettings.from_config(config, max_tokens)
        self.learning_rate = learning_rate
        """Peak of the schedule."""
        self.steps_done = 0
        self.device = policy.device
        usual = CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS
        self.tokens_per_microbatch = tokens_per_microbatch or config.tokens_per_microbatch or usual
        """Lowered when memory runs out."""
        self._recorded_tokens = recorded_tokens or {}
        self._referenced: tuple[tuple[Group, ...], dict[tuple[int, int], Tensor]] | None = None
        """Reference logprobs of the batch that is being used several times."""
        self.optimizer = make_optimizer(policy.trainable().values(), config, learning_rate)

    def update(self, batch: Batch) -> Update:
        """Take one optimizer step. A batch in which nothing teaches leaves weights and optimizer as they are."""
        self._set_tokens(self._recorded_tokens.get(self.steps_done + 1, self.tokens_per_microbatch))
        planned = self.tokens_per_microbatch
        rows = rows_to_compute(batch, self.settings)
        step = self._gradients(batch, rows)
        learning_rate = self._current_learning_rate()
        grad_norm = self._optimizer_step(learning_rate) if rows else 0.0
        self.steps_done += 1
        metrics = {
            **step.metrics(self.settings),
            "policy/grad_norm": grad_norm,
            "policy/learning_rate": learning_rate,
            "policy/microbatch_tokens": float(self.tokens_per_microbatch),
        }
        another = batch.updates_done + 1 < self.config.num_iterations
        if not another:
            self._referenced = None
        lowered = self.tokens_per_microbatch if self.tokens_per_microbatch < planned else None
        return Update(metrics, step.old_logprobs_PGT() if another else None, lowered)

    def publish(self) -> Adapter:
        return self.policy.adapter(self.steps_done)

    def state_hash(self) -> str:
        return checkpoint.state_hash(self.policy, self.optimizer)

    def save(self, folder: Path) -> None:
        checkpoint.save(folder, self.policy, self.optimizer, self.steps_done, self.tokens_per_microbatch)

    def restore(self, folder: Path) -> None:
        self.steps_done, tokens = checkpoint.restore(folder, self.policy, self.optimizer)
        self.tokens_per_microbatch = tokens or self.tokens_per_microbatch

    def _gradients(self, batch: Batch, rows: list[Row]) -> _Step:
        """Of all rows, in the parameters. When memory runs out it begins again with smaller micro-batches."""
        while True:
            chunks = self._plan(rows)
            try:
                return self._attempt(batch, rows, chunks)
            except (RuntimeError, MemoryError) as fault:
                if not is_out_of_memory(fault):
                    raise
                self._lower_tokens(chunks, fault)
            give_back()  # here the fault, and with it what the failed pass held, is gone

    def _plan(self, rows: list[Row]) -> list[Chunk]:
        shared_prefix, packed = self.policy.shares_prefix, self.policy.network is not None
        return plan(rows, self.tokens_per_microbatch, shared_prefix=shared_prefix, packed=packed)

    def _attempt(self, batch: Batch, rows: list[Row], chunks: list[Chunk]) -> _Step:
        step = _Step(batch, rows)
        self.optimizer.zero_grad(set_to_none=True)
        references = self._reference_logprobs(batch, chunks)
        for chunk in chunks:
            self._accumulate(chunk, step, references)
        return step

    def _set_tokens(self, tokens: int) -> None:
        if tokens != self.tokens_per_microbatch:
            self.tokens_per_microbatch = tokens
            self._referenced = None  # else it would depend on whether the run was resumed in between

    def _lower_tokens(self, chunks: list[Chunk], fault: BaseException) -> None:
        """To half of the largest pass there was, unless each was of one completion behind one prompt."""
        shares_prefix = self.policy.shares_prefix
        passes = [
            sum(row.length + (0 if shares_prefix else len(row.prompt_ids)) for row in rows)
            for chunk in chunks
            for rows in chunk.microbatches
            if len(rows) > 1
        ]
        if shares_prefix:
            passes += [sum(map(len, chunk.prompts)) for chunk in chunks if len(chunk.prompts) > 1]
        # With one token a pass over prompts that begin alike is no larger than that over the longest of them alone.
        if not passes or self.tokens_per_microbatch == 1:
            where = f"in step {self.steps_done + 1}, with a single completion in each pass"
            raise memory_error(where, self._memory_hint(), fault) from fault
        self._set_tokens(max(1, min(self.tokens_per_microbatch, max(passes)) // 2))
        self._recorded_tokens = {}  # of what happened here before: this time it went another way

    def _memory_hint(self) -> str:
        return _SHORTEN if self.config.gradient_checkpointing else _RECOMPUTE

    def _accumulate(self, chunk: Chunk, step: _Step, references: dict[tuple[int, int], Tensor]) -> None:
        """Add the chunk's gradients: its prompts forward once, its micro-batches forward and backward, and last the
        prompts backward with what all micro-batches left in their keys and values."""
        prefix = self._run_prefixes(chunk)
        leaves = prefix.as_leaves() if prefix is not None else None
        for rows in chunk.microbatches:
            tensors = RowTensors.of(rows, self.device)
            logprobs_BT, entropies_BT = self._row_logprobs(chunk, rows, tensors, leaves)
            reference_BT = (
                torch.stack([_padded(references[r.place], logprobs_BT) for r in rows]) if references else None
            )
            loss, sums = policy_loss(
                logprobs_BT,
                tensors.old_BT,
                tensors.advantages_B,
                tensors.mask_BT,
                self.settings,
                step_size(step.batch, self.settings),
                reference_BT,
                tensors.drawn_BT,
            )
            loss.backward()
            step.add(rows, tensors, logprobs_BT.detach(), entropies_BT, sums)
        if prefix is not None and leaves is not None:
            _backward_through(prefix, leaves)

    def _run_prefixes(self, chunk: Chunk) -> PrefixKV | None:
        if not self.policy.shares_prefix:
            return None
        first_rows = _first_row_of_each_prompt(chunk)
        prefixes = [row.prompt_ids[:-1] for row in first_rows]
        ids_NL, _ = attention.pad(prefixes, self.device)
        lengths_N = torch.tensor([len(p) for p in prefixes], device=self.device)
        if self.policy.network is not None:
            recompute = self.config.gradient_checkpointing
            return prompts_pass(self.policy.network, ids_NL, lengths_N, chunk.num_common, recompute=recompute)
        keys_NL = prompt_keys(first_rows, self.config.seed, ids_NL.shape[1], self.device)
        with self._running(keys_NL):
            return attention.prefix_pass(self.policy.model, ids_NL, lengths_N)

    def _row_logprobs(
        self, chunk: Chunk, rows: tuple[Row, ...], tensors: RowTensors, prefix: PrefixKV | None
    ) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies [B, T] of the rows' completion tokens, 0 in the padding."""
        B, T = tensors.mask_BT.shape
        temperature = self.config.sampling_params.temperature
        targets_M = tensors.target_ids_BT[tensors.mask_BT]
        if prefix is not None:
            hidden_ME = self._hidden(chunk, rows, tensors, prefix)
            head = attention.output_head(self.policy.model)
            logprobs_M, entropies_M = token_logprobs(hidden_ME, head, targets_M, temperature)
        else:
            logits_MV = self._plain_logits(rows, completion_keys(rows, self.config.seed, T, self.device))
            logprobs_M, entropies_M = logprobs_of_logits(logits_MV, targets_M, temperature)
        zeros_BT = torch.zeros(B, T, device=self.device)
        place = tensors.mask_BT
        return zeros_BT.masked_scatter(place, logprobs_M), zeros_BT.masked_scatter(place, entropies_M)

    def _hidden(self, chunk: Chunk, rows: tuple[Row, ...], tensors: RowTensors, prefix: PrefixKV) -> Tensor:
        """Hidden states [M, E] of the rows' tokens behind their prefixes, before the output head."""
        prefix_of_B = torch.tensor([chunk.prompt_of_group[r.place[0]] for r in rows], device=self.device)
        ids_BT, mask_BT, network = tensors.input_ids_BT, tensors.mask_BT, self.policy.network
        if network is not None:
            recompute = self.config.gradient_checkpointing
            return network.completion_pass(ids_BT, mask_BT, prefix, prefix_of_B, recompute=recompute)
        with self._running(completion_keys(rows, self.config.seed, ids_BT.shape[1], self.device)):
            return attention.completion_pass(self.policy.model, ids_BT, prefix, prefix_of_B)[mask_BT]

    def _plain_logits(self, rows: tuple[Row, ...], own_keys_BT: Tensor) -> Tensor:
        """Logits [M, V] at the completion tokens from whole sequences, each with its prompt."""
        whole_BS, mask_BS = attention.pad([r.prompt_ids + r.completion.token_ids[:-1] for r in rows], self.device)
        keys_BS = prompt_keys(rows, self.config.seed, whole_BS.shape[1], self.device)
        for b, row in enumerate(rows):
            start = len(row.prompt_ids) - 1
            keys_BS[b, start : start + row.length] = own_keys_BT[b, : row.length]
        with self._running(keys_BS):
            logits_BSV = attention.plain_logits(self.policy.model, whole_BS, mask_BS)
        parts = [logits_BSV[b, len(r.prompt_ids) - 1 : len(r.prompt_ids) - 1 + r.length] for b, r in enumerate(rows)]
        return torch.cat(parts)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch, chunks: list[Chunk]) -> dict[tuple[int, int], Tensor]:
        """Logprobs [T] under the reference for each row; empty without a KL penalty. Computed in the first update on a
        batch, or in the first after a resume, which gives the same."""
        logprobs: dict[tuple[int, int], Tensor] = {}
        if self.settings.beta == 0:
            return logprobs
        if self._referenced is not None and self._referenced[0] is batch.groups:
            return self._referenced[1]
        with self.policy.reference():
            for chunk in chunks:
                prefix = self._run_prefixes(chunk)
                for rows in chunk.microbatches:
                    tensors = RowTensors.of(rows, self.device)
                    logprobs_BT, _ = self._row_logprobs(chunk, rows, tensors, prefix)
                    logprobs.update({row.place: logprobs_BT[b, : row.length] for b, row in enumerate(rows)})
        self._referenced = (batch.groups, logprobs)
        return logprobs

    @contextmanager
    def _running(self, keys_BT: Tensor) -> Iterator[None]:
        """A pass of the model on tokens with these dropout keys, with checkpointed layers if asked for."""
        keys = self.policy.dropout_keys
        with keys.of(keys_BT):
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                with attention.checkpointed_layers(self.policy.model, lambda: keys.of(keys_BT)):
                    yield
            else:
                yield

    def _current_learning_rate(self) -> float:
        return learning_rate_at(
            self.steps_done,
            peak=self.learning_rate,
            total_steps=self.config.train_steps,
            course=self.config.lr_scheduler_type,
            warmup_ratio=self.config.warmup_ratio,
            min_lr_ratio=self.config.min_lr_ratio,
        )

    def _optimizer_step(self, learning_rate: float) -> float:
        parameters = list(self.policy.trainable().values())
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise ReinforgeError(
                f"The gradient of step {self.steps_done + 1} is not finite; the weights are as they were.",
                hint="Look at the rewards of this step; lower learning_rate or resume from an earlier checkpoint.",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with telling_when_memory_runs_out(f"in the optimizer, in step {self.steps_done + 1}", self._memory_hint()):
            self.optimizer.step()
        return float(grad_norm)


class _Step:
    """What is summed up over the micro-batches of one step."""

    def __init__(self, batch: Batch, rows: list[Row]) -> None:
        self.batch = batch
        self.rows = rows
        self.sums: LossSums | None = None
        self.first_pass: dict[tuple[int, int], tuple[float, ...]] = {}
        self.entropy = 0.0
        self.gap = 0.0
        self.gap_max = 0.0

    def add(
        self, rows: tuple[Row, ...], tensors: RowTensors, now_BT: Tensor, entropy_BT: Tensor, sums: LossSums
    ) -> None:
        """`now_BT` are the detached logprobs of this pass."""
        self.sums = sums if self.sums is None else self.sums + sums
        first_BT = now_BT if tensors.old_BT is None else tensors.old_BT
        gap_BT = torch.where(tensors.mask_BT, (first_BT - tensors.sampled_BT).abs(), 0.0)
        self.gap += float(gap_BT.sum())
        self.gap_max = max(self.gap_max, float(gap_BT.max()))
        self.entropy += float(entropy_BT.sum())
        for row, values in zip(rows, first_BT.tolist(), strict=True):
            self.first_pass[row.place] = tuple(values[: row.length])

    def metrics(self, settings: LossSettings) -> dict[str, float]:
        num_tokens = sum(row.length for row in self.rows)
        num_all = sum(len(group.completions) for group in self.batch.groups)
        metrics = {
            "policy/trained_tokens": float(num_tokens),
            "policy/skipped_share": 1 - len(self.rows) / max(1, num_all),
        }
        if self.sums is not None:
            metrics |= {
                **self.sums.metrics(settings, step_size(self.batch, settings)),
                "policy/entropy": self.entropy / num_tokens,
                "policy/logprob_gap_mean": self.gap / num_tokens,
                "policy/logprob_gap_max": self.gap_max,
            }
        return metrics

    def old_logprobs_PGT(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        return tuple(
            tuple(self.first_pass.get((p, g), ()) for g in range(len(group.completions)))
            for p, group in enumerate(self.batch.groups)
        )


def _first_row_of_each_prompt(chunk: Chunk) -> list[Row]:
    first: dict[int, Row] = {}
    for rows in chunk.microbatches:
        for row in rows:
            first.setdefault(chunk.prompt_of_group[row.place[0]], row)
    return [first[i] for i in range(len(chunk.prompts))]


def _padded(values_T: Tensor, like_BT: Tensor) -> Tensor:
    return torch.nn.functional.pad(values_T, (0, like_BT.shape[1] - values_T.shape[0]))


def _backward_through(prefix: PrefixKV, leaves: PrefixKV) -> None:
    """Send the gradients collected in the leaves through the prompts' graph."""
    pairs = [
        (given, leaf.grad)
        for given, leaf in zip(prefix.tensors(), leaves.tensors(), strict=True)
        if given.requires_grad and leaf.grad is not None
    ]
    if pairs:
        torch.autograd.backward([given for given, _ in pairs], [grad for _, grad in pairs])
