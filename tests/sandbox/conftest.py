"""The tiers of the sandbox that work on this machine."""

from __future__ import annotations

import pytest

from reinforge.sandbox.launch import Tier
from reinforge.sandbox.tiers import working


def _tier(name: str) -> Tier:
    found = working(name)
    if isinstance(found, str):
        pytest.skip(f"no {name} tier here: {found}")
    return found


@pytest.fixture(params=["bubblewrap", "landlock", "plain"])
def tier(request: pytest.FixtureRequest) -> Tier:
    """Each tier in turn; skipped with the reason where it is missing."""
    return _tier(request.param)


@pytest.fixture(params=["bubblewrap", "landlock"])
def isolating_tier(request: pytest.FixtureRequest) -> Tier:
    """Each tier that isolates; skipped with the reason where it is missing."""
    return _tier(request.param)
