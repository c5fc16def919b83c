"""Secrets that reward functions are given: environment variables by name, and what hides their values in all they say.

Hidden are the value as it is, as `repr` or JSON write it, and its beginning from MIN_CHARACTERS on (a text that was
cut may hold no more). A function can always say its secret in other words, in base64 for instance: who must not know
it must not get it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from reinforge.errors import ConfigError, SetupError

MIN_CHARACTERS = 8
"""Shorter values would be found in innocent texts."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STEERING = re.compile(
    r"PATH|LANG|LC_.*|LD_.*|DYLD_.*|PYTHON.*|MALLOC_.*|GLIBC_.*|GCONV_PATH|BASH.*|ENV|IFS|OMP_NUM_THREADS"
    r"|(HTTP|HTTPS|ALL|NO)_PROXY",
    re.IGNORECASE,
)
"""Change what the programs around user code do, or are set by us."""


def read_secrets(names: Iterable[str], setting: str) -> dict[str, str]:
    """Name -> value, from our own environment. ConfigError for a name that may be none, SetupError without a value."""
    found = {}
    for name in names:
        if not _NAME.fullmatch(name) or _STEERING.fullmatch(name):
            hint = "Name a variable that holds a key, for instance OPENAI_API_KEY."
            raise ConfigError(f"{setting}: {name!r} cannot be handed to a reward function.", hint=hint)
        value = os.environ.get(name, "")
        if len(value) < MIN_CHARACTERS:
            is_what = f"has {len(value)} characters, a secret at least {MIN_CHARACTERS}" if value else "is not set"
            raise SetupError(
                f"{setting} names {name}, but this environment variable {is_what}.",
                hint=f"Set it (export {name}=...) or remove the name.",
            )
        found[name] = value
    return found


class Hider:
    """Replaces secrets by their names.

    Example:
        >>> hide = Hider({"API_KEY": "sk-0123456789"})
        >>> hide({"reason": ["got sk-0123456789!", 1.5]}), hide("cut: sk-01234567")
        ({'reason': ['got [secret API_KEY]!', 1.5]}, 'cut: [secret API_KEY]')
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        forms = {
            form: f"[secret {name}]"
            for name, value in secrets.items()
            for form in (value, repr(value)[1:-1], json.dumps(value)[1:-1])
        }
        self._forms = sorted(forms.items(), key=lambda form: -len(form[0]))

    def __call__(self, value: Any) -> Any:
        """A JSON value without them, keys of dicts included."""
        if not self._forms:
            return value
        if isinstance(value, str):
            for form, marker in self._forms:
                value = _without(value, form, marker)
            return value
        if isinstance(value, list):
            return [self(entry) for entry in value]
        if isinstance(value, dict):
            return {self(key): self(entry) for key, entry in value.items()}
        return value


def _without(text: str, form: str, marker: str) -> str:
    head, parts, at = form[:MIN_CHARACTERS], list[str](), 0
    while (found := text.find(head, at)) >= 0:
        parts += [text[at:found], marker]
        at = found + _num_equal(text[found : found + len(form)], form)
    return "".join([*parts, text[at:]])


def _num_equal(one: str, other: str) -> int:
    """Characters until the two differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))
