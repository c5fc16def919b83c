"""Train and held-out examples, without overlap: a function of content and seed alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from reinforge.errors import ConfigError, DataError
from reinforge.types import Example


def content_key(example: Example) -> str:
    """Hash of prompt, tools and columns: equal rows have equal keys, wherever they stand and on every machine.

    >>> content_key(Example(0, "Hi", {"a": 1})) == content_key(Example(9, "Hi", {"a": 1}))
    True
    """
    content = [example.prompt, example.tools, dict(example.columns)]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=dict)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def split_examples(
    examples: Sequence[Example], heldout: float, stratify_column: str | None, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, held-out), each in the order of `examples`.

    `heldout` below 1 is a share, from 1 on a number of rows; 0 holds nothing out. Rows with the same content land on
    the same side, so the held-out side may come out smaller than asked, by less than one group of equal rows. With
    `stratify_column` every value of it has the same share on both sides, to within one row.

    Within a stratum, contents are ordered by hash(seed, content) and the first ones held out: neither the order of
    the rows nor Python's version matters, and a row added to the file moves few others across.
    """
    if heldout == 0:
        return list(examples), []
    wanted = _num_wanted(heldout, len(examples))
    groups: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        groups.setdefault(content_key(example), []).append(place)
    strata: dict[str, list[list[int]]] = {}
    for key in sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest()):
        value = _stratum(examples[groups[key][0]], stratify_column)
        strata.setdefault(value, []).append(groups[key])
    chosen = _choose(strata, wanted / len(examples), wanted)
    train = [example for place, example in enumerate(examples) if place not in chosen]
    held = [example for place, example in enumerate(examples) if place in chosen]
    if not held or not train:
        side = "nothing" if not held else "every row"
        detail = f"{len(groups)} different rows among {len(examples)}"
        raise DataError(
            f"data.heldout = {heldout:g} would hold out {side} ({detail}).",
            hint="Change data.heldout, add rows, or set data.heldout_path.",
        )
    return train, held


def _num_wanted(heldout: float, num_examples: int) -> int:
    if heldout < 1:
        return max(1, round(heldout * num_examples))
    if heldout != int(heldout):
        raise ConfigError(
            f"data.heldout = {heldout:g} is neither a share nor a number of rows.", hint="Use e.g. 0.1 or 50."
        )
    if heldout >= num_examples:
        raise DataError(
            f"data.heldout = {heldout:g} would hold out every row of {num_examples}.",
            hint="Make it smaller; a share below 1 is understood too.",
        )
    return int(heldout)


def _stratum(example: Example, column: str | None) -> str:
    if column is None:
        return ""
    if column not in example.columns:
        found = ", ".join(example.columns)
        raise DataError(f'There is no column "{column}" (found: {found}).', hint="Correct data.stratify_column.")
    return json.dumps(example.columns[column], sort_keys=True)


def _choose(strata: dict[str, list[list[int]]], share: float, wanted: int) -> set[int]:
    """Places to hold out: per stratum its share of the rows, rounded so that the parts add up to `wanted`."""
    exact = {value: share * sum(map(len, groups)) for value, groups in strata.items()}
    parts = {value: int(amount) for value, amount in exact.items()}
    by_remainder = sorted(exact, key=lambda value: (parts[value] - exact[value], value))
    for value in by_remainder[: wanted - sum(parts.values())]:
        parts[value] += 1
    chosen: set[int] = set()
    for value, groups in strata.items():
        room = parts[value]
        for group in groups:
            if len(group) <= room:
                chosen.update(group)
                room -= len(group)
    return chosen
