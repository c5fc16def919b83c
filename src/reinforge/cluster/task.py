"""What is to be learned or tried: rows as prompts that fit the model, and how long a completion may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reinforge.config import GRPOConfig
from reinforge.data.render import Renderer, longest_answer_tokens, max_tokens_for, render_prompts
from reinforge.errors import ConfigError
from reinforge.loop import Task
from reinforge.policy.model import Policy
from reinforge.types import Example, Prompt

DEFAULT_MAX_TOKENS = 512
"""Longest completion where neither the config nor gold answers say."""

Tell = Callable[[str], None]


def make_task(
    config: GRPOConfig,
    renderer: Renderer,
    policy: Policy,
    train_examples: Sequence[Example],
    heldout_examples: Sequence[Example],
    tell: Tell,
) -> Task:
    """ConfigError or DataError where a prompt and its completion have no room in the model's window."""
    max_tokens = _max_tokens(config, renderer, [*train_examples, *heldout_examples], tell)
    longest, way_out = config.data.max_prompt_tokens or math.inf, "Raise data.max_prompt_tokens"
    window = window_of(policy)
    if window is not None:
        if window <= max_tokens:
            raise ConfigError(
                f"sampling_params.max_tokens = {max_tokens} leaves no room for a prompt in a window of {window}.",
                hint=f"Set sampling_params.max_tokens below {window}.",
            )
        if window - max_tokens < longest:
            longest = window - max_tokens
            way_out = f"The model's window of {window} less max_tokens = {max_tokens} leaves no more: lower max_tokens"

    def render(examples: Sequence[Example]) -> list[Prompt]:
        limit = None if longest == math.inf else int(longest)
        if not examples:
            return []
        return render_prompts(examples, renderer, limit, config.data.overlong_prompts, tell, way_out)

    return Task(config, render(train_examples), render(heldout_examples), max_tokens)


def _max_tokens(config: GRPOConfig, renderer: Renderer, examples: Sequence[Example], tell: Tell) -> int:
    """K8: given, or by the gold answers, or the default."""
    if config.sampling_params.max_tokens is not None:
        return config.sampling_params.max_tokens
    if config.data.answer_column is None:
        return DEFAULT_MAX_TOKENS
    longest = longest_answer_tokens(examples, config.data.answer_column, renderer)
    chosen = max_tokens_for(longest)
    tell(f"sampling_params.max_tokens = {chosen}: the longest gold answer has {longest} tokens")
    return chosen


def window_of(policy: Policy) -> int | None:
    """Longest sequence in tokens the model was made for; None when its config does not say."""
    window = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return None if window is None else int(window)
