"""The types of grader that ask a language model: what is sent to it, and what its answer may be."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reinforge.grading.spec_base import GraderNode, TemplateText, refuse


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(_Part):
    """A text in a message."""

    type: Literal["input_text", "output_text"]
    text: TemplateText


class ImagePart(_Part):
    """An image in a message."""

    type: Literal["input_image"]
    image_url: TemplateText
    detail: str | None = None


class Audio(_Part):
    """Sound, as base64."""

    data: TemplateText
    format: Literal["mp3", "wav"]


class AudioPart(_Part):
    """Sound in a message."""

    type: Literal["input_audio"]
    input_audio: Audio


Content = TemplateText | Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class JudgeMessage(_Part):
    """One message to the judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content | list[Content]
    """A text with templates, a part, or a list of them."""
    type: Literal["message"] = "message"


Messages = Annotated[list[JudgeMessage], Field(min_length=1)]


class JudgeSampling(_Part):
    """How the judge draws its answer."""

    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens; spelled with an s, as OpenAI does."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ScoreModel(GraderNode):
    """A number that a language model gives."""

    type: Literal["score_model"]
    model: Annotated[str, Field(min_length=1)]
    """The judge's name at its endpoint."""
    input: Messages
    """What it is told and asked."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [0.0, 1.0])
    """[lowest, highest] score; others are held within."""
    sampling_params: JudgeSampling = JudgeSampling()
    """How it draws its answer."""
    pass_threshold: float | None = None
    """From this score on the metric `passed` is 1, else 0; the score stays as it is."""

    @model_validator(mode="after")
    def _range_is_one(self) -> ScoreModel:
        low, high = self.range
        if low >= high:
            raise refuse("range", f"the lowest score, {low:g}, must be below the highest, {high:g}", self.range)
        return self


class LabelModel(GraderNode):
    """1 when the label that a language model chooses is a passing one, else 0."""

    type: Literal["label_model"]
    model: Annotated[str, Field(min_length=1)]
    """The judge's name at its endpoint."""
    input: Messages
    """What it is told and asked."""
    labels: Annotated[list[str], Field(min_length=1)]
    """What it may choose from."""
    passing_labels: Annotated[list[str], Field(min_length=1)]
    """Those that score 1."""
    sampling_params: JudgeSampling = JudgeSampling()
    """How it draws its answer."""

    @model_validator(mode="after")
    def _labels_are_known(self) -> LabelModel:
        unknown = [label for label in self.passing_labels if label not in self.labels]
        if unknown:
            text = f'"{unknown[0]}" is none of the labels ({", ".join(self.labels)})'
            raise refuse("passing_labels", text, self.passing_labels)
        return self
