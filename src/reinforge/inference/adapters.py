"""Copies of the policy to sample from: they share every tensor of the base and hold the adapter apart.

`MergedCopy` adds the adapter into float32 copies of the adapted layers' weights: no extra matrix products per token,
for 4 bytes per adapted weight. `UnmergedCopy` keeps base and adapter apart, for bases whose dtype would round the sum
(bfloat16, float16) or that are no plain matrices (4-bit). `base_copy` has no adapter at all: several are added to it
by row (`adapter_bank.py`). None ever writes a tensor of the base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from reinforge.errors import ModelError
from reinforge.policy.model import find_network, gap_reason
from reinforge.policy.network import Network
from reinforge.policy.quantized import shared_states
from reinforge.policy.slots import step_gap
from reinforge.types import Adapter

_NAME = "default"
"""PEFT's name of the one adapter."""


class MergedCopy:
    """A second model whose adapted layers are plain ones with the weight W + (lora_alpha / rank) * B A, float32."""

    def __init__(self, policy_model: PreTrainedModel) -> None:
        """`policy_model` is transformers' model with PEFT's LoRA layers inside; its present adapter is loaded."""
        self.model = _share(policy_model)
        self._layers: dict[str, tuple[nn.Linear, Tensor, float]] = {}
        for path, layer in _lora_layers(policy_model):
            base = layer.get_base_layer()
            own = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            own.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            own.bias = base.bias
            self.model.set_submodule(path, own)
            self._layers[path] = (own, base.weight.detach(), layer.scaling[_NAME])
        self.model.eval()
        present = _present_weights(policy_model)
        self._shapes = _shapes(present)
        self.load(Adapter(0, present))

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Sample from this adapter from now on."""
        _check_fits(adapter, self._shapes)
        for path, (own, base, scaling) in self._layers.items():
            A, B = _matrices(adapter, path, base.device)
            torch.addmm(base, B, A, alpha=scaling, out=own.weight)


class UnmergedCopy:
    """A second model with LoRA layers of its own on the same base."""

    def __init__(self, policy_model: PreTrainedModel) -> None:
        """`policy_model` as for `MergedCopy`."""
        self.model = _share(policy_model)
        self._layers = dict(_lora_layers(self.model))
        for layer in self._layers.values():
            for matrix in (layer.lora_A[_NAME], layer.lora_B[_NAME]):
                matrix.weight = nn.Parameter(matrix.weight.detach().clone(), requires_grad=False)
        self.model.eval()
        self._shapes = _shapes(_present_weights(policy_model))

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Sample from this adapter from now on."""
        _check_fits(adapter, self._shapes)
        for path, layer in self._layers.items():
            own_A, own_B = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            for own, given in zip((own_A, own_B), _matrices(adapter, path, own_A.device), strict=True):
                own.copy_(given)


def sampling_copy(policy_model: PreTrainedModel) -> MergedCopy | UnmergedCopy:
    """The merged copy where it is exact, else the unmerged one."""
    bases = [layer.get_base_layer() for _, layer in _lora_layers(policy_model)]
    mergeable = all(type(base) is nn.Linear and base.weight.dtype == torch.float32 for base in bases)
    return MergedCopy(policy_model) if mergeable else UnmergedCopy(policy_model)


def base_copy(policy_model: PreTrainedModel) -> PreTrainedModel:
    """A second model around the base's tensors, without the policy's adapter."""
    model = _share(policy_model)
    for path, layer in list(_lora_layers(model)):
        model.set_submodule(path, layer.get_base_layer())
    return model.eval()


def sampling_network(
    model: PreTrainedModel, shares_prefix: bool, tell: Callable[[str], None] | None = None
) -> Network | None:
    """Our own network on a copy's weights, where it is known to give the copy's logits for a prefix and a step; else
    `tell` is told why not."""
    network = find_network(model, tell) if shares_prefix else None
    if network is None:
        return None
    network.adopt_weights()
    reason = gap_reason(step_gap(network, model), network.dtype)
    if reason is None:
        return network
    if tell is not None:
        tell(f"{type(model).__name__} is sampled from by transformers' modules, more slowly: {reason}.")
    return None


def _share(model: PreTrainedModel) -> PreTrainedModel:
    """New modules around the same parameters and buffers."""
    shared = [*model.parameters(), *model.buffers(), *shared_states(model)]
    return cast(PreTrainedModel, copy.deepcopy(model, {id(one): one for one in shared}))


def _lora_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every adapted layer. Raises ModelError for what W + s * B A does not describe."""
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            if not isinstance(layer, LoraLinear) and "bnb" not in type(layer).__module__:
                raise ModelError(
                    f"{path} is adapted as {type(layer).__name__}; only linear layers can be sampled from."
                )
            if layer.use_dora.get(_NAME, False) or layer.lora_bias.get(_NAME, False):
                raise ModelError(f"{path} uses DoRA or a LoRA bias; only plain LoRA can be sampled from.")
            yield path, layer


def _check_fits(adapter: Adapter, shapes: dict[str, torch.Size]) -> None:
    given = _shapes(adapter.weights)
    wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if wrong:
        raise ModelError(
            f"The adapter does not fit the sampler's model: {len(wrong)} tensors differ, the first is {wrong[0]}.",
            hint="It was trained with another base model, rank or target_modules.",
        )


def _matrices(adapter: Adapter, path: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank]."""
    A, B = (adapter.weights[_key(path, side)].to(device) for side in "AB")
    return A, B


def _key(path: str, side: str) -> str:
    """PEFT's state-dict name, as `get_peft_model_state_dict` gives it."""
    return f"base_model.model.{path}.lora_{side}.weight"


def _present_weights(policy_model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter that the policy carries now."""
    layers = list(_lora_layers(policy_model))
    a = {_key(path, "A"): layer.lora_A[_NAME].weight.detach() for path, layer in layers}
    b = {_key(path, "B"): layer.lora_B[_NAME].weight.detach() for path, layer in layers}
    return a | b


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}
