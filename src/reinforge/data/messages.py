"""Chat messages and tool definitions as rows hold them: the shapes accepted, and what is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reinforge.data.values import NotFinite, value_fault, without_nulls

ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_HINT = 'Write content as a text, or as parts like {"type": "text", "text": "..."}.'


class ShapeError(ValueError):
    """A value has the wrong shape. The row's place is added by whoever knows it."""

    def __init__(self, fault: str, hint: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.hint = hint


def parse_messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The messages of a list, or of a list written as JSON text (all a CSV file can hold).

    Keys that are null are left out at every depth: Parquet gives every message the keys of all the others.

    >>> parse_messages('[{"role": "user", "content": "Hi", "name": null}]')
    ({'role': 'user', 'content': 'Hi'},)
    """
    messages = _json_list(value, "messages")
    if not messages:
        raise ShapeError("has no messages", "Remove the row.")
    for number, message in enumerate(messages, start=1):
        _check_message(message, number, messages[: number - 1])
    last = messages[-1]
    if last["role"] not in ("user", "tool"):
        raise ShapeError(
            f"ends with a message of the role {last['role']}",
            "A prompt must end with a message of the role user or tool: move the answer to a column of its own.",
        )
    return tuple(messages)


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tool definitions of a list of JSON schemas, or of such a list as JSON text; empty for None and "".

    Keys that are null are left out, as in messages.

    >>> parse_tools('[{"name": "add", "parameters": {}}]')
    ({'name': 'add', 'parameters': {}},)
    """
    if value is None or value == "":
        return ()
    tools = _json_list(value, "tools")
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            hint = 'Write {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}.'
            raise ShapeError(f"has a tool without a name (number {number})", hint)
    return tuple(tools)


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, its parts joined.

    >>> message_text({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    'ab'
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or ())


def _json_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=NotFinite)
        except (ValueError, RecursionError) as error:
            raise ShapeError(f"has {name} that are a text but not JSON: {error}", f"Write {name} as a list.") from error
        found = value_fault(value)
        if found:
            raise ShapeError(f"has {found[0]} in its {name}", found[1])
    if not isinstance(value, list | tuple):
        raise ShapeError(f"has {name} of type {type(value).__name__}", f"Write {name} as a list.")
    return [without_nulls(part) for part in value]


def _check_message(message: Any, number: int, earlier: list[Any]) -> None:
    if not isinstance(message, dict):
        hint = 'Write {"role": "user", "content": "..."}.'
        raise ShapeError(f"has a message (number {number}) of type {type(message).__name__}", hint)
    role = message.get("role")
    if role not in ROLES:
        hint = 'ShareGPT\'s "from" and "value" must be renamed to "role" and "content".' if "from" in message else ""
        raise ShapeError(
            f"has a message (number {number}) with the role {role!r}", f"Roles are {', '.join(ROLES)}. {hint}".strip()
        )
    if role in ("system", "developer") and earlier:
        raise ShapeError(f"has a {role} message at place {number}", "It must be the first message.")
    if role == "tool" and not any(before["role"] == "assistant" for before in earlier):
        raise ShapeError(
            f"has a tool message (number {number}) before any assistant message", "Put the call before it."
        )
    _check_content(message, number)


def _check_content(message: dict[str, Any], number: int) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ShapeError(f"has a message (number {number}) with a part of type {kind}", _TEXT_HINT)
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise ShapeError(f"has a message (number {number}) with content of type {type(content).__name__}", _TEXT_HINT)
    if message["role"] == "user" and not message_text(message).strip():
        raise ShapeError(f"has an empty user message (number {number})", "Remove the row or write the message.")
