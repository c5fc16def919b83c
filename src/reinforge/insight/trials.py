"""What reward functions said of completions whose worth is known: the material of the reward lab's findings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from reinforge.types import Grade, Score

Kind = Literal[
    "gold", "partial", "wrong", "garbage", "hack", "constant", "same", "damaged", "padded", "fuzz", "case", "ladder"
]
"""What is known of a completion:

    gold      right
    partial   half right
    wrong     another row's right completion
    garbage   worth nothing: empty, copied prompt, random words
    hack      made to please a careless grader
    constant  the most frequent answer of the data
    same      gold in another spelling or layout that means the same
    damaged   gold with text around it, cut off, or twice
    padded    gold with empty words around it, for judges
    fuzz      what only a bug or an attack writes: huge, nested, odd characters
    case      a golden case of the user, with the scores it must get
    ladder    one of the user's great, fair and poor completions
"""
TOTAL = ""
"""In place of a function's name: the weighted sum."""
TEXT_BEFORE, TEXT_BEHIND = "text before", "text behind"
"""Two probes that are compared with each other."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One completion that was judged."""

    row: int
    """Number in the data, from 1."""
    probe: str
    """What it is, for people: `copied prompt`."""
    kind: Kind
    text: str
    grade: Grade
    again: Grade | None = None
    """Of a second pass in fresh processes, in another order; None where there was none."""
    typed: Grade | None = None
    """With columns as they are in the data instead of text; None where that was not tried."""
    expected: Mapping[str, tuple[float, float]] | None = None
    """Of a case: name (or TOTAL) -> lowest and highest value it may get."""
    ladder: int = 0
    """Of a ladder: which one, from 1; its completions come from great to poor."""

    def score(self, name: str) -> Score | None:
        return next((score for score in self.grade.scores if score.name == name), None)

    def value(self, name: str) -> float | None:
        """What the function gave, or the reward for TOTAL; None when it failed or does not apply."""
        return value_in(self.grade, name)


def value_in(grade: Grade, name: str) -> float | None:
    if name == TOTAL:
        return grade.reward
    return next((score.value for score in grade.scores if score.name == name), None)


@dataclass(frozen=True, slots=True)
class Extraction:
    """What a helper function that finds answers in texts returned."""

    helper: str
    row: int
    source: str
    """Where the text came from: a column, or `gold completion`."""
    text: str
    written: str
    """The answer as it stands in it."""
    expected: str
    """The answer, a number without $ and commas."""
    returned: str | None
    """As text; None when it failed."""
    fault: str = ""
    variant: str = ""
    """What is special about the text, when it is a made one: `decimal`."""


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A function on trial."""

    name: str
    weight: float = 1.0
    is_judge: bool = False


@dataclass(frozen=True, slots=True)
class Trials:
    """Everything that was tried."""

    functions: tuple[FunctionInfo, ...]
    trials: tuple[Trial, ...]
    num_rows: int
    """Of the data."""
    without_gold: tuple[int, ...] = ()
    """Rows for which no right completion could be made."""
    empty_answers: frozenset[int] = frozenset()
    """Rows whose right answer is nothing: an empty list, say."""
    extractions: tuple[Extraction, ...] = ()
    weights_given: bool = True
    """Whether somebody chose the weights; without, each function counts 1, and nothing follows from that."""
    correct_fn: str | None = None
    """The function that decides what counts as correct in evaluations; None for the reward."""
    correct_from: float | None = None
    """From which value on it does; None when no config says."""

    def of(self, *kinds: Kind) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.kind in kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """The functions; with more than one also TOTAL (that of a single function says nothing more)."""
        own = tuple(function.name for function in self.functions)
        return own if len(own) == 1 else (*own, TOTAL)

    @property
    def whole(self) -> str:
        """What stands for the reward: TOTAL, or the only function."""
        return self.names[-1]

    def scale(self, name: str) -> Scale:
        """Lowest (at most 0) and highest value that the function gave to anything but fuzz."""
        values = [value for trial in self.trials if trial.kind != "fuzz" and (value := trial.value(name)) is not None]
        return Scale(min([0.0, *values]), max(values, default=0.0))


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of values seen."""

    low: float
    high: float

    @property
    def span(self) -> float:
        return self.high - self.low

    def at(self, share: float) -> float:
        """
        >>> Scale(-1.0, 1.0).at(0.5)
        0.0
        """
        return self.low + share * self.span


def median(values: Iterable[float]) -> float | None:
    """The middle value (the mean of the two middle ones); None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
