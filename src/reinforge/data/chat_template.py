"""Chat templates: the Jinja dialect of the Hugging Face hub, in a sandbox (a template is somebody else's code)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What rendering can raise: Jinja's own errors (`raise_exception` among them) and those of the expressions inside."""


class ChatTemplate:
    """One compiled template.

    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    >>> template.render([{"role": "user", "content": "Hi"}], tools=(), named_tokens={})
    '<user>Hi<assistant>'
    """

    def __init__(self, text: str, today: datetime.datetime | None = None) -> None:
        """`today` fixes what templates read as the current date; unset, the clock at the time of rendering."""
        self.mentions_tools = "tools" in text
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, LoopControlExtension]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: (today or datetime.datetime.now()).strftime(form)
        self._template = environment.from_string(text)

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], named_tokens: Mapping[str, str]
    ) -> str:
        """The conversation as text, ending where the assistant's turn begins. A null key counts as absent: most
        templates would print it as None."""
        return self._template.render(
            messages=[{key: part for key, part in message.items() if part is not None} for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            documents=None,
            add_generation_prompt=True,
            **named_tokens,
        )


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for supervised training; here it only shows its content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter: no HTML escapes, which would change what the model reads."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
