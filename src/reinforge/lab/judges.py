"""What the judges among graders are, for the lab: how they are set up, and what a run of them would cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from reinforge.config import GRPOConfig, JudgeConfig
from reinforge.grading.judges.meter import cost_of
from reinforge.grading.language.spec import read, walk
from reinforge.grading.language.spec_judges import Judge, Rubric
from reinforge.grading.reward_function import RewardFunction
from reinforge.insight.judge_checks import JudgeCost, JudgeFacts
from reinforge.run_store.judgements import Usage


def judges_in(function: RewardFunction) -> Iterator[tuple[str, Judge]]:
    """(names that lead to it, judge) of each judge in a grader."""
    if function.dialect == "grader":
        for path, node in walk(read(json.loads(function.source), function.file_name)):
            if isinstance(node, Judge):
                yield ".".join(path), node


def judge_facts(functions: Sequence[RewardFunction], config: JudgeConfig) -> list[JudgeFacts]:
    return [
        JudgeFacts(
            function=function.name,
            place=place,
            model=node.model or config.model or "",
            temperature=float(node.sampling_params.settings()["temperature"]),
            num_examples=sum(map(len, node.examples.values())) + _measures_in(node),
            weight_sum=_weight_sum(node),
        )
        for function in functions
        for place, node in judges_in(function)
    ]


def _measures_in(node: Judge) -> int:
    """1 where the grader's own messages hold examples of all three qualities."""
    told = " ".join(message.text for message in node.messages).lower()
    return int(all(word in told for word in ("great", "fair", "poor")) or "example" in told)


def _weight_sum(node: Judge) -> float | None:
    lines = node.lines if isinstance(node, Rubric) else None
    return None if lines is None else sum(line.weight for line in lines if line.weight > 0)


def judge_cost(
    functions: Sequence[RewardFunction], usage: Sequence[Usage], judge: JudgeConfig, config: GRPOConfig
) -> JudgeCost | None:
    """None where there are no judges."""
    num_judges = sum(1 for function in functions for _ in judges_in(function))
    if not num_judges:
        return None
    costs = [cost_of(one, judge.prices) for one in usage]
    names = [function.name for function in functions if any(judges_in(function))]
    return JudgeCost(
        function=names[0] if len(names) == 1 else "",
        num_asked=sum(one.calls for one in usage),
        tokens=sum(one.tokens for one in usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        num_questions_of_run=config.train_steps * config.prompts_per_step * config.num_generations * num_judges,
        budget_tokens=judge.budget_tokens,
        budget_cost=judge.budget_cost,
    )
