"""The demo: a tiny model that gives up too early learns, by GRPO on a CPU, to keep searching (recipes/countdown)."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reinforge.recipes.countdown.task import OUTCOMES, Numbers, outcome

if TYPE_CHECKING:
    from reinforge.insight.evaluation import Evaluation
    from reinforge.loop import Watcher
    from reinforge.types import Completion, Group

NUM_SHOWN = 3
"""Problems whose completions are shown before and after."""


@dataclass(frozen=True)
class Comparison:
    """One held-out problem before and after."""

    prompt: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None


@dataclass
class DemoResult:
    run: Path
    steps: int
    seconds: float
    """Wall time of training, evaluations left out."""
    before: Evaluation
    after: Evaluation
    outcomes_before: dict[str, float]
    """Share of held-out completions by what became of them."""
    outcomes_after: dict[str, float]
    tokens_before: float
    tokens_after: float
    comparisons: list[Comparison]
    picture: Path

    def as_json(self) -> dict[str, Any]:
        """The figures; `before`, `after` and `ci95` (of `after`) are the sampled pass@1 on held-out problems."""
        return {
            "before": self.before.pass_at_1,
            "after": self.after.pass_at_1,
            "ci95": self.after.ci95,
            "ci95_before": self.before.ci95,
            "greedy_before": self.before.greedy_pass_at_1,
            "greedy_after": self.after.greedy_pass_at_1,
            "outcomes_before": self.outcomes_before,
            "outcomes_after": self.outcomes_after,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "run": str(self.run),
            "picture": str(self.picture),
        }


@dataclass
class _HeldOut:
    """Remembers the first and the last evaluation, and passes everything on."""

    inner: Watcher
    evaluations: list[tuple[Evaluation, Sequence[Group]]] = field(default_factory=list)

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        self.inner.step(step, metrics, groups)

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        self.evaluations = [*self.evaluations[:1], (evaluation, groups)]
        self.inner.evaluation(step, evaluation, groups)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def progress(self, what: str, done: int, total: int) -> None:
        self.inner.progress(what, done, total)


def recipe_folder() -> Path:
    """Where the recipe lies in the installed package."""
    return Path(str(files("reinforge.recipes.countdown")))


def run_demo(watcher: Watcher, *, seed: int = 0, steps: int | None = None, runs_dir: Path = Path("runs")) -> DemoResult:
    """Train the recipe, evaluating before and after on the same held-out problems. Equal seeds give equal runs."""
    from reinforge import api
    from reinforge.config_file import load_config
    from reinforge.plot import plot_run
    from reinforge.run_store import Run

    overrides = [f"seed={seed}", *([f"train_steps={steps}"] if steps else [])]
    config = load_config([recipe_folder() / "config.yaml"], overrides)
    heldout = _HeldOut(watcher)
    name = f"demo-{datetime.datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
    path = api.train(config, runs_dir=runs_dir, name=name, watcher=heldout)
    (before, groups_before), (after, groups_after) = heldout.evaluations
    with Run.open(path) as run:
        seconds = sum(row.metrics["time/step_s"] + row.metrics["time/record_s"] for row in run.steps())
    return DemoResult(
        run=path,
        steps=config.train_steps,
        seconds=seconds,
        before=before,
        after=after,
        outcomes_before=_outcomes(groups_before),
        outcomes_after=_outcomes(groups_after),
        tokens_before=_mean_tokens(groups_before),
        tokens_after=_mean_tokens(groups_after),
        comparisons=_compare(groups_before, groups_after),
        picture=plot_run(path, path / "curves.png"),
    )


def _outcomes(groups: Sequence[Group]) -> dict[str, float]:
    counts = Counter(_outcome_of(group, completion) for group in groups for completion in group.completions)
    total = sum(counts.values())
    return {name: counts[name] / total for name in OUTCOMES}


def _outcome_of(group: Group, completion: Completion) -> str:
    columns = group.prompt.example.columns
    one, two, three = (int(number) for number in columns["numbers"].split())
    numbers: Numbers = (one, two, three)
    return outcome(completion.text, numbers, int(columns["target"]))


def _mean_tokens(groups: Sequence[Group]) -> float:
    lengths = [completion.num_tokens for group in groups for completion in group.completions]
    return sum(lengths) / len(lengths)


def _compare(before: Sequence[Group], after: Sequence[Group]) -> list[Comparison]:
    """The first held-out problems, first completion each: not the best, not the worst."""
    return [
        Comparison(
            prompt=str(one.prompt.example.prompt),
            before=one.completions[0].text,
            after=two.completions[0].text,
            reward_before=one.grades[0].reward,
            reward_after=two.grades[0].reward,
        )
        for one, two in zip(before[:NUM_SHOWN], after[:NUM_SHOWN], strict=True)
    ]
