"""What is wrong with a config, in our words: place, value, rule, and the key that was probably meant."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from reinforge.config import GRPOConfig

KeyPath = tuple[str | int, ...]
"""Where a value stands: ("sampling_params", "stop", 0)."""

RULES = {
    "missing": "is not set",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false (yes, no, on and off are texts here)",
    "string_type": "must be a text (in quotes if it looks like something else)",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a table of keys and values",
    "model_type": "must be a table of keys and values",
    "model_attributes_type": "must be a table of keys and values",
    "too_short": "must not be empty",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "must be {expected}",
}
"""pydantic's error type -> the rule that was broken."""

ALIASES = {
    "model": "base_model",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "dataset": "data.path",
    "training_file": "data.path",
    "validation_file": "data.heldout_path",
    "eval_dataset": "data.heldout_path",
    "max_prompt_length": "data.max_prompt_tokens",
    "reward_funcs": "reward_fns.functions",
    "reward_weights": "reward_fns.weights",
    "epochs": "train_steps",
    "n_epochs": "train_steps",
    "num_epochs": "train_steps",
    "num_train_epochs": "train_steps",
    "max_steps": "train_steps",
    "batch_size": "prompts_per_step",
    "train_batch_size": "prompts_per_step",
    "per_device_train_batch_size": "prompts_per_step",
    "group_size": "num_generations",
    "max_completion_length": "sampling_params.max_tokens",
    "max_completion_tokens": "sampling_params.max_tokens",
    "max_new_tokens": "sampling_params.max_tokens",
    "stop_sequences": "sampling_params.stop",
    "lr": "learning_rate",
    "kl_coef": "beta",
    "clip_range": "epsilon",
    "peft": "lora",
    "peft_config": "lora",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target_modules": "lora.target_modules",
    "bf16": "dtype",
    "fp16": "dtype",
    "save_steps": "save_every",
    "eval_steps": "eval.every_steps",
    "eval_interval": "eval.every_steps",
    "eval_samples": "eval.samples_per_prompt",
    "eval.samples": "eval.samples_per_prompt",
    "eval.num_generations": "eval.samples_per_prompt",
}
"""Names from TRL, PEFT, OpenAI and others, as the whole key or its last word -> our key. Where only the table differs
(`temperature`) none is needed."""


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    >>> Origin("train.yaml", Path("/home/me")).at(3).place
    'train.yaml:3'
    """

    place: str
    folder: Path
    """Relative paths are meant from here."""
    text: str = ""
    """A number as it was written: 1.10 and 1.1 are the same number."""

    @property
    def override(self) -> str:
        """The text after `-o`; empty for a place in a file."""
        return self.place[3:] if self.place.startswith("-o ") else ""

    def at(self, line: int) -> Origin:
        """That line of the file; an override has no lines."""
        return self if self.override else replace(self, place=f"{self.place}:{line}")

    def written(self, text: str) -> Origin:
        return replace(self, text=text)

    @staticmethod
    def find(origins: Mapping[KeyPath, Origin], path: KeyPath) -> Origin:
        """Of the value, or of the nearest table around it whose place is known."""
        for depth in range(len(path), -1, -1):
            if path[:depth] in origins:
                return origins[path[:depth]]
        return Origin("config", Path.cwd())


def explain(
    errors: Sequence[Mapping[str, Any]], values: dict[str, Any], origins: Mapping[KeyPath, Origin], start: Origin
) -> list[str]:
    """One line for each setting that is wrong. `start` stands for settings that were written nowhere."""
    by_path: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for error in errors:
        by_path.setdefault(_written_path(error, values), []).append(error)
    places = {path: number for number, path in enumerate(origins)}
    lines, listed = [], set[KeyPath]()
    for path in sorted(by_path, key=lambda path: places.get(path, places.get(path[:-1], -1))):
        # A value that may have one of two types breaks a rule of both: the one that looked deeper says more.
        if any(other != path and other[: len(path)] == path for other in by_path):
            continue
        line = _line(path, by_path[path], origins, start)
        if by_path[path][0]["type"] == "extra_forbidden":
            meant = _meant(path)
            line += f" Did you mean {meant}?" if meant else _known_beside(path) if path[:-1] not in listed else ""
            listed |= set() if meant else {path[:-1]}
        lines.append(line)
    return lines


def _written_path(error: Mapping[str, Any], values: object) -> KeyPath:
    """pydantic's location without the names of union branches it puts in."""
    path: list[str | int] = []
    for part in error["loc"]:
        inside = isinstance(values, dict) and part in values
        inside = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        if inside:
            values = values[part]  # type: ignore[index]
        elif not (error["type"] == "missing" and isinstance(values, dict)):
            continue
        path.append(part)
    return tuple(path)


def _line(path: KeyPath, errors: Sequence[Mapping[str, Any]], origins: Mapping[KeyPath, Origin], start: Origin) -> str:
    name, first = ".".join(map(str, path)), errors[0]
    unwritten = len(path) == 0 or (len(path) == 1 and first["type"] == "missing")
    origin = start if unwritten else Origin.find(origins, path)
    if first["type"] == "extra_forbidden":
        return f"{origin.place}  Unknown key {name}."
    if first["type"] == "missing":
        return f"{origin.place}  {name} is not set: {_meaning(path)} Add it."
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        named = re.match(r"([\w.]+) = ", message)
        if named:
            origin = origins.get(tuple(named[1].split(".")), origin)
        return f"{origin.place}  {message}."
    rules = [RULES[e["type"]].format(**e.get("ctx", {})) for e in errors if e["type"] in RULES]
    rules = rules or [str(first["msg"])]
    value = origin.text or json.dumps(first["input"], ensure_ascii=False)
    shown = value if len(value) <= 80 else value[:77] + "..."
    hint = ""
    if origin.override.startswith(f"{name}=") and any(error["type"] == "string_type" for error in errors):
        hint = f" As a text: {quoted_override(origin.override)}"
    return f"{origin.place}  {name} = {shown}, but it {' or '.join(dict.fromkeys(rules))}.{hint}"


def quoted_override(text: str) -> str:
    """The override with its value as a text, quoted for YAML and then for the shell.

    >>> print(quoted_override("data.prompt_template={a} x"))
    -o 'data.prompt_template="{a} x"'
    """
    key, _, value = text.partition("=")
    return f"-o {shlex.quote(f'{key}={json.dumps(value, ensure_ascii=False)}')}"


def _meant(path: KeyPath) -> str | None:
    """The key that was probably meant: by another name, nearly the same beside it, the same elsewhere, alike beside it,
    alike elsewhere."""
    known = list(config_keys())
    whole, wrong = ".".join(map(str, path)), str(path[-1])
    beside = {key.rpartition(".")[2]: key for key in _keys_beside(path)}
    anywhere = {key.rpartition(".")[2]: key for key in known}
    found = [
        *(ALIASES[name] for name in (whole, wrong) if name in ALIASES),
        *(beside[name] for name in difflib.get_close_matches(wrong, beside, n=1, cutoff=0.8)),
        *(key for key in known if key.rpartition(".")[2] == wrong),
        *(beside[name] for name in difflib.get_close_matches(wrong, beside, n=1, cutoff=0.6)),
        *(anywhere[name] for name in difflib.get_close_matches(wrong, anywhere, n=1, cutoff=0.7)),
    ]
    return found[0] if found else None


def _known_beside(path: KeyPath) -> str:
    names = sorted(key.rpartition(".")[2] for key in _keys_beside(path))
    return f" Known here: {', '.join(names)}." if names else " It takes no keys."


def _keys_beside(path: KeyPath) -> list[str]:
    parent = ".".join(map(str, path[:-1]))
    return [key for key in config_keys() if key.rpartition(".")[0] == parent]


def config_keys(model: type[BaseModel] = GRPOConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, tables included.

    >>> [key for key in config_keys() if key.startswith("overlong")]
    ['overlong', 'overlong.buffer_tokens', 'overlong.penalty']
    """
    for name, info in model.model_fields.items():
        yield prefix + name
        part = table_of(info.annotation)
        if part is not None:
            yield from config_keys(part, prefix_below(prefix + name, info.annotation))


def prefix_below(key: str, annotation: Any) -> str:
    """What the keys of a table begin with; tables by name stand below `<function>`.

    >>> prefix_below("lora", None), prefix_below("settings", dict[str, BaseModel])
    ('lora.', 'settings.<function>.')
    """
    return f"{key}.<function>." if getattr(annotation, "__origin__", None) is dict else f"{key}."


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The config part a field holds, also when it may be unset; None for plain values."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _meaning(path: KeyPath) -> str:
    """The field's own description, for a message about its absence."""
    model: type[BaseModel] = GRPOConfig
    for part in path[:-1]:
        model = table_of(model.model_fields[str(part)].annotation) or model
    return (model.model_fields[str(path[-1])].description or "").replace("\n", " ")
