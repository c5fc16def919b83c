"""THE LOOP: sample, grade, compare, update, publish. No torch, no device, no tokenizer: that is the roles' business."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from reinforge.config import GRPOConfig
from reinforge.errors import Interrupted, StoppedByGuard
from reinforge.evaluation import evaluate
from reinforge.evaluation_watch import EvaluationFailed, EvaluationStopped, EvaluationWatch, evaluation_fault, fault_of
from reinforge.gold_check import GoldCheck, GoldCompletion, check_golds
from reinforge.grading.overlong import overlong_score
from reinforge.grading.replay import accidents
from reinforge.insight.evaluation import Evaluation
from reinforge.insight.faults import REPLACED, replaced_workers, reward_faults
from reinforge.insight.metrics import step_metrics
from reinforge.learner.advantage import advantages
from reinforge.roles import Roles
from reinforge.rollout.pipeline import beside, judged_again
from reinforge.rollout.rounds import Rollouts
from reinforge.run_store import Event, Run, StepRecord, save_checkpoint, score_checkpoint
from reinforge.run_store.codec import encode_state
from reinforge.run_store.microbatches import memory_ran_out
from reinforge.types import Batch, Drawn, Group, Prompt, TrainState, Update


@dataclass(frozen=True)
class Task:
    """What is to be learned: the config and the prompts."""

    config: GRPOConfig
    train_prompts: Sequence[Prompt]
    heldout_prompts: Sequence[Prompt]
    max_tokens: int
    """Longest completion; the config may leave it to the data."""
    golds: Sequence[GoldCompletion] = ()
    """Right completions to judge every `reward_fns.recheck.every_steps`."""


class Watcher(Protocol):
    """Looks on; whatever it does cannot change a run."""

    def step(self, step: int, metrics: Mapping[str, float], groups: Sequence[Group]) -> None: ...

    def evaluation(self, step: int, evaluation: Evaluation, groups: Sequence[Group]) -> None: ...

    def note(self, text: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Something that takes long has come so far. May be called often."""
        ...


BeforeStep = Callable[[int], Sequence[Event]]
"""Called between two steps with the number of steps done; it may change how the roles work (an update of the reward
functions) and tells what it did. What it does must be a function of the step when a run is resumed."""


@dataclass
class StopRequest:
    """Set from outside (a signal handler) to end the run after the step, or in the evaluation, under way."""

    signal: str = ""
    """SIGINT or SIGTERM, empty while nobody asked."""
    exit_code: int = 130


@dataclass(frozen=True)
class Steering:
    """What may act on a run from outside, between two of its steps."""

    stop: StopRequest = field(default_factory=StopRequest)
    before_step: BeforeStep = lambda step: ()
    until_step: int | None = None
    """Return after this step and its checkpoint, before the last one."""


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
    steering: Steering | None = None,
) -> None:
    """Train from `state` (fresh unless given; the learner is already restored to it) to the last step.

    Every step is one transaction in the run's database. Raises Interrupted or StoppedByGuard after a checkpoint.
    """
    config, state, steering = task.config, state or TrainState(), steering or Steering()
    last_step = config.train_steps if steering.until_step is None else steering.until_step
    rollouts = _rollouts(task, roles)
    roles.sampler.load(roles.learner.publish())
    if _is_evaluation_due(task, state.step) and not _is_evaluated(run, state.step):  # or it was stopped in the middle
        steering.before_step(state.step)  # what was sent since may mend what stopped it
        score = _evaluate(task, roles, run, watcher, state, steering.stop)
        if state.step:
            score_checkpoint(run.path, state.step, score)
    first_step, record_s = state.step, 0.0
    while state.step < last_step:
        changes = steering.before_step(state.step)
        checked = _check_golds_if_due(task, roles, run, state.step, bool(changes))
        clock, drawn = _Clock({"time/record_s": record_s}), None
        if state.batch is None:
            drawn = _groups_of(rollouts, state, is_resumed=state.step == first_step)
            fault = rollouts.find_fault(drawn.groups)
            if fault is not None:
                _stop_by_guard(roles, run, watcher, state, drawn.groups, fault)
            state = _with_batch(state, drawn, config)
        assert state.batch is not None
        clock.lap("collect")
        update, ahead = _update(roles, rollouts, state, state.batch, clock)
        roles.sampler.load(roles.learner.publish())
        clock.lap("publish")

        before = replace(checked, events=(*changes, *checked.events))
        record = _record(task, roles, state, drawn, update.metrics, clock, before)
        batch = _unless_used_up(state.batch.after(update), config)
        state = replace(state, step=state.step + 1, batch=batch, ahead=ahead)
        _tell_lowered(run, watcher, state.step, update)
        run.record_step(record, config.keep_tokens_steps)
        clock.lap("record")
        record_s = clock.times["time/record_s"]
        watcher.step(state.step, record.metrics, record.groups)
        for event in record.events:
            watcher.note(event.message)
        _tell_replaced_workers(run, watcher, record.groups)

        is_due = _is_evaluation_due(task, state.step)
        score = _evaluate(task, roles, run, watcher, state, steering.stop) if is_due else None
        asked_to_stop = steering.stop.signal or run.take_stop_request()
        if asked_to_stop or state.step % config.save_every == 0 or state.step == last_step:
            save_checkpoint(run.path, state.step, partial(_write_state, roles, state), score)
        if asked_to_stop and state.step < last_step:
            _end_early(run, steering.stop, asked_to_stop, state.step)


def _rollouts(task: Task, roles: Roles) -> Rollouts:
    """Sample and grade: who draws the groups of a step."""
    extra = []
    if task.config.overlong is not None:
        extra.append(partial(overlong_score, params=task.config.overlong, max_tokens=task.max_tokens))
    find_fault = partial(fault_of, task.config)
    return Rollouts(task.config, task.train_prompts, roles.sampler, roles.grader, extra, find_fault)


def _groups_of(rollouts: Rollouts, state: TrainState, *, is_resumed: bool) -> Drawn:
    """Sample and grade, unless it was done ahead. What stopped the run before it was resumed is judged again."""
    if state.ahead is None:
        return rollouts.draw(state.step, state.prompts_drawn)
    if is_resumed and rollouts.find_fault(state.ahead.groups) is not None:
        return judged_again(rollouts, state.ahead, state.step, state.prompts_drawn)
    return state.ahead


def _with_batch(state: TrainState, drawn: Drawn, config: GRPOConfig) -> TrainState:
    """Compare: every completion with its group."""
    batch = Batch(drawn.kept, advantages([group.rewards_G for group in drawn.kept], config.scale_rewards))
    return replace(state, prompts_drawn=state.prompts_drawn + len(drawn.groups), batch=batch, ahead=None)


def _update(
    roles: Roles, rollouts: Rollouts, state: TrainState, batch: Batch, clock: _Clock
) -> tuple[Update, Drawn | None]:
    """Update, and with a policy lag draw the next batch meanwhile, from the policy as it was before."""

    def learn() -> Update:
        update = roles.learner.update(batch)
        clock.lap("update")
        return update

    config = rollouts.config
    is_last_use = batch.updates_done + 1 == config.num_iterations
    if not (config.max_policy_lag and is_last_use and state.step + 1 < config.train_steps):
        return learn(), None
    both = beside(learn, rollouts, state.step + 1, state.prompts_drawn)
    clock.lap("ahead_wait")
    return both


def _tell_lowered(run: Run, watcher: Watcher, step: int, update: Update) -> None:
    """Before the step is stored: where it is, a resume must know how it was computed."""
    if update.lowered_tokens is not None:
        event = memory_ran_out(step, update.lowered_tokens)
        run.record_event(event)
        watcher.note(event.message)


def _unless_used_up(batch: Batch, config: GRPOConfig) -> Batch | None:
    return batch if batch.updates_done < config.num_iterations else None


def _record(
    task: Task,
    roles: Roles,
    state: TrainState,
    drawn: Drawn | None,
    update: Mapping[str, float],
    clock: _Clock,
    before: GoldCheck,
) -> StepRecord:
    """The row of the step: its metrics, the completions if they were collected for it, and what happened before it."""
    times, settings = clock.times, task.config.eval
    stages = ("collect", "update", "ahead_wait", "publish")
    times["time/step_s"] = sum(times.get(f"time/{stage}_s", 0.0) for stage in stages)
    del times["time/collect_s"]
    groups: tuple[Group, ...] = ()
    advantages_PG: tuple[tuple[float, ...], ...] = ()
    others = {**times, **roles.figures()}
    if task.config.max_policy_lag and state.batch is not None:
        others["policy/lag"] = state.step - min(c.policy_version for g in state.batch.groups for c in g.completions)
    if drawn is not None and state.batch is not None:
        groups, advantages_PG = drawn.groups, drawn.advantages_of_all(state.batch.advantages_PG)
        others |= {"time/rollout_s": drawn.rollout_s, "time/reward_wait_s": drawn.reward_wait_s, **drawn.figures}
    metrics = step_metrics(groups, update, others, settings.correct_fn, settings.correct_from)
    return StepRecord(
        step=state.step + 1,
        metrics={**metrics, **before.metrics},
        state_hash=roles.learner.state_hash(),
        groups=groups,
        advantages_PG=advantages_PG,
        events=(*before.events, *reward_faults(groups)),
        accidents={**accidents(groups), **before.accidents},
    )


def _check_golds_if_due(task: Task, roles: Roles, run: Run, step: int, changed: bool) -> GoldCheck:
    """Right completions are judged each `recheck.every_steps`, and when the reward functions have changed."""
    every = task.config.reward_fns.recheck.every_steps
    if not task.golds or not every or (step % every and not changed):
        return GoldCheck()
    return check_golds(task.golds, roles.grader, run, step)


def _is_evaluation_due(task: Task, step: int) -> bool:
    """Before the first and after the last step, and each `eval.every_steps`."""
    every = task.config.eval.every_steps
    return bool(task.heldout_prompts) and bool(step in (0, task.config.train_steps) or (every and step % every == 0))


def _is_evaluated(run: Run, step: int) -> bool:
    """Whether the evaluation that is due after a step was made."""
    return any(evaluation.get("step") == step for evaluation in run.evaluations())


def _evaluate(
    task: Task, roles: Roles, run: Run, watcher: Watcher, state: TrainState, stop: StopRequest
) -> float | None:
    """Held-out evaluation -> its score. Ends the run when a guard or somebody stops it; a resume makes it anew."""
    step, prompts = state.step, task.heldout_prompts
    watch = EvaluationWatch(task.config, step, lambda: stop.signal or run.take_stop_request() or "", watcher.progress)
    try:
        evaluation, groups = evaluate(prompts, roles.sampler, roles.grader, task.config.eval, task.config.seed, watch)
        fault = evaluation_fault(task.config, groups)
    except EvaluationFailed as failed:
        fault, groups = failed.fault, tuple(failed.groups)
    except EvaluationStopped as stopped:
        save_checkpoint(run.path, step, partial(_write_state, roles, state))
        _end_early(run, stop, str(stopped), step, "in the held-out evaluation ")
    if fault is not None:
        _stop_by_guard(roles, run, watcher, state, groups, fault)
    figures = dict(roles.figures())
    run.save_evaluation(f"step-{step:08d}", evaluation.as_json(step) | ({"figures": figures} if figures else {}))
    watcher.evaluation(step, evaluation, groups)
    for event in reward_faults(groups):
        watcher.note(f"held-out: {event.message}")
    _tell_replaced_workers(run, watcher, groups)
    return evaluation.pass_at_1


def _tell_replaced_workers(run: Run, watcher: Watcher, groups: Sequence[Group]) -> None:
    """Each cause once in a run. What a call leaves behind is a matter of time, so this is no part of the step."""
    if any(score.note for group in groups for grade in group.grades for score in grade.scores):
        told = [event.message for event in run.events(limit=-1) if event.kind == REPLACED]
        for event in replaced_workers(groups, told):
            run.record_event(event)
            watcher.note(event.message)


def _write_state(roles: Roles, state: TrainState, folder: Path) -> None:
    roles.learner.save(folder)
    (folder / "state.json").write_text(encode_state(state), encoding="utf-8")


def _stop_by_guard(
    roles: Roles, run: Run, watcher: Watcher, state: TrainState, groups: Sequence[Group], fault: Event
) -> NoReturn:
    """Stop before anything is learned or said of these groups. A resume collects them again, or where they were
    drawn ahead judges them again."""
    for event in (*reward_faults(groups), fault):
        run.record_event(event)
        watcher.note(event.message)
    if fault.data["message"] not in fault.message:  # a traceback
        watcher.note(fault.data["message"])
    save_checkpoint(run.path, state.step, partial(_write_state, roles, state))
    run.finish("stopped", fault.message)
    hint = GUARD_HINTS.get(fault.data["kind"], "Correct it (reinforge rewards update {run} FILE), then: {resume}")
    resume = f"reinforge runs resume {run.path}"
    raise StoppedByGuard(
        f"Stopped after step {state.step}: {fault.message}.", hint=hint.format(run=run.path, resume=resume)
    )


GUARD_HINTS = {
    "judge_down": "When it answers again: {resume}",
    "judge_unusable": "Put it right (-o reward_fns.judge.KEY=VALUE changes a setting), then: {resume}",
    "judge_budget": "Go on with a larger one: {resume} -o reward_fns.judge.budget_tokens=N (or budget_cost)",
}
"""Kind of the fault that stopped a run -> what to do next."""


def _end_early(run: Run, stop: StopRequest, reason: str, step: int, where: str = "") -> NoReturn:
    hint = f"Go on with: reinforge runs resume {run.path}"
    if stop.signal:
        run.finish("interrupted", f"{stop.signal} {where}after step {step}")
        told = f"Stopped by {stop.signal} {where}after step {step}, checkpoint written."
        raise Interrupted(told, hint=hint, exit_code=stop.exit_code)
    run.finish("stopped", reason)
    raise StoppedByGuard(f"Stopped {where}after step {step} ({reason}), checkpoint written.", hint=hint)
