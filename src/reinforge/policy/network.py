"""The decoder network of Qwen2, Qwen3 and Llama, computed here instead of by transformers' modules.

Beside `attention.py` the only file that knows transformers from inside: it reads the weights of a model's modules by
their names, and computes what they compute with fewer and larger products (`stacks.py`), attention that reads a prompt
once for its group (`two_part_attention.py`) and blocks that keep little for the backward pass (`blocks.py`).

`Network.of` takes a model only if it recognises every part of it, in float32 or bfloat16, on a CPU or a CUDA GPU;
whoever uses one compares it with the model's own passes first (`largest_gap`). Every other model runs as transformers
has it.

Shapes: N prompts, B rows (completions), L prefix tokens (padded), T row tokens (padded), M tokens without padding, H
query heads, K key/value heads, G = H / K, D head size, E hidden size, I = H D, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from reinforge.policy import attention
from reinforge.policy.attention import PrefixKV
from reinforge.policy.blocks import Norm, mlp_added, normed, projected
from reinforge.policy.dropout import KeyedDropout
from reinforge.policy.logit_gap import logit_gap
from reinforge.policy.packing import Packing
from reinforge.policy.products import linear
from reinforge.policy.rotation import Rotation, heads_split, turned
from reinforge.policy.stacks import Stack, is_plain
from reinforge.policy.two_part_attention import Behind, attend, runs_of

_CLASSES = (Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM)
_PLACES = [{f"on {device}", dtype} for device in ("cpu", "cuda") for dtype in ("float32", "bfloat16")]
_STATIC_POSITIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions that do not depend on the sequences computed."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    norm_1: Norm
    qkv: Stack
    kv: Stack
    """Only keys and values, which is all of the last layer that a prefix is run for."""
    query_norm: Norm | None
    key_norm: Norm | None
    out: Stack
    norm_2: Norm
    gate_up: Stack
    down: Stack

    @property
    def stacks(self) -> tuple[Stack, ...]:
        return self.qkv, self.kv, self.out, self.gate_up, self.down


class Network:
    """The network of one model; reads the model's present weights and adapters in every pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model` must be one that `of` accepts."""
        decoder = cast(Any, model).model
        first = decoder.layers[0].self_attn
        self.head_size = int(first.head_dim)
        self.num_heads = first.o_proj.in_features // self.head_size
        self.num_kv_heads = first.k_proj.out_features // self.head_size
        self.layers = [_layer(module) for module in decoder.layers]
        self.norm = _norm(decoder.norm)
        self._embedding, self._head = decoder.embed_tokens, cast(nn.Linear, model.get_output_embeddings())
        self.device: torch.device = self._embedding.weight.device
        self.dtype: torch.dtype = self._embedding.weight.dtype
        self.rotation = Rotation(decoder.rotary_emb.inv_freq, decoder.rotary_emb.attention_scaling, self.dtype)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Network | None:
        """The network of a model that this file computes as transformers does, else None."""
        return cls(model) if unknown_part(model) is None else None

    def adopt_weights(self) -> None:
        """Lay the weights that are computed together below each other in memory, once; for a model whose modules (the
        tensors in them may be others') are nobody else's."""
        for layer in self.layers:
            for stack in (layer.qkv, layer.out, layer.gate_up, layer.down):
                stack.adopt()

    def prefix_pass(
        self,
        token_ids_NL: Tensor,
        lengths_N: Tensor,
        *,
        behind: tuple[PrefixKV, Tensor] | None = None,
        recompute: bool = False,
    ) -> PrefixKV:
        """As `attention.prefix_pass`. What is run may stand `behind` other prefixes, of which the tensor names one for
        each of the N; keys and values are of the new tokens only. With `recompute` a layer keeps only its input and is
        run again for gradients."""
        N, L = token_ids_NL.shape
        if not L:
            nothing = (self.new_keys(N, 0),) * len(self.layers)
            return PrefixKV(nothing, nothing, lengths_N)
        positions = torch.arange(L, device=token_ids_NL.device)
        packing = Packing.of(positions < lengths_N[:, None])
        hidden_ME = self.embedded(packing.packed(token_ids_NL))
        prefixes: list[list[Behind]] = [[] for _ in self.layers]
        positions_NL = positions.expand(N, L)
        if behind is not None:
            prefixes, lengths_before_N = _stand_behind(*behind)
            positions_NL = positions + lengths_before_N[:, None]
        turns = self.rotation.at(positions_NL)
        keys, values = [], []
        for layer, before in zip(self.layers[:-1], prefixes, strict=False):
            hidden_ME, key, value = _maybe_again(recompute, self._run, layer, hidden_ME, packing, turns, before)
            keys.append(key)
            values.append(value)
        _, key, value = self._queries_keys_values(self.layers[-1], self.layers[-1].kv, hidden_ME, packing, turns)
        layers = zip([*keys, key], [*values, value], strict=True)
        per_layer = [(k.transpose(0, 1), v.transpose(0, 1)) for k, v in layers]
        return PrefixKV(tuple(k for k, _ in per_layer), tuple(v for _, v in per_layer), lengths_N)

    def completion_pass(
        self, token_ids_BT: Tensor, mask_BT: Tensor, prefix: PrefixKV, prefix_of_B: Tensor, *, recompute: bool = False
    ) -> Tensor:
        """Run rows behind their prefixes -> hidden states [M, E] before the output head of the tokens in the mask, row
        by row. The mask is true at the first tokens of each row, as many as it has. Fastest when rows of one prefix
        stand next to each other."""
        packing = Packing.of(mask_BT)
        prefixes, lengths_before_B = _stand_behind(prefix, prefix_of_B)
        turns = self.rotation.at(lengths_before_B[:, None] + torch.arange(mask_BT.shape[1], device=mask_BT.device))
        hidden_ME = self.embedded(packing.packed(token_ids_BT))
        for layer, before in zip(self.layers, prefixes, strict=True):
            hidden_ME, _, _ = _maybe_again(recompute, self._run, layer, hidden_ME, packing, turns, before)
        return normed(hidden_ME, self.norm)

    def random_ids(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Token ids to try it with."""
        return torch.randint(self._embedding.num_embeddings, shape, generator=generator, device="cpu").to(self.device)

    def embedded(self, token_ids_M: Tensor) -> Tensor:
        return F.embedding(token_ids_M, self._embedding.weight)

    def logits(self, hidden_ME: Tensor) -> Tensor:
        """Of hidden states after the last norm; without a gradient."""
        return linear(hidden_ME, self._head.weight, self._head.bias)

    def token_heads(
        self, layer: Layer, hidden_BE: Tensor, turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of one token of each row: queries [B, K, G, D], keys and values [B, K, D]; without a gradient."""
        heads_BCD = layer.qkv.product(layer.norm_1(hidden_BE)).unflatten(1, (-1, self.head_size))
        H, K = self.num_heads, self.num_kv_heads
        to_turn_BCD = heads_BCD[:, : H + K]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = to_turn_BCD.split((H, K), dim=1)
            to_turn_BCD = torch.cat([layer.query_norm(query), layer.key_norm(key)], dim=1)
        turned_BCD = turned(to_turn_BCD, *turns)
        return turned_BCD[:, :H].unflatten(1, (K, -1)), turned_BCD[:, H:], heads_BCD[:, H + K :]

    def token_out(self, layer: Layer, hidden_BE: Tensor, attended_BGKD: Tensor) -> Tensor:
        """The rest of the layer after attention, for one token of each row; without a gradient."""
        attended_BI = attended_BGKD.transpose(1, 2).reshape(len(hidden_BE), -1)
        hidden_BE = layer.out.product(attended_BI).add_(hidden_BE)
        gate_BF, up_BF = layer.gate_up.product(layer.norm_2(hidden_BE)).chunk(2, dim=-1)
        return layer.down.product(F.silu(gate_BF).mul_(up_BF)).add_(hidden_BE)

    def new_keys(self, num_slots: int, room: int) -> Tensor:
        """Zeros [slots, K, room, D]."""
        shape = (num_slots, self.num_kv_heads, room, self.head_size)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _run(
        self,
        layer: Layer,
        hidden_ME: Tensor,
        packing: Packing,
        turns: tuple[Tensor, Tensor],
        behind: list[Behind],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer -> hidden states, and its keys and values [K, B, T, D]."""
        query, key, value = self._queries_keys_values(layer, layer.qkv, hidden_ME, packing, turns)
        attended_KBTGD = attend(query, key, value, behind)
        attended_BTI = attended_KBTGD.permute(1, 2, 0, 3, 4).flatten(2)
        hidden_ME = hidden_ME + projected(packing.packed(attended_BTI), layer.out)
        return mlp_added(hidden_ME, layer.norm_2, layer.gate_up, layer.down), key, value

    def _queries_keys_values(
        self, layer: Layer, stack: Stack, hidden_ME: Tensor, packing: Packing, turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[K, B, T, G, D] (G = 0 from the stack `kv`) and twice [K, B, T, D], turned to their positions; 0 in the
        padding."""
        heads = packing.padded(projected(hidden_ME, stack, layer.norm_1)).unflatten(2, (-1, self.head_size))
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key, value = heads.split((heads.shape[2] - 2 * self.num_kv_heads, *[self.num_kv_heads] * 2), dim=2)
            heads = torch.cat([normed(query, layer.query_norm), normed(key, layer.key_norm), value], dim=2)
        return heads_split(heads, *turns, self.num_kv_heads)


def prompts_pass(network: Network, ids_NL: Tensor, lengths_N: Tensor, num_common: int, *, recompute: bool) -> PrefixKV:
    """Run prefixes that begin with the same `num_common` tokens: these once, and the rest of each behind them."""
    if not num_common:
        return network.prefix_pass(ids_NL, lengths_N, recompute=recompute)
    common = network.prefix_pass(ids_NL[:1, :num_common], lengths_N.new_tensor([num_common]), recompute=recompute)
    behind = (common, torch.zeros_like(lengths_N))
    own = network.prefix_pass(ids_NL[:, num_common:], lengths_N - num_common, behind=behind, recompute=recompute)
    return replace(own, common=common)


def _stand_behind(prefix: PrefixKV, prefix_of_B: Tensor) -> tuple[list[list[Behind]], Tensor]:
    """What rows stand behind, for each layer, and how many tokens that is for each [B]."""
    runs = runs_of(prefix_of_B.tolist(), prefix.lengths_N.tolist())
    layers = [[Behind(key, value, runs)] for key, value in zip(prefix.keys, prefix.values, strict=True)]
    lengths_B = prefix.lengths_N.index_select(0, prefix_of_B)
    if prefix.common is None:
        return layers, lengths_B
    common, common_lengths_B = _stand_behind(prefix.common, torch.zeros_like(prefix_of_B))
    return [own + more for own, more in zip(layers, common, strict=True)], lengths_B + common_lengths_B


def largest_gap(network: Network, model: PreTrainedModel, seed: int = 0) -> float:
    """`logit_gap` between the network and the model's own shared-prefix passes, on random ids."""
    generator, device = torch.Generator().manual_seed(seed), network.device
    prefix_NL, row_BT = network.random_ids((3, 11), generator), network.random_ids((4, 5), generator)
    lengths_N, prefix_of_B = (torch.tensor(values, device=device) for values in ([0, 6, 11], [2, 2, 0, 1]))
    with torch.no_grad():
        theirs = attention.completion_pass(
            model, row_BT, attention.prefix_pass(model, prefix_NL, lengths_N), prefix_of_B
        )
        mask_BT = torch.arange(5, device=device) < torch.tensor([[5], [3], [1], [5]], device=device)
        ours = network.completion_pass(row_BT, mask_BT, network.prefix_pass(prefix_NL, lengths_N), prefix_of_B)
        head = attention.output_head(model)
        return logit_gap(head(ours), head(theirs[mask_BT]))


def _maybe_again(recompute: bool, run: Callable[..., Any], *arguments: Any) -> Any:
    if recompute and torch.is_grad_enabled():
        return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
    return run(*arguments)


def _layer(module: Any) -> Layer:
    heads, mlp = module.self_attn, module.mlp
    has_norms = hasattr(heads, "q_norm")
    return Layer(
        norm_1=_norm(module.input_layernorm),
        qkv=Stack([heads.q_proj, heads.k_proj, heads.v_proj]),
        kv=Stack([heads.k_proj, heads.v_proj]),
        query_norm=_norm(heads.q_norm) if has_norms else None,
        key_norm=_norm(heads.k_norm) if has_norms else None,
        out=Stack([heads.o_proj]),
        norm_2=_norm(module.post_attention_layernorm),
        gate_up=Stack([mlp.gate_proj, mlp.up_proj]),
        down=Stack([mlp.down_proj]),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), float(module.variance_epsilon))


def unknown_part(model: PreTrainedModel) -> str | None:
    """What this file does not compute of a model's class, config, device, dtype or layers, in words; None: nothing."""
    if type(model) not in _CLASSES:
        return "only Qwen2, Qwen3 and Llama run on our own network"
    config, decoder = model.config, cast(Any, model).model
    own = [p for name, p in model.named_parameters() if "lora_" not in name]
    places = {f"on {p.device.type}" for p in model.parameters()} | {str(p.dtype).removeprefix("torch.") for p in own}
    positions = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    kinds = set(getattr(config, "layer_types", None) or ())
    linear_layers = [module for layer in decoder.layers for module in _linear_layers(layer)]
    parts = {
        "its base is quantized": getattr(config, "quantization_config", None) is not None,
        f"its weights are {' and '.join(sorted(places))}, not float32 or bfloat16 on one CPU or CUDA GPU": (
            len({p.device for p in model.parameters()}) > 1 or places not in _PLACES
        ),
        f"its activation is {config.hidden_act}": config.hidden_act != "silu",
        f"its positions are {positions}": positions not in _STATIC_POSITIONS,
        "its attention has a window": bool(kinds - {"full_attention"}),
        "weights of its base are trained": any(p.requires_grad for p in own),
        "its attention is scaled in another way": any(
            layer.self_attn.scaling != layer.self_attn.head_dim**-0.5 for layer in decoder.layers
        ),
        "its adapters have dropout": any(isinstance(module, KeyedDropout) for module in model.modules()),
        "not all its linear layers are plain ones": not all(
            is_plain(layer) for layer in [model.get_output_embeddings(), *linear_layers]
        ),
    }
    return next((part for part, is_there in parts.items() if is_there), None)


def _linear_layers(layer: Any) -> list[nn.Module]:
    heads, mlp = layer.self_attn, layer.mlp
    return [heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
