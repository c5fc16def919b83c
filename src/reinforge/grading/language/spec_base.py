"""What all types of grader share: the base of their models, and texts with templates in them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from reinforge.grading.language.templates import Template


class GraderNode(BaseModel):
    """What all types share."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    type: str
    """Which of the types."""
    name: str = ""
    """For people; in a list of graders, what its score is called by."""

    def children(self) -> dict[str, GraderNode]:
        """The graders it holds, by the names their scores have."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """What was given, normalised."""
        return self.model_dump(mode="json", exclude_unset=True)

    def full_json(self) -> dict[str, Any]:
        """With all defaults, and what it holds in the same form."""
        return self.model_dump(mode="json")


def refuse(place: str, text: str, value: object) -> ValidationError:
    """A broken rule of one field, to be raised by a validator of the whole node."""
    broken = PydanticCustomError("rule", "{text}", {"text": text})
    return ValidationError.from_exception_data("", [InitErrorDetails(type=broken, loc=(place,), input=value)])


def check_template(text: str) -> str:
    Template.parse(text)
    return text


TemplateText = Annotated[str, AfterValidator(check_template)]
"""A text with `{{item...}}` and `{{sample...}}` in it."""
