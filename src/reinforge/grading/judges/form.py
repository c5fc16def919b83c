"""What each kind of judge is asked to reply, as words, as a JSON schema, and as the reader of what comes back."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reinforge.grading.builtin.result import Result
from reinforge.grading.judges.reply import BadReply, field_of, number_of, text_of
from reinforge.grading.language.spec_judges import Judge, LabelModel, Rubric, ScoreModel
from reinforge.grading.values import in_words

MAX_REASON = 2000
"""Characters kept of a judge's reasons."""


@dataclass(frozen=True, slots=True)
class Form:
    """What is asked for."""

    task: str
    """Told to the judge."""
    schema: Mapping[str, Any]
    read: Callable[[dict[str, Any]], list[Result]]
    """The results of a reply, one for each completion shown; BadReply when it is not as asked."""


def form_of(node: Judge, fill: Callable[[str], str], num_completions: int) -> Form:
    """`fill` fills the templates of the node's own words."""
    if isinstance(node, ScoreModel):
        return _relative(node, num_completions) if node.relative else _score(node)
    if isinstance(node, LabelModel):
        return _label(node)
    return _lines(node, fill) if node.lines else _dimensions(node, fill)


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """As strict structured output wants it: every key required, no other allowed. Their order is that of thinking."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


TEXT, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def _list(of: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _score(node: ScoreModel) -> Form:
    """OpenAI's reply: `steps`, which are told as the reason but may be missing, and `result`."""
    low, high = node.range
    task = (
        'Reply with one JSON object: {"steps": [{"description": "what you look at", "conclusion": "what you find"}], '
        f'"result": a number from {low:g} to {high:g}}}'
    )
    steps = _list(_object(description=TEXT, conclusion=TEXT))

    def read(reply: dict[str, Any]) -> list[Result]:
        return [_result(node, number_of(reply, "result"), _steps(reply.get("steps")))]

    return Form(task, _object(steps=steps, result=NUMBER), read)


def _result(node: ScoreModel, number: float, reason: str) -> Result:
    return Result(min(max(number, node.range[0]), node.range[1]), reason[:MAX_REASON])


def _steps(steps: object) -> str:
    """The judge's thoughts in one line; what has another form is left out."""
    told = []
    for step in steps if isinstance(steps, list) else []:
        parts = [step.get(name) for name in ("description", "conclusion")] if isinstance(step, dict) else [step]
        told.append(": ".join(part for part in parts if isinstance(part, str)))
    return "; ".join(text for text in told if text)


def _relative(node: ScoreModel, num_completions: int) -> Form:
    low, high = node.range
    task = (
        f"You are shown {num_completions} completions of one prompt, each between marks with its number. Compare them: "
        "what is better gets the higher number, what is equally good the same. Reply with one JSON object: "
        '{"scores": [{"completion": its number, "reason": "in a sentence", '
        f'"result": a number from {low:g} to {high:g}}}]}}, with every completion once.'
    )

    def read(reply: dict[str, Any]) -> list[Result]:
        rows = _numbered(reply, "scores", "completion", num_completions)
        return [_result(node, number_of(row, "result"), text_of(row, "reason")) for row in rows]

    return Form(task, _object(scores=_list(_object(completion=INTEGER, reason=TEXT, result=NUMBER))), read)


def _label(node: LabelModel) -> Form:
    task = f'Reply with one JSON object: {{"reason": "in a sentence", "label": one of {_either(node.labels)}}}'

    def read(reply: dict[str, Any]) -> list[Result]:
        label = _one_of(reply, "label", node.labels)
        reason = f"{label}: {text_of(reply, 'reason')}" if "reason" in reply else label
        return [Result(float(label in node.passing_labels), reason[:MAX_REASON])]

    return Form(task, _object(reason=TEXT, label={"type": "string", "enum": list(node.labels)}), read)


def _lines(node: Rubric, fill: Callable[[str], str]) -> Form:
    lines, words = node.lines or [], list(node.verdicts)
    listed = "\n".join(f"{place}. {fill(line.text or '')}" for place, line in enumerate(lines, start=1))
    task = (
        f"Judge each line of this rubric by itself:\n{listed}\n\nReply with one JSON object: "
        '{"lines": [{"line": its number, "reason": "in a sentence", "verdict": '
        f"one of {_either(words)}}}]}}, with every line once."
    )
    row = _object(line=INTEGER, reason=TEXT, verdict={"type": "string", "enum": words})

    def read(reply: dict[str, Any]) -> list[Result]:
        rows = _numbered(reply, "lines", "line", len(lines))
        verdicts = [_one_of(row, "verdict", words) for row in rows]
        shares = {line.name: node.verdicts[verdict] for line, verdict in zip(lines, verdicts, strict=True)}
        told = zip(lines, verdicts, rows, strict=True)
        reason = "; ".join(f"{line.name}: {verdict} ({text_of(row, 'reason')})" for line, verdict, row in told)
        return [Result(rubric_score(node, shares), reason[:MAX_REASON], shares)]

    return Form(task, _object(lines=_list(row)), read)


def rubric_score(node: Rubric, shares: Mapping[str, float]) -> float:
    """sum(weight * share) / sum(weights above 0), within 0..1; 0 for the part of a rubric that has none of these."""
    lines = node.lines or []
    most = sum(line.weight for line in lines if line.weight > 0) or 1.0
    return min(max(sum(line.weight * shares[line.name] for line in lines) / most, 0.0), 1.0)


def _dimensions(node: Rubric, fill: Callable[[str], str]) -> Form:
    """The score is the mean rating (S3-045), stretched onto `range` where there is one; `std` is the ratings'
    (Bessel-corrected), so that a completion that is good in one thing and bad in another is seen."""
    dimensions, (low, high) = node.dimensions or [], node.scale
    listed = "\n".join(
        f"{place}. {dimension.name}: {fill(dimension.text)}" for place, dimension in enumerate(dimensions, start=1)
    )
    task = (
        f"Rate each of these by itself, from {low} (worst) to {high} (best):\n{listed}\n\nReply with one JSON object: "
        '{"ratings": [{"dimension": its number, "reason": "in a sentence", '
        f'"rating": a whole number from {low} to {high}}}]}}, with every dimension once.'
    )

    def read(reply: dict[str, Any]) -> list[Result]:
        rows = _numbered(reply, "ratings", "dimension", len(dimensions))
        ratings = {one.name: _rating(row, low, high) for one, row in zip(dimensions, rows, strict=True)}
        mean = statistics.fmean(ratings.values())
        score = mean if node.range is None else _stretched(mean, (low, high), node.range)
        figures = ratings | {"std": statistics.stdev(ratings.values())} if len(ratings) > 1 else ratings
        told = zip(dimensions, rows, strict=True)
        reason = "; ".join(f"{one.name}: {ratings[one.name]:g} ({text_of(row, 'reason')})" for one, row in told)
        return [Result(score, reason[:MAX_REASON], figures)]

    return Form(task, _object(ratings=_list(_object(dimension=INTEGER, reason=TEXT, rating=INTEGER))), read)


def _stretched(value: float, scale: tuple[float, float], onto: Sequence[float]) -> float:
    """
    >>> _stretched(3.0, (1, 5), [0.0, 1.0])
    0.5
    """
    share = (value - scale[0]) / (scale[1] - scale[0])
    return onto[0] + share * (onto[1] - onto[0])


def _rating(row: dict[str, Any], low: int, high: int) -> float:
    rating = number_of(row, "rating")
    if not low <= rating <= high or rating != int(rating):
        raise BadReply(f'"rating" is {rating:g}, not a whole number from {low} to {high}')
    return rating


def _numbered(reply: dict[str, Any], key: str, number: str, count: int) -> list[dict[str, Any]]:
    """The rows of a list in the order of their numbers 1..count, each of which must be there once."""
    rows = field_of(reply, key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadReply(f'"{key}" is {in_words(rows)}, not a list of objects')
    by_number = {number_of(row, number, f"an entry of {key}"): row for row in rows}
    if len(rows) != count or sorted(by_number) != list(range(1, count + 1)):
        found = ", ".join(f"{place:g}" for place in sorted(by_number)[:20])
        raise BadReply(f'"{key}" must have each {number} from 1 to {count} once, but has {len(rows)} entries ({found})')
    return [by_number[place] for place in range(1, count + 1)]


def _one_of(row: dict[str, Any], key: str, words: Sequence[str]) -> str:
    """The word at a key, in any case and with blanks around it; BadReply when it is none of them."""
    given = text_of(row, key)
    if given in words:
        return given
    alike = [word for word in words if word.casefold() == given.strip().casefold()]
    if len(alike) != 1:
        raise BadReply(f'"{key}" is {in_words(given)}, not one of {_either(words)}')
    return alike[0]


def _either(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
