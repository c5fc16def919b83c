"""Judges as scorers: a completion becomes a question, an answer a score. A fault of the judge masks the completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from reinforge.config import JudgeConfig
from reinforge.errors import ConfigError, RewardError
from reinforge.grading.builtin.result import Result
from reinforge.grading.calls import Case, openai_item, openai_sample
from reinforge.grading.futures import when_all
from reinforge.grading.judges.client import Answer, JudgeClient, Question
from reinforge.grading.judges.endpoint import check_endpoint
from reinforge.grading.judges.form import form_of
from reinforge.grading.judges.gate import Patience
from reinforge.grading.judges.prompt import Fence, Material, build_messages, measures_of, told_by
from reinforge.grading.language.error_flags import CompletionFault, GraderFault
from reinforge.grading.language.spec import read, walk
from reinforge.grading.language.spec_judges import Judge, Rubric, ScoreModel, TextPart
from reinforge.grading.reward_function import RewardFunction
from reinforge.run_store.judgements import Usage
from reinforge.sandbox.environments import silent
from reinforge.types import Example, Score

Row = Mapping[str, Any]


class Judges:
    """All judges of one grader. They share one client, which is made when the first is needed: one endpoint, one set of
    limits, one budget."""

    def __init__(
        self,
        config: JudgeConfig,
        tell: Callable[[str], None] = silent,
        *,
        tell_try: Callable[[str], None] = silent,
        patience: Patience | None = None,
    ) -> None:
        """`tell` hears, from any thread, that the judge is down or up again; `tell_try` of everything that is sent
        again."""
        self._config = config
        self._tell = tell
        self._tell_try = tell_try
        self._patience = patience
        self._client: JudgeClient | None = None
        self._folder: Path | None = None

    def scorer(self, function: RewardFunction, node: Judge) -> JudgeScorer:
        """ConfigError when nothing says whom to ask, SetupError when the key is missing."""
        model = model_of(node, self._config, function.name)
        if self._client is None:
            self._client = JudgeClient(self._config, patience=self._patience)
            self._client.tell, self._client.tell_try = self._tell, self._tell_try
            if self._folder is not None:
                self._client.keep_in(self._folder)
        return JudgeScorer(function, node, self._client, model)

    def keep_in(self, folder: Path) -> None:
        """Keep what judges answer in this folder. Before the first question."""
        self._folder = folder
        if self._client is not None:
            self._client.keep_in(folder)

    def take_figures(self) -> dict[str, float]:
        """`judge/...`: what was counted since the last call; nothing when nothing was asked."""
        counts = {} if self._client is None else self._client.take_figures()
        figures = {f"judge/{name}": value for name, value in counts.items()}
        if counts.get("questions"):
            figures["judge/masked_share"] = counts.get("faults", 0.0) / counts["questions"]
        return figures

    def usage(self) -> tuple[Usage, ...]:
        """What each model was asked, all in all; nothing when nothing was asked."""
        return () if self._client is None else self._client.usage()

    def close(self) -> None:
        """End the client's threads."""
        if self._client is not None:
            self._client.close()


def model_of(node: Judge, config: JudgeConfig, name: str) -> str:
    """Whom a judge asks; ConfigError when nothing says so or a budget in money could not hold, RewardError when it
    should see what is no text."""
    other = [part.type for message in node.messages for part in message.parts if not isinstance(part, str | TextPart)]
    if other:
        raise RewardError(f"{name} ({node.type}) shows its judge an {other[0]}; here judges read text only.")
    model = node.model or config.model
    if model is None:
        hint = "Set its model, or reward_fns.judge.model for all judges."
        raise ConfigError(f"{name} ({node.type}) names no model.", hint=hint)
    if config.budget_cost is not None and model not in config.prices:
        hint = f'Add reward_fns.judge.prices: {{"{model}": {{input: ..., output: ...}}}}.'
        raise ConfigError(
            f"{name} asks {model}, which has no price, so reward_fns.judge.budget_cost cannot hold.", hint=hint
        )
    return model


def check_judges(functions: Iterable[RewardFunction], config: JudgeConfig) -> None:
    """ConfigError, SetupError or RewardError when one of them could not be asked."""
    for function in functions:
        if function.dialect == "grader":
            for _, node in walk(read(json.loads(function.source), function.file_name)):
                if isinstance(node, Judge) and not (isinstance(node, Rubric) and node.judged() is None):
                    model_of(node, config, function.name)
                    check_endpoint(config)


class JudgeScorer:
    """Scores completions by what a judge says of them (implements scorers.Scorer)."""

    def __init__(self, function: RewardFunction, node: Judge, client: JudgeClient, model: str) -> None:
        self.function = function
        self._node = node
        self._client = client
        self._model = model
        self._relative = isinstance(node, ScoreModel) and node.relative

    @property
    def judges_each_alone(self) -> bool:
        return not self._relative

    def submit(self, case: Case) -> Future[list[Score]]:
        """See scorers.Scorer. Equal completions are one question, as are all of a group that is judged relatively."""
        row = openai_item(case.example)
        if case.finish_reasons:
            samples = [openai_sample(*pair) for pair in zip(case.texts, case.finish_reasons, strict=True)]
        else:
            samples = [openai_sample(text) for text in case.texts]
        keys = [Fence.of(sample).number for sample in samples]
        distinct = dict(zip(keys, samples, strict=True))
        faults = {key: self._fault_of(case.example, row, sample) for key, sample in distinct.items()}
        known = {key: fault for key, fault in faults.items() if fault is not None}
        # A group in an order of its content, so that neither place nor arrival is a merit.
        left = sorted(key for key in distinct if key not in known)
        batches = [left] if self._relative and left else [[key] for key in left]
        asked = [self._ask(case.example, row, [distinct[key] for key in batch]) for batch in batches]

        def finish(answers: list[list[Score]]) -> list[Score]:
            scores = dict(known)
            for batch, of_batch in zip(batches, answers, strict=True):
                scores |= zip(batch, of_batch, strict=True)
            first = {key: keys.index(key) for key in distinct}
            return [
                scores[key] if first[key] == place else replace(scores[key], cached=True, latency_s=0.0)
                for place, key in enumerate(keys)
            ]

        return when_all(asked, finish)

    def close(self) -> None:
        """Nothing: the client is everybody's."""

    def _ask(self, example: Example, row: Row, samples: Sequence[Row]) -> Future[list[Score]]:
        future = self._client.ask(self._question(example, row, samples))
        return when_all([future], lambda answers: self._scores(answers[0], len(samples)))

    def _question(self, example: Example, row: Row, samples: Sequence[Row]) -> Question:
        """GraderFault or CompletionFault where a template cannot be filled."""
        node, material = self._node, Material.of(row, samples, numbered=self._relative)
        form = form_of(node, material.fill, len(samples))
        messages = build_messages(material, told_by(node, material, example), form.task, measures_of(node, material))
        return Question(self._model, messages, form.schema, form.read, node.sampling_params.settings())

    def _fault_of(self, example: Example, row: Row, sample: Row) -> Score | None:
        """The score of a completion that no judge need see; None for all others."""
        try:
            self._question(example, row, [sample])
        except CompletionFault as fault:
            low, high = self._node.range if isinstance(self._node, ScoreModel) else (0.0, 1.0)
            score = self._score(min(max(0.0, low), high))
            return replace(score, message=str(fault), metrics={fault.kind: 1.0})
        except GraderFault as fault:
            return replace(self._score(None), state="error", kind=fault.kind, message=str(fault))
        return None

    def _scores(self, answer: Answer, count: int) -> list[Score]:
        timed = replace(self._score(None), latency_s=answer.latency_s / count, cached=answer.cached)
        if answer.kind:
            return [replace(timed, state="masked", kind=answer.kind, message=answer.message)] * count
        results: list[Result] = answer.value
        return [replace(timed, value=one.score, message=one.reason, metrics=one.metrics) for one in results]

    def _score(self, value: float | None) -> Score:
        return Score(self.function.name, self.function.version, value, self.function.weight)
