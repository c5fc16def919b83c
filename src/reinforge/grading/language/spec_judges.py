"""The types of grader that ask a language model: what is sent to it, and what its answer may be."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from reinforge.grading.language.spec_base import GraderNode, TemplateText, refuse

MAX_ANSWER_TOKENS = 4096
"""Of a judge, its thinking included, unless a grader sets another."""


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


def _is_text(part: object) -> TypeGuard[str | TextPart]:
    return isinstance(part, str | TextPart)


class JudgeMessage(_Part):
    """One message to the judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Content | list[Content]
    """A text with templates, a part, or a list of them."""
    type: Literal["message"] = "message"

    @property
    def parts(self) -> list[str | TextPart | ImagePart | AudioPart]:
        return list(self.content) if isinstance(self.content, list) else [self.content]

    @property
    def text(self) -> str:
        """Of the parts that are text: one template."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts if _is_text(part))


Messages = Annotated[list[JudgeMessage], Field(min_length=1)]


class JudgeSampling(_Part):
    """How the judge draws its answer."""

    seed: int | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens; spelled with an s, as OpenAI does."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    def settings(self) -> dict[str, Any]:
        """As chat completions name them. Temperature 0 and a bound on the length, unless others are set."""
        given = self.model_dump(exclude_none=True)
        longest = given.pop("max_completions_tokens", MAX_ANSWER_TOKENS)
        return {"temperature": 0.0, "max_completion_tokens": longest} | given


Quality = Literal["great", "fair", "poor"]
Texts = Annotated[
    list[TemplateText], Field(min_length=1), BeforeValidator(lambda text: [text] if isinstance(text, str) else text)
]


def _check_plain(text: str) -> str:
    if "{{" in text:
        raise ValueError("it is no template, so {{ cannot stand in it")
    return text


PlainText = Annotated[str, Field(min_length=1), AfterValidator(_check_plain)]


class JudgeNode(GraderNode):
    """What all judges share."""

    model: Annotated[str, Field(min_length=1)] | None = None
    """The judge's name at its endpoint; `reward_fns.judge.model` where none is set."""
    sampling_params: JudgeSampling = JudgeSampling()
    """How it draws its answer."""
    pass_threshold: float | None = None
    """From this score on the metric `passed` is 1, else 0; the score stays as it is."""

    @property
    def messages(self) -> list[JudgeMessage]:
        """What the grader tells its judge; empty where that is ours to say."""
        return []


class ScoreModel(JudgeNode):
    """A number that a language model gives."""

    type: Literal["score_model"]
    input: Messages
    """What it is told and asked."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [0.0, 1.0])
    """[lowest, highest] score; others are held within."""
    examples: dict[Quality, Texts] = Field(default_factory=dict)
    """Completions of each quality for the judge to measure by: a text or several. Not OpenAI's."""
    relative: bool = False
    """Show the judge all completions of a prompt at once and have it score each beside the others: one request for a
    group. Not OpenAI's."""

    @property
    def messages(self) -> list[JudgeMessage]:
        return self.input

    @model_validator(mode="after")
    def _range_is_one(self) -> ScoreModel:
        low, high = self.range
        if low >= high:
            raise refuse("range", f"the lowest score, {low:g}, must be below the highest, {high:g}", self.range)
        return self


class LabelModel(JudgeNode):
    """1 when the label that a language model chooses is a passing one, else 0."""

    type: Literal["label_model"]
    input: Messages
    """What it is told and asked."""
    labels: Annotated[list[PlainText], Field(min_length=1)]
    """What it may choose from."""
    passing_labels: Annotated[list[PlainText], Field(min_length=1)]
    """Those that score 1."""
    examples: dict[PlainText, Texts] = Field(default_factory=dict)
    """Label -> completions that deserve it, for the judge to measure by: a text or several. Not OpenAI's."""

    @property
    def messages(self) -> list[JudgeMessage]:
        return self.input

    @model_validator(mode="after")
    def _labels_are_known(self) -> LabelModel:
        for place, named in (("passing_labels", self.passing_labels), ("examples", list(self.examples))):
            unknown = [label for label in named if label not in self.labels]
            if unknown:
                raise refuse(place, f'"{unknown[0]}" is none of the labels ({", ".join(self.labels)})', named)
        return self


def _read_check(value: object) -> GraderNode:
    from reinforge.grading.language.spec import read_node  # which knows all types, these here among them

    return value if isinstance(value, GraderNode) else read_node(value)


Check = Annotated[SerializeAsAny[GraderNode], BeforeValidator(_read_check)]


class RubricLine(_Part):
    """One thing a completion should do, or must not."""

    name: PlainText
    """What its verdict is called among the score's figures."""
    text: TemplateText | None = None
    """What the judge looks for."""
    grader: Check | None = None
    """Checks the line in the judge's place; its score, 0 to 1, is the share of the weight."""
    weight: float = 1.0
    """Its share; below 0 for what costs."""

    @model_validator(mode="after")
    def _is_judged_once(self) -> RubricLine:
        if (self.text is None) == (self.grader is None):
            raise refuse("text", "a line has either a text for the judge or a grader", self.text)
        if self.name == "judge":
            raise refuse("name", "the judge itself is called so: choose another", self.name)
        return self


class RubricDimension(_Part):
    """One thing that is rated on the scale."""

    name: PlainText
    """What its rating is called among the score's figures."""
    text: TemplateText
    """What the judge rates."""


class Rubric(JudgeNode):
    """Weighted lines with a verdict each, or dimensions rated on a scale. Not OpenAI's."""

    type: Literal["rubric"]
    lines: Annotated[list[RubricLine], Field(min_length=1)] | None = None
    """The score is the weight of what is met, by the weight of all lines above 0, within 0..1."""
    verdicts: Annotated[dict[PlainText, Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)] = Field(
        default_factory=lambda: {"yes": 1.0, "no": 0.0}
    )
    """What the judge may say of a line, and the share of its weight that brings: `partly: 0.5` adds a step between."""
    dimensions: Annotated[list[RubricDimension], Field(min_length=1)] | None = None
    """The score is the mean of the ratings."""
    scale: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [1, 5])
    """[lowest, highest] rating of a dimension; whole numbers."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[lowest, highest] score: the scale is stretched onto it. Unset: the mean rating is the score."""
    input: Messages | None = None
    """What the judge is told before the rubric. Unset: the prompt and the completion."""
    reference: TemplateText | None = None
    """A good answer to compare with, for instance `{{item.answer}}`."""
    examples: dict[Quality, Texts] = Field(default_factory=dict)
    """Completions of each quality for the judge to measure by: a text or several."""

    @property
    def messages(self) -> list[JudgeMessage]:
        return self.input or []

    def children(self) -> dict[str, GraderNode]:
        return {line.name: line.grader for line in self.lines or [] if line.grader is not None}

    def full_json(self) -> dict[str, Any]:
        """Without the graders of its lines."""
        return self.model_dump(mode="json", exclude={"lines": {"__all__": {"grader"}}})

    def judged(self) -> Rubric | None:
        """The part of it that is the judge's; None when graders check every line."""
        lines = [line for line in self.lines or [] if line.text is not None]
        return self if self.dimensions else self.model_copy(update={"lines": lines}) if lines else None

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Rubric:
        if (self.lines is None) == (self.dimensions is None):
            raise refuse("lines", "a rubric has either lines or dimensions", self.lines)
        place = "lines" if self.lines else "dimensions"
        names = [part.name for part in self.lines or self.dimensions or []]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise refuse(place, f'two are named "{twice}"', names)
        if self.dimensions and "std" in names:
            raise refuse(place, "std is the name of the ratings' spread: choose another", names)
        if self.lines and not any(line.weight > 0 for line in self.lines):
            raise refuse(place, "no weight is above 0, so nothing could score", names)
        return self

    @model_validator(mode="after")
    def _scales_rise(self) -> Rubric:
        if self.scale[0] >= self.scale[1]:
            raise refuse("scale", f"the lowest rating, {self.scale[0]}, must be below the highest", self.scale)
        if self.range is not None and self.lines:
            raise refuse("range", "lines score within 0..1", self.range)
        if self.range is not None and self.range[0] >= self.range[1]:
            raise refuse("range", f"the lowest score, {self.range[0]:g}, must be below the highest", self.range)
        return self


Judge = ScoreModel | LabelModel | Rubric
