"""Examples become token ids through the model's chat template, and token ids become text again.

Uses `tokenizers` and `jinja2`, not transformers: prompts are rendered where no torch is installed. The result equals
transformers' `apply_chat_template(..., tokenize=True)` token for token (tests/data/test_render.py).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateSyntaxError

from reinforge.data.chat_template import TEMPLATE_FAULTS, ChatTemplate
from reinforge.data.messages import message_text
from reinforge.data.tokenizer_files import TokenizerFiles, read_tokenizer_files
from reinforge.errors import DataError, ModelError
from reinforge.types import Example, Prompt

_NUM_NAMED = 10
"""Rows named in an error about several."""


class Renderer:
    """The tokenizer and chat template of one model."""

    def __init__(self, files: TokenizerFiles, today: datetime.datetime | None = None) -> None:
        self._tokenizer = files.tokenizer
        self._named_tokens = files.named_tokens
        self._templates = {name: _compile(text, name, today) for name, text in files.chat_templates.items()}
        added = files.tokenizer.get_added_tokens_decoder()
        self._special_texts = tuple(token.content for token in added.values() if token.special)
        self.eos_ids: frozenset[int] = files.eos_ids
        """Tokens that end a completion."""
        self.pad_id: int = files.pad_id
        """Fills places in a batch that hold no token."""
        self.vocab_size: int = max(files.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        """One more than the highest token id; a model's embedding may have more rows."""

    @classmethod
    def from_folder(cls, folder: Path | str, today: datetime.datetime | None = None) -> Renderer:
        """Of a local model folder. `today` is what templates that print a date take as the current one: a run that must
        render the same prompts after midnight, or when resumed, hands in its own start."""
        return cls(read_tokenizer_files(Path(folder)), today)

    def prompt(self, example: Example) -> Prompt:
        """The example as the model is given it.

        - Messages go through the chat template, ending where the assistant's turn begins.
        - A text is one user message, unless it begins with a special token (`<|im_start|>...`): then it has been
          rendered before and is taken as it is. Without a chat template every text is taken as it is, after the
          tokenizer's own beginning-of-sequence token if it adds one and the text does not begin with it.
        """
        prompt = example.prompt
        if isinstance(prompt, str) and (not self._templates or self._is_rendered(prompt)):
            if example.tools:
                fault = f"Example {example.index} has tools, but its prompt goes through no chat template."
                raise DataError(fault, hint="Use an instruction-tuned model and write the prompt as messages.")
            text, token_ids = prompt, self._encode_plain(prompt)
        else:
            text = self._render(example, ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt)
            token_ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if not token_ids:
            raise DataError(f"Example {example.index} has a prompt of no tokens.", hint="Remove the row.")
        return Prompt(example, text, token_ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, without special and end tokens. Bytes that are no UTF-8 become U+FFFD."""
        kept = [token_id for token_id in token_ids if token_id not in self.eos_ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def num_tokens(self, text: str) -> int:
        """Length of a text in tokens, without the ones a tokenizer adds around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _is_rendered(self, text: str) -> bool:
        return text.lstrip().startswith(self._special_texts)

    def _render(self, example: Example, messages: Sequence[Mapping[str, Any]]) -> str:
        place = f"Example {example.index}"
        if not self._templates:
            raise DataError(
                f"{place} has chat messages (or data.system_prompt is set), but the model has no chat template.",
                hint="Use an instruction-tuned model, or write plain-text prompts with data.prompt_template.",
            )
        name = "tool_use" if example.tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise ModelError(
                f"The model's chat templates are {', '.join(self._templates)}; none is the default.",
                hint="Save the one to use as chat_template.jinja in the model's folder.",
            )
        if example.tools and not template.mentions_tools:
            raise DataError(f"{place} has tools, but the model's chat template shows none.", hint="Use another model.")
        if any(self._is_rendered(message_text(message)) for message in messages):
            raise DataError(
                f"{place} has a message that begins with a special token: the prompt was rendered before.",
                hint="Unset data.system_prompt, or write the prompt without the chat template's tokens.",
            )
        try:
            return template.render(messages, example.tools, self._named_tokens)
        except TEMPLATE_FAULTS as error:
            raise DataError(f"{place}: the chat template refuses it: {error}", hint="Change its messages.") from error

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        bos = self._named_tokens.get("bos_token")
        if bos is not None and text.startswith(bos):
            return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        encoding = self._tokenizer.encode(text, add_special_tokens=True)
        num_kept = len(encoding.ids)
        while num_kept and encoding.special_tokens_mask[num_kept - 1]:
            num_kept -= 1  # an end token that the tokenizer adds has no place after a prompt
        return tuple(encoding.ids[:num_kept])


def render_prompts(
    examples: Sequence[Example],
    renderer: Renderer,
    max_prompt_tokens: int | None,
    overlong: Literal["error", "skip"],
    tell: Callable[[str], None] = lambda message: None,
    way_out: str = "Raise data.max_prompt_tokens",
) -> list[Prompt]:
    """Prompts of all examples, in order. Longer ones than `max_prompt_tokens` are an error that names them, or are left
    out and their number is told; leaving out all of them is an error too. `way_out` says what would let them in."""
    prompts = [renderer.prompt(example) for example in examples]
    if max_prompt_tokens is None:
        return prompts
    too_long = [prompt for prompt in prompts if prompt.num_tokens > max_prompt_tokens]
    if not too_long:
        return prompts
    named = ", ".join(f"{prompt.example.index} ({prompt.num_tokens} tokens)" for prompt in too_long[:_NUM_NAMED])
    more = f" and {len(too_long) - _NUM_NAMED} more" if len(too_long) > _NUM_NAMED else ""
    fault = f"{len(too_long)} of {len(prompts)} prompts exceed {max_prompt_tokens} tokens: examples {named}{more}."
    if overlong == "error" or len(too_long) == len(prompts):
        skip = "" if overlong == "skip" else ", or set data.overlong_prompts: skip"
        raise DataError(fault, hint=f"{way_out}, shorten them{skip}.")
    tell(f"{fault} They were left out.")
    return [prompt for prompt in prompts if prompt.num_tokens <= max_prompt_tokens]


def longest_answer_tokens(examples: Sequence[Example], answer_column: str, renderer: Renderer) -> int:
    """Tokens of the longest gold answer: what `max_tokens` is chosen by."""
    if not any(answer_column in example.columns for example in examples):
        found = ", ".join(dict.fromkeys(column for example in examples for column in example.columns))
        raise DataError(f'There is no column "{answer_column}" (found: {found}).', hint="Correct data.answer_column.")
    answers = (example.columns.get(answer_column) for example in examples)
    return max((renderer.num_tokens(str(answer)) for answer in answers if answer is not None), default=0)


def max_tokens_for(longest_answer: int) -> int:
    """Twice the longest gold answer, within 64..1024 (K8): room to think, and no endless babble.

    >>> [max_tokens_for(tokens) for tokens in (3, 200, 5000)]
    [64, 400, 1024]
    """
    return min(max(2 * longest_answer, 64), 1024)


def _compile(text: str, name: str, today: datetime.datetime | None) -> ChatTemplate:
    try:
        return ChatTemplate(text, today)
    except TemplateSyntaxError as error:
        raise ModelError(
            f'The chat template "{name}" is no valid Jinja at line {error.lineno}: {error.message}.',
            hint="Mend chat_template.jinja in the model's folder.",
        ) from error
