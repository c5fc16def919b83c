"""Asks judges questions: one endpoint that speaks OpenAI's chat completions, many threads, every fault answered.

An answer is what the judge said in the form it was asked for, or the reason why there is none. What goes wrong on the
way is tried again with growing pauses; what stays wrong is a fault of the judge, never an honest score.

| what comes back                                                    | what happens                                 |
|--------------------------------------------------------------------|----------------------------------------------|
| the object asked for                                               | the answer, kept in judgements.db            |
| another text, or one cut off                                       | one repair try, then a parse error           |
| a refusal, or the content filter                                   | a refusal error                              |
| 429                                                                | all calls wait its Retry-After, then again   |
| 408, 409, 425, 5xx; no connection, time over, cut off, no JSON     | again, at most `max_retries` times           |
| 400 or 422 that names a setting the endpoint has never taken       | again without it, now and later              |
| 401, 402, used-up quota; 403, 404 or a redirect as the first answer| no judge: nothing more is asked              |
| other answers, more than 4 MiB                                     | a server error for this question             |
"""

from __future__ import annotations

import hashlib
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reinforge.config import JudgeConfig
from reinforge.grading.judges.endpoint import Endpoint, Setback
from reinforge.grading.judges.gate import Gate, Pass, Patience, backoff_s
from reinforge.grading.judges.meter import Meter
from reinforge.grading.judges.reply import BadReply, Reply, read_object
from reinforge.run_store.judgements import Judgements, Usage

SERVER_ERROR = "model_grader_server_error"
REFUSAL_ERROR = "model_grader_refusal_error"
PARSE_ERROR = "model_grader_parse_error"
MAX_QUOTED = 4000
"""Characters of a bad reply that are shown to the judge in the repair try."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a judge is asked, and how its answer is read. Equal questions are asked once."""

    model: str
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    """JSON schema of the object it must reply with."""
    read: Callable[[dict[str, Any]], Any] = field(compare=False)
    """What the object means; raises BadReply when it is not as asked."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """`temperature`, `seed` and the like, as the endpoint names them."""

    @property
    def key(self) -> str:
        """Names the question among the judgements."""
        asked = (self.model, self.messages, self.schema, self.settings)
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question."""

    value: Any = None
    """What the question's `read` made of the reply; None when `kind` is set."""
    kind: str = ""
    """Empty, or what went wrong."""
    message: str = ""
    latency_s: float = 0.0
    cached: bool = False
    """It was asked before."""


class JudgeFault(Exception):
    """No answer will come. `kind` is that of the score."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class JudgeClient:
    """One endpoint, with its limits, its judgements and its counters, for all judges of a run."""

    def __init__(self, config: JudgeConfig, *, patience: Patience | None = None) -> None:
        """SetupError or ConfigError when the endpoint cannot be asked at all: no address, no key."""
        self._config = config
        self._patience = patience or Patience()
        self._endpoint = Endpoint(
            config, default_hold_s=self._patience.first_backoff_s, on_resend=lambda model: self._meter.call(model)
        )
        self._gate = Gate(
            concurrency=config.concurrency,
            requests_per_minute=config.requests_per_minute,
            max_wait_s=config.max_wait_s if config.down == "wait" else 0.0,
            patience=self._patience,
            tell=self._note,
            tell_try=lambda text: self.tell_try(text),
        )
        self._judgements = Judgements()
        self._meter = Meter(config, self._judgements)
        self._crew = Crew(config.concurrency)
        self._asked: dict[str, Future[Answer]] = {}
        self._lock = threading.Lock()
        self.tell: Callable[[str], None] = lambda text: None
        """Told, from any thread, when the judge goes down and when it is back."""
        self.tell_try: Callable[[str], None] = lambda text: None
        """Told of everything that is sent again."""

    def keep_in(self, folder: Path) -> None:
        """Keep answers and counts in this folder. Before the first question."""
        self._judgements.close()
        self._judgements = Judgements(folder)
        self._meter = Meter(self._config, self._judgements)

    def ask(self, question: Question) -> Future[Answer]:
        """Start asking; the future never raises for what the endpoint does."""
        key = question.key
        with self._lock:
            future = self._asked.get(key)
            if future is None:
                future = self._asked[key] = self._crew.submit(lambda: self._answer(question, key))
                future.add_done_callback(lambda _: self._asked.pop(key, None))
        return future

    def _note(self, text: str) -> None:
        self._judgements.note(text)
        self.tell(text)

    def take_figures(self) -> dict[str, float]:
        """What was counted since the last call: calls, retries, tokens, cost ..."""
        return self._meter.take()

    def usage(self) -> tuple[Usage, ...]:
        """What each model was asked, all in all."""
        return self._judgements.usage()

    def close(self) -> None:
        """End the threads. Questions on the way are answered with a server error, or cancelled."""
        self._gate.give_up(SERVER_ERROR, "the judge was closed")
        self._crew.close()
        self._endpoint.close()
        self._judgements.close()

    def _answer(self, question: Question, key: str) -> Answer:
        kept = self._judgements.reply(key)
        if kept is not None:
            try:
                value = question.read(read_object(kept))
                self._meter.count("cached")
                return Answer(value, cached=True)
            except BadReply:  # written by a version of ours that asked for something else
                pass
        started = time.monotonic()
        self._meter.count("questions")
        try:
            content, value = self._converse(question, key)
        except JudgeFault as fault:
            self._meter.count("faults")
            return Answer(kind=fault.kind, message=str(fault), latency_s=time.monotonic() - started)
        self._judgements.keep_reply(key, question.model, content)
        return Answer(value, latency_s=time.monotonic() - started)

    def _converse(self, question: Question, key: str) -> tuple[str, Any]:
        """The reply's text and its meaning, after a repair if the first cannot be read."""
        reply = self._exchange(question, key)
        try:
            return reply.content, _meaning(question, reply)
        except BadReply as bad:
            self._meter.count("repairs")
            told = [{"role": "assistant", "content": reply.content[:MAX_QUOTED]}] if reply.content.strip() else []
            told.append({"role": "user", "content": f"{str(bad).capitalize()}. {REPAIR}"})
        reply = self._exchange(replace(question, messages=(*question.messages, *told)), key)
        try:
            return reply.content, _meaning(question, reply)
        except BadReply as bad:
            raise JudgeFault(PARSE_ERROR, f"{bad}, also when asked again") from None

    def _exchange(self, question: Question, key: str) -> Reply:
        """One reply, however often it must be asked for; JudgeFault when none comes."""
        attempt = 0
        while True:
            overspent = self._meter.overspent()
            if overspent:
                self._gate.give_up("judge_budget", overspent)
            passed = self._gate.enter()
            if not isinstance(passed, Pass):
                raise JudgeFault(*passed)
            # What is sent to find out whether a judge is up again is no question of ours: some questions make a healthy
            # judge fail, and would keep it down for all others.
            result = self._send(replace(question, **PROBE) if passed.is_probe else question, passed)
            if isinstance(result, Setback) and result.unusable:
                self._gate.give_up("judge_unusable", result.message)
                raise JudgeFault("judge_unusable", result.message)
            if passed.is_probe:
                continue  # how long the judge may be down is the gate's business; no attempt is used up by it
            if isinstance(result, Reply):
                return result
            attempt += 0 if result.free else 1
            if not result.again or attempt > self._config.max_retries:
                raise JudgeFault(SERVER_ERROR, result.message)
            self._meter.count("retries")
            if not result.free:
                pause_s = backoff_s(attempt, self._patience, random.Random(f"{key} {attempt}").random())
                again = f"retry {attempt} of {self._config.max_retries} in {pause_s:.1f} s"
                self.tell_try(f"no answer ({result.message}); {again}")
                self._gate.pause(pause_s)

    def _send(self, question: Question, passed: Pass) -> Reply | Setback:
        result: Reply | Setback | None = None
        try:
            result = self._endpoint.send(question.model, question.messages, question.schema, question.settings)
        finally:
            if isinstance(result, Reply):
                self._gate.leave(passed, "answered")
            elif result is None:  # a mistake of ours on its way out
                self._gate.leave(passed, "failed", "a fault of ours")
            else:
                self._gate.leave(passed, "answered" if result.alive else "failed", result.message, result.hold_s)
        tokens = (result.prompt_tokens, result.completion_tokens) if isinstance(result, Reply) else (0, 0)
        self._meter.call(question.model, *tokens)
        return result


PROBE: dict[str, Any] = {
    "messages": ({"role": "user", "content": "Reply with {}."},),
    "settings": {"max_completion_tokens": 16},
}
"""Asked of a judge that is down; any chat completion will do."""
REPAIR = "Reply again with nothing but the JSON object that was asked for, and keep it short."


def _meaning(question: Question, reply: Reply) -> Any:
    if reply.refusal:
        raise JudgeFault(REFUSAL_ERROR, f"the judge refused: {reply.refusal[:300]}")
    if reply.finish_reason == "length":
        raise BadReply(f"the reply was cut off after {reply.completion_tokens} tokens")
    return question.read(read_object(reply.content))


class Crew:
    """Threads for calls that wait. They end with the process whatever they wait for, so none can hold up an exit."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Have it called in one of the threads. From one thread at a time."""
        future: Future[Any] = Future()
        self._tasks.put((call, future))
        if len(self._threads) < self._size:
            self._threads.append(threading.Thread(target=self._work, name="judge", daemon=True))
            self._threads[-1].start()
        return future

    def close(self) -> None:
        """Let every thread end after what it does now."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            call, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for the result
                future.set_exception(error)
