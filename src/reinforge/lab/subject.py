"""What is put on trial: a reward file, a grader, or a config with its functions, weights and data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reinforge.config import DataConfig, GRPOConfig, JudgeConfig, RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.config_file import load_config
from reinforge.data.dataset import load_examples
from reinforge.errors import UsageError
from reinforge.grading.futures import Progress, no_progress
from reinforge.grading.reward_function import RewardFunction, load_reward_functions, load_rewards_file
from reinforge.lab.cases import cases_beside, read_cases
from reinforge.lab.examine import TIMEOUT_S, LabReport, Options, examine
from reinforge.lab.find_gold import GoldOptions
from reinforge.sandbox.environments import Tell, runtime_with, silent, worker_limits
from reinforge.types import Example

CONFIG_SUFFIXES = (".yaml", ".yml", ".toml")


@dataclass(frozen=True)
class Request:
    """What a user asks the lab for."""

    subject: str
    """`rewards.py`, `rewards.py:function`, `grader.json`, the name of a built-in grader, or a config file."""
    data: str | None = None
    """The data set; None takes the config's, or needs cases with rows of their own."""
    prompt_column: str | None = None
    answer_column: str | None = None
    gold_template: str | None = None
    config: str | None = None
    """A config whose judge and runtime hold for a subject that is none."""
    cases: Path | None = None
    """None takes those beside the reward file, where there are some."""
    num_rows: int | None = None
    """None: as many as the lab thinks fit."""
    timeout_s: float = TIMEOUT_S
    accepted: Collection[str] = ()
    unsafe_no_sandbox: bool = False
    packages: tuple[str, ...] = ()
    """What a Python file imports; a config names its own."""
    tell: Tell = silent
    """Is called with what takes long."""
    progress: Progress = no_progress


@dataclass(frozen=True)
class _Loaded:
    functions: tuple[RewardFunction, ...]
    runtime: RewardFunctionsRuntimeConfig
    data: DataConfig
    settings: Mapping[str, RewardFunctionSettings] = field(default_factory=dict)
    config: GRPOConfig | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def examine_request(request: Request, base_dir: Path | None = None) -> LabReport:
    """Load what a request names and try it. Raises RewardError for what does not load (G01, G02), DataError for data
    that cannot be read."""
    directory = base_dir or Path.cwd()
    loaded = _load(request, directory)
    names = [function.name for function in loaded.functions]
    files = [request.cases] if request.cases else _cases_files(loaded.functions)
    cases = [case for path in files for case in read_cases(directory / path, names)]
    examples: list[Example] = []
    if loaded.data.path is not None:
        examples = load_examples(loaded.data, directory)
    elif not any(case.example for case in cases):
        raise UsageError(f"{request.subject} needs rows to be tried on.", hint="Name a data set: --data F.")
    options = Options(
        gold=GoldOptions(loaded.data.answer_column, request.gold_template),
        num_rows=request.num_rows,
        cases=cases,
        accepted=request.accepted,
        weights_given=loaded.config is not None,
        judge=loaded.judge,
        config=loaded.config,
        progress=request.progress,
        tell=request.tell,
    )
    return examine(loaded.functions, examples, loaded.runtime, loaded.settings, options)


def _load(request: Request, directory: Path) -> _Loaded:
    changes = {"path": request.data, "prompt_column": request.prompt_column, "answer_column": request.answer_column}
    given = {name: value for name, value in changes.items() if value is not None}
    if Path(request.subject).suffix in CONFIG_SUFFIXES:
        config = load_config([directory / request.subject])
        rewards = config.reward_fns
        runtime = _runtime(rewards.runtime, request)
        limits = worker_limits(runtime, request.tell, rewards.settings)
        functions = load_reward_functions(rewards.functions, rewards.weights, directory, limits)
        data = config.data.model_copy(update=given)
        return _Loaded(functions, runtime, data, rewards.settings, config, rewards.judge)
    beside = load_config([directory / request.config]).reward_fns if request.config else None
    runtime = _runtime(beside.runtime if beside else runtime_with(request.packages, {}), request)
    functions = load_rewards_file(request.subject, directory, worker_limits(runtime, request.tell))
    judge = beside.judge if beside else JudgeConfig()
    return _Loaded(functions, runtime, DataConfig().model_copy(update=given), judge=judge)


def _runtime(runtime: RewardFunctionsRuntimeConfig, request: Request) -> RewardFunctionsRuntimeConfig:
    unsafe = runtime.unsafe_no_sandbox or request.unsafe_no_sandbox
    return runtime.model_copy(update={"timeout_s": request.timeout_s, "unsafe_no_sandbox": unsafe})


def _cases_files(functions: tuple[RewardFunction, ...]) -> list[Path]:
    paths = dict.fromkeys(cases_beside(Path(function.file_name)) for function in functions)
    return [path for path in paths if path.is_file()]
