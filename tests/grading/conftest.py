"""A grader from source text, closed at the end of the test."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reinforge.config import RewardFunctionsConfig, RewardFunctionsRuntimeConfig
from reinforge.grading.grader import RewardFunctionGrader


@pytest.fixture
def make_grader(tmp_path: Path) -> Iterator[Callable[..., RewardFunctionGrader]]:
    graders = []

    def make(source: str, *names: str, weights=None, timeout_s=30.0, **runtime) -> RewardFunctionGrader:
        (tmp_path / "rewards.py").write_text(textwrap.dedent(source), encoding="utf-8")
        config = RewardFunctionsConfig(
            functions={name: f"rewards.py:{name}" for name in names},
            weights=weights or {},
            runtime=RewardFunctionsRuntimeConfig(timeout_s=timeout_s, **runtime),
        )
        graders.append(RewardFunctionGrader.from_config(config, tmp_path))
        return graders[-1]

    yield make
    for grader in graders:
        grader.close()
