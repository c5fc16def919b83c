"""One request to a judge's endpoint: what is sent, what it does not take, and what its answer means for the next."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from reinforge.config import JudgeConfig
from reinforge.errors import ConfigError, NetworkError, SetupError
from reinforge.grading.judges.gate import retry_after_s
from reinforge.grading.judges.reply import BadReply, Reply, read_reply
from reinforge.sandbox.egress import EgressPolicy
from reinforge.sandbox.fetch import Client
from reinforge.sandbox.fetch import Reply as HttpReply

MAX_REPLY_BYTES = 4 << 20
"""Of a whole answer over HTTP; no judgement needs more."""

MAX_SHOWN = 300
"""Characters of an endpoint's error text that are kept."""


@dataclass(frozen=True, slots=True)
class Setback:
    """A request that brought no chat completion."""

    message: str
    again: bool = False
    """The same request may succeed later."""
    alive: bool = False
    """The endpoint works, though it did not answer this."""
    free: bool = False
    """Sent again in another form, so it is no attempt."""
    unusable: bool = False
    """No request can succeed until somebody changes something."""
    hold_s: float | None = None
    """The endpoint asked for a pause."""


class Endpoint:
    """Sends requests, remembers what the endpoint does not take. Several threads may use it."""

    def __init__(self, config: JudgeConfig, *, default_hold_s: float, on_resend: Callable[[str], None]) -> None:
        """`default_hold_s`: the pause after a 429 that names none. `on_resend` is told the model of a request that
        went out once more, because the connection had broken."""
        self._config = config
        self._timeout_s = config.timeout_s
        self._default_hold_s = default_hold_s
        self._on_resend = on_resend
        self._key = _key(config)
        self._url = _url(config)
        self._headers = _headers(self._key)
        self._http = Client(_policy(self._url, config))
        self._lock = threading.Lock()
        self._refused: set[_Mark] = set()
        self._taken: set[_Mark] = set()
        self._proven = False

    def send(
        self, model: str, messages: Sequence[Mapping[str, str]], schema: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Reply | Setback:
        """Ask once."""
        marks = _marks(model, schema, settings)
        with self._lock:
            refused = frozenset(name for name, mark in marks.items() if mark in self._refused - self._taken)
        marks = {name: mark for name, mark in marks.items() if name not in refused}
        if "json_schema" in marks:
            marks.pop("response_format", None)  # which stands for the simpler one
        body = json.dumps(_body(model, messages, schema, settings, refused)).encode()
        try:
            answer = self._http.fetch(
                "POST", self._url, self._headers, body, self._timeout_s, lambda: self._on_resend(model)
            )
        except NetworkError as fault:
            message = self._told(str(fault).rstrip("."))
            if fault.kind in ("connect", "name"):
                message += f": is it running there? ({self._config.base_url}: reward_fns.judge.base_url)"
            return Setback(message, again=fault.kind != "too_large", unusable=fault.kind == "refused")
        if answer.status != 200:
            setback = self._setback(answer, model)
            text = answer.body.decode("utf-8", "replace")
            if answer.status in (400, 422) and self._adapts(text, [model, *(m["content"] for m in messages)], marks):
                return replace(setback, again=True, free=True)
            return setback
        try:
            reply = read_reply(answer.body, answer.headers.get("content-type", ""), len(body))
        except BadReply as bad:
            return Setback(self._told(str(bad)), again=True)
        with self._lock:
            self._proven = True
            self._taken.update(marks.values())
        return reply

    def close(self) -> None:
        """End idle connections."""
        self._http.close()

    def _setback(self, answer: HttpReply, model: str) -> Setback:
        status, text = answer.status, answer.body.decode("utf-8", "replace")
        message = self._told(f"it answered {status} {_error_of(text)[0]}".rstrip(" .")) + self._next_step(status, model)
        hold_s = retry_after_s(answer.headers.get("retry-after"), time.time())
        if 300 <= status < 400:
            return Setback(f"{message}: redirects are not followed", alive=True, unusable=not self._proven)
        if status in (401, 402) or (status == 429 and "insufficient_quota" in text):
            return Setback(message, alive=True, unusable=True)
        if status in (403, 404):
            return Setback(message, alive=True, unusable=not self._proven)
        if status == 429:
            return Setback(message, again=True, alive=True, hold_s=self._default_hold_s if hold_s is None else hold_s)
        if status in (408, 409, 425) or status >= 500:
            return Setback(message, again=True, hold_s=hold_s)
        return Setback(message, alive=True)

    def _next_step(self, status: int, model: str) -> str:
        """What to look at when it turns us away."""
        variable = self._config.api_key_env
        if status == 401 and variable is None:
            return ": name the environment variable that holds its key in reward_fns.judge.api_key_env"
        if status in (401, 403) and variable is not None:
            return f": check the key in {variable} (reward_fns.judge.api_key_env)"
        if status == 404:
            return f": check the model {model!r} and {self._config.base_url} (reward_fns.judge.base_url)"
        return ""

    def _adapts(self, text: str, ours: Sequence[str], sent: Mapping[str, _Mark]) -> bool:
        """Whether the next request will differ: without what this error names, or without structure when it names
        nothing and the endpoint has never answered. What it has taken once, no error takes away."""
        with self._lock:
            open_to_doubt = [name for name, mark in sent.items() if mark not in self._taken]
            named = _named(text, ours, open_to_doubt)
            if not named and not self._proven and not _error_of(text)[1]:
                named = next((name for name in ("json_schema", "response_format") if name in open_to_doubt), "")
            if named:
                self._refused.add(sent[named])
        return bool(named)

    def _told(self, text: str) -> str:
        """An endpoint's words, short and without our key, which some repeat."""
        shown = text.replace(self._key, "[key]") if self._key else text
        return shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + "..."


NAMED = (
    ("json_schema", ("json_schema", "schema", "grammar", "guided", "response_format")),
    ("response_format", ("response_format",)),
    ("max_completion_tokens", ("max_completion_tokens",)),
    ("temperature", ("temperature",)),
    ("top_p", ("top_p",)),
    ("seed", ("seed",)),
    ("reasoning_effort", ("reasoning_effort",)),
)
"""What an endpoint may not take, and the words by which its error names it. Older servers know `max_tokens` in place of
`max_completion_tokens`; some know the response format `json_object` but no schema, some none."""


_Mark = tuple[str, str, str]
"""Model, name of what is sent, its value as JSON: an endpoint may take one temperature, or schema, and not another."""


def _marks(model: str, schema: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, _Mark]:
    """Of all in a request that it could be sent without."""
    values = {"json_schema": schema, "response_format": "json_object", **settings}
    return {name: (model, name, json.dumps(values[name], sort_keys=True)) for name, _ in NAMED if name in values}


def _named(text: str, ours: Sequence[str], names: Sequence[str]) -> str:
    """Which of these an error is about, by its `param` or else the beginning of its message; empty for none.

    Endpoints quote what they were sent, and completions are part of it: a word that stands in what is ours says
    nothing.

    >>> quoting = '{"error": {"message": "too long: the seed of...", "param": null}}'
    >>> _named(quoting, ["The Seed of doubt"], ["seed"]), _named(quoting, ["?"], ["seed"])
    ('', 'seed')
    """
    message, param = _error_of(text)
    told = param or message[:MAX_SHOWN]
    sent = "" if param else "\n".join(ours).casefold()
    heard = {name: [word for word in words if word in told and word not in sent] for name, words in NAMED}
    return next((name for name in heard if name in names and heard[name]), "")


def _body(
    model: str,
    messages: Sequence[Mapping[str, str]],
    schema: Mapping[str, Any],
    settings: Mapping[str, Any],
    refused: frozenset[str],
) -> dict[str, Any]:
    """
    >>> _body("m", [], {}, {"max_completion_tokens": 9, "seed": 1}, frozenset({"seed", "max_completion_tokens",
    ...     "json_schema"}))
    {'model': 'm', 'messages': [], 'max_tokens': 9, 'response_format': {'type': 'json_object'}}
    """
    body: dict[str, Any] = {"model": model, "messages": list(messages)}
    for name, value in settings.items():
        if name not in refused:
            body[name] = value
        elif name == "max_completion_tokens":
            body["max_tokens"] = value
    if "json_schema" not in refused:
        form = {"name": "judgement", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif "response_format" not in refused:
        body["response_format"] = {"type": "json_object"}
    return body


def _error_of(text: str) -> tuple[str, str]:
    """(message, param) of an error body, else its beginning and ""."""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        if not isinstance(error, dict):
            return str(error), ""
        param = error.get("param")
        return str(error["message"]), param if isinstance(param, str) else ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return " ".join(text[: 2 * MAX_SHOWN].split()), ""


def check_endpoint(config: JudgeConfig) -> None:
    """ConfigError or SetupError when the endpoint cannot be asked at all: no address, no key."""
    _policy(_url(config), config)
    _key(config)


def _url(config: JudgeConfig) -> str:
    if config.base_url is None:
        raise ConfigError(
            "A grader asks a judge, but reward_fns.judge.base_url is not set.",
            hint="Set it to an endpoint with chat completions, for instance http://127.0.0.1:8000/v1.",
        )
    parts = urlsplit(config.base_url)
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise ConfigError(
            f"reward_fns.judge.base_url = {config.base_url!r} is no address of an endpoint.",
            hint="Write it as https://host/v1; a key is named by reward_fns.judge.api_key_env.",
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return parts._replace(path=f"{path}/chat/completions").geturl()


def _policy(url: str, config: JudgeConfig) -> EgressPolicy:
    """This one host, and no other."""
    return EgressPolicy(
        (urlsplit(url).netloc,) if urlsplit(url).port else (urlsplit(url).hostname or "",),
        allow_private_addresses=config.allow_private_addresses,
        max_response_bytes=MAX_REPLY_BYTES,
        timeout_s=config.timeout_s,
        section="reward_fns.judge",
    )


def _key(config: JudgeConfig) -> str:
    if config.api_key_env is None:
        return ""
    key = os.environ.get(config.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        state = "not set" if not key else "no key (it holds characters that no header may)"
        raise SetupError(
            f"The environment variable {config.api_key_env} (reward_fns.judge.api_key_env) is {state}.",
            hint=f"export {config.api_key_env}=...",
        )
    return key


def _headers(key: str) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json", "user-agent": "reinforge"}
    return headers | ({"authorization": f"Bearer {key}"} if key else {})
