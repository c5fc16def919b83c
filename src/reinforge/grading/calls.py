"""One reward function on the completions of one prompt: arguments in its dialect, scores out of what came back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reinforge.config import RewardFunctionsRuntimeConfig
from reinforge.errors import DataError
from reinforge.grading.nesting import MAX_NESTING, is_too_deep
from reinforge.grading.reward_function import TRL_ARGUMENTS, RewardFunction
from reinforge.grading.values import Value, in_words, read_grader_value, read_value
from reinforge.roles import CallResult
from reinforge.sandbox.pool import SourceFault, UnsendableArguments, Worker, WorkerUnavailable
from reinforge.types import Example, FinishReason, Score

REPEAT_ONE_BY_ONE = {"raised", "exited", "out_of_memory", "not_serialisable"}
"""Faults of a batched call after which each completion is judged alone, so that only the guilty ones get an error.
Not `timeout`: a hang would then cost G deadlines instead of one."""


@dataclass(frozen=True, slots=True)
class Case:
    """The completions of one prompt, or some of them, as graders need them."""

    example: Example
    prompt_text: str
    """As the model was given it."""
    texts: tuple[str, ...]
    """[G]"""
    token_ids: tuple[tuple[int, ...], ...]
    """[G][T] Empty where completions came as text."""
    finish_reasons: tuple[FinishReason, ...] = ()
    """[G] Or empty where completions came as text: these count as ended by themselves."""

    def only(self, places: Sequence[int]) -> Case:
        """The case of some of the completions."""
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            token_ids=tuple(self.token_ids[place] for place in places),
            finish_reasons=tuple(self.finish_reasons[place] for place in places) if self.finish_reasons else (),
        )

    def is_of_one_prompt_with(self, other: Case) -> bool:
        """Whether both could be one case."""
        return (
            self.example is other.example
            and self.prompt_text == other.prompt_text
            and bool(self.finish_reasons) == bool(other.finish_reasons)
        )

    def joined(self, others: Sequence[Case]) -> Case:
        """One case of this one's completions and those of others of the same prompt, in this order."""
        cases = (self, *others)
        return replace(
            self,
            texts=tuple(text for case in cases for text in case.texts),
            token_ids=tuple(ids for case in cases for ids in case.token_ids),
            finish_reasons=tuple(reason for case in cases for reason in case.finish_reasons),
        )

    def finish_reason(self, place: int) -> FinishReason:
        """Why the completion at a place ended."""
        return self.finish_reasons[place] if self.finish_reasons else "stop"


def score_case(
    function: RewardFunction, case: Case, worker: Worker, runtime: RewardFunctionsRuntimeConfig, *, singly: bool = False
) -> list[Score]:
    """One score per completion, in order. Never raises for what the function does. `singly` shows a batched function
    one completion at a time."""
    if not case.texts:
        return []
    try:
        if function.dialect == "trl":
            return _score_batched(function, case, worker, runtime.timeout_s, singly)
        return _score_each(function, case, worker, runtime)
    except UnsendableArguments as error:
        raise DataError(f"row {case.example.index + 1} cannot be given to a reward function: {error}.") from None
    except (WorkerUnavailable, SourceFault) as error:
        # The source loaded when the run began, so this is the machine's fault: no process, no memory, a lost file.
        return [_score(function, None, "masked", "worker_unavailable", str(error)) for _ in case.texts]


def _score_each(
    function: RewardFunction, case: Case, worker: Worker, runtime: RewardFunctionsRuntimeConfig
) -> list[Score]:
    """Predibase and OpenAI form, and graders that run in a worker: one call per completion, all in one message."""
    shared: dict[str, object]
    if function.dialect in ("openai", "grader"):
        shared = {"item": openai_item(case.example)}
        each: list[dict[str, object]] = [
            {"sample": openai_sample(text, case.finish_reason(place))} for place, text in enumerate(case.texts)
        ]
    else:
        prompt_name, completion_name, example_name = [p.name for p in function.parameters[:3]]
        prompt = case.example.prompt if isinstance(case.example.prompt, str) else case.prompt_text
        example = predibase_example(case.example, typed=runtime.typed_examples)
        shared = {prompt_name: prompt, example_name: example}
        each = [{completion_name: text} for text in case.texts]
    results = worker.call_each(function.function_name, shared, each, runtime.timeout_s)
    return [_score_of_result(function, result, result.value, none_applies_not=False) for result in results]


def predibase_example(example: Example, *, typed: bool = False) -> dict[str, Any]:
    """All columns, the prompt included. Untyped, every value is text: `str(value)`, so that `ast.literal_eval` gives
    lists, dicts, numbers and None back (S0-100, S0-101); text stays as it is.

    Example:
        >>> predibase_example(Example(0, "Hi", {"target": 15, "numbers": [9, 1], "note": None}))
        {'prompt': 'Hi', 'target': '15', 'numbers': '[9, 1]', 'note': 'None'}
    """
    prompt = example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]
    row = {"prompt": prompt, **example.columns}
    return row if typed else {key: value if isinstance(value, str) else str(value) for key, value in row.items()}


def openai_item(example: Example) -> dict[str, Any]:
    """The row, natively typed: its columns, and the prompt, unless empty, as `prompt` or in chat form as `messages` and
    `tools`.

    Example:
        >>> openai_item(Example(0, "Hi", {"answer": 15}))
        {'prompt': 'Hi', 'answer': 15}
    """
    if isinstance(example.prompt, str):
        return {**({"prompt": example.prompt} if example.prompt else {}), **example.columns}
    tools = {"tools": [dict(tool) for tool in example.tools]} if example.tools else {}
    return {"messages": [dict(message) for message in example.prompt], **tools, **example.columns}


def openai_sample(text: str, finish_reason: FinishReason = "stop") -> dict[str, Any]:
    """The completion as OpenAI's Python graders get it. `output_json` is there when the text is JSON
    of at most MAX_NESTING levels.

    Example:
        >>> sample = openai_sample('{"a": 1}')
        >>> sample["output_text"], sample["output_json"], sample["choices"][0]["message"]
        ('{"a": 1}', {'a': 1}, {'role': 'assistant', 'content': '{"a": 1}'})
        >>> openai_sample("cut o", "length")["choices"][0]["finish_reason"]
        'length'
        >>> "output_json" in openai_sample("no JSON"), "output_json" in openai_sample("NaN")
        (False, False)
    """
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    sample: dict[str, Any] = {"output_text": text, "output_tools": [], "choices": [choice]}
    try:
        value = json.loads(text, parse_constant=_refuse)
        if is_too_deep(value):
            raise ValueError(f"nested more than {MAX_NESTING} levels deep")
        json.dumps(value, allow_nan=False)  # 1e999 is JSON, but its value is not
    except (ValueError, RecursionError):  # model output: anything may be in it, also more digits than Python reads
        return sample
    return {**sample, "output_json": value}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _score_batched(function: RewardFunction, case: Case, worker: Worker, timeout_s: float, singly: bool) -> list[Score]:
    """TRL form: one call for all completions, repeated one by one when it failed because of some of them."""
    everyone = list(range(len(case.texts)))
    if not singly:
        result = worker.call(function.function_name, trl_arguments(function, case, everyone), timeout_s)
    if singly or (result.kind in REPEAT_ONE_BY_ONE and len(everyone) > 1):
        each = [trl_arguments(function, case, [one]) for one in everyone]
        results = worker.call_each(function.function_name, {}, each, timeout_s)
        return [_scores_of_list(function, result, 1)[0] for result in results]
    return _scores_of_list(function, result, len(everyone))


def trl_arguments(function: RewardFunction, case: Case, chosen: list[int]) -> dict[str, object]:
    """Keyword arguments as TRL passes them, limited to what the signature takes. Columns are natively typed and
    repeated per completion; messages instead of text where the prompt is chat messages."""
    columns = {k: v for k, v in case.example.columns.items() if k not in ("prompt", "completion", "completion_ids")}
    prompt: object = case.example.prompt
    completions: list[object] = [case.texts[i] for i in chosen]
    if not isinstance(case.example.prompt, str):
        prompt = [dict(message) for message in case.example.prompt]
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    offered: dict[str, object] = {name: [value] * len(chosen) for name, value in columns.items()}
    offered |= dict.fromkeys(TRL_ARGUMENTS)
    offered |= {"prompts": [prompt] * len(chosen), "completions": completions}
    offered["completion_ids"] = [case.token_ids[i] for i in chosen]
    named = {p.name for p in function.parameters if p.by_keyword}
    if any(p.kind == "var_keyword" for p in function.parameters):
        named |= set(offered) - {"log_extra", "log_metric"}
    return {name: value for name, value in offered.items() if name in named}


def _scores_of_list(function: RewardFunction, result: CallResult, num_completions: int) -> list[Score]:
    """The scores of one batched call. Its prints and note stay with the first completion; latency is shared out."""
    values = result.value
    kind, message = result.kind, result.message
    if not kind and not isinstance(values, list):
        kind, message = "not_a_list", f"returned {in_words(values)}, not a list of {num_completions} numbers"
    elif not kind and isinstance(values, list) and len(values) != num_completions:
        kind, message = "wrong_length", f"returned {len(values)} values for {num_completions} completions"
    latency_s = result.latency_s / num_completions
    scores = []
    for index in range(num_completions):
        prints, note = (result.prints, result.note) if index == 0 else ("", "")
        shared = CallResult(None, kind, message, prints, latency_s, note)
        value = values[index] if not kind and isinstance(values, list) else None
        scores.append(_score_of_result(function, shared, value, none_applies_not=True))
    return scores


def _score_of_result(
    function: RewardFunction, result: CallResult, returned: object, *, none_applies_not: bool
) -> Score:
    value = Value(None, result.kind, result.message)
    if not result.kind and function.dialect == "grader":
        value = read_grader_value(returned)
    elif not result.kind:
        value = read_value(returned, none_applies_not=none_applies_not)
    state = "error" if value.kind else "ok"
    score = _score(function, value.number, state, value.kind, value.message, result.prints, result.latency_s)
    return replace(score, metrics=value.metrics, note=result.note) if value.metrics or result.note else score


def _score(
    function: RewardFunction,
    number: float | None,
    state: Any,
    kind: str = "",
    message: str = "",
    prints: str = "",
    latency_s: float = 0.0,
) -> Score:
    return Score(function.name, function.version, number, function.weight, state, kind, message, prints, latency_s)


def columns_needed(functions: tuple[RewardFunction, ...], columns: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Function name -> columns its calls need but the data does not have; empty when all is well."""
    missing = {f.name: tuple(c for c in f.required_columns if c not in columns) for f in functions}
    return {name: names for name, names in missing.items() if names}
