"""How much memory training needs: estimates from a model's shape. No torch.

Checked against what torch keeps and against the peak of a process in tests/insight/test_memory.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

FLOAT_BYTES = 4
MODULES_FACTOR = 2.1
"""Transformers' modules with PEFT's LoRA layers keep 1.7 to 2.1 times what our own network keeps."""
DROPOUT_FACTOR = 3.0
"""The same with LoRA dropout on: 2.5 to 2.9."""
LOGITS_COPIES = 4
"""Of a chunk of logits at once: logits, probabilities, running sums in float64."""
CPU_CHUNK_LOGITS, GPU_CHUNK_LOGITS = 1 << 20, 1 << 24
"""Logits the learner computes at once (float32: 4 and 64 MiB): on a CPU so few that they stay in its cache."""
MIN_CHUNK_ROWS = 64
"""But never fewer tokens than this: products with fewer rows are slow."""
PREFILL_TOKENS = 8192
"""Most prompt tokens (padded) the sampler runs at once."""
SLOT_GROWTH = 1.25
"""Slots of our own network grow by half when they are full: mean overshoot."""
ADAPTER_BYTES, ADAPTER_BYTES_8BIT = 20, 14
"""For each trained parameter: weight, gradient, two moments of the optimizer, and the copy that is published; float32,
the moments 8-bit in the second."""
BYTES_IN_4BIT = 4.13 / 8
"""Of a weight, with its share of its block's largest value (policy/quantized.py)."""
ROWS_SHORTER_BY = 8
"""The completions of a micro-batch are taken to have this part of the longest length: more of them fit in it."""
PROCESS_BYTES = 450_000_000
"""Python with torch, transformers and peft; on a GPU its context and the workspaces of its libraries."""
SPARE_SHARE = 0.2
"""Of all memory: left alone, for reward functions, allocators, other programs."""
MIN_TOKENS = 128
"""No micro-batch is planned smaller than this: the products would be slow, and little would be saved."""
CPU_TOKENS, GPU_TOKENS = 2048, 16384
"""Tokens of a micro-batch where memory is no question. On a CPU more leave its caches, and fewer make each product, and
what is done once for each micro-batch, dearer."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the estimates need of a model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_size: int
    vocabulary: int
    ties_embeddings: bool = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """From a model's config.json. KeyError for an architecture that names its sizes otherwise.

        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
        >>> shape = ModelShape.of_config(sizes)
        >>> shape.num_kv_heads, shape.head_size, shape.mlp_size
        (4, 2, 32)
        """
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            hidden_size=hidden,
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            mlp_size=int(config.get("intermediate_size") or 4 * hidden),
            vocabulary=int(config["vocab_size"]),
            ties_embeddings=bool(config.get("tie_word_embeddings")),
        )

    @property
    def attended_size(self) -> int:
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Keys and values of one token in one layer."""
        return 2 * self.num_kv_heads * self.head_size

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the matrices of one layer, by their names in Qwen and Llama."""
        hidden, attended, keys, mlp = self.hidden_size, self.attended_size, self.kv_size // 2, self.mlp_size
        return {
            "q_proj": (hidden, attended),
            "k_proj": (hidden, keys),
            "v_proj": (hidden, keys),
            "o_proj": (attended, hidden),
            "gate_proj": (hidden, mlp),
            "up_proj": (hidden, mlp),
            "down_proj": (mlp, hidden),
        }

    def num_parameters(self) -> int:
        """Of the matrices; norms and biases are left out."""
        embeddings = self.vocabulary * self.hidden_size * (1 if self.ties_embeddings else 2)
        return embeddings + self.num_layers * sum(ins * outs for ins, outs in self.linear_layers().values())

    def adapted(self, rank: int, names: Collection[str] | None = None) -> tuple[int, int]:
        """(parameters of the adapter, parameters of the matrices it adapts); all of them unless named."""
        chosen = [size for name, size in self.linear_layers().items() if names is None or name in names]
        adapter = sum(rank * (ins + outs) for ins, outs in chosen)
        return self.num_layers * adapter, self.num_layers * sum(ins * outs for ins, outs in chosen)


@dataclass(frozen=True, slots=True)
class Pass:
    """How a model is run."""

    own_network: bool
    """Through policy/network.py, not through transformers' modules."""
    shares_prefix: bool = True
    """Prompts are run once for their group."""
    has_dropout: bool = False
    recomputes: bool = False
    """Gradient checkpointing: a layer keeps only its input."""
    value_bytes: int = FLOAT_BYTES
    """Of an activation, and of a parameter of the base."""
    in_4bit: bool = False
    """The base's linear layers are."""
    on_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """How much there is to do in a step, and at most at once."""

    prompts_per_step: int
    num_generations: int
    longest_prompt: int
    longest_completion: int
    slots: int
    """Completions decoded at once, if there are as many."""
    longest_evaluation: int = 0
    """Completions of a held-out evaluation."""
    lag: int = 0
    """With a policy lag the sampler works beside the learner."""

    @property
    def rows(self) -> int:
        """Most completions decoded at once."""
        return min(self.slots, max(self.prompts_per_step * self.num_generations, self.longest_evaluation))


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What training needs on its device, in bytes."""

    process: int
    base: int
    adapter: int
    """Adapter, gradients and optimizer."""
    sampler_copy: int
    keys_and_values: int
    sampling: int
    """Running prompts and drawing tokens, beside keys and values."""
    update: int
    """Activations of a micro-batch."""
    logits: int
    """In the update."""
    tokens_per_microbatch: int
    works_at_once: bool
    """Sampler and learner work beside each other, not in turn."""
    total: int | None = None
    """What there is, where that is known."""

    @property
    def lasting(self) -> int:
        """What is there all the time."""
        return self.process + self.base + self.adapter + self.sampler_copy + self.keys_and_values

    @property
    def peak(self) -> int:
        update = self.update + self.logits
        return self.lasting + (update + self.sampling if self.works_at_once else max(update, self.sampling))

    def parts(self) -> dict[str, int]:
        """What makes up the peak, by names for people."""
        work = {"update": self.update, "logits": self.logits}
        if self.works_at_once:
            work["sampling"] = self.sampling
        elif self.sampling > self.update + self.logits:
            work = {"sampling": self.sampling}
        return {
            "process": self.process,
            "base": self.base,
            "adapter and optimizer": self.adapter,
            "sampler's copy": self.sampler_copy,
            "keys and values": self.keys_and_values,
            **work,
        }

    def in_words(self) -> str:
        """One line, in GB (10^9 bytes).

        >>> MemoryPlan(4 * 10**8, 2 * 10**9, 10**8, 0, 0, 0, 10**9, 10**7, 2048, False, 24 * 10**9).in_words()
        'memory: about 3.5 GB of 24.0: process 0.4, base 2.0, adapter and optimizer 0.1, update 1.0; micro-batches of up to 2048 tokens'
        """  # noqa: E501
        parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.parts().items() if size >= 5e7)
        total = "" if self.total is None else f" of {self.total / 1e9:.1f}"
        tokens = f"micro-batches of up to {counted_tokens(self.tokens_per_microbatch)}"
        warning = "" if self.total is None or self.peak <= self.total else "; that is more than there is"
        return f"memory: about {self.peak / 1e9:.1f} GB{total}: {parts}; {tokens}{warning}"


def counted_tokens(number: int) -> str:
    """
    >>> counted_tokens(1), counted_tokens(2048)
    ('1 token', '2048 tokens')
    """
    return f"{number} token{'s' * (number != 1)}"


def memory_plan(
    shape: ModelShape,
    how: Pass,
    load: Load,
    *,
    rank: int,
    target_modules: Collection[str] | None = None,
    optimizer_8bit: bool = False,
    total_bytes: int | None = None,
    tokens_per_microbatch: int | None = None,
) -> MemoryPlan:
    """What training needs, part by part. Micro-batches have the tokens asked for; otherwise as many as is fast, halved
    until all fits `total_bytes` (all memory of the device, where it is known) less a spare share.

    >>> shape = ModelShape(256, 6, num_heads=8, num_kv_heads=2, head_size=32, mlp_size=704, vocabulary=2000)
    >>> load = Load(8, 8, longest_prompt=500, longest_completion=500, slots=256)
    >>> plans = [memory_plan(shape, Pass(True), load, rank=16, total_bytes=x * 10**8) for x in (9, 12, 99)]
    >>> [plan.tokens_per_microbatch for plan in plans]
    [128, 1024, 2048]
    """
    adapter, adapted = shape.adapted(rank, target_modules)
    merges = how.value_bytes == FLOAT_BYTES and not how.in_4bit
    plan = MemoryPlan(
        process=PROCESS_BYTES,
        base=base_bytes(shape, how),
        adapter=adapter * (ADAPTER_BYTES_8BIT if optimizer_8bit else ADAPTER_BYTES),
        sampler_copy=(adapted if merges else adapter) * FLOAT_BYTES,
        keys_and_values=slot_bytes(shape, how, load),
        sampling=sampling_bytes(shape, how, load),
        update=0,
        logits=0,
        tokens_per_microbatch=tokens_per_microbatch or (GPU_TOKENS if how.on_gpu else CPU_TOKENS),
        works_at_once=load.lag > 0,
        total=total_bytes,
    )
    while True:
        tokens = plan.tokens_per_microbatch
        row_tokens, prompt_tokens = _tokens_at_once(load, tokens, how)
        plan = replace(
            plan,
            update=update_bytes(shape, how, load, row_tokens, prompt_tokens),
            logits=logits_bytes(shape, how, row_tokens),
        )
        fits = total_bytes is None or plan.peak <= total_bytes * (1 - SPARE_SHARE)
        if fits or tokens_per_microbatch or tokens <= MIN_TOKENS:
            return plan
        plan = replace(plan, tokens_per_microbatch=max(MIN_TOKENS, tokens // 2))


def base_bytes(shape: ModelShape, how: Pass) -> int:
    """Of the weights."""
    layers = shape.adapted(0)[1]
    others = (shape.num_parameters() - layers) * how.value_bytes
    return others + int(layers * (BYTES_IN_4BIT if how.in_4bit else how.value_bytes))


def kept_per_token(shape: ModelShape, how: Pass) -> int:
    """Bytes kept for the backward pass for each token: per layer the two residual inputs, the queries, keys and values,
    what was attended (before and after it is packed) with its log-sum, and the MLP's gate and up.

    >>> shape = ModelShape(256, 6, num_heads=8, num_kv_heads=2, head_size=32, mlp_size=704, vocabulary=2000)
    >>> kept_per_token(shape, Pass(own_network=True)), kept_per_token(shape, Pass(own_network=True, recomputes=True))
    (67872, 6144)
    """
    if how.recomputes:
        return how.value_bytes * shape.num_layers * shape.hidden_size
    return shape.num_layers * _layer_bytes(shape, how)


def update_bytes(shape: ModelShape, how: Pass, load: Load, row_tokens: int, prompt_tokens: int) -> int:
    """At the peak of a micro-batch of `row_tokens` behind prompts of `prompt_tokens` that are kept meanwhile: both
    kept, the prompts' keys and values with their gradients, the widest layer at work, and its weights where they are
    put together for a pass (merged, or out of 4 bits)."""
    keys = shape.kv_size * shape.num_layers * how.value_bytes
    kept = kept_per_token(shape, how)
    at_work = _work_bytes(shape, how) + (_layer_bytes(shape, how) if how.recomputes else 0)
    weights = 2 * shape.mlp_size * shape.hidden_size * how.value_bytes if how.own_network or how.in_4bit else 0
    of_rows = (kept + at_work + _attention_bytes(shape, how, load)) * row_tokens
    return max(of_rows, at_work * prompt_tokens) + (kept + 2 * keys) * prompt_tokens + weights


def logits_bytes(shape: ModelShape, how: Pass, row_tokens: int) -> int:
    """Of one chunk of tokens at a time; without a shared prefix of the whole micro-batch, prompts included."""
    if not how.shares_prefix:
        return row_tokens * shape.vocabulary * (how.value_bytes + 2 * FLOAT_BYTES)
    chunk = max(MIN_CHUNK_ROWS * shape.vocabulary, GPU_CHUNK_LOGITS if how.on_gpu else CPU_CHUNK_LOGITS)
    return LOGITS_COPIES * FLOAT_BYTES * min(chunk, row_tokens * shape.vocabulary)


def slot_bytes(shape: ModelShape, how: Pass, load: Load) -> int:
    """Keys and values of the completions that are decoded at once. Our own network stores a long prompt once for its
    group; a model whose attention the slots cannot compute has none."""
    if not how.shares_prefix:
        return 0
    per_token = shape.kv_size * shape.num_layers * how.value_bytes
    if not how.own_network:
        return load.rows * (load.longest_prompt + load.longest_completion) * per_token
    prompts = -(-load.rows // load.num_generations) * load.longest_prompt
    return int((load.rows * load.longest_completion * SLOT_GROWTH + prompts) * per_token)


def sampling_bytes(shape: ModelShape, how: Pass, load: Load) -> int:
    """Beside keys and values: the widest layer over a batch of prompts, or the logits of a decode step."""
    if not how.shares_prefix:
        whole = load.rows * (load.longest_prompt + load.longest_completion)
        return whole * max(shape.vocabulary * how.value_bytes, _work_bytes(shape, how))
    prompts = min(PREFILL_TOKENS, load.prompts_per_step * load.longest_prompt)
    keys = shape.kv_size * shape.num_layers * how.value_bytes
    return max(prompts * (_work_bytes(shape, how) + keys), LOGITS_COPIES * FLOAT_BYTES * load.rows * shape.vocabulary)


def _tokens_at_once(load: Load, tokens: int, how: Pass) -> tuple[int, int]:
    """(completion tokens, prompt tokens) of the largest micro-batch. A row and a prompt are never split, so one that is
    longer than the micro-batch counts whole; and there are never more than the step has."""
    rows = load.prompts_per_step * load.num_generations
    if not how.shares_prefix:
        longest = load.longest_prompt + load.longest_completion
        return min(max(tokens, longest), rows * longest), 0
    return (
        min(max(tokens, load.longest_completion), rows * load.longest_completion),
        min(max(tokens, load.longest_prompt), load.prompts_per_step * load.longest_prompt),
    )


def _layer_bytes(shape: ModelShape, how: Pass) -> int:
    heads = shape.attended_size + shape.kv_size
    values = (
        2 * shape.hidden_size + heads + 2 * shape.attended_size + 2 * shape.mlp_size + shape.num_heads
    ) * how.value_bytes
    sums = 4 * how.value_bytes
    factor = 1.0 if how.own_network else DROPOUT_FACTOR if how.has_dropout else MODULES_FACTOR
    return int((values + sums) * factor)


def _work_bytes(shape: ModelShape, how: Pass) -> int:
    """Of the widest layer at work, for each token."""
    return (5 * shape.mlp_size + 6 * shape.hidden_size) * how.value_bytes


def _attention_bytes(shape: ModelShape, how: Pass, load: Load) -> int:
    """For each token of a row in transformers' modules: its line of the additive mask, which each layer keeps repeated
    for its groups of heads, and its part of the copy of the prompt's keys and values that its row has in each layer."""
    if how.own_network:
        return 0
    groups, layers = shape.num_heads // shape.num_kv_heads, 1 if how.recomputes else shape.num_layers
    line = (load.longest_prompt + load.longest_completion) * how.value_bytes
    if not how.shares_prefix:
        return line
    mask = line * (1 + (groups * layers if groups > 1 else 0))
    row_tokens = max(1, load.longest_completion // ROWS_SHORTER_BY)
    return mask + layers * shape.kv_size * how.value_bytes * load.longest_prompt // row_tokens
