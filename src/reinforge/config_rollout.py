"""The parts of the config (config.py) that say how rollouts are made and what they count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A table of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class DynamicSampling(Part):
    """Replacing groups without signal (Yu et al. 2025, DAPO)."""

    max_rounds: Annotated[int, Field(ge=0)] = 0
    """Times in a step that as many further prompts are sampled as groups are missing whose rewards differ. 0 is off.
    What is still missing after them are groups without signal, the first drawn."""


class AdaptiveGroups(Part):
    """Small groups first, whole ones where they can teach."""

    start: Annotated[int, Field(ge=2)] | None = None
    """Completions sampled of each prompt at first; the rest of `num_generations` only where the rewards of these differ
    or too few are valid. A function that judges a whole group judges the two parts one after the other. Unset: all at
    once."""


class ImportanceCorrection(Part):
    """Weights for tokens that another distribution than the learning policy has drawn: an earlier policy, or one cut by
    `top_p` or `top_k`."""

    mode: Literal["off", "truncate", "mask"] | None = None
    """Multiply a token's loss by the ratio of its probability in the learner's first pass to the one it was drawn with:
    at most `cap` (truncate), or 0 where the ratio exceeds `cap` (mask). Unset: truncate with a `max_policy_lag`, else
    off."""
    level: Literal["token", "sequence"] = "token"
    """The ratio of each token, or of the whole completion (the product of its tokens')."""
    cap: Positive = 2.0
    """Largest ratio."""
