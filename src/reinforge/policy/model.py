"""Load a base model, put a LoRA adapter on it, and check how it may be run.

The reference policy is the same model with the adapter off: it costs no memory. Weights come from safetensors only, and
no Python code that comes with a model runs unless asked for by name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from reinforge.config import LoraParams
from reinforge.errors import ModelError
from reinforge.policy import attention, dropout, quantized
from reinforge.policy.counter_random import stream_key
from reinforge.policy.device import pick_device, pick_dtype
from reinforge.policy.logit_gap import is_rounding, max_gap
from reinforge.policy.network import Network, largest_gap, unknown_part
from reinforge.types import Adapter

_OTHER_LORA = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save", "layers_to_transform")
"""Settings of PEFT that change what an adapter computes."""

_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Policy:
    """A base model with the adapter that is trained, ready for learner and sampler."""

    peft_model: PeftModel
    model: PreTrainedModel
    """The same network without PEFT's wrapper: transformers' model with LoRA layers inside."""
    folder: Path
    """Local folder of the base model, tokenizer included."""
    shares_prefix: bool
    """Prompts may be run once for their whole group; otherwise every pass is transformers' own."""
    dropout_keys: dropout.DropoutKeys
    notes: tuple[str, ...] = ()
    """What a user should know about how this model runs."""
    network: Network | None = None
    """What runs prefixes and completions instead of `model`, where it is known to compute the same."""

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    def reference(self) -> AbstractContextManager[Any]:
        """Within this block the model is the base model: adapter off."""
        return cast(AbstractContextManager[Any], self.peft_model.disable_adapter())

    def trainable(self) -> dict[str, nn.Parameter]:
        """The adapter's matrices by name, in a fixed order."""
        return {name: p for name, p in sorted(self.peft_model.named_parameters()) if p.requires_grad}

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) parameters."""
        trainable = sum(p.numel() for p in self.trainable().values())
        return trainable, sum(quantized.num_elements(p) for p in self.model.parameters())

    def adapter(self, version: int) -> Adapter:
        """A copy of the adapter's weights, float32."""
        state = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        return Adapter(version, {name: tensor.detach().float().clone() for name, tensor in sorted(state.items())})

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter; names and shapes must be this adapter's."""
        own = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        wrong = sorted(set(own) ^ set(weights)) or [n for n in own if own[n].shape != weights[n].shape]
        if wrong:
            raise ModelError(
                f"The adapter does not fit: {len(wrong)} tensors differ, the first is {wrong[0]}.",
                hint="It was trained with another base model, rank or target_modules.",
            )
        set_peft_model_state_dict(self.peft_model, dict(weights))

    def save_adapter(self, folder: Path) -> None:
        """Write a PEFT adapter folder: adapter_config.json and adapter_model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.adapter(0).weights), folder / "adapter_model.safetensors")
        self.peft_model.peft_config["default"].save_pretrained(folder)


def load_policy(
    base_model: str,
    lora: LoraParams,
    *,
    seed: int,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    load_in_4bit: bool = False,
) -> Policy:
    """Load a base model and give it a fresh adapter: A drawn by `seed`, B zero, so the policy starts as the base."""
    folder = resolve_folder(base_model)
    place = pick_device(device)
    model, how_loaded = _load_base(folder, pick_dtype(dtype, place), place, trust_remote_code, load_in_4bit)
    shares_prefix, notes = _check_prefix_path(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=cast(int, lora.lora_alpha),
        lora_dropout=lora.lora_dropout,
        target_modules=list(_target_modules(model, lora)),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        base_model_name_or_path=base_model,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks transformers for a property that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        torch.manual_seed(stream_key("adapter", seed) % 2**31)
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=True)
    peft_model.eval()
    keys = dropout.install(peft_model, lora.lora_dropout)
    slower: list[str] = []
    network = find_network(model, slower.append) if shares_prefix else None
    if network is not None:
        network.adopt_weights()
    all_notes = (*how_loaded, *notes, *slower)
    return Policy(cast(PeftModel, peft_model), model, folder, shares_prefix, keys, all_notes, network)


def find_network(model: PreTrainedModel, tell: Callable[[str], None] | None = None) -> Network | None:
    """The network to run instead of a model with shared-prefix attention: one that knows it and gives its logits.
    Where there is none, `tell` is told why."""
    network, reason = Network.of(model), unknown_part(model)
    if network is not None:
        reason = gap_reason(largest_gap(network, model), network.dtype)
    if reason is None:
        return network
    if tell is not None:
        tell(f"{type(model).__name__} is run by transformers' modules, more slowly: {reason}.")
    return None


def gap_reason(gap: float, dtype: torch.dtype) -> str | None:
    """In words, why two ways of running a model are not the same; None if they are."""
    if is_rounding(gap, dtype):
        return None
    return f"logits differ by {gap:.1e} of the largest, allowed is {max_gap(dtype):.0e}"


def load_adapter_folder(folder: Path) -> tuple[str, LoraParams, dict[str, Tensor]]:
    """Read a PEFT adapter folder -> (base model, LoRA parameters, weights)."""
    try:
        stored = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
        modules = stored["target_modules"]
        lora = LoraParams(
            rank=stored["r"],
            lora_alpha=stored["lora_alpha"],
            lora_dropout=0.0,
            target_modules="all-linear" if modules == "all-linear" else tuple(sorted(modules)),
        )
        base_model = str(stored["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
        raise ModelError(f"{folder} is not a readable LoRA adapter: {type(fault).__name__}: {fault}.") from fault
    foreign = [name for name in _OTHER_LORA if stored.get(name)]
    if foreign or stored.get("bias", "none") != "none":
        raise ModelError(
            f"{folder} is an adapter with {', '.join(foreign) or 'a bias'}, which would be computed wrongly here.",
            hint="Only plain LoRA is supported.",
        )
    return base_model, lora, weights


def is_adapter_folder(path: Path) -> bool:
    return (path / "adapter_config.json").is_file()


def resolve_folder(base_model: str) -> Path:
    """A local folder as it is; anything else is a hub id, fetched into the hub's cache (HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE are honoured)."""
    path = Path(base_model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json.", hint="Name the folder of a Hugging Face model.")
        return path
    if path.is_absolute() or base_model.startswith(".") or base_model.count("/") > 1:
        raise ModelError(f"There is no folder {path}.", hint="Check base_model.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base_model, allow_patterns=_MODEL_FILES))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as fault:
        raise ModelError(
            f"{base_model!r} is no local folder and could not be fetched from the hub: {str(fault).splitlines()[0]}",
            hint="Check the name and the network, or set base_model to a folder.",
        ) from fault


def _load_base(
    folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool, load_in_4bit: bool
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and notes on how it was loaded."""
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no *.safetensors; other weight formats can run code when loaded and are refused.",
            hint="Convert the model to safetensors.",
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as fault:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {fault}.") from fault
    if "auto_map" in config and not trust_remote_code:
        raise ModelError(
            f"{folder} needs Python code that comes with the model.",
            hint="If you trust its authors, set trust_remote_code = true.",
        )
    in_4bit = quantized.load_options(config, device, wanted=load_in_4bit)
    transformers_logging.disable_progress_bar()
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model, found = _from_pretrained(folder, dtype, trust_remote_code, in_4bit)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError) as fault:
        reason = (str(fault).splitlines() or [type(fault).__name__])[0]
        raise ModelError(f"The model in {folder} cannot be loaded: {reason}") from fault
    if found["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(
            f"{folder} lacks {len(found['missing_keys'])} of the model's tensors, the first is "
            f"{min(found['missing_keys'])}.",
            hint="The weights do not belong to this config.json, or a file is missing.",
        )
    model.requires_grad_(False)
    if in_4bit:
        return cast(PreTrainedModel, model.eval()), (quantized.compute_in(model, dtype),)
    return cast(PreTrainedModel, model.eval().to(device)), ()


def _from_pretrained(
    folder: Path, dtype: torch.dtype, trust_remote_code: bool, in_4bit: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model and what transformers says about its tensors; with its own attention where it has no SDPA."""
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
        **in_4bit,
    }
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    except ValueError as fault:
        if "attention" not in str(fault):
            raise
        loaded = AutoModelForCausalLM.from_pretrained(folder, **options)
    return cast(tuple[Any, dict[str, Any]], loaded)


def _check_prefix_path(model: PreTrainedModel) -> tuple[bool, tuple[str, ...]]:
    """One forward on random ids, both ways: a model whose attention is not ours takes the plain path and says so."""
    name = type(model).__name__
    notes = _length_dependent(model)
    if model.config._attn_implementation != "sdpa":
        return False, (*notes, f"{name} has no SDPA attention: prompts are run once per completion.")
    try:
        reason = gap_reason(attention.prefix_path_gap(model), model.dtype)
    except Exception as fault:  # noqa: BLE001 - whatever a foreign model raises here, the answer is the plain path
        reason = f"{type(fault).__name__}: {fault}"
    if reason is None:
        return True, notes
    attention.use_plain_attention(model)
    note = f"{name} does not fit shared-prefix attention ({reason}): prompts are run once per completion."
    return False, (*notes, note)


def _length_dependent(model: PreTrainedModel) -> tuple[str, ...]:
    """Some models turn positions differently when the longest sequence of a batch passes a limit."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kind = parameters.get("rope_type") if isinstance(parameters, dict) else None
    if kind not in ("longrope", "dynamic"):
        return ()
    return (
        f"{type(model).__name__} has {kind} positions, which depend on the longest sequence of a pass: beyond its "
        "original window, results depend on what is computed together.",
    )


def _target_modules(model: PreTrainedModel, lora: LoraParams) -> tuple[str, ...]:
    """Names of the layers to adapt. All linear ones but the output head by default, by their last name."""
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, Conv1D)) and m is not head
    }
    if lora.target_modules == "all-linear":
        return tuple(sorted(linear))
    known = {name for name, _ in model.named_modules()} | linear
    missing = [name for name in lora.target_modules if name not in known]
    if missing:
        raise ModelError(
            f"target_modules names {missing}, which {type(model).__name__} does not have.",
            hint=f"Its linear layers are {sorted(linear)}.",
        )
    return lora.target_modules
