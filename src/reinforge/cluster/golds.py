"""The right completions that a run judges again and again: found when it begins, kept so that a resume has the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from reinforge.cluster.local import LocalRun
from reinforge.errors import CheckpointError, ConfigError
from reinforge.gold_check import GoldCompletion
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.lab.cases import read_cases
from reinforge.lab.find_gold import GoldOptions, find_gold
from reinforge.loop import Task
from reinforge.sandbox.limits import Limits
from reinforge.types import Example, Prompt

FILE = "golds.json"
OWN_ROW = -1
"""Index of a row that a case brings along."""
ROWS_LOOKED_AT = 4
"""For each row that is asked for: some have no answer."""


def with_golds(built: LocalRun, base_dir: Path, tell: Callable[[str], None]) -> tuple[LocalRun, Mapping[str, str]]:
    """The run with the right completions that `reward_fns.recheck` asks for, and the file that keeps them (path in the
    run's folder -> text). ConfigError where none can be found."""
    golds = _find(built.task, built.grader, base_dir, tell)
    return _having(built, golds), {FILE: _to_text(golds)} if golds else {}


def with_stored_golds(built: LocalRun, run_path: Path) -> LocalRun:
    """The run with those that were kept in its folder; closed where they cannot be read (CheckpointError)."""
    try:
        return _having(built, _read(run_path / FILE, built.task))
    except CheckpointError:
        built.close()
        raise


def _having(built: LocalRun, golds: tuple[GoldCompletion, ...]) -> LocalRun:
    return replace(built, task=replace(built.task, golds=golds))


def _find(
    task: Task, grader: RewardFunctionGrader, base_dir: Path, tell: Callable[[str], None]
) -> tuple[GoldCompletion, ...]:
    config = task.config
    wanted = config.reward_fns.recheck
    if not wanted.every_steps:
        return ()
    if wanted.cases is not None:
        golds = _from_cases(base_dir / wanted.cases, task, grader)
        tell(f"right completions, judged each {wanted.every_steps} steps: {len(golds)} of {wanted.cases}")
        return golds
    prompts = {prompt.example.index: prompt for prompt in task.train_prompts}
    examples = [prompts[index].example for index in sorted(prompts)][: ROWS_LOOKED_AT * wanted.rows]
    options = GoldOptions(wanted.answer_column or config.data.answer_column, wanted.template)
    found = find_gold(grader.functions, examples, options, grader, Limits.from_config(config.reward_fns.runtime))
    chosen = found.golds[: wanted.rows]
    if not chosen:
        raise ConfigError(
            f"reward_fns.recheck.every_steps = {wanted.every_steps}, but no right completions are known: "
            f"{'; '.join(found.assumptions) or 'no row has an answer'}.",
            hint="Set reward_fns.recheck.answer_column, template or cases.",
        )
    for told in found.assumptions:
        tell(told)
    tell(f"right completions, judged each {wanted.every_steps} steps: those of {len(chosen)} rows")
    return tuple(GoldCompletion(f"row {gold.row + 1}", prompts[gold.row], gold.text) for gold in chosen)


def _from_cases(path: Path, task: Task, grader: RewardFunctionGrader) -> tuple[GoldCompletion, ...]:
    prompts = {prompt.example.index: prompt for prompt in (*task.train_prompts, *task.heldout_prompts)}
    golds = []
    for case in read_cases(path, [function.name for function in grader.functions]):
        if case.example is not None:
            prompt = _unrendered(case.example)
        elif case.row is not None and case.row - 1 in prompts:
            prompt = prompts[case.row - 1]
        else:
            raise ConfigError(f"{path}: {case.name} is of row {case.row}, which the run does not have.")
        golds += [GoldCompletion(case.name, prompt, text) for text in case.completions]
    if not golds:
        raise ConfigError(f"{path} has no case.", hint="Write one, or leave reward_fns.recheck.cases out.")
    return tuple(golds)


def _unrendered(example: Example) -> Prompt:
    """A row that is none of the data and that no model is asked: graders are shown its text."""
    text = example.prompt if isinstance(example.prompt, str) else str(list(example.prompt))
    return Prompt(replace(example, index=OWN_ROW), text, (0,))


def _to_text(golds: Sequence[GoldCompletion]) -> str:
    return json.dumps([_as_json(gold) for gold in golds], indent=2)


def _as_json(gold: GoldCompletion) -> dict[str, Any]:
    example = gold.prompt.example
    whence = {"example": asdict(example)} if example.index == OWN_ROW else {"row": example.index}
    return {"label": gold.label, **whence, "completion": gold.text}


def _read(path: Path, task: Task) -> tuple[GoldCompletion, ...]:
    """What `_to_text` wrote; none where there is no such file."""
    if not path.exists():
        return ()
    prompts = {prompt.example.index: prompt for prompt in (*task.train_prompts, *task.heldout_prompts)}
    try:
        return tuple(
            GoldCompletion(
                line["label"],
                prompts[line["row"]] if "row" in line else _unrendered(_example(line["example"])),
                line["completion"],
            )
            for line in json.loads(path.read_bytes())
        )
    except (ValueError, KeyError, TypeError) as fault:
        raise CheckpointError(f"{path} is damaged: {type(fault).__name__}: {fault}.") from fault


def _example(fields: dict[str, Any]) -> Example:
    prompt = fields["prompt"]
    return Example(**(fields | {"prompt": prompt if isinstance(prompt, str) else tuple(prompt), "tools": ()}))
