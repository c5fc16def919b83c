"""The decoder for CUDA: steps in fixed shapes (`policy/fixed_slots.py`), each recorded once as a CUDA graph.

A graph launches all kernels of a step at once; launched one by one from Python, a small model's kernels wait for
Python. What is recorded reads and writes the same memory in every replay: slots, buffers, weights. Adapters are
therefore loaded in place (`adapters.py`). Never yet run on a GPU by this project.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from reinforge.inference.decoders import Extend, NetworkRows
from reinforge.policy.fixed_slots import Compute, FixedSlots
from reinforge.policy.network import Network

WARM_UP = 2
"""Steps of a shape before it is recorded: libraries set up what they need, which may not happen while recording."""


class FixedDecoder(NetworkRows):
    """Our own network in fixed shapes: on CUDA by graphs, elsewhere launched one by one."""

    extend: Extend | None = None

    def __init__(self, network: Network, num_slots: int, capacity: int) -> None:
        self._fixed = FixedSlots(network, num_slots, capacity, Graphs if network.device.type == "cuda" else None)
        super().__init__(self._fixed, num_slots)

    def fits(self, num_slots: int, capacity: int) -> bool:
        return super().fits(num_slots, capacity) and capacity <= self._fixed.capacity

    def step(self, token_ids_B: Tensor, lengths_B: Tensor, longest: int) -> Tensor:
        return self._fixed.fixed_step(token_ids_B, lengths_B, longest)


def fixed_shapes_pay(network: Network) -> bool:
    """On CUDA, where a step is then one launch. On a CPU they compute padding for nothing."""
    return network.device.type == "cuda"


class Graphs:
    """Records a step of each shape when it first comes and replays it from then on. Where recording fails, steps are
    launched one by one, and a warning says why."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._fails = False

    def __call__(self, rows: int, room: int) -> Tensor:
        if self._fails:
            return self._compute(rows, room)
        if (rows, room) not in self._recorded:
            try:
                self._recorded[rows, room] = self._record(rows, room)
            except RuntimeError as fault:  # torch's for everything CUDA says
                self._fails = True
                reason = str(fault).splitlines()[0]
                warnings.warn(f"Decode steps are not replayed as CUDA graphs: {reason}", RuntimeWarning, stacklevel=2)
                return self._compute(rows, room)
        graph, logits_RV = self._recorded[rows, room]
        graph.replay()
        return logits_RV

    def _record(self, rows: int, room: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A step run several times is the same step: it writes the same keys to the same places."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._compute(rows, room)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits_RV = self._compute(rows, room)
        return graph, logits_RV
