"""The public functions: what the command line calls, and what a Python program calls.

import reinforge
run = reinforge.train(reinforge.GRPOConfig(...), dataset=[{"prompt": ..., "answer": ...}, ...])
"""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from reinforge.errors import CheckpointError, DataError, ReinforgeError, SetupError, UsageError

if TYPE_CHECKING:
    from reinforge.cluster.local import LocalRun
    from reinforge.config import GRPOConfig
    from reinforge.grading.grader import RewardFunctionGrader
    from reinforge.grading.reward_function import RewardFunction
    from reinforge.insight.evaluation import Evaluation
    from reinforge.loop import StopRequest, Watcher
    from reinforge.run_store import Event, Run
    from reinforge.types import Grade, Group, TrainState

_PACKAGES = ("reinforge", "torch", "transformers", "peft", "tokenizers", "bitsandbytes")
"""What decides a run's bits; not all need be installed."""


class SilentWatcher:
    """Looks away."""

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None: ...

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None: ...

    def note(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...


def train(
    config: GRPOConfig,
    dataset: Iterable[Mapping[str, Any]] | None = None,
    *,
    base_dir: Path | None = None,
    runs_dir: Path | str = "runs",
    name: str | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Train an adapter and return the run's directory.

    `dataset` are rows (dicts, or a `datasets.Dataset`) to use instead of `config.data.path`; they are kept in the run's
    directory. Relative paths in the config start at `base_dir`, by default the current folder.

    Raises Interrupted or StoppedByGuard after a checkpoint; `resume` goes on from there.
    """
    from reinforge.cluster import golds, local
    from reinforge.grading.grader import RewardFunctionGrader
    from reinforge.run_store import Run, reward_file

    watcher = watcher or SilentWatcher()
    Run.check_place(Path(runs_dir), name)
    started = datetime.datetime.now().replace(microsecond=0)
    rows = None if dataset is None else _as_stored(dataset)
    directory = (base_dir or Path.cwd()).resolve()
    if (directory / config.base_model).is_dir():
        config = config.model_copy(update={"base_model": str(directory / config.base_model)})
    grader = RewardFunctionGrader.from_config(config.reward_fns, directory, watcher.note)
    built = local.build(config, directory, grader, started=started, tell=watcher.note, rows=rows)
    try:
        files = {reward_file(f.version, f.file_suffix): f.source for f in grader.functions}
        if rows is not None:
            files["dataset.json"] = json.dumps(rows)
        built, kept = golds.with_golds(built, directory, watcher.note)
        files |= kept
        with Run.create(Path(runs_dir), name, _stored(config), _about(built, started, directory), files) as run:
            built.grader.keep_in(run.path)
            _run_to_end(built, run, watcher, None)
            return run.path
    finally:
        built.close()


def resume(run_path: Path | str, watcher: Watcher | None = None, *, overrides: Sequence[str] = ()) -> Path:
    """Go on with a run from its newest intact checkpoint, or from the start if there is none. Rows after it are deleted
    and made again, bitwise equal to those of a run that was never interrupted.

    `overrides` change from now on how judges are asked ("reward_fns.judge.KEY=VALUE", for instance a budget) and how
    much memory is taken ("slots=N", "tokens_per_microbatch=N", "gradient_checkpointing=true").
    """
    from reinforge.resume_changes import change_run
    from reinforge.reward_updates import changed_files
    from reinforge.run_store import Run

    watcher = watcher or SilentWatcher()
    path = Path(run_path)
    with Run.open(path) as run:
        if run.status()[0] == "succeeded":
            raise UsageError(f"{path} has done all {run.last_step()} steps.", hint="There is nothing to resume.")
    with Run.open(path, writable=True) as run:
        if overrides:
            change_run(run, overrides, watcher.note)
        built = rebuild(run, watcher)
        for text in changed_files(run):
            watcher.note(text)
        try:
            # After the last checkpoint there may be no step left to do, and still an adapter to publish.
            _run_to_end(built, run, watcher, restore(built, run, watcher))
        finally:
            built.close()
    return path


def evaluate(
    subject: str | Path,
    config: GRPOConfig | None = None,
    *,
    base_dir: Path | None = None,
    data: str | None = None,
    watcher: Watcher | None = None,
) -> Evaluation:
    """Score a model, an adapter or a run (RUN or RUN@STEP) on held-out prompts.

    Without `config` the subject must be a run, and its own config is taken, with the reward functions it has now. With
    `data` all rows of that data set are used, otherwise the rows the config holds out.
    """
    from reinforge.cluster.evaluating import evaluation as build_evaluation
    from reinforge.evaluation import evaluate as score
    from reinforge.evaluation_watch import tell_progress
    from reinforge.grading.grader import RewardFunctionGrader
    from reinforge.insight.faults import reward_faults
    from reinforge.policy.subject import find_subject
    from reinforge.reward_updates import latest_functions
    from reinforge.run_store import Run

    watcher, found = watcher or SilentWatcher(), find_subject(subject)
    directory, rows = base_dir or Path.cwd(), None
    if config is None:
        if found.run is None:
            raise UsageError(f"{subject} is no run, so what to evaluate it on is unknown.", hint="Add --config CONFIG.")
        with Run.open(found.run) as run:
            config, directory, rows = stored_config(run), Path(run.about["base_dir"]), stored_rows(run)
            grader = stored_grader(run, latest_functions(run), watcher)
    else:
        grader = RewardFunctionGrader.from_config(config.reward_fns, directory, watcher.note)
    with build_evaluation(config, directory, grader, found, data=data, tell=watcher.note, rows=rows) as built:
        settings = config.eval if data is None else config.eval.model_copy(update={"max_prompts": None})
        look = partial(tell_progress, watcher.progress, "")
        evaluation, groups = score(built.prompts, built.sampler, built.grader, settings, config.seed, look)
    for event in reward_faults(groups):
        watcher.note(event.message)
    return evaluation


def grade(
    rewards: str,
    data: str,
    *,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    base_dir: Path | None = None,
    unsafe_no_sandbox: bool = False,
    packages: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[tuple[dict[str, Any], Grade]]:
    """Score completions that exist already -> (row, grade) in the order of the data. Loads no model.

    `rewards` is `file.py:function`, `file.py` (all its reward functions), a grader (`file.json` or a built-in's name),
    or a config file (its functions and weights). Neighbouring rows that differ only in their completion are judged
    together, as one group. `unsafe_no_sandbox`: run functions you trust where this machine cannot isolate them
    (SECURITY.md). `packages` are what a Python file imports, as in `RewardFunctionsRuntimeConfig`; a config names its
    own. `tell` is called with what takes long, `progress` with what was done and how much of it (done, of how many).
    """
    from reinforge.config_file import load_config
    from reinforge.data.completions import completion_rows
    from reinforge.grading.completions import grade_completions
    from reinforge.grading.futures import no_progress
    from reinforge.grading.grader import RewardFunctionGrader
    from reinforge.grading.reward_function import load_rewards_file
    from reinforge.sandbox.environments import runtime_with, silent, worker_limits

    directory, tell = base_dir or Path.cwd(), tell or silent
    if Path(rewards).suffix in (".yaml", ".yml", ".toml"):
        grader = RewardFunctionGrader.from_config(load_config([directory / rewards]).reward_fns, directory, tell)
    else:
        runtime = runtime_with(packages, {"unsafe_no_sandbox": unsafe_no_sandbox})
        functions = load_rewards_file(rewards, directory, worker_limits(runtime, tell))
        grader = RewardFunctionGrader(functions, runtime, tell=tell)
    with closing(grader):
        rows = completion_rows(data, prompt_column, completion_column, directory)
        return list(zip(rows, grade_completions(grader, rows, progress or no_progress), strict=True))


def _run_to_end(built: LocalRun, run: Run, watcher: Watcher, state: TrainState | None) -> None:
    """The loop, and how it ended in the run's record."""
    from reinforge import loop
    from reinforge.errors import Interrupted, StoppedByGuard
    from reinforge.reward_updates import RewardUpdates

    try:
        with _stop_signals(watcher) as stop:
            updates = RewardUpdates(run, built.grader)

            def before_step(step: int) -> Sequence[Event]:
                _tell_network(built, run, watcher)
                return updates.before_step(step)

            loop.train(built.task, built.roles, run, watcher, state, loop.Steering(stop, before_step))
        _tell_network(built, run, watcher)
        _publish_adapter(run)
        run.finish("succeeded")
    except (Interrupted, StoppedByGuard):
        raise
    except KeyboardInterrupt:
        with suppress(ReinforgeError):
            run.finish("interrupted", f"in the middle of step {run.last_step() + 1}")
        hint = f"Go on from the last checkpoint with: reinforge runs resume {run.path}"
        raise Interrupted("Stopped at once.", hint=hint) from None
    except BaseException as fault:
        with suppress(ReinforgeError):  # a full disk, say: the fault itself is what people must see
            run.finish("failed", f"{type(fault).__name__}: {fault}")
        raise


def _tell_network(built: LocalRun, run: Run, watcher: Watcher) -> None:
    """What reward functions wanted from the network and did not get. Of the process, not of a step: a resumed run may
    meet another network."""
    from reinforge.insight.faults import network_faults

    for event in network_faults(built.grader.network.take_failures()):
        run.record_event(event)
        watcher.note(event.message)


@contextmanager
def _stop_signals(watcher: Watcher) -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM ask the loop to stop after its step; a second one ends the process at once."""
    from reinforge.loop import StopRequest

    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only: there, whoever runs us decides
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal, stop.exit_code = signal.Signals(number).name, 128 + number
        watcher.note(f"{stop.signal}: stopping after this step, or in this evaluation; once more stops at once")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rebuild(run: Run, watcher: Watcher) -> LocalRun:
    """The roles of a stored run."""
    from reinforge.cluster import golds, local
    from reinforge.reward_updates import run_functions
    from reinforge.run_store.microbatches import recorded_tokens

    config, rows = stored_config(run), stored_rows(run)
    started = datetime.datetime.fromisoformat(run.about["started"])
    recorded = local.Recorded(run.accidents(), recorded_tokens(run))
    base_dir, grader = Path(run.about["base_dir"]), stored_grader(run, run_functions(run), watcher)
    built = local.build(config, base_dir, grader, started=started, tell=watcher.note, rows=rows, recorded=recorded)
    for what, fingerprint in built.fingerprints.items():
        if run.about["fingerprints"][what] != fingerprint:
            built.close()
            raise CheckpointError(
                f"The {what} of {run.path} is not what the run began with (its hash differs).",
                hint="Put it back as it was, or start a new run.",
            )
    built.grader.keep_in(run.path)
    return golds.with_stored_golds(built, run.path)


def _as_stored(dataset: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a resumed run will read them, so that both runs see the same: JSON values, keys as text, dates as ISO
    text, array scalars as numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, (datetime.date, datetime.time)):
            return value.isoformat()
        if callable(getattr(value, "tolist", None)):
            return value.tolist()
        raise TypeError(f"a {type(value).__name__} ({value!r})")

    rows = []
    for number, row in enumerate(dataset, start=1):
        try:
            rows.append(json.loads(json.dumps(dict(row), default=plain)))
        except (TypeError, ValueError) as fault:
            raise DataError(f"row {number} holds what JSON cannot: {fault}.", hint="Convert it to text.") from fault
    return rows


def stored_rows(run: Run) -> list[dict[str, Any]] | None:
    """The rows a Python program handed in; None when the config names the data."""
    path = run.path / "dataset.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def stored_config(run: Run) -> GRPOConfig:
    """The run's config. What its reward functions are, the run's own files say (`run_functions`)."""
    from reinforge.config import GRPOConfig

    return GRPOConfig.model_validate(run.config())


def stored_grader(run: Run, functions: Sequence[RewardFunction], watcher: Watcher) -> RewardFunctionGrader:
    """Judges by functions of the run as it stored them, whatever their files say now."""
    from reinforge.grading.grader import RewardFunctionGrader

    config = stored_config(run).reward_fns
    return RewardFunctionGrader(functions, config.runtime, config.settings, watcher.note, config.judge)


def restore(built: LocalRun, run: Run, watcher: Watcher) -> TrainState:
    """Take the newest intact checkpoint and drop the rows after it."""
    from reinforge.run_store import decode_state, latest_checkpoint
    from reinforge.types import TrainState

    checkpoint, events = latest_checkpoint(run.path)
    for event in events:
        watcher.note(event.message)
        run.record_event(event)
    if checkpoint is None:
        run.rewind(0)
        return TrainState()
    built.roles.learner.restore(checkpoint.path)
    state = decode_state((checkpoint.path / "state.json").read_text(encoding="utf-8"))
    run.rewind(state.step)
    watcher.note(f"going on after step {state.step}")
    return state


def _publish_adapter(run: Run) -> None:
    """The last checkpoint's adapter becomes the run's."""
    from reinforge.run_store import list_checkpoints

    newest = list_checkpoints(run.path)[-1]
    writing = run.path / ".adapter"
    try:
        shutil.rmtree(writing, ignore_errors=True)
        shutil.copytree(newest.path / "adapter", writing)
        shutil.rmtree(run.path / "adapter", ignore_errors=True)  # gone already if killed between these two lines
        writing.rename(run.path / "adapter")
    except OSError as fault:
        hint = f"It is in {newest.path / 'adapter'}; with space on the disk: reinforge runs resume {run.path}"
        raise SetupError(f"The adapter could not be copied: {fault}.", hint=hint) from fault


def _stored(config: GRPOConfig) -> dict[str, Any]:
    import yaml

    from reinforge.config_file import to_yaml

    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return values


def _about(built: LocalRun, started: datetime.datetime, base_dir: Path) -> dict[str, Any]:
    from reinforge.reward_updates import record_of
    from reinforge.sandbox import tiers

    return {
        "started": started.isoformat(),
        "base_dir": str(base_dir),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES if find_spec(name)},
        },
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "functions": [record_of(function) for function in built.grader.functions],
        "packages": list(built.grader.packages),
        "fingerprints": built.fingerprints,
        "sandbox": tiers.about(),
        "max_tokens": built.task.max_tokens,
        "tokens_per_microbatch": built.tokens_per_microbatch,
    }
