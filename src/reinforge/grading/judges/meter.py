"""What judges cost: counted, compared with the budget, told per step."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from reinforge.config import JudgeConfig, JudgePrice
from reinforge.run_store.judgements import Judgements, Usage


def cost_of(usage: Usage, prices: Mapping[str, JudgePrice]) -> float | None:
    """In the currency of the prices; None for a model without one.

    >>> cost_of(Usage("m", 3, 2_000_000, 100_000), {"m": JudgePrice(input=0.5, output=2.0)})
    1.2
    """
    price = prices.get(usage.model)
    if price is None:
        return None
    return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) / 1e6


class Meter:
    """Counts calls, tokens and money of all judges of one client. Several threads may use it."""

    def __init__(self, config: JudgeConfig, judgements: Judgements) -> None:
        """Spending goes on from what the judgements say."""
        self._config = config
        self._judgements = judgements
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._tokens = sum(usage.tokens for usage in judgements.usage())
        self._cost = sum(cost_of(usage, config.prices) or 0.0 for usage in judgements.usage())

    def call(self, model: str, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """One request was sent; no tokens when no answer came that says how many it took."""
        self._judgements.count_call(model, prompt_tokens, completion_tokens)
        usage = Usage(model, 1, prompt_tokens, completion_tokens)
        cost = cost_of(usage, self._config.prices)
        with self._lock:
            self._tokens += usage.tokens
            self._cost += cost or 0.0
            self._counts.update(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
            if cost is not None:
                self._counts["cost"] += cost  # type: ignore[assignment]  # the only figure with a fraction

    def count(self, what: str) -> None:
        """One more of it: retries, repairs, questions, faults."""
        with self._lock:
            self._counts[what] += 1

    def overspent(self) -> str:
        """Why nothing more may be asked; empty while it may."""
        config = self._config
        with self._lock:
            if config.budget_tokens is not None and self._tokens >= config.budget_tokens:
                return f"judges have used {self._tokens:,} tokens, and judge.budget_tokens is {config.budget_tokens:,}"
            if config.budget_cost is not None and self._cost >= config.budget_cost:
                return f"judges have cost {self._cost:,.4f}, and judge.budget_cost is {config.budget_cost:,g}"
        return ""

    def take(self) -> dict[str, float]:
        """What was counted since this was last asked."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return {what: float(number) for what, number in counts.items()}
