"""Long work as people watch it: a live table on a terminal, one line a step elsewhere, JSON lines for programs.

What is shown of a step comes from its metrics by name. All of it goes to stderr, but the JSON lines. A reader that goes
away (`2>&1 | head`) ends the showing, never the run.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from reinforge.cli.progress import LINE_EVERY_S, REDRAW_EVERY_S, Pace, ProgressLines, progress_text
from reinforge.cli.text import duration, figure, is_rich_terminal, say, visible

if TYPE_CHECKING:
    from reinforge.insight.evaluation import Evaluation
    from reinforge.types import Group

NUM_ROWS = 12
"""Latest steps that stay in the live table."""
COMPLETION_EVERY_S = 20.0
"""One completion is shown in full about this often."""


class Display(Protocol):
    """Where a run is shown while it goes on: a Watcher of the loop that can be closed."""

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        """A step is done."""
        ...

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        """A held-out evaluation is done."""
        ...

    def note(self, text: str) -> None:
        """Something people should know."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Something that takes long has come so far."""
        ...

    def close(self) -> None:
        """Leave the screen tidy. Twice is fine."""
        ...


def open_display(num_steps: int, *, as_json: bool = False) -> Display:
    """The display that fits where our output goes."""
    if as_json:
        return JsonLines()
    return LiveTable(num_steps) if is_rich_terminal(sys.stderr) else PlainLines(num_steps)


class Columns:
    """A step's metrics as short texts: the same ones for every display."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._times_s: deque[float] = deque(maxlen=20)

    def of(self, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """With the time left, as far as the latest steps tell (evaluations come on top)."""
        self._times_s.append(metrics.get("time/step_s", 0.0) + metrics.get("time/record_s", 0.0))
        left_s = (self._num_steps - step) * sum(self._times_s) / len(self._times_s)
        return {"step": f"{step}/{self._num_steps}", **self.values(metrics), "left": duration(left_s)}

    @staticmethod
    def values(metrics: Mapping[str, float], functions: Iterable[str] = ()) -> dict[str, str]:
        """What the metrics alone say, `functions` first to last; what they do not hold (KL without `beta`) is left out.

        The mean of a function is that of the calls that gave a value: `errors` shows when some did not.
        """
        names = function_names(metrics, functions)
        columns = {"reward": ("reward/mean", ".3f")}
        columns |= {visible(name, one_line=True): (f"reward/{name}/mean", ".3f") for name in names}
        if metrics.get("reward/error_share", 0.0) > 0:
            columns["errors"] = ("reward/error_share", ".1%")
        columns |= {
            "std": ("reward/std", ".3f"),
            "zero-var": ("group/zero_variance_share", ".0%"),
            "kept": ("group/kept_share", ".0%"),
            "tokens": ("completion/tokens_mean", ".0f"),
            "KL": ("policy/kl", ".4f"),
            "tok/s": ("speed/tokens_per_s", ".0f"),
        }
        return {title: figure(metrics[name], form) for title, (name, form) in columns.items() if name in metrics}


def function_names(metrics: Mapping[str, float], first: Iterable[str] = ()) -> list[str]:
    """The functions that have a mean, those of `first` in that order before the others. Figures that a function tells
    beside its score have a mean too, but no number of errors.

    >>> metrics = {"reward/mean": 1, "reward/f/mean": 1, "reward/f/errors": 0, "reward/f/recall/mean": 1}
    >>> metrics |= {"reward/a/b/mean": 0, "reward/a/b/errors": 0}
    >>> function_names(metrics), function_names(metrics, ["a/b", "gone", "f"])
    (['f', 'a/b'], ['a/b', 'f'])
    """
    matches = (re.fullmatch(r"reward/(.+)/mean", key) for key in metrics)
    found = [match[1] for match in matches if match and f"reward/{match[1]}/errors" in metrics]
    return list(dict.fromkeys([*(name for name in first if name in found), *found]))


def column_names(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Of rows that may lack some; the fullest row sets the order.

    >>> column_names([{"reward": "1", "KL": "0"}, {"reward": "1", "errors": "2%", "KL": "0"}])
    ['reward', 'errors', 'KL']
    """
    return list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))


@dataclass(frozen=True)
class Shown:
    """One completion as it is shown, its text made harmless."""

    title: str
    prompt_end: str
    """The last lines of the prompt: what the completion continues."""
    text: str


class Shower:
    """Picks a completion every COMPLETION_EVERY_S seconds, without looking at its reward: good and bad ones show."""

    def __init__(self) -> None:
        self._last = time.monotonic() - COMPLETION_EVERY_S

    def pick(self, step: int, groups: Sequence[Group]) -> Shown | None:
        now = time.monotonic()
        if not groups or now - self._last < COMPLETION_EVERY_S:
            return None
        self._last = now
        group = groups[step % len(groups)]
        place = step % len(group.completions)
        grade = group.grades[place]
        scores = ", ".join(f"{score.name} {figure(score.value, '.3g')}" for score in grade.scores)
        title = f"step {step}, example {group.prompt.example.index}: reward {figure(grade.reward, '.3g')} ({scores})"
        end = "\n".join(group.prompt.text.rstrip().splitlines()[-3:])[-400:]
        return Shown(visible(title, one_line=True), visible(end) + " ▸ ", visible(group.completions[place].text))


def evaluation_text(step: int, evaluation: Evaluation) -> str:
    """
    >>> from reinforge.insight.evaluation import Evaluation
    >>> evaluation_text(20, Evaluation(0.5, (0.25, 0.75), 0.4, {}, {}, 0.0, 0.625, None, 8, 32))
    'held-out at step 20: pass@1 0.500 (95 % interval 0.250 .. 0.750), greedy 0.625, 8 prompts x 4'
    """
    low, high = evaluation.ci95 or (None, None)
    return (
        f"held-out at step {step}: pass@1 {figure(evaluation.pass_at_1)}"
        f" (95 % interval {figure(low)} .. {figure(high)}), greedy {figure(evaluation.greedy_pass_at_1)},"
        f" {evaluation.num_prompts} prompts x {evaluation.num_samples / max(evaluation.num_prompts, 1):.3g}"
        + (f", {evaluation.num_left_out} left out (no judgement)" if evaluation.num_left_out else "")
        + (f", {sum(evaluation.errors.values())} failed calls" if evaluation.errors else "")
    )


class PlainLines:
    """One line a step."""

    def __init__(self, num_steps: int) -> None:
        self._columns = Columns(num_steps)
        self._shower = Shower()
        self.progress = ProgressLines()

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        self._say("  ".join(f"{name} {value}" for name, value in self._columns.of(step, metrics).items()))
        shown = self._shower.pick(step, groups)
        if shown:
            self._say("\n    ".join([f"  {shown.title}", *(shown.prompt_end + shown.text).split("\n")]))

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        self._say(evaluation_text(step, evaluation))

    def note(self, text: str) -> None:
        self._say(visible(text))

    def close(self) -> None:
        """Nothing is left open."""

    def _say(self, line: str) -> None:
        with suppress(BrokenPipeError):
            say(line)


class JsonLines:
    """One JSON object a line on stdout, for programs. Completions are in the run's database; the stream stays small."""

    def __init__(self) -> None:
        self._pace = Pace(LINE_EVERY_S)

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        self._write({"event": "step", "step": step, "metrics": dict(metrics)})

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        self._write({"event": "evaluation", **evaluation.as_json(step)})

    def note(self, text: str) -> None:
        self._write({"event": "note", "text": text})

    def progress(self, what: str, done: int, total: int) -> None:
        if self._pace.is_due():
            self._write({"event": "progress", "what": what, "done": done, "total": total})

    def close(self) -> None:
        """Nothing is left open."""

    def _write(self, record: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(record), flush=True)


class LiveTable:
    """The latest steps in a table that stays in place, a completion below it, notes scrolling above."""

    def __init__(self, num_steps: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._columns = Columns(num_steps)
        self._shower = Shower()
        self._rows: deque[dict[str, str]] = deque(maxlen=NUM_ROWS)
        self._completion: Any = ""
        self._pace = Pace(REDRAW_EVERY_S)
        self._progress = ""
        self._live = Live("", console=Console(stderr=True), auto_refresh=False)
        self._live.start()

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None:
        self._rows.append(self._columns.of(step, metrics))
        shown = self._shower.pick(step, groups)
        if shown:
            self._completion = _panel(shown)
        self._draw()

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        self._progress = ""
        self._draw()
        self.note(evaluation_text(step, evaluation))

    def progress(self, what: str, done: int, total: int) -> None:
        if self._pace.is_due():
            self._progress = progress_text(what, done, total)
            self._draw()

    def note(self, text: str) -> None:
        from rich.text import Text

        with suppress(BrokenPipeError):
            self._live.console.print(Text(visible(text)))

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._live.stop()

    def _draw(self) -> None:
        from rich.console import Group as Stack
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        names = column_names(self._rows)
        for name in names:
            table.add_column(Text(name), justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*(row.get(name, "-") for name in names))
        progress = [Text(self._progress, style="dim")] if self._progress else []
        with suppress(BrokenPipeError):
            self._live.update(Stack(table, self._completion, *progress), refresh=True)


def _panel(shown: Shown) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    body = Text.assemble((shown.prompt_end, "dim"), shown.text)  # Text, never markup: nothing in it acts
    return Panel(body, title=Text(shown.title), title_align="left", border_style="dim")
