"""THE LOOP: sample, grade, compare, update, publish. No torch, no device, no tokenizer: that is the roles' business."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from reinforge.config import GRPOConfig
from reinforge.data.order import PromptOrder
from reinforge.errors import Interrupted, StoppedByGuard
from reinforge.evaluation import evaluate
from reinforge.grading.overlong import overlong_score
from reinforge.grading.replay import accidents
from reinforge.insight.evaluation import Evaluation
from reinforge.insight.faults import failing_function, reward_faults
from reinforge.insight.metrics import step_metrics
from reinforge.learner.advantage import advantages
from reinforge.roles import Roles
from reinforge.rollout.collect import Collected, collect
from reinforge.run_store import Event, Run, StepRecord, save_checkpoint
from reinforge.run_store.codec import encode_state
from reinforge.types import Batch, Group, Prompt, SampleRequest, TrainState


@dataclass(frozen=True)
class Task:
    """What is to be learned: the config and the prompts."""

    config: GRPOConfig
    train_prompts: Sequence[Prompt]
    heldout_prompts: Sequence[Prompt]
    max_tokens: int
    """Longest completion; the config may leave it to the data."""


class Watcher(Protocol):
    """Looks on; whatever it does cannot change a run."""

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None: ...

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None: ...

    def note(self, text: str) -> None: ...


BeforeStep = Callable[[int], Sequence[Event]]
"""Called between two steps with the number of steps done; it may change how the roles work (an update of the reward
functions) and tells what it did. What it does must be a function of the step when a run is resumed."""


@dataclass
class StopRequest:
    """Set from outside (a signal handler) to end the run after the step under way."""

    signal: str = ""
    """SIGINT or SIGTERM, empty while nobody asked."""
    exit_code: int = 130


@dataclass
class _Clock:
    """Seconds per stage of the step under way."""

    times: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.times[f"time/{stage}_s"] = now - self.last
        self.last = now


def train(
    task: Task,
    roles: Roles,
    run: Run,
    watcher: Watcher,
    state: TrainState | None = None,
    stop: StopRequest | None = None,
    until_step: int | None = None,
    before_step: BeforeStep = lambda step: (),
) -> None:
    """Train from `state` (fresh unless given; the learner is already restored to it) to the last step.

    Every step is one transaction in the run's database. Raises Interrupted or StoppedByGuard after a checkpoint.
    """
    config, state, stop = task.config, state or TrainState(), stop or StopRequest()
    last_step = config.train_steps if until_step is None else until_step
    roles.sampler.load(roles.learner.publish())
    if state.step == 0:
        _evaluate_if_due(task, roles, run, watcher, 0)
    record_s = 0.0
    while state.step < last_step:
        changes = before_step(state.step)
        clock, collected = _Clock({"time/record_s": record_s}), None
        if state.batch is None:
            collected = _sample_and_grade(task, roles, state)
            _stop_if_rewards_fail(task, roles, run, watcher, state, collected.groups)
            state = _with_batch(state, collected, config)
        assert state.batch is not None
        clock.lap("collect")
        update = roles.learner.update(state.batch)
        clock.lap("update")
        roles.sampler.load(roles.learner.publish())
        clock.lap("publish")

        record = _record(task, roles, state, collected, update.metrics, clock, changes)
        state = replace(state, step=state.step + 1, batch=_unless_used_up(state.batch.after(update), config))
        run.record_step(record, config.keep_tokens_steps)
        clock.lap("record")
        record_s = clock.times["time/record_s"]
        watcher.step(state.step, record.metrics, record.groups)
        for event in record.events:
            watcher.note(event.message)

        score = _evaluate_if_due(task, roles, run, watcher, state.step)
        asked_to_stop = stop.signal or run.take_stop_request()
        if asked_to_stop or state.step % config.save_every == 0 or state.step == last_step:
            save_checkpoint(run.path, state.step, partial(_write_state, roles, state), score)
        if asked_to_stop and state.step < last_step:
            _end_early(run, stop, asked_to_stop, state.step)


def _sample_and_grade(task: Task, roles: Roles, state: TrainState) -> Collected:
    """G completions for each of the next P prompts."""
    config, order = task.config, PromptOrder(len(task.train_prompts), task.config.seed)
    drawn = [order.at(state.prompts_drawn + place) for place in range(config.prompts_per_step)]
    requests = [
        SampleRequest(task.train_prompts[index], config.num_generations, (config.seed, state.step, place))
        for place, (index, _) in enumerate(drawn)
    ]
    extra = []
    if config.overlong is not None:
        extra.append(partial(overlong_score, params=config.overlong, max_tokens=task.max_tokens))
    return collect(requests, [epoch for _, epoch in drawn], roles.sampler, roles.grader, extra)


def _with_batch(state: TrainState, collected: Collected, config: GRPOConfig) -> TrainState:
    """Compare: every completion with its group."""
    rewards_PG = [group.rewards_G for group in collected.groups]
    batch = Batch(collected.groups, advantages(rewards_PG, config.scale_rewards))
    return replace(state, prompts_drawn=state.prompts_drawn + len(collected.groups), batch=batch)


def _unless_used_up(batch: Batch, config: GRPOConfig) -> Batch | None:
    return batch if batch.updates_done < config.num_iterations else None


def _record(
    task: Task,
    roles: Roles,
    state: TrainState,
    collected: Collected | None,
    update: Mapping[str, float],
    clock: _Clock,
    changes: Sequence[Event],
) -> StepRecord:
    """The row of the step: its metrics, and the completions if they were collected for it."""
    times, settings = clock.times, task.config.eval
    times["time/step_s"] = sum(times[f"time/{stage}_s"] for stage in ("collect", "update", "publish"))
    del times["time/collect_s"]
    groups: tuple[Group, ...] = ()
    advantages_PG: tuple[tuple[float, ...], ...] = ()
    if collected is not None and state.batch is not None:
        groups, advantages_PG = collected.groups, state.batch.advantages_PG
        times |= {"time/rollout_s": collected.rollout_s, "time/reward_wait_s": collected.reward_wait_s}
    metrics = step_metrics(groups, update, times, settings.correct_fn, settings.correct_from)
    return StepRecord(
        step=state.step + 1,
        metrics=metrics,
        state_hash=roles.learner.state_hash(),
        groups=groups,
        advantages_PG=advantages_PG,
        events=(*changes, *reward_faults(groups)),
        accidents=accidents(groups),
    )


def _evaluate_if_due(task: Task, roles: Roles, run: Run, watcher: Watcher, step: int) -> float | None:
    """Held-out evaluation before the first and after the last step, and each `eval.every_steps` -> its score."""
    settings, last = task.config.eval, task.config.train_steps
    due = step in (0, last) or (settings.every_steps and step % settings.every_steps == 0)
    if not due or not task.heldout_prompts:
        return None
    evaluation, groups = evaluate(task.heldout_prompts, roles.sampler, roles.grader, settings, task.config.seed)
    run.save_evaluation(f"step-{step:08d}", evaluation.as_json(step))
    watcher.evaluation(step, evaluation, groups)
    for event in reward_faults(groups):
        watcher.note(f"held-out: {event.message}")
    return evaluation.pass_at_1


def _write_state(roles: Roles, state: TrainState, folder: Path) -> None:
    roles.learner.save(folder)
    (folder / "state.json").write_text(encode_state(state), encoding="utf-8")


def _stop_if_rewards_fail(
    task: Task, roles: Roles, run: Run, watcher: Watcher, state: TrainState, groups: Sequence[Group]
) -> None:
    """Stop before anything is learned from a step whose scores are no judgement. A resume collects it again."""
    config = task.config.reward_fns
    strict = {name: 0.0 for name, settings in config.settings.items() if settings.on_error == "fail"}
    fault = failing_function(groups, config.max_error_rate, strict)
    if fault is None:
        return
    for event in (*reward_faults(groups), fault):
        run.record_event(event)
        watcher.note(event.message)
    watcher.note(fault.data["message"])
    save_checkpoint(run.path, state.step, partial(_write_state, roles, state))
    run.finish("stopped", fault.message)
    raise StoppedByGuard(
        f"Stopped after step {state.step}: {fault.message}.",
        hint=f"Correct it (reinforge rewards update {run.path} FILE), then: reinforge runs resume {run.path}",
    )


def _end_early(run: Run, stop: StopRequest, reason: str, step: int) -> None:
    hint = f"Go on with: reinforge runs resume {run.path}"
    if stop.signal:
        run.finish("interrupted", f"{stop.signal} after step {step}")
        raise Interrupted(
            f"Stopped by {stop.signal} after step {step}, checkpoint written.", hint=hint, exit_code=stop.exit_code
        )
    run.finish("stopped", reason)
    raise StoppedByGuard(f"Stopped after step {step} ({reason}), checkpoint written.", hint=hint)
