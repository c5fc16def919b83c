"""Finds out what right completions are: from the user, or by inference that is told."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath

from reinforge.data.template import nearest_name
from reinforge.errors import RewardError, UsageError
from reinforge.grading.calls import Case, openai_item
from reinforge.grading.describe import describe_source
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.trials import median
from reinforge.lab.gold import (
    ANSWER_COLUMNS,
    Gold,
    GoldRecipe,
    answer_columns,
    as_text,
    is_nothing,
    parse_template,
    split_answer,
)
from reinforge.lab.layouts import asked_layout, json_keys, source_layouts
from reinforge.sandbox.limits import Limits
from reinforge.sandbox.pool import SourceFault, Worker, WorkerUnavailable
from reinforge.types import Example

GOLD_FUNCTION = "gold"
NUM_TRIED = 6
"""Rows that each way to make a right completion is tried on."""
MAX_COLUMNS = 3


@dataclass(frozen=True, slots=True)
class GoldOptions:
    """What the user says of right completions."""

    answer_column: str | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class FoundGold:
    golds: tuple[Gold, ...]
    """In the order of the rows; rows without an answer are left out."""
    assumptions: tuple[str, ...]


def find_gold(
    functions: Sequence[RewardFunction],
    examples: Sequence[Example],
    options: GoldOptions,
    grader: RewardFunctionGrader,
    limits: Limits,
) -> FoundGold:
    """Right completions of these rows, from the surest source there is."""
    if not examples:
        return FoundGold((), ())
    sources = list(dict.fromkeys(function.source for function in functions))
    columns = _columns(options, examples, sources)
    if options.template is None:
        whole = _from_function(functions, examples, columns, limits)
        if whole is not None:
            return whole
    if not columns:
        return FoundGold((), ("no column looks like the answer, so no right completions are known",))
    recipe, told = _recipe(options, examples, columns, sources, grader)
    golds = tuple(gold for example in examples if (gold := recipe.make(example)) is not None)
    return FoundGold(golds, told)


def _columns(options: GoldOptions, examples: Sequence[Example], sources: Sequence[str]) -> list[str]:
    if options.answer_column is None:
        columns = answer_columns(examples, sources)
        # Whatever else the functions reward: where there is a column of that name, no other is the answer.
        return columns[:1] if columns and columns[0].lower() == ANSWER_COLUMNS[0] else columns[:MAX_COLUMNS]
    if options.answer_column not in examples[0].columns:
        found = ", ".join(examples[0].columns) or "none"
        near = nearest_name(options.answer_column, examples[0].columns)
        hint = f"Did you mean --answer-column {near}?" if near else "Name another: --answer-column NAME."
        raise UsageError(f'There is no column "{options.answer_column}" (found: {found}).', hint=hint)
    return [options.answer_column]


def _from_function(
    functions: Sequence[RewardFunction], examples: Sequence[Example], columns: Sequence[str], limits: Limits
) -> FoundGold | None:
    """What `gold(example)` of a reward file returns; None when no file has one."""
    for source, file_name in dict.fromkeys((f.source, f.file_name) for f in functions if f.dialect != "grader"):
        if f"def {GOLD_FUNCTION}(" not in source:
            continue
        fact = next((f for f in describe_source(source, file_name, limits) if f.name == GOLD_FUNCTION and f.own), None)
        if fact is None:
            continue
        place = f"{PurePath(file_name).name}: {GOLD_FUNCTION}"
        if len([p for p in fact.parameters if not p.has_default]) != 1:
            raise RewardError(f"{place} must have one parameter, the row: gold(example).")
        worker = Worker(source, file_name, limits)
        try:
            each: list[dict[str, object]] = [{fact.parameters[0].name: openai_item(example)} for example in examples]
            results = [worker.call(GOLD_FUNCTION, each[0], 60.0)]
            if not results[0].kind:  # what fails on the first row is told at once
                results += worker.call_each(GOLD_FUNCTION, {}, each[1:], 60.0)
        except (WorkerUnavailable, SourceFault) as fault:
            raise RewardError(f"{place} could not be run: {fault}.") from fault
        finally:
            worker.close()
        golds = []
        for example, result in zip(examples, results, strict=False):
            if result.kind or not isinstance(result.value, (str, type(None))):
                returned = result.message or f"it returned a {type(result.value).__name__}"
                raise RewardError(
                    f"{place} failed on row {example.index + 1}: {returned.strip()}",
                    hint="It returns the text of a right completion, or None for a row without one.",
                )
            if result.value is not None:
                golds.append(_whole(example, result.value, columns))
        told = f"right completions: what {GOLD_FUNCTION}(example) in {PurePath(file_name).name} returns"
        return FoundGold(tuple(golds), (told,))
    return None


def _whole(example: Example, text: str, columns: Sequence[str]) -> Gold:
    """A completion that came whole, with the answer's place in it if a column has it."""
    for column in columns:
        answer = split_answer(example.columns.get(column))[1]
        if answer is not None and not is_nothing(answer) and as_text(answer) in text:
            return Gold(example.index, text, answer, as_text(answer))
    return Gold(example.index, text)


def _recipe(
    options: GoldOptions,
    examples: Sequence[Example],
    columns: Sequence[str],
    sources: Sequence[str],
    grader: RewardFunctionGrader,
) -> tuple[GoldRecipe, tuple[str, ...]]:
    """The column and the layout, with what to tell of them."""
    asked = options.template is None and asked_layout(_whole_prompt(examples[0]))
    if options.template is not None:
        layouts, whence = [parse_template(options.template, examples[0])], "--gold-template"
    elif asked:
        layouts, whence = [asked], "what the prompt asks for"
    else:
        layouts = list(dict.fromkeys(layout for source in sources for layout in _guesses(source, examples[0], columns)))
        whence = "assumed: of the layouts that the functions hint at, the one they give most"
    recipes = [GoldRecipe(column, layout) for column, layout in product(columns, layouts)]
    best = recipes[0] if len(recipes) == 1 else _best(recipes, examples, grader)
    named = "" if options.answer_column else ", assumed"
    told = [f"answers: column {best.column}{named}"]
    if any(isinstance(e.columns.get(best.column), str) and "####" in e.columns[best.column] for e in examples):
        told.append("answers are what stands behind ####")
    told.append(f"right completions: {best.layout!r} ({whence})")
    return best, tuple(told)


def _whole_prompt(example: Example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(str(message.get("content")) for message in example.prompt)


def _guesses(source: str, example: Example, columns: Sequence[str]) -> Iterator[str]:
    """Where the functions read keys of a JSON answer that the row's own answer has, its JSON comes first."""
    answer = example.columns.get(columns[0])
    if isinstance(answer, dict) and set(json_keys(source)) & set(answer):
        yield "{answer}"
    yield from source_layouts(source)


def _best(recipes: Sequence[GoldRecipe], examples: Sequence[Example], grader: RewardFunctionGrader) -> GoldRecipe:
    """The recipe whose completions get the most (median over a few rows); the first of several."""
    tried = [example for example in examples if example.columns.get(recipes[0].column) is not None][:NUM_TRIED]
    rewards: list[list[float | None]] = []
    for example in tried:
        texts = tuple(gold.text if (gold := recipe.make(example)) is not None else "" for recipe in recipes)
        if not rewards and _hangs(grader, example, texts[0]):
            return recipes[0]
        case = Case(example, _whole_prompt(example), texts, ((),) * len(texts))
        rewards.append([grade.reward for grade in grader.grade_case(case).result()])
    medians = [_median_of_known([of_row[place] for of_row in rewards]) for place in range(len(recipes))]
    return recipes[medians.index(max(medians))]


def _median_of_known(rewards: Sequence[float | None]) -> float:
    """Masked rows say nothing; a recipe of which nothing is known comes after all others."""
    known = median(reward for reward in rewards if reward is not None)
    return -math.inf if known is None else known


def _hangs(grader: RewardFunctionGrader, example: Example, text: str) -> bool:
    """Whether a function runs into its deadline: asking it of every layout would take minutes."""
    (grade,) = grader.grade_case(Case(example, _whole_prompt(example), (text,), ((),))).result()
    return any(score.kind == "timeout" for score in grade.scores)
