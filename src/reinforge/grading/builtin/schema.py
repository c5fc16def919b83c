"""JSON that follows a schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, cast

from reinforge.grading.builtin.reading import (
    Unreadable,
    answer_of,
    canonical,
    json_of,
    literal_of,
    number_option,
    shown,
)
from reinforge.grading.builtin.result import Result, refused

MAX_REASON = 300


def json_schema(
    *,
    input: Any,
    schema: Mapping[str, Any] | bool | str,
    tag: str = "",
    after: str = "",
    fence: bool = True,
    parses: float = 0.0,
) -> Result:
    """1 when the input is JSON that is valid under a JSON Schema, else 0 (S0-062, S4-009).

    `schema`: as an object or as text; draft 2020-12 unless its `$schema` says otherwise. Only references inside the
    schema are followed: nothing is ever fetched.
    `tag`, `after`: where the JSON stands in a text, as in exact_answer.
    `fence`: it may stand in a code fence.
    `parses`: the score of JSON that is not valid.

    >>> schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    >>> json_schema(input='{"name": "Ada"}', schema=schema).score
    1.0
    >>> json_schema(input='```json\\n{"name": 5}\\n```', schema=schema, parses=0.25)
    Result(score=0.25, reason="$.name: 5 is not of type 'string'", metrics={})
    >>> json_schema(input="name: Ada", schema=schema)
    Result(score=0.0, reason='not JSON: Expecting value: line 1 column 1 (char 0)', metrics={})
    """
    parses = number_option("parses", parses)
    validator = _validator(schema)
    answer = answer_of(input, tag, after) if isinstance(input, str) else input
    value = answer if isinstance(answer, Unreadable) else json_of(answer, fence=fence)
    if isinstance(value, Unreadable):
        return refused(value.reason)
    fault = _first_fault(validator, value)
    return Result(parses, fault) if fault else Result(1.0)


def _validator(schema: object) -> Any:
    from jsonschema import exceptions, validators
    from referencing.jsonschema import EMPTY_REGISTRY

    if isinstance(schema, str):
        schema = literal_of(schema)
    if not isinstance(schema, (Mapping, bool)):
        raise ValueError(f"schema: an object is needed, not {shown(schema)}")
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(cast(Any, schema))
    except (exceptions.SchemaError, RecursionError) as fault:
        raise ValueError(f"schema: {_short(getattr(fault, 'message', 'it is nested too deeply'))}") from None
    return _with_fast_unique_items(kind)(schema, registry=EMPTY_REGISTRY)


@cache
def _with_fast_unique_items(kind: Any) -> Any:
    """The library compares each entry with each other one where a list cannot be sorted."""
    from jsonschema import exceptions, validators

    def unique_items(validator: Any, wanted: bool, value: Any, schema: Any) -> Iterator[Any]:
        if wanted and validator.is_type(value, "array") and len({canonical(entry) for entry in value}) < len(value):
            yield exceptions.ValidationError("the entries are not unique")

    extend: Any = validators.extend
    return extend(kind, {"uniqueItems": unique_items})


def _first_fault(validator: Any, value: object) -> str:
    """The first thing that is wrong with a value, and where; "" when it is valid."""
    from jsonschema.exceptions import UnknownType
    from referencing.exceptions import Unresolvable

    try:
        error = next(validator.iter_errors(value), None)
    except Unresolvable as fault:
        raise ValueError(f"schema: {shown(str(fault))} cannot be resolved; nothing is fetched") from None
    except UnknownType as fault:
        raise ValueError(f"schema: unknown type {shown(fault.type)}") from None
    except (RecursionError, OverflowError, TypeError, ValueError) as fault:  # too deep, too large, or no JSON
        return f"cannot be validated: {type(fault).__name__}"
    return f"{_short(error.json_path)}: {_short(error.message)}" if error else ""


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
