"""Prompt templates: text with `{column}` variables, and nothing more: no attributes, no indexing, no code."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from reinforge.errors import ConfigError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|\{|\}")


def template_columns(template: str) -> list[str]:
    """The variables of a template in order of appearance.

    >>> template_columns("{question} Answer as {{json}}. {hint}")
    ['question', 'hint']
    """
    columns = []
    for piece in _PIECE.finditer(template):
        if piece[0] in ("{", "}"):
            raise ConfigError(
                f"data.prompt_template has a single {piece[0]} at character {piece.start() + 1}.",
                hint=f"Write {piece[0] * 2} for a literal brace.",
            )
        if piece[1] is not None:
            columns.append(piece[1].strip())
    return list(dict.fromkeys(columns))


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """The template with each variable replaced. Texts go in as they are, other values as JSON.

    >>> fill_template("{{{n}}} numbers: {numbers}", {"n": 2, "numbers": [3, 4]})
    '{2} numbers: [3, 4]'
    """

    def replacement(piece: re.Match[str]) -> str:
        if piece[1] is None:
            return piece[0][0]
        value = values[piece[1].strip()]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _PIECE.sub(replacement, template)


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The most similar name, or None when none is similar.

    >>> nearest_name("promt", ["answer", "prompt"])
    'prompt'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return near[0] if near else None
