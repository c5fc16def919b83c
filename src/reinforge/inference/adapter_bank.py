"""Several adapters on one base: rows of different adapters are decoded in one batch.

Every linear layer computes y = x W' for all rows at once, and to the rows of adapter a is added (x A_a') (s_a B_a)'
(Hu et al. 2021); the idea of Punica (Chen et al. 2023) and S-LoRA (Sheng et al. 2023). Layers on the same input (query,
key and value; gate and up) lie below each other in A and side by side in B: two products for all of them. Ranks below
the largest are padded with zeros, which adds nothing. Rows of an adapter are gathered and all adapters computed as one
batched product; an adapter with so many rows that the others would be mostly padding is computed alone.

No tensor of the base is written. Adapters are kept in float32, and with a base in bfloat16 the sum is rounded once, as
in PEFT.

Shapes: B rows, S tokens of each (absent from our own network's), I inputs, O outputs of a part, N adapters, R ranks of
a part's layers together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reinforge.errors import ModelError
from reinforge.policy.network import Network
from reinforge.policy.products import linear
from reinforge.types import Adapter

MAX_ADAPTERS = 64
"""Most adapters that a bank holds unless told otherwise; each takes the bytes of its float32 weights."""
MAX_PADDING = 2
"""Most padded rows in the batched product for each real one."""
BASE = -1
"""Kind of a row without an adapter."""


_Matrices = dict["_Part", tuple[Tensor, Tensor] | None]


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """One adapter as it is computed."""

    name: str
    version: int
    layers: Mapping[str, tuple[Tensor, Tensor]]
    """Path of a layer -> A [rank, in] and scaling times B [out, rank]."""
    serial: int
    """No other that the bank has held has the same."""


class AdapterBank:
    """Holds adapters by name and lets the passes of a model, or of its network, add them."""

    def __init__(
        self, model: PreTrainedModel, network: Network | None = None, *, max_adapters: int = MAX_ADAPTERS
    ) -> None:
        """`model` has no adapters of its own and is nobody else's (its tensors may be), see `adapters.base_copy`. With
        a `network` on its weights only that is prepared."""
        self._max_adapters = max_adapters
        self.device = next(model.parameters()).device
        self._loaded: dict[str, LoadedAdapter] = {}
        self._num_added = 0
        self._parts = _install(self, model, network)
        self._sizes = {path: size for part in self._parts for path, size in part.sizes.items()}
        self._last: tuple[tuple[LoadedAdapter, ...], _Matrices] = ((), {})
        """Adapters of the last call, and what was laid together for them."""
        self.rows: _Rows | None = None
        """What the pass that runs adds."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def add(self, name: str, adapter: Adapter, lora_alpha: float) -> None:
        """Hold an adapter from now on; it replaces one of the same name for the calls that begin later."""
        if name not in self._loaded and len(self._loaded) == self._max_adapters:
            raise ModelError(
                f"{len(self._loaded)} adapters are loaded, which is the most this sampler holds; {name!r} is one more.",
                hint=f"Remove one first (the oldest is {next(iter(self._loaded))!r}).",
            )
        layers = {path: self._matrices(name, path, adapter, lora_alpha) for path in self._paths(name, adapter)}
        self._num_added += 1
        self._last = ((), {})
        self._loaded[name] = LoadedAdapter(name, adapter.version, layers, self._num_added)

    def remove(self, name: str) -> None:
        """Forget an adapter; calls that have begun keep it."""
        del self._loaded[self._known(name).name]
        self._last = ((), {})

    def call(self, names: Sequence[str | None]) -> AdapterCall:
        """The adapters of one call, which has requests with these names; None is the base."""
        adapters = tuple({name: self._known(name) for name in names if name is not None}.values())
        if self._last[0] != adapters:
            self._last = (adapters, {})
        place_of = {adapter.name: place for place, adapter in enumerate(adapters)}
        kinds = [BASE if name is None else place_of[name] for name in names]
        return AdapterCall(self, adapters, kinds, self._last[1])

    def _known(self, name: str) -> LoadedAdapter:
        if name not in self._loaded:
            raise ModelError(
                f"There is no adapter {name!r} here (loaded: {', '.join(self._loaded) or 'none'}).",
                hint="Add it first.",
            )
        return self._loaded[name]

    def _paths(self, name: str, adapter: Adapter) -> list[str]:
        """Layers that an adapter changes; ModelError for a tensor that no layer here takes."""
        found: dict[str, None] = {}
        for key in adapter.weights:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")
            if path == key or path not in self._sizes:
                raise ModelError(
                    f"The adapter {name!r} does not fit this sampler's model: nothing here takes its {key}.",
                    hint="It was trained with another base model, or on layers whose adapters cannot be batched.",
                )
            found[path] = None
        return list(found)

    def _matrices(self, name: str, path: str, adapter: Adapter, lora_alpha: float) -> tuple[Tensor, Tensor]:
        keys = [f"base_model.model.{path}.lora_{side}.weight" for side in "AB"]
        given = [adapter.weights.get(key) for key in keys]
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in given]
        num_in, num_out = self._sizes[path]
        rank = shapes[0][0] if shapes[0] else 0
        if not rank or shapes != [(rank, num_in), (num_out, rank)]:
            raise ModelError(
                f"The adapter {name!r} does not fit this sampler's model: {path} takes [rank, {num_in}] and "
                f"[{num_out}, rank], A and B have {shapes}.",
                hint="It was trained with another base model.",
            )
        A, B = (cast(Tensor, tensor).detach().to(self.device, torch.float32, copy=True) for tensor in given)
        if not (A.isfinite().all() and B.isfinite().all()):  # 0 times NaN would reach other adapters' rows
            raise ModelError(
                f"The adapter {name!r} has NaN or infinite weights at {path}.", hint="Take another version."
            )
        return A, B.mul_(lora_alpha / rank)


class AdapterCall:
    """The adapters that one call of the sampler uses, as they were when it began."""

    def __init__(
        self, bank: AdapterBank | None, adapters: Sequence[LoadedAdapter], kinds: Sequence[int], matrices: _Matrices
    ) -> None:
        self._bank, self._adapters, self._kinds, self._matrices = bank, adapters, kinds, matrices
        self._plans: dict[tuple[int, ...], _Rows] = {}

    @classmethod
    def none(cls, num_requests: int) -> AdapterCall:
        """Of a sampler without a bank."""
        return cls(None, (), [BASE] * num_requests, {})

    def version(self, request: int, otherwise: int) -> int:
        """Of a request's adapter, where it names one."""
        kind = self._kinds[request]
        return otherwise if kind == BASE else self._adapters[kind].version

    def owner(self, request: int) -> int:
        """Whose keys and values a request's are: a number that no other weights of this bank ever have."""
        kind = self._kinds[request]
        return BASE if kind == BASE else self._adapters[kind].serial

    def apart(self, requests: Sequence[int]) -> list[list[int]]:
        """Requests by their adapter: equal tokens under another adapter are another prefix."""
        found: dict[int, list[int]] = {}
        for request in requests:
            found.setdefault(self._kinds[request], []).append(request)
        return list(found.values())

    def all_of(self, request: int) -> AbstractContextManager[None]:
        """In this block every row a pass computes, however many, has this request's adapter."""
        kind = self._kinds[request]
        return nullcontext() if kind == BASE else self._at_work(_Rows(self, [(kind, None)], None))

    def rows_of(self, requests: Sequence[int]) -> AbstractContextManager[None]:
        """In this block the rows of a pass belong to these requests, one each."""
        if not self._adapters:
            return nullcontext()
        kinds = tuple(self._kinds[request] for request in requests)
        if kinds not in self._plans:
            assert self._bank is not None
            self._plans = {kinds: _Rows.of(self, kinds, len(self._adapters), self._bank.device)}
        return self._at_work(self._plans[kinds])

    def matrices(self, part: _Part) -> tuple[Tensor, Tensor] | None:
        """A [N, R, I] and B [N, R, O] of the call's adapters for one part; None where none changes it."""
        if part not in self._matrices:
            self._matrices[part] = part.stacked(self._adapters)
        return self._matrices[part]

    @contextmanager
    def _at_work(self, rows: _Rows) -> Iterator[None]:
        assert self._bank is not None
        self._bank.rows = rows
        try:
            yield
        finally:
            self._bank.rows = None


@dataclass(frozen=True)
class _Together:
    """Rows whose adapters are one batched product."""

    gather: Tensor
    """[N P] Which row stands at each place, P for each adapter; padding repeats row 0."""
    places: Tensor | None
    """Of the real rows among the N P; None without padding."""
    rows: Tensor
    """Which rows those are."""


@dataclass(frozen=True)
class _Rows:
    """Which rows of a pass have which adapter."""

    call: AdapterCall
    alone: Sequence[tuple[int, Tensor | None]]
    """(kind, its rows; None: every row) computed by themselves."""
    together: _Together | None
    num_rows: int | None = None
    """None: any number."""

    @classmethod
    def of(cls, call: AdapterCall, kinds: Sequence[int], num_adapters: int, device: torch.device) -> _Rows:
        rows_of: dict[int, list[int]] = {}
        for row, kind in enumerate(kinds):
            if kind != BASE:
                rows_of.setdefault(kind, []).append(row)
        alone: list[tuple[int, Tensor | None]] = []
        index = partial(torch.tensor, device=device)
        while rows_of:
            kind, largest = max(rows_of.items(), key=lambda item: len(item[1]))
            num_together = sum(map(len, rows_of.values()))
            if len(rows_of) > 1 and num_adapters * len(largest) <= MAX_PADDING * num_together:
                break
            alone.append((kind, None if len(largest) == len(kinds) else index(largest)))
            del rows_of[kind]
        return cls(call, alone, _together(rows_of, num_adapters, index) if rows_of else None, len(kinds))


def _together(rows_of: Mapping[int, list[int]], num_adapters: int, index: Any) -> _Together:
    longest = max(map(len, rows_of.values()))
    gather = [0] * (num_adapters * longest)
    places: list[int] = []
    for kind, rows in rows_of.items():
        start = kind * longest
        gather[start : start + len(rows)] = rows
        places += range(start, start + len(rows))
    places.sort()
    real = [gather[place] for place in places]
    return _Together(index(gather), None if len(places) == len(gather) else index(places), index(real))


class _Part:
    """Linear layers on the same input whose outputs lie side by side."""

    def __init__(self, bank: AdapterBank, num_in: int, columns: Mapping[str, slice]) -> None:
        """`columns` of the output, by path of the layer."""
        self._bank, self._num_in, self._columns = bank, num_in, columns
        self.sizes = {path: (num_in, own.stop - own.start) for path, own in columns.items()}
        self._num_out = sum(num_out for _, num_out in self.sizes.values())

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """`y` with the adapters' products of `x` added: [B, I] and [B, O], or [B, S, I] and [B, S, O]."""
        rows = self._bank.rows
        matrices = rows.call.matrices(self) if rows is not None else None
        if rows is None or matrices is None:
            return y
        if rows.num_rows not in (None, len(x)):
            raise ValueError(f"a pass of {len(x)} rows, but adapters are laid out for {rows.num_rows}")
        A_NRI, B_NRO = matrices
        x, total = x.float(), y.float()
        for kind, own_rows in rows.alone:
            own = x if own_rows is None else x.index_select(0, own_rows)
            added = linear(linear(own, A_NRI[kind]), B_NRO[kind].t())
            total = total.add_(added) if own_rows is None else total.index_add_(0, own_rows, added)
        if rows.together is not None:
            together = rows.together
            gathered = x.index_select(0, together.gather).view(len(A_NRI), -1, x.shape[-1])
            added = torch.bmm(torch.bmm(gathered, A_NRI.mT), B_NRO).view(-1, *y.shape[1:])
            if together.places is not None:
                added = added.index_select(0, together.places)
            total = total.index_add_(0, together.rows, added)
        return total.to(y.dtype)

    def stacked(self, adapters: Sequence[LoadedAdapter]) -> tuple[Tensor, Tensor] | None:
        """A [N, R, I] and B [N, R, O], zeros where an adapter has nothing."""
        ranks = [sum(len(a.layers[path][0]) for path in self._columns if path in a.layers) for a in adapters]
        if not any(ranks):
            return None
        A_NRI = torch.zeros(len(adapters), max(ranks), self._num_in, device=self._bank.device)
        B_NRO = torch.zeros(len(adapters), max(ranks), self._num_out, device=self._bank.device)
        for place, adapter in enumerate(adapters):
            start = 0
            for path, columns in self._columns.items():
                if path in adapter.layers:
                    A, B = adapter.layers[path]
                    ranks_here = slice(start, start + len(A))
                    A_NRI[place, ranks_here], B_NRO[place, ranks_here, columns] = A, B.t()
                    start = ranks_here.stop
        return A_NRI, B_NRO


def _install(bank: AdapterBank, model: PreTrainedModel, network: Network | None) -> list[_Part]:
    """Parts of every linear layer, called in each pass of the network, or else of the model's modules."""
    if network is None:
        modules = {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
        parts = []
        for path, module in modules.items():
            sizes = (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
            num_in, num_out = map(int, sizes)
            parts.append(_Part(bank, num_in, {path: slice(0, num_out)}))
            module.register_forward_hook(partial(_added, parts[-1]))
        return parts
    path_of = {module: path for path, module in model.named_modules()}
    parts = []
    for stack in [stack for layer in network.layers for stack in layer.stacks]:
        parts.append(_Part(bank, stack.num_in, {path_of[layer]: columns for layer, columns in stack.layers}))
        stack.added = parts[-1]
    return parts


def _added(part: _Part, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """As a forward hook."""
    return part(inputs[0], output)
