"""The nouns that flow through Reinforge, in the order they flow.

    Example -> Prompt -> Completion (G of them) -> Grade each -> Group -> Batch -> Update -> Adapter

All are frozen: whoever wants a change makes a new value. Shapes in the field docs: G completions of one prompt
(`num_generations`), P prompts in a step, T tokens of one completion, L tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
"""Why a completion ended: an end-of-sequence token or a stop string, or the `max_tokens` limit ("cut off")."""

ScoreState = Literal["ok", "error", "masked"]
"""Whose word a score is: the function's (`ok`), nobody's because the function failed (`error`: the function's fault,
counts as 0), or nobody's because the infrastructure failed (`masked`: the completion leaves its group's comparison)."""

STOPPING_KINDS = ("judge_down", "judge_unusable", "judge_budget")
"""Kinds of masked scores after which nothing more can be judged: the judge does not answer, turns us away, or has cost
what it may. A run stops on the first, before it learns from the step."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the data set.

    Example:
        >>> Example(index=0, prompt="numbers 9 1 5 target 15", columns={"target": 15}).columns["target"]
        15
    """

    index: int
    """Row number in the data set, from 0: stable through splits and shuffles, so it names the row everywhere."""
    prompt: str | tuple[Mapping[str, Any], ...]
    """As written: a text, or chat messages with `role` and `content`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Every other column, natively typed. Predibase-form reward functions see them as strings (S0-100)."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tool definitions (JSON schema) for the chat template, empty when the row has none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An example as the model is given it.

    Example:
        >>> Prompt(Example(0, "Hi"), text="<user>Hi<assistant>", token_ids=(5, 6, 7)).num_tokens
        3
    """

    example: Example
    text: str
    """After system prompt, template and chat template."""
    token_ids: tuple[int, ...]
    """[L] What goes into the model. Never empty."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask a sampler for G completions of one prompt.

    The randomness of every token is a function of (`key`, generation, position) alone, so neither the order of
    requests nor the batch they share can change what is drawn.
    """

    prompt: Prompt
    num_generations: int
    key: tuple[int, ...]
    """(seed, step, place in the step's batch). The place, not the row: a row drawn twice in a step differs."""
    greedy: bool = False
    """Take the most likely token (temperature 0) instead of drawing."""
    first_generation: int = 0
    """Number of the first of the G: above 0 the request extends a group, with what sampling it whole would draw."""
    adapter: str | None = None
    """Name of an adapter that the sampler holds besides its own; None: what it samples from otherwise."""

    @property
    def generations(self) -> range:
        """Numbers of the completions asked for."""
        return range(self.first_generation, self.first_generation + self.num_generations)


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated continuation, exactly as sampled: its tokens are never re-tokenised on the way to the learner.

    Example:
        >>> c = Completion(0, (4, 2), "hi", "stop", (-0.5, -0.1), (-0.4, -0.1), policy_version=3)
        >>> c.num_tokens, c.is_truncated
        (2, False)
    """

    generation: int
    """Which of its group, from 0."""
    token_ids: tuple[int, ...]
    """[T] Sampled tokens, the end-of-sequence token included when one was drawn."""
    text: str
    """Decoded without special tokens and without the stop string that ended it."""
    finish_reason: FinishReason
    logprobs: tuple[float, ...]
    """[T] nats, log-softmax(logits / temperature): the policy the learner recomputes (loss and gap metric)."""
    sampled_logprobs: tuple[float, ...]
    """[T] nats, of the distribution really drawn from, after top_p and top_k (importance correction)."""
    policy_version: int
    """`Adapter.version` that produced it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Score:
    """One named, unweighted judgement of one completion.

    Example:
        >>> Score("format", "format_v1", value=1.0, weight=0.5).contribution
        0.5
        >>> Score("format", "format_v1", value=None, state="error", kind="raised", message="KeyError: 'x'").contribution
        0.0
    """

    name: str
    version: str
    """`<name>_v<n>`: which text of the function gave this score (S0-175)."""
    value: float | None
    """Finite. None when there is no value: `state` is not ok, or the function says it does not apply to this row."""
    weight: float = 1.0
    state: ScoreState = "ok"
    kind: str = ""
    """What went wrong, empty when ok: raised, timeout, exited, not_a_number, not_finite, wrong_length, ..."""
    message: str = ""
    """For people: the exception or the offending value; the reason a function gave for its score."""
    prints: str = ""
    """What the function printed during the call, cut at a cap with a visible marker."""
    latency_s: float = 0.0
    """Wall time of the call (for a batched call: its share)."""
    stand_in: float | None = None
    """What counts in the reward instead of a failed score, from its `fallback` or `default`. It is no value of the
    function: means and charts leave it out."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further figures the function returned beside its score. Finite."""
    cached: bool = False
    """Taken from the cache of a pure function instead of a call."""
    note: str = ""
    """Why the worker was replaced around this call, empty when it was not. For people, and not kept with the score:
    what a call leaves behind is a matter of time."""

    @property
    def contribution(self) -> float:
        """weight * value; for a failed score weight * stand_in; 0 without either (S0-014)."""
        value = self.stand_in if self.value is None else self.value
        return 0.0 if value is None else self.weight * value


@dataclass(frozen=True, slots=True)
class Grade:
    """All scores of one completion.

    Example:
        >>> Grade((Score("a", "a_v1", 1.0, weight=0.1), Score("b", "b_v1", 1.0, weight=0.9))).reward
        1.0
    """

    scores: tuple[Score, ...]

    @property
    def state(self) -> ScoreState:
        """`masked` if any score is or none applies, else `error` if any score is, else `ok`."""
        states = {score.state for score in self.scores}
        nothing_applies = all(score.state == "ok" and score.value is None for score in self.scores)
        if "masked" in states or nothing_applies:
            return "masked"
        return "error" if "error" in states else "ok"

    @property
    def reward(self) -> float | None:
        """The weighted sum (K3); None when masked: the completion leaves its group's mean and std."""
        return None if self.state == "masked" else float(sum(score.contribution for score in self.scores))


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions of one prompt: what advantages are computed within.

    Example:
        >>> prompt = Prompt(Example(7, "Hi"), "Hi", (5,))
        >>> Group(prompt, epoch=0, completions=(), grades=()).rewards_G
        ()
    """

    prompt: Prompt
    epoch: int
    """Passes over the data set that were complete when the prompt was drawn."""
    completions: tuple[Completion, ...]
    """[G]"""
    grades: tuple[Grade, ...]
    """[G] In the order of `completions`."""

    @property
    def rewards_G(self) -> tuple[float | None, ...]:
        return tuple(grade.reward for grade in self.grades)


@dataclass(frozen=True, slots=True)
class Drawn:
    """All that was sampled for a step."""

    groups: tuple[Group, ...]
    """In the order of prompts."""
    is_kept: tuple[bool, ...]
    """Which of them are the batch."""
    rollout_s: float = 0.0
    """Seconds of sampling."""
    reward_wait_s: float = 0.0
    """Seconds of waiting for the last grades."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Metrics of how they were drawn."""

    @property
    def kept(self) -> tuple[Group, ...]:
        return tuple(group for group, kept in zip(self.groups, self.is_kept, strict=True) if kept)

    def advantages_of_all(self, advantages_PG: Sequence[tuple[float, ...]]) -> tuple[tuple[float, ...], ...]:
        """Those of the batch at their places among all groups; 0 for the groups left out."""
        of_kept = iter(advantages_PG)
        pairs = zip(self.groups, self.is_kept, strict=True)
        return tuple(next(of_kept) if kept else (0.0,) * len(group.completions) for group, kept in pairs)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimizer step learns from. With several updates per rollout the same batch is used again."""

    groups: tuple[Group, ...]
    """[P]"""
    advantages_PG: tuple[tuple[float, ...], ...]
    """[P][G] 0.0 for masked completions and for groups that teach nothing."""
    updates_done: int = 0
    """Optimizer steps already taken on this batch."""
    old_logprobs_PGT: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """[P][G][T] nats, the learner's own at its first pass over this batch; None before it. An inner tuple is empty
    for a completion that needed no forward pass."""

    def after(self, update: Update) -> Batch:
        """The batch as the next update on it will see it."""
        return replace(self, updates_done=self.updates_done + 1, old_logprobs_PGT=update.old_logprobs_PGT)


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step did."""

    metrics: Mapping[str, float]
    """Named as in the metrics reference page, e.g. `policy/grad_norm`."""
    old_logprobs_PGT: tuple[tuple[tuple[float, ...], ...], ...] | None
    """As in Batch; None when the step will not be followed by another on the same batch."""
    lowered_tokens: int | None = None
    """Most tokens of a micro-batch from this step on, if memory ran out in it."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA weights: one version of the policy."""

    version: int
    """Number of optimizer steps behind it; 0 is the policy before training."""
    weights: Mapping[str, Any]
    """PEFT state-dict names -> float32 tensors. The receiver copies what it keeps."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands between two steps: with the learner's own state, all a resume needs."""

    step: int = 0
    """Optimizer steps done."""
    prompts_drawn: int = 0
    """Position in the endless, seeded order of prompts."""
    batch: Batch | None = None
    """Rollouts that are not used up yet (several updates per rollout)."""
    ahead: Drawn | None = None
    """Rollouts of the next batch, drawn while the learner took the step before (policy lag)."""
