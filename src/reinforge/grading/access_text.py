"""What each reward function may reach, in words, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import urlsplit

from reinforge.config import JudgeConfig
from reinforge.grading.language.spec import PythonGrader, read, walk
from reinforge.grading.language.spec_judges import JudgeNode
from reinforge.grading.reward_function import RewardFunction
from reinforge.sandbox.launch import Tier
from reinforge.sandbox.limits import Limits

NOTHING = "no network, no secrets"


def access_lines(functions: Iterable[RewardFunction], limits: Limits, judge: JudgeConfig, tier: Tier) -> list[str]:
    """One line for all functions with the same access, in the order of the functions.

    >>> from reinforge.sandbox.landlock import Landlock
    >>> function = RewardFunction("style", "style_v1", "", "f.py", "f", "predibase", ())
    >>> limits = Limits(allowed_hosts=("api.example.org",), secrets=("API_KEY",))
    >>> access_lines([function], limits, JudgeConfig(), Landlock(7))
    ['style may reach: api.example.org, the secret API_KEY']
    >>> access_lines([function], Limits(), JudgeConfig(), Landlock(7))
    ['style may reach: no network, no secrets']
    """
    names: dict[str, list[str]] = {}
    for function in functions:
        names.setdefault(_access_text(function, limits.of(function.name), judge), []).append(function.name)
    lines = [f"{', '.join(of_access)} may reach: {text}" for text, of_access in names.items()]
    if tier.network == "shared":
        lines.append("nothing holds reward functions to this: the plain tier does not isolate")
    return lines


def _access_text(function: RewardFunction, limits: Limits, judge: JudgeConfig) -> str:
    nodes = [] if function.dialect != "grader" else [node for _, node in walk(read(json.loads(function.source), ""))]
    parts = []
    if not nodes or any(isinstance(node, PythonGrader) for node in nodes):
        private = " (private addresses too)" if limits.allow_private_addresses and limits.allowed_hosts else ""
        parts += [f"{', '.join(limits.allowed_hosts)}{private}"] if limits.allowed_hosts else []
        plural = "s" if len(limits.secrets) > 1 else ""
        parts += [f"the secret{plural} {', '.join(limits.secrets)}"] if limits.secrets else []
    if any(isinstance(node, JudgeNode) for node in nodes):
        parts.append(f"the judge at {urlsplit(judge.base_url or '').netloc}, asked by us")
    return ", ".join(parts) or NOTHING
