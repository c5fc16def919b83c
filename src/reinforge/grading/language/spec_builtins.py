"""Built-in graders as types of the grader language: their options are checked against their functions' signatures."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from reinforge.grading import builtin
from reinforge.grading.language.local_grader import DEFAULT_INPUT
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.language.templates import Template, texts_in


class BuiltIn(GraderNode):
    """A built-in grader; its further keys are the options of its function, checked against the function's signature."""

    model_config = ConfigDict(extra="allow")

    pass_threshold: float | None = None
    """From this score on the metric `passed` is 1, else 0; the score stays as it is."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _options_fit(self) -> BuiltIn:
        problems = list(_option_problems(self.type, self.options))
        if problems:
            raise ValidationError.from_exception_data(self.type, problems)
        return self

    def full_json(self) -> dict[str, Any]:
        takes_input = "input" in inspect.signature(builtin.find(self.type)).parameters
        default = {"input": DEFAULT_INPUT} if takes_input else {}
        own = {"type": self.type, "name": self.name, "pass_threshold": self.pass_threshold}
        return own | {"options": default | self.options}


def _option_problems(kind: str, options: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    function = builtin.find(kind)
    parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    for name, value in options.items():
        if name not in parameters:
            unknown = PydanticCustomError(
                "unknown_option", "unknown key", {"known": ["name", "pass_threshold", *parameters]}
            )
            yield InitErrorDetails(type=unknown, loc=(name,), input=value)
        else:
            yield from _value_problems(name, value, hints.get(name, object))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options and name != "input":
            yield InitErrorDetails(type="missing", loc=(name,), input=dict(options))


def _value_problems(name: str, value: object, hint: Any) -> Iterator[InitErrorDetails]:
    """Of one option. What a template brings is known only when it is filled."""
    try:
        templates = [Template.parse(text) for text in texts_in(value)]
    except ValueError as error:
        broken = PydanticCustomError("rule", "{text}", {"text": str(error)})
        yield InitErrorDetails(type=broken, loc=(name,), input=value)
        return
    if any(not isinstance(part, str) for template in templates for part in template.parts):
        return
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        for one in error.errors():
            broken = PydanticCustomError("option", "{text}", {"text": one["msg"]})
            yield InitErrorDetails(type=broken, loc=(name,), input=value)
