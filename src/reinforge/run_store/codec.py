"""TrainState <-> JSON, exactly: floats round-trip, lone surrogates survive, tuples stay tuples.

A batch is stored whole, its examples' columns included, so a resume can rebuild it without the data set. Values JSON
does not know are written as {"$": kind, "v": text}. Numbers of training (logprobs, advantages, scores) must be finite;
a column of the data set may hold anything a data file can.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from reinforge.errors import CheckpointError
from reinforge.types import Batch, Completion, Drawn, Example, Grade, Group, Prompt, Score, TrainState

_TO_TEXT: dict[type, tuple[str, Callable[[Any], str]]] = {
    bytes: ("bytes", lambda value: base64.b64encode(value).decode()),
    Decimal: ("decimal", str),
    datetime.datetime: ("datetime", datetime.datetime.isoformat),
    datetime.date: ("date", datetime.date.isoformat),
    datetime.time: ("time", datetime.time.isoformat),
}
_FROM_TEXT: dict[str, Callable[[Any], Any]] = {
    "bytes": base64.b64decode,
    "decimal": Decimal,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "float": float,
    "tuple": lambda items: tuple(_decode_value(item) for item in items),
    "dict": lambda items: {_decode_value(key): _decode_value(value) for key, value in items},
}


def encode_state(state: TrainState) -> str:
    """JSON text of a state; `decode_state` gives an equal one back."""
    document = {
        "format": 1,
        "step": state.step,
        "prompts_drawn": state.prompts_drawn,
        "batch": None if state.batch is None else _encode_batch(state.batch),
        "ahead": None if state.ahead is None else _encode_drawn(state.ahead),
    }
    return json.dumps(document, allow_nan=False)


def decode_state(text: str) -> TrainState:
    """The state that `encode_state` was given."""
    document = json.loads(text)
    batch, ahead = document["batch"], document.get("ahead")  # a checkpoint of before the policy could lag has none
    return TrainState(
        document["step"],
        document["prompts_drawn"],
        None if batch is None else _decode_batch(batch),
        None if ahead is None else _decode_drawn(ahead),
    )


def _encode_drawn(drawn: Drawn) -> dict[str, Any]:
    return {**_fields(drawn), "groups": [_encode_group(group) for group in drawn.groups]}


def _decode_drawn(data: dict[str, Any]) -> Drawn:
    return Drawn(**_tuples(data) | {"groups": tuple(map(_decode_group, data["groups"]))})


def _encode_batch(batch: Batch) -> dict[str, Any]:
    return {
        "groups": [_encode_group(group) for group in batch.groups],
        "advantages": batch.advantages_PG,
        "updates_done": batch.updates_done,
        "old_logprobs": batch.old_logprobs_PGT,
    }


def _decode_batch(data: dict[str, Any]) -> Batch:
    old = data["old_logprobs"]
    return Batch(
        groups=tuple(_decode_group(group) for group in data["groups"]),
        advantages_PG=tuple(tuple(row) for row in data["advantages"]),
        updates_done=data["updates_done"],
        old_logprobs_PGT=None if old is None else tuple(tuple(tuple(row) for row in group) for group in old),
    )


def _encode_group(group: Group) -> dict[str, Any]:
    example = group.prompt.example
    return {
        "example": {
            "index": example.index,
            "prompt": _encode_value(example.prompt),
            "columns": _encode_value(dict(example.columns)),
            "tools": _encode_value(example.tools),
        },
        "text": group.prompt.text,
        "token_ids": group.prompt.token_ids,
        "epoch": group.epoch,
        "completions": [_fields(completion) for completion in group.completions],
        "grades": [[_fields(score) for score in grade.scores] for grade in group.grades],
    }


def _decode_group(data: dict[str, Any]) -> Group:
    example = data["example"]
    return Group(
        prompt=Prompt(
            Example(
                example["index"],
                _decode_value(example["prompt"]),
                _decode_value(example["columns"]),
                _decode_value(example["tools"]),
            ),
            data["text"],
            tuple(data["token_ids"]),
        ),
        epoch=data["epoch"],
        completions=tuple(Completion(**_tuples(completion)) for completion in data["completions"]),
        grades=tuple(Grade(tuple(Score(**score) for score in scores)) for scores in data["grades"]),
    )


def _fields(noun: Completion | Score | Drawn) -> dict[str, Any]:
    return {name: getattr(noun, name) for name in noun.__slots__}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _encode_value(value: Any) -> Any:
    """A value of a data set's column as JSON."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    if isinstance(value, list):
        return [_encode_value(item) for item in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "v": [_encode_value(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and "$" not in value:
            return {key: _encode_value(item) for key, item in value.items()}
        return {"$": "dict", "v": [[_encode_value(key), _encode_value(item)] for key, item in value.items()]}
    if type(value) in _TO_TEXT:
        kind, to_text = _TO_TEXT[type(value)]
        return {"$": kind, "v": to_text(value)}
    raise CheckpointError(
        f"A data-set column holds a {type(value).__name__}, which a checkpoint cannot keep.",
        hint="Convert the column to text, numbers, lists or dictionaries.",
    )


def _decode_value(data: Any) -> Any:
    if isinstance(data, list):
        return [_decode_value(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "$" in data:
        return _FROM_TEXT[data["$"]](data["v"])
    return {key: _decode_value(item) for key, item in data.items()}
