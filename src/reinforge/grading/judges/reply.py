"""Reading what a judge's endpoint sends: the envelope of a chat completion, and the JSON object that was asked for.

A judge often quotes the completion it judges, so nothing is searched for in its text: the whole text is the object, but
for a thinking part before it and a Markdown fence around it. A text that was cut off, a key given twice, NaN, or
anything before or after the object is no reply.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from reinforge.grading.values import MAX_VALUE, in_words

MAX_CHARS = 200_000
"""Longest text of a judge that is read."""
BYTES_PER_TOKEN = 4
"""To estimate tokens where the endpoint does not count them: English text has about four bytes in a token."""

_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class BadReply(ValueError):
    """What came is not what was asked for. The text says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One chat completion of a judge."""

    content: str
    refusal: str
    """Why it will not judge; empty when it does."""
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def read_reply(body: bytes, content_type: str, num_bytes_sent: int) -> Reply:
    """The first choice of a chat completion; BadReply when the body is none.

    >>> body = b'{"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7}}'
    >>> read_reply(body, "application/json", 100)
    Reply(content='{}', refusal='', finish_reason='stop', prompt_tokens=7, completion_tokens=1)
    """
    kind = content_type.partition(";")[0].strip().lower()
    try:
        if kind not in ("application/json", "") and not kind.endswith("+json"):
            raise BadReply(f"it sent {kind[:60]!r} instead of JSON")
        answer = json.loads(body)
        choice = answer["choices"][0]
        message = choice["message"]
        refusal = _text(message.get("refusal"))
        finish_reason = _text(choice.get("finish_reason")) or "stop"
        content = _text(message.get("content")).encode("utf-8", "replace").decode("utf-8")  # no half characters
        usage = answer.get("usage") or {}
        prompt_tokens = _count(usage.get("prompt_tokens"), num_bytes_sent)
        completion_tokens = _count(usage.get("completion_tokens"), len(content.encode()))
    except BadReply:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise BadReply(f"it sent no chat completion ({type(error).__name__}: {error})") from None
    if finish_reason == "content_filter" and not refusal:
        refusal = "the endpoint's content filter ended it"
    return Reply(content, refusal, finish_reason, prompt_tokens, completion_tokens)


def _text(value: object) -> str:
    """A text, also in parts; empty for none."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value)
    if not isinstance(value, str):
        raise BadReply(f"it sent {in_words(value)} where a text belongs")
    return value


def _count(value: object, num_bytes: int) -> int:
    """A number of tokens as the endpoint counted, else estimated."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**9:
        return value
    return -(-num_bytes // BYTES_PER_TOKEN)


def read_object(content: str) -> dict[str, Any]:
    r"""The JSON object that is the whole of a judge's text; BadReply for any other text.

    >>> read_object('<think>They claim {"result": 1}.</think>\n```json\n{"result": 0.2}\n```')
    {'result': 0.2}
    >>> read_object('I found {"result": 1} in it. {"result": 0}')  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    reinforge.grading.judges.reply.BadReply: the reply is not one JSON object (Expecting value: ...)
    """
    text = content.strip()
    if len(text) > MAX_CHARS:
        raise BadReply(f"the reply is longer than {MAX_CHARS} characters")
    if text.startswith("<think>"):
        text = text.partition("</think>")[2].strip()
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except BadReply:
        raise
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply is not one JSON object ({error})") from None
    if not isinstance(found, dict):
        raise BadReply(f"the reply is {in_words(found)}, not a JSON object")
    return found


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadReply("the reply has a key twice")
    return found


def _no_constant(constant: str) -> None:
    raise BadReply(f"the reply has {constant}, which is no JSON")


def field_of(reply: dict[str, Any], key: str, where: str = "the reply") -> Any:
    """The value of a key; BadReply without it."""
    if key not in reply:
        raise BadReply(f'{where} has no "{key}"')
    return reply[key]


def number_of(reply: dict[str, Any], key: str, where: str = "the reply") -> float:
    """The finite number at a key; BadReply for anything else, also for a text that looks like one.

    >>> number_of({"result": "0.7"}, "result")
    Traceback (most recent call last):
        ...
    reinforge.grading.judges.reply.BadReply: "result" is the text '0.7', not a number
    """
    value = field_of(reply, key, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadReply(f'"{key}" is {in_words(value)}, not a number')
    if not abs(value) <= MAX_VALUE or not math.isfinite(value):
        raise BadReply(f'"{key}" is {str(value)[:30]}: it must be finite and within +-{MAX_VALUE:g}')
    return float(value)


def text_of(reply: dict[str, Any], key: str, where: str = "the reply") -> str:
    """The text at a key; BadReply for anything else."""
    value = field_of(reply, key, where)
    if not isinstance(value, str):
        raise BadReply(f'"{key}" is {in_words(value)}, not a text')
    return value
