"""Helpers of a reward file that find the answer in a text: do they find the one that is there (S2-053)?

A function of one parameter whose name says so is run on the texts it is made for: those in which its own markers
(`<answer>`, `####`) stand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from reinforge.errors import RewardError
from reinforge.grading.describe import describe_source
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.trials import Extraction
from reinforge.lab.gold import Gold
from reinforge.sandbox.pool import Limits, SourceFault, Worker, WorkerUnavailable
from reinforge.types import Example

_NAME = re.compile(r"extract|(get|parse|find|read)_\w*answer|answer_(of|from|in)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(\.\d+)?")
DEADLINE_S = 5.0
VARIANTS = {"decimal": "72.5", "thousands comma": "1,234", "negative": "-3", "dollars": "$18"}
"""Numbers that a careless extraction changes."""


@dataclass(frozen=True, slots=True)
class _Text:
    row: int
    source: str
    text: str
    written: str
    variant: str = ""


def extractions(
    functions: Sequence[RewardFunction], examples: Mapping[int, Example], golds: Sequence[Gold], limits: Limits
) -> tuple[Extraction, ...]:
    """What every such helper returned; nothing for sources without one."""
    sources = {(f.source, f.file_name) for f in functions if f.dialect != "grader"}
    return tuple(
        extraction
        for source, file_name in sorted(sources)
        for name, markers in _helpers(source)
        for extraction in _try(source, file_name, name, list(_texts(markers, examples, golds)), limits)
    )


def _helpers(source: str) -> Iterator[tuple[str, list[str]]]:
    """(name, its markers)."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and _NAME.search(node.name):
            required = len(node.args.args) - len(node.args.defaults)
            if required == 1 and len(node.args.args) >= 1 and not node.args.kwonlyargs:
                doc = ast.get_docstring(node, clean=False)
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                yield node.name, [text for text in texts if len(text.strip()) > 1 and text != doc]


def _texts(markers: Sequence[str], examples: Mapping[int, Example], golds: Sequence[Gold]) -> Iterator[_Text]:
    """Texts in which one of the markers stands, each with the answer in it; the first of a kind also with numbers that
    are easily spoiled."""
    varied: set[str] = set()
    for gold in golds:
        if not gold.written or gold.is_empty:
            continue
        columns = {name: value for name, value in examples[gold.row].columns.items() if isinstance(value, str)}
        for source, text in {"gold completion": gold.text, **columns}.items():
            before, found, after = text.rpartition(gold.written)
            if not found or not any(marker in text for marker in markers):
                continue
            yield _Text(gold.row + 1, source, text, gold.written)
            if source not in varied and _NUMBER.fullmatch(gold.written):
                varied.add(source)
                for variant, number in VARIANTS.items():
                    yield _Text(gold.row + 1, source, before + number + after, number, variant)


def _plain(answer: str) -> str:
    return answer.replace("$", "").replace(",", "") if _NUMBER.fullmatch(answer) else answer


def _try(source: str, file_name: str, name: str, texts: list[_Text], limits: Limits) -> Iterator[Extraction]:
    if not texts:
        return
    fact = next((fact for fact in describe_source(source, file_name, limits) if fact.name == name), None)
    if fact is None:
        return
    worker = Worker(source, file_name, limits)
    try:
        results = [worker.call(name, {fact.parameters[0].name: texts[0].text}, DEADLINE_S)]
        if results[0].kind != "timeout":  # one that hangs would do so on every text
            each = [{fact.parameters[0].name: text.text} for text in texts[1:]]
            results += worker.call_each(name, {}, each, DEADLINE_S)
    except (WorkerUnavailable, SourceFault) as fault:
        raise RewardError(f"{file_name}: {name} could not be run: {fault}.") from fault
    finally:
        worker.close()
    for text, result in zip(texts, results, strict=False):
        returned = None if result.kind or result.value is None else str(result.value)
        yield Extraction(
            helper=name,
            row=text.row,
            source=text.source,
            text=text.text,
            written=text.written,
            expected=_plain(text.written),
            returned=returned,
            fault=result.message,
            variant=text.variant,
        )
