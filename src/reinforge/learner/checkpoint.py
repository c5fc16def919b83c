"""The learner's state as files: adapter (PEFT folder) and optimizer (safetensors), and a hash of both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reinforge.errors import CheckpointError
from reinforge.learner.optimizer import set_state_tensors, state_tensors
from reinforge.policy.model import Policy


def save(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    steps_done: int,
    tokens_per_microbatch: int,
) -> None:
    """Write `adapter/`, `optimizer.safetensors` and `learner.json` into an existing folder."""
    try:
        policy.save_adapter(folder / "adapter")
        save_file(_optimizer_tensors(policy, optimizer), folder / "optimizer.safetensors")
    except SafetensorError as fault:  # how it reports a full disk
        raise OSError(str(fault)) from fault
    state = {"steps_done": steps_done, "tokens_per_microbatch": tokens_per_microbatch}
    (folder / "learner.json").write_text(json.dumps(state))


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[int, int | None]:
    """Become what `save` wrote -> number of steps taken, and tokens of a micro-batch (older checkpoints tell none)."""
    try:
        weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        state = json.loads((folder / "learner.json").read_text())
        steps_done, tokens = int(state["steps_done"]), state.get("tokens_per_microbatch")
    except (OSError, ValueError, KeyError, SafetensorError) as fault:
        raise CheckpointError(f"{folder} holds no readable learner state: {fault}.") from fault
    policy.load_weights(weights)
    optimizer.state.clear()
    for name, parameter in policy.trainable().items():
        own = {key.rsplit("|", 1)[1]: value for key, value in moments.items() if key.rsplit("|", 1)[0] == name}
        if own:
            set_state_tensors(optimizer, parameter, own)
    return steps_done, None if tokens is None else int(tokens)


def state_hash(policy: Policy, optimizer: torch.optim.Optimizer) -> str:
    """sha256 over every weight and optimizer tensor: equal hashes mean bitwise equal learners."""
    digest = hashlib.sha256()
    tensors = {**{name: p.detach() for name, p in policy.trainable().items()}, **_optimizer_tensors(policy, optimizer)}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _optimizer_tensors(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, named `<parameter>|<moment>`."""
    return {
        f"{name}|{key}": value.contiguous()
        for name, parameter in policy.trainable().items()
        for key, value in state_tensors(optimizer, parameter).items()
    }
