"""What a model folder says about its tokenizer: vocabulary, special tokens, chat templates, which tokens end a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from reinforge.errors import ModelError

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The read and reconciled content of the folder's files."""

    tokenizer: Tokenizer
    """Neither pads nor truncates, whatever tokenizer.json asks for."""
    named_tokens: dict[str, str]
    """bos_token, eos_token ... -> text: what chat templates may use."""
    chat_templates: dict[str, str]
    """Name -> Jinja text; the usual one is `default`. Empty for a base model without any."""
    eos_ids: frozenset[int]
    """Every token that ends a completion: of generation_config, config and tokenizer together."""
    pad_id: int
    """The tokenizer's pad token, else the config's, else an end token: batches must be padded with something."""


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja, generation_config.json
    and config.json; only the first must exist."""
    settings = _json_file(folder / "tokenizer_config.json")
    named = _named_tokens(folder, settings)
    tokenizer = _tokenizer(folder, settings, named)
    configs = [_json_file(folder / "generation_config.json"), _json_file(folder / "config.json")]
    eos_ids = {token_id for config in configs for token_id in _token_ids(config, "eos_token_id")}
    own_eos = tokenizer.token_to_id(named.get("eos_token", ""))
    if own_eos is not None:
        eos_ids.add(own_eos)
    if not eos_ids:
        raise ModelError(
            f"{folder} names no end-of-sequence token.",
            hint='Add "eos_token" to tokenizer_config.json or "eos_token_id" to config.json.',
        )
    pad_ids = [tokenizer.token_to_id(named.get("pad_token", ""))]
    pad_ids += [token_id for config in configs for token_id in _token_ids(config, "pad_token_id")]
    pad_ids += [own_eos, min(eos_ids)]
    pad_id = next(token_id for token_id in pad_ids if token_id is not None)
    return TokenizerFiles(tokenizer, named, _chat_templates(folder, settings), frozenset(eos_ids), pad_id)


def _tokenizer(folder: Path, settings: dict[str, Any], named: dict[str, str]) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json.",
            hint="Convert it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise ModelError(f"{path} cannot be read: {error}.", hint="Download the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = settings.get("added_tokens_decoder") or {}
    for _, token in sorted(added.items(), key=lambda entry: int(entry[0])):
        if tokenizer.token_to_id(token["content"]) is None:
            tokenizer.add_tokens([AddedToken(**token)])
    missing = [token for token in named.values() if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens(list(dict.fromkeys(missing)))
    return tokenizer


def _named_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name. The older special_tokens_map.json counts only where the newer file lists no tokens."""
    sources = dict(settings)
    if "added_tokens_decoder" not in settings:
        sources.update(_json_file(folder / "special_tokens_map.json"))
    named = {}
    for name in _NAMED_TOKENS:
        token = sources.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text:
            named[name] = text
    return named


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Files win over the entry in tokenizer_config.json, as in transformers."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    entry = settings.get("chat_template")
    if isinstance(entry, str):
        return {"default": entry}
    return {template["name"]: template["template"] for template in entry or ()}


def _token_ids(config: dict[str, Any], name: str) -> list[int]:
    """One id or several; below 0 means none. Models with pictures keep theirs in `text_config`."""
    value = config.get(name)
    if value is None:
        value = (config.get("text_config") or {}).get(name)
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int) and token_id >= 0]


def _json_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.", hint="Download the model again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object.", hint="Download the model again.")
    return content
