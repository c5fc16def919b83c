"""OpenAI's grader language: one pydantic model for each type, and the built-in graders as further types.

Two JSON forms of a checked node: `to_json` is what the user said, normalised (OpenAI's validate reply, and the text
that makes a version); `full_json` has every default filled in and built-in options apart (what runs).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from reinforge.errors import RewardError
from reinforge.grading import builtin
from reinforge.grading.language import formula
from reinforge.grading.language.error_flags import GraderFault
from reinforge.grading.language.spec_base import GraderNode, TemplateText, refuse
from reinforge.grading.language.spec_builtins import BuiltIn
from reinforge.grading.language.spec_judges import LabelModel, Rubric, ScoreModel
from reinforge.grading.language.spec_problems import Problem, meant, problems_of
from reinforge.grading.language.templates import Template, texts_in

MAX_DEPTH = 32
"""Of JSON inside JSON; graders inside graders are bounded by it."""


class StringCheck(GraderNode):
    """1 when `input` and `reference` compare as `operation` says, else 0."""

    type: Literal["string_check"]
    input: TemplateText
    """What is judged, for instance `{{sample.output_text}}`."""
    reference: TemplateText
    """What it is compared with, for instance `{{item.answer}}`."""
    operation: Annotated[Literal["eq", "ne", "like", "ilike"], BeforeValidator(lambda op: "ne" if op == "neq" else op)]
    """eq: equal. ne (or neq): not equal. like: `input` contains `reference`. ilike: so, in any case."""


def _no_embeddings(metric: object) -> object:
    if metric == "cosine":
        raise ValueError("cosine compares embeddings: add model, the folder of an embedding model")
    return metric


class TextSimilarity(GraderNode):
    """How alike `input` and `reference` are, from 0 to 1."""

    type: Literal["text_similarity"]
    input: TemplateText
    """What is judged, for instance `{{sample.output_text}}`."""
    reference: TemplateText
    """What it is compared with, for instance `{{item.answer}}`."""
    evaluation_metric: Annotated[
        Literal[
            "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
        ],
        BeforeValidator(_no_embeddings),
    ]
    """How alikeness is measured."""
    pass_threshold: float | None = None
    """From this score on the metric `passed` is 1, else 0; the score stays as it is."""


class PythonGrader(GraderNode):
    """A Python function `grade(sample, item)` that returns a number, in a process of its own."""

    type: Literal["python"]
    source: Annotated[str, Field(min_length=1, max_length=256 << 10)]
    """The whole text of a module that has the function."""
    image_tag: str | None = None
    """Taken and kept; here the function runs with the packages of this machine."""
    pass_threshold: float | None = None
    """From this score on the metric `passed` is 1, else 0; the score stays as it is."""


def _read_child(value: object) -> GraderNode:
    return value if isinstance(value, GraderNode) else read_node(value)


Child = Annotated[SerializeAsAny[GraderNode], BeforeValidator(_read_child)]


def _by_name(value: object) -> object:
    """Graders as a table: given as one, as a list of named graders, or as a single grader."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        value = [value]
    if not isinstance(value, list):
        return value
    named: dict[str, object] = {}
    for place, child in enumerate(value):
        name = child.get("name") if isinstance(child, dict) else getattr(child, "name", "")
        if not isinstance(name, str) or not name:
            raise ValueError(f"entry {place} of the list has no name: its score could not be told from others")
        if name in named:
            raise ValueError(f'two graders of the list are named "{name}"')
        named[name] = child
    return named


Children = Annotated[dict[str, Child], Field(min_length=1), BeforeValidator(_by_name)]


class _Holder(GraderNode):
    """A node with a table of other graders."""

    graders: Children
    """Name -> grader; a list of named graders is taken too."""

    def children(self) -> dict[str, GraderNode]:
        return dict(self.graders)

    def full_json(self) -> dict[str, Any]:
        parts = {name: child.full_json() for name, child in self.graders.items()}
        return self.model_dump(mode="json", exclude={"graders"}) | {"graders": parts}


class Multi(_Holder):
    """A formula over the scores of other graders."""

    type: Literal["multi"]
    calculate_output: str
    """Formula with the graders' names as variables: `0.2 * format + 0.8 * f1`."""

    @model_validator(mode="after")
    def _formula_fits(self) -> Multi:
        try:
            names = formula.parse(self.calculate_output).names
        except GraderFault as fault:
            raise refuse("calculate_output", str(fault), self.calculate_output) from None
        unknown = [name for name in names if name not in self.graders]
        if unknown:
            text = f"{unknown[0]} is none of the graders ({', '.join(self.graders)})"
            raise refuse("calculate_output", text, self.calculate_output)
        return self


class Combine(_Holder):
    """The weighted sum of other graders' scores."""

    type: Literal["combine"]
    weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(default_factory=dict)
    """Name -> weight; 1.0 where not named."""
    clip: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[lowest, highest]: the sum is held within."""

    @model_validator(mode="after")
    def _names_fit(self) -> Combine:
        unknown = sorted(set(self.weights) - set(self.graders))
        if unknown:
            text = f"{unknown[0]} is none of the graders ({', '.join(self.graders)})"
            raise refuse("weights", text, self.weights)
        if self.clip is not None and self.clip[0] > self.clip[1]:
            raise refuse("clip", f"the lowest, {self.clip[0]:g}, is above the highest, {self.clip[1]:g}", self.clip)
        return self


class Gate(GraderNode):
    """Grader b counts only where grader a scores high enough: share * a + (1 - share) * b there."""

    type: Literal["gate"]
    a: Child
    """Judged always."""
    b: Child
    """Asked only where the gate is open: a judge behind it costs nothing for what fails it."""
    at_least: float = 1.0
    """The gate is open from this score of a on."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of a in the score where the gate is open; 0: b alone."""
    below: float | Literal["a", "share"] = "a"
    """The score where it is closed: `a` is a's own, `share` is share * a, else this number."""

    def children(self) -> dict[str, GraderNode]:
        return {"a": self.a, "b": self.b}

    def full_json(self) -> dict[str, Any]:
        parts = {name: child.full_json() for name, child in self.children().items()}
        return self.model_dump(mode="json", exclude={"a", "b"}) | parts


TYPES: dict[str, type[GraderNode]] = {
    "string_check": StringCheck,
    "text_similarity": TextSimilarity,
    "score_model": ScoreModel,
    "label_model": LabelModel,
    "rubric": Rubric,
    "python": PythonGrader,
    "multi": Multi,
    "combine": Combine,
    "gate": Gate,
}
"""Type -> its model. The name of each built-in grader is a type too."""


def read_node(value: object) -> GraderNode:
    """A checked grader; pydantic's ValidationError when it is none. OpenAI's cosine, with the model that theirs leaves
    unsaid, is our `similarity`."""
    if not isinstance(value, dict):
        raise PydanticCustomError("rule", "a grader is a table with a type, not {what}", {"what": _in_words(value)})
    kind, known = value.get("type"), list(dict.fromkeys([*TYPES, *builtin.BUILTINS]))
    if "type" not in value:
        raise refuse("type", f"it is not set (types: {', '.join(known)})", value)
    if not isinstance(kind, str) or kind not in known:
        raise refuse("type", f"{_in_words(kind)} is no type of grader{meant(kind, known)}", kind)
    if kind == "text_similarity" and value.get("evaluation_metric") == "cosine" and "model" in value:
        rest = {name: given for name, given in value.items() if name != "evaluation_metric"}
        return BuiltIn.model_validate(rest | {"type": "similarity", "kind": "embedding"})
    return TYPES.get(kind, BuiltIn).model_validate(value)


def _in_words(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def find_problems(value: object) -> tuple[GraderNode | None, list[Problem]]:
    """The grader, or all that is wrong with it."""
    if _is_deep(value):
        return None, [Problem((), f"it is nested more than {MAX_DEPTH} deep")]
    try:
        return TypeAdapter(Child).validate_python(value), []
    except ValidationError as error:
        return None, problems_of(error, value, _fields_at)


def _is_deep(value: object) -> bool:
    """Without recursion: the value may be hostile."""
    level = [value]
    for _ in range(MAX_DEPTH):
        tables = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)]
        level = [child for table in tables for child in table]
    return bool(level)


def _fields_at(node: Mapping[str, Any]) -> list[str]:
    """The keys that a node of this type may have."""
    model = TYPES.get(str(node.get("type")))
    return [] if model is None else list(model.model_fields)


def read(value: object, where: str = "grader") -> GraderNode:
    """A grader from plain values; RewardError with everything that is wrong. `where` begins its lines."""
    node, problems = find_problems(value)
    if node is None:
        raise RewardError("\n".join(f"{where}: {problem}" for problem in problems))
    return node


def canonical_text(node: GraderNode) -> str:
    """The text that a version of it is known by.

    >>> check = {"type": "string_check", "operation": "neq", "reference": "4", "input": "{{sample.output_text}}"}
    >>> print(canonical_text(read(check)), end="")
    {
      "input": "{{sample.output_text}}",
      "operation": "ne",
      "reference": "4",
      "type": "string_check"
    }
    """
    return json.dumps(node.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def walk(node: GraderNode, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], GraderNode]]:
    """The node and all below it, each with the names that lead to it."""
    yield path, node
    for name, child in node.children().items():
        yield from walk(child, (*path, name))


def columns_of(node: GraderNode) -> tuple[str, ...]:
    """The columns that the templates of a tree read, each once."""
    names: list[str] = []
    for _, part in walk(node):
        if (isinstance(part, Rubric) or not part.children()) and not isinstance(part, PythonGrader):
            templates = (Template.parse(text) for text in texts_in(part.model_dump(exclude={"type", "name"})))
            names += [column for template in templates for column in template.columns]
    return tuple(dict.fromkeys(names))
