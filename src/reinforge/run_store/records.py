"""What goes into a run's database and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reinforge.types import Group, Score, ScoreState

Status = Literal["running", "succeeded", "failed", "interrupted", "stopped"]
"""running · succeeded (all steps done) · failed (an error) · interrupted (Ctrl-C, SIGTERM, or the process vanished) ·
stopped (a guard, or a request in control/stop). All but succeeded can be resumed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for people.

    Example:
        >>> Event("reward_error", "format raised KeyError: 'x' on 3 of 64 completions", level="warning").level
        'warning'
    """

    kind: str
    """For programs: a plain_name."""
    message: str
    level: Literal["info", "warning", "error"] = "info"
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step as it is stored."""

    step: int
    """Optimizer steps done, this one included: from 1."""
    metrics: Mapping[str, float]
    """Finite."""
    state_hash: str
    """Hash of weights and optimizer after the step."""
    groups: tuple[Group, ...] = ()
    """[P] What was collected for this step; empty when the step reused an earlier batch."""
    advantages_PG: tuple[tuple[float, ...], ...] = ()
    """[P][G]"""
    events: tuple[Event, ...] = ()
    accidents: Mapping[str, Score] = field(default_factory=dict)
    """Scores that time decided (deadlines), by key; they outlive a rewind, so that a resume can give them again."""


@dataclass(frozen=True, slots=True)
class StepRow:
    step: int
    metrics: dict[str, float]
    state_hash: str
    recorded_at: float
    """Seconds since 1970."""
    num_completions: int


@dataclass(frozen=True, slots=True)
class CompletionRow:
    id: int
    """Grows with (step, place, generation): the key to page by."""
    step: int
    epoch: int
    place: int
    """Of the group in its step's batch, from 0."""
    example: int
    generation: int
    text: str
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int
    policy_version: int
    reward: float | None
    advantage: float
    state: ScoreState


@dataclass(frozen=True, slots=True)
class TokenRow:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampled_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScoreRow:
    completion: int
    """`CompletionRow.id`."""
    name: str
    version: str
    weight: float
    value: float | None
    state: ScoreState
    kind: str
    message: str
    prints: str
    latency_s: float
    stand_in: float | None
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class LogRow:
    """One score with the place it was given at."""

    completion: int
    """`CompletionRow.id`: the key to page by."""
    step: int
    epoch: int
    example: int
    generation: int
    name: str
    version: str
    weight: float
    value: float | None
    state: ScoreState
    kind: str
    message: str
    prints: str
    latency_s: float
    stand_in: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One version of a reward function over all steps."""

    name: str
    version: str
    weight: float
    first_step: int
    last_step: int
    num_ok: int
    num_error: int
    num_masked: int
    num_inapplicable: int
    """Of the ok scores: those without a value, because the function does not apply to the row."""
    mean: float | None
    """Of the ok values."""
    latency_mean_s: float


@dataclass(frozen=True, slots=True)
class RewardUpdateRow:
    """A change of the reward functions that took effect."""

    request: str
    """Id of the request: it is carried out once."""
    step: int
    """Steps that were done: the new functions judge from the next one on."""
    functions: tuple[Mapping[str, Any], ...]
    """All functions from then on, as in run.json: everything but the text, which lies in `rewards/`."""
    message: str
    """What changed, for people."""
    shift: Mapping[str, Any] | None = None
    """How far it moved the scores of recent completions (grading/score_shift.py), as known when it was sent."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """An example as the model was given it."""

    example: int
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PromptEpochRow:
    """How the completions of one example did in one epoch, masked ones left out: by the rewards that were trained on,
    in which a failed call counts as 0, or as what stands in for it."""

    example: int
    epoch: int
    num_completions: int
    mean: float
    variance: float
    """Bessel-corrected; 0 for a single completion."""


@dataclass(frozen=True, slots=True)
class EventRow:
    id: int
    step: int
    at: float
    """Seconds since 1970."""
    kind: str
    level: str
    message: str
    data: dict[str, Any]
