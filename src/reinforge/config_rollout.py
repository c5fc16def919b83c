"""The parts of the config (config.py) that say how rollouts are made and what they count."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A table of the config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ImportanceCorrection(Part):
    """Weights for tokens that another distribution than the learning policy has drawn: one of `top_p` or `top_k`."""

    mode: Literal["off", "truncate", "mask"] = "off"
    """Multiply a token's loss by the ratio of its probability in the learner's first pass to the one it was drawn with:
    at most `cap` (truncate), or 0 where the ratio exceeds `cap` (mask)."""
    level: Literal["token", "sequence"] = "token"
    """The ratio of each token, or of the whole completion (the product of its tokens')."""
    cap: Positive = 2.0
    """Largest ratio."""
