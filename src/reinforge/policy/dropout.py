"""LoRA dropout whose masks are a function of completion, position and layer, never of a shared stream.

So a resumed run, another micro-batch split, a recomputed layer and the second update on the same rollouts drop the same
inputs. Without keys (while sampling, or with the reference) nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reinforge.policy.counter_random import mix, uniform


class DropoutKeys:
    """The keys of the tokens that run through a model now; one object shared by all its dropout layers."""

    def __init__(self) -> None:
        self.current_BT: Tensor | None = None

    @contextmanager
    def of(self, keys_BT: Tensor | None) -> Iterator[None]:
        """Within this block the model's input tokens have these int64 keys; None drops nothing."""
        before, self.current_BT = self.current_BT, keys_BT
        try:
            yield
        finally:
            self.current_BT = before


class KeyedDropout(nn.Module):
    """Dropout with probability `p` on [B, T, features]; layer `index` has masks of its own."""

    def __init__(self, p: float, index: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.p = p
        self.index = index
        self.keys = keys

    def forward(self, x_BTF: Tensor) -> Tensor:
        keys_BT = self.keys.current_BT
        if keys_BT is None:
            return x_BTF
        features = torch.arange(x_BTF.shape[-1], device=x_BTF.device)
        kept = uniform(mix(keys_BT, self.index)[:, :, None], features) >= self.p
        return x_BTF * kept.to(x_BTF.dtype) / (1 - self.p)


def install(peft_model: nn.Module, p: float) -> DropoutKeys:
    """Replace the dropout of every LoRA layer and return the keys they look at."""
    keys = DropoutKeys()
    if p == 0:
        return keys
    per_layer = [getattr(module, "lora_dropout", None) for module in peft_model.modules()]
    for index, adapters in enumerate(d for d in per_layer if isinstance(d, nn.ModuleDict)):
        for name in adapters:
            adapters[name] = KeyedDropout(p, index, keys)
    return keys
