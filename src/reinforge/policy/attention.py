"""How the model attends. The ONLY file that touches transformers' cache, mask and attention interfaces.

Two facts carry everything here:

* A completion may attend to keys and values computed once for its prompt, as if the prompt stood before it.
* The last prompt token is run with the completion: row input = (last prompt token, c_1 .. c_{T-1}), so its T outputs
  predict exactly c_1 .. c_T, and the shared prefix is the prompt without its last token.

Shapes: N prompts, B rows (completions), L prefix tokens (padded), T row tokens (padded), S slots, C capacity of a slot,
H query heads, K key/value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from reinforge.policy.logit_gap import logit_gap

IMPLEMENTATION = "reinforge"


def grouped_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention with the query heads of a key/value head folded into the query axis, so that keys
    and values are never repeated. `attention_mask` is additive, [B or 1, 1, T, S], and required.

    Raises NotImplementedError for what it does not compute (soft caps, sinks, sliding windows): such a model fails the
    check on load and takes the plain path.
    """
    unsupported = [
        name for name in ("softcap", "s_aux", "sliding_window", "position_bias") if kwargs.get(name) is not None
    ]
    if unsupported or attention_mask is None:
        raise NotImplementedError(f"attention with {unsupported or 'no mask'}")
    B, H, T, D = query_BHTD.shape
    K = key_BKSD.shape[1]
    folded = query_BHTD.reshape(B, K, H // K * T, D)
    if T > 1 and H != K:
        attention_mask = attention_mask.repeat(1, 1, H // K, 1)
    out = F.scaled_dot_product_attention(
        folded, key_BKSD, value_BKSD, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(B, H, T, value_BKSD.shape[-1]).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, grouped_attention)


def use_shared_prefix_attention(model: PreTrainedModel) -> None:
    """Let the model's layers call `grouped_attention`; from then on only this module's passes may run it."""
    model.set_attn_implementation(IMPLEMENTATION)


def use_plain_attention(model: PreTrainedModel) -> None:
    """Give the model back to transformers' own attention."""
    model.set_attn_implementation("sdpa")


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Keys and values of N prefixes, per layer, right-padded to the longest."""

    keys: tuple[Tensor, ...]
    """Per layer [N, K, L, D]"""
    values: tuple[Tensor, ...]
    """Per layer [N, K, L, D]"""
    lengths_N: Tensor
    """int64, tokens of each prefix; 0 is allowed."""
    common: PrefixKV | None = None
    """One prefix that all of these stand behind. Only our own network makes and reads it."""

    def as_leaves(self) -> PrefixKV:
        """The same values cut off from their graph, collecting gradients of their own."""
        return PrefixKV(
            tuple(k.detach().requires_grad_() for k in self.keys),
            tuple(v.detach().requires_grad_() for v in self.values),
            self.lengths_N,
            self.common.as_leaves() if self.common is not None else None,
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return self.keys + self.values + (self.common.tensors() if self.common is not None else ())


class _Cache:
    """What transformers' models ask of a cache when the mask is given. Sizes are only read to build masks."""

    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _Capture(_Cache):
    """Remembers what every layer computes. The first call counts: a recomputation must not replace graph tensors."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.layers.setdefault(layer_idx, (key, value))
        return key, value


class _BehindPrefix(_Cache):
    """Puts each row's prefix before its own keys and values. Keeps no state, so layers can be recomputed."""

    def __init__(self, prefix: PrefixKV, prefix_of_B: Tensor) -> None:
        self.prefix = prefix
        self.prefix_of_B = prefix_of_B

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        prefix_key = self.prefix.keys[layer_idx].index_select(0, self.prefix_of_B)
        prefix_value = self.prefix.values[layer_idx].index_select(0, self.prefix_of_B)
        return torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)


def prefix_pass(model: PreTrainedModel, token_ids_NL: Tensor, lengths_N: Tensor) -> PrefixKV:
    """Run right-padded prefixes once. What stands in the padding is never attended to."""
    N, L = token_ids_NL.shape
    capture = _Capture()
    if L:
        visible = torch.ones(L, L, dtype=torch.bool, device=token_ids_NL.device).tril()
        _decoder(model)(
            input_ids=token_ids_NL,
            attention_mask=_additive(visible[None, None], _dtype(model)),
            position_ids=torch.arange(L, device=token_ids_NL.device).expand(N, L),
            past_key_values=capture,
            use_cache=True,
        )
        layers = [capture.layers[i] for i in range(len(capture.layers))]
        return PrefixKV(tuple(k for k, _ in layers), tuple(v for _, v in layers), lengths_N)
    empty = tuple(
        torch.zeros(N, num_heads, 0, size, dtype=_dtype(model), device=token_ids_NL.device)
        for num_heads, size in _cache_shapes(model)
    )
    return PrefixKV(empty, empty, lengths_N)


def completion_pass(model: PreTrainedModel, token_ids_BT: Tensor, prefix: PrefixKV, prefix_of_B: Tensor) -> Tensor:
    """Run rows behind their prefixes -> hidden states [B, T, E] before the output head.

    `token_ids_BT` is right-padded; what is computed in the padding concerns nobody and is finite.
    """
    T = token_ids_BT.shape[1]
    lengths_B = prefix.lengths_N.index_select(0, prefix_of_B)
    L = prefix.keys[0].shape[2]
    device = token_ids_BT.device
    own_TT = torch.ones(T, T, dtype=torch.bool, device=device).tril()
    before_BL = torch.arange(L, device=device)[None, :] < lengths_B[:, None]
    B = token_ids_BT.shape[0]
    visible = torch.cat([before_BL[:, None, :].expand(B, T, L), own_TT.expand(B, T, T)], dim=2)
    output = _decoder(model)(
        input_ids=token_ids_BT,
        attention_mask=_additive(visible[:, None], _dtype(model)),
        position_ids=lengths_B[:, None] + torch.arange(T, device=device)[None, :],
        past_key_values=_BehindPrefix(prefix, prefix_of_B),
        use_cache=True,
    )
    return cast(Tensor, output.last_hidden_state)


def output_head(model: PreTrainedModel) -> nn.Module:
    """The layer that turns hidden states [.., E] into logits [.., V]."""
    return cast(nn.Module, model.get_output_embeddings())


def plain_logits(model: PreTrainedModel, token_ids_BS: Tensor, attention_mask_BS: Tensor) -> Tensor:
    """transformers' own forward over whole right-padded sequences -> logits [B, S, V]."""
    output = model(input_ids=token_ids_BS, attention_mask=attention_mask_BS, use_cache=False)
    return cast(Tensor, output.logits)


class SlotCache(_Cache):
    """Keys and values of rows that are being decoded, in preallocated slots. Live rows occupy slots 0..n-1.

    Each `step` appends one token to every live row: written at the row's own length, attended up to there.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        """Tokens a slot can hold."""
        device = next(model.parameters()).device
        shapes = [(num_slots, num_heads, capacity, size) for num_heads, size in _cache_shapes(model)]
        self.keys = [torch.zeros(shape, dtype=_dtype(model), device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=_dtype(model), device=device) for shape in shapes]
        self._rows = torch.arange(num_slots, device=device)
        self._lengths_B = self._rows[:0]
        self._limit = 0

    def place(self, slot: int, prefix: PrefixKV, index: int) -> None:
        """Copy one prefix into a slot."""
        length = int(prefix.lengths_N[index])
        for own, given in zip(self.keys + self.values, prefix.tensors(), strict=True):
            own[slot, :, :length] = given[index, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot over another (the last live row fills a hole)."""
        for own in self.keys + self.values:
            own[target, :, :length] = own[source, :, :length]

    def step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        """Append one token to each of the first B slots -> logits [B, V] for the next.

        `lengths_B` counts the tokens already in each slot, `longest` is its maximum (known to the caller, so that no
        device has to be asked).
        """
        self._lengths_B, self._limit = lengths_B, longest + 1
        visible = torch.arange(self._limit, device=lengths_B.device)[None, :] <= lengths_B[:, None]
        output = _decoder(self.model)(
            input_ids=token_ids_B[:, None],
            attention_mask=_additive(visible[:, None, None], _dtype(self.model)),
            position_ids=lengths_B[:, None],
            past_key_values=self,
            use_cache=True,
        )
        return cast(Tensor, output_head(self.model)(output.last_hidden_state[:, 0]))

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        B = key.shape[0]
        rows = self._rows[:B]
        own_key, own_value = self.keys[layer_idx], self.values[layer_idx]
        own_key[rows, :, self._lengths_B] = key[:, :, 0]
        own_value[rows, :, self._lengths_B] = value[:, :, 0]
        return own_key[:B, :, : self._limit], own_value[:B, :, : self._limit]


@contextmanager
def checkpointed_layers(
    model: PreTrainedModel, recompute_under: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Within this block each decoder layer keeps only its input and is run again in the backward pass.

    Prefix keys and values enter through the cache, which keeps no state, so the recomputation sees the same tensors.
    `recompute_under` is entered again for the recomputation (the keys of LoRA dropout).
    """
    layers = list(_decoder(model).layers)
    originals = [layer.forward for layer in layers]

    def wrap(original: Any) -> Any:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(
                lambda x: original(x, *args, **kwargs),
                hidden,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (nullcontext(), recompute_under()),
            )

        return forward

    for layer, original in zip(layers, originals, strict=True):
        layer.forward = wrap(original)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def prefix_path_gap(model: PreTrainedModel, seed: int = 0) -> float:
    """`logit_gap` between the shared-prefix path and transformers' own forward, on random ids.

    Leaves the model with shared-prefix attention. Raises what the model raises when it does not fit the path.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    prompts = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in (1, 7, 12)]
    rows = torch.randint(vocabulary, (3, 5), generator=generator).tolist()
    with torch.no_grad():
        use_plain_attention(model)
        whole_BS, mask_BS = pad([p + r for p, r in zip(prompts, rows, strict=True)], device)
        plain_BSV = plain_logits(model, whole_BS, mask_BS)
        use_shared_prefix_attention(model)
        prefix_NL, _ = pad([p[:-1] for p in prompts], device)
        prefix = prefix_pass(model, prefix_NL, torch.tensor([len(p) - 1 for p in prompts], device=device))
        row_BT = torch.tensor([[p[-1], *r] for p, r in zip(prompts, rows, strict=True)], device=device)
        hidden_BTE = completion_pass(model, row_BT, prefix, torch.arange(3, device=device))
        shared_BTV = output_head(model)(hidden_BTE)
        slots = SlotCache(model, 3, 16)
        for slot in range(3):
            slots.place(slot, prefix, slot)
        decoded_BV = slots.step(row_BT[:, 0], prefix.lengths_N, 11)
    gaps = [logit_gap(shared_BTV[i], plain_BSV[i, len(p) - 1 : len(p) + 5]) for i, p in enumerate(prompts)]
    gaps += [logit_gap(decoded_BV[i], plain_BSV[i, len(p) - 1]) for i, p in enumerate(prompts)]
    return max(gaps)


def pad(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Right-pad token ids with 0 -> (ids [N, longest], mask [N, longest] of 1 for real tokens).

    >>> pad([[5, 6], [7]], "cpu")[0].tolist()
    [[5, 6], [7, 0]]
    """
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(longest, device=device)[None, :] < lengths[:, None]).long()
    return ids.reshape(len(rows), longest), mask


def _decoder(model: PreTrainedModel) -> Any:
    return model.get_decoder()


def _dtype(model: PreTrainedModel) -> torch.dtype:
    return cast(torch.dtype, model.dtype)


def _cache_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Per layer (key/value heads, head size)."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return [(config.num_key_value_heads, size)] * config.num_hidden_layers


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf where not, in the model's dtype: converted once, not in each layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
