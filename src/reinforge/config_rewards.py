"""The part of the schema that says what is rewarded, and how (config.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from reinforge.config_rollout import Part as _Part
from reinforge.config_rollout import Positive
from reinforge.requirements import read_requirements

Share = Annotated[float, Field(ge=0, le=1)]


class RewardFunctionsRuntimeConfig(_Part):
    """How reward functions run."""

    timeout_s: Positive = 120.0
    """A call that takes longer is ended and scored as an error (the worker is replaced)."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Worker processes per reward function."""
    typed_examples: bool = False
    """Give Predibase-form functions native values instead of strings (S0-100)."""
    max_print_bytes: Annotated[int, Field(ge=0)] = 20_000
    """Kept of what a call prints; the rest is cut with a visible marker."""
    max_memory_gb: Positive = 2.0
    """Memory of a worker in GiB: of each process, and of all together where the machine can limit that."""
    max_cpus: Annotated[int, Field(ge=1)] = 2
    """CPUs a worker may use (on Linux)."""
    max_processes: Annotated[int, Field(ge=1)] = 64
    """Processes and threads a worker may have (on Linux)."""
    fresh_process: bool = False
    """Give every call a process of its own, forked from the one that loaded the file: nothing that a call does to
    globals or to the interpreter reaches another. Costs about a millisecond per call."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts that reward functions may connect to, for instance [api.example.org, "*.example.com", "localhost:8000"], on
    the ports 80 and 443 unless one is written. Only the bubblewrap tier can hold a function to them. None: no
    network."""
    allow_private_addresses: bool = False
    """Allowed hosts may be at addresses of this machine and of the networks around it."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that reward functions get with their values, for instance [OPENAI_API_KEY]. The
    values are hidden in all that functions print, return or raise, and are stored nowhere."""
    unsafe_no_sandbox: bool = False
    """Run reward functions without isolation where this machine offers none. Only for code you trust."""
    packages: tuple[str, ...] = ()
    """Packages that the reward functions import, for instance [rapidfuzz, "numpy>=2,<3"], or `openai-grader` for those
    of OpenAI's grader image. They get an environment of their own, which holds nothing else (S0-043). Unset: functions
    see what is installed beside Reinforge."""
    packages_timeout_s: Positive = 600.0
    """Installing the packages may take this long."""
    max_packages_gb: Positive = 4.0
    """Disk space in GiB that installing the packages may take."""

    @field_validator("packages")
    @classmethod
    def _are_requirements(cls, packages: tuple[str, ...]) -> tuple[str, ...]:
        return read_requirements(packages)


class RewardFunctionSettings(_Part):
    """How one reward function is treated."""

    on_error: Literal["zero", "mask", "fail"] = "zero"
    """When it fails on a completion: count 0 (zero), leave the completion out of its group (mask), or stop the run
    (fail), which can be resumed."""
    default: float | None = None
    """Counts in the reward when it fails, instead of `on_error`. The score stays an error."""
    fallback: str | None = None
    """Another reward function, whose value for the completion counts when this one fails; a weight of 0 makes one that
    does nothing else. Comes before `default`."""
    allowed_hosts: tuple[str, ...] | None = None
    """Instead of those of `runtime`; [] for none."""
    allow_private_addresses: bool | None = None
    """Instead of that of `runtime`."""
    secrets: tuple[str, ...] | None = None
    """Instead of those of `runtime`; [] for none."""
    pure: bool = False
    """The score depends on prompt, completion and row alone (a batched function judges each completion by itself), so
    it may be taken from a cache."""


class JudgePrice(_Part):
    """What the tokens of a judge cost, in the currency of `budget_cost`."""

    input: Annotated[float, Field(ge=0)]
    """Of a million tokens sent."""
    output: Annotated[float, Field(ge=0)]
    """Of a million tokens generated."""


class JudgeConfig(_Part):
    """Where judges (graders of type score_model, label_model and rubric) are asked: any endpoint that speaks OpenAI's
    chat completions."""

    base_url: str | None = None
    """Its address with the version, for instance http://127.0.0.1:8000/v1. Prompts, columns and completions are sent
    there, so nothing is assumed."""
    model: str | None = None
    """Asked by graders that name no model."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, never the key itself. Unset: no key is sent."""
    allow_private_addresses: bool = False
    """Allow an address of this machine or of its local network."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Most requests at once."""
    requests_per_minute: Positive | None = None
    """Most requests a minute, evenly spaced. Unset: only what the endpoint's 429 answers ask for."""
    timeout_s: Positive = 60.0
    """A request that takes longer failed."""
    max_retries: Annotated[int, Field(ge=0)] = 6
    """Times a failed request is sent again; then the completion is masked: left out of its group."""
    down: Literal["wait", "pause"] = "wait"
    """When it does not answer at all: wait, at most `max_wait_s`, then stop the run; or stop the run at once. A stopped
    run can be resumed (exit code 5)."""
    max_wait_s: Positive = 600.0
    """See `down`."""
    prices: dict[str, JudgePrice] = Field(default_factory=dict)
    """Model -> what its tokens cost."""
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens, sent and generated, after which the run stops and can be resumed with a larger budget."""
    budget_cost: Positive | None = None
    """The same in money; needs `prices`."""

    @model_validator(mode="after")
    def _usable(self) -> JudgeConfig:
        address = (self.base_url or "https:").lower()
        if not address.startswith(("http:", "https:")):
            raise ValueError(f"base_url = {self.base_url!r} must begin with http:// or https://")
        if self.api_key_env and address.startswith("http:") and not self.allow_private_addresses:
            raise ValueError("a key is only sent over https://, or with allow_private_addresses to a local endpoint")
        if self.api_key_env is not None and not self.api_key_env.isidentifier():
            raise ValueError("api_key_env must be the name of an environment variable, for instance OPENAI_API_KEY")
        if self.budget_cost is not None and not self.prices:
            raise ValueError("budget_cost needs prices")
        return self


class RecheckConfig(_Part):
    """Right completions, judged while the run trains: do they still score what they did at its start? (S0-098)"""

    every_steps: Annotated[int, Field(ge=0)] = 0
    """Judge them before the first step, each n steps and after a change of the functions; 0: not at all."""
    rows: Annotated[int, Field(ge=1)] = 8
    """Rows whose right completion is judged: the first ones that have an answer."""
    answer_column: str | None = None
    """Column with the answer. Unset: `data.answer_column`, else found as `reinforge rewards test` finds it."""
    template: str | None = None
    """How a right completion is laid out: a text with {answer}, {answer_json}, {reasoning} or a {column}. Unset: as
    `reinforge rewards test` finds it."""
    cases: str | None = None
    """File with golden cases (`rewards.cases.jsonl`), relative to the config file: their completions are judged
    instead."""

    @model_validator(mode="after")
    def _from_one_source(self) -> RecheckConfig:
        if self.cases is not None and (self.answer_column or self.template):
            raise ValueError("cases bring completions of their own: leave answer_column and template out")
        return self


class RewardFunctionsConfig(_Part):
    """What is rewarded (S0-022..025)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True)

    functions: dict[str, str | dict[str, Any] | Callable[..., Any]] = Field(min_length=1)
    """Display name -> `file.py:function` (relative to the config file), `file.py` for its function `grade`, a source
    text with a function `grade`, or in Python the function itself; or a grader: its table, a `file.json` with one, or a
    built-in grader's name."""
    weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(default_factory=dict)
    """Display name -> weight in the reward's sum; 1.0 where not named."""
    settings: dict[str, RewardFunctionSettings] = Field(default_factory=dict)
    """Display name -> how that function is treated."""
    max_error_rate: Share = 0.5
    """Most of a step's calls of one function that may fail (0..1); above it the run stops before it learns from the
    step, and can be resumed. 1 never stops."""
    runtime: RewardFunctionsRuntimeConfig = RewardFunctionsRuntimeConfig()
    """How they run."""
    judge: JudgeConfig = JudgeConfig()
    """Where judges are asked."""
    recheck: RecheckConfig = RecheckConfig()
    """Right completions to judge again and again."""

    @model_validator(mode="after")
    def _names_are_those_of_functions(self) -> RewardFunctionsConfig:
        for what, names in (("weights", self.weights), ("settings", self.settings)):
            unknown = sorted(set(names) - set(self.functions))
            if unknown:
                raise ValueError(f"{what} name {unknown}, but the functions are {sorted(self.functions)}")
        for name, settings in self.settings.items():
            others = sorted(set(self.functions) - {name})
            if settings.fallback is not None and settings.fallback not in others:
                raise ValueError(f"{name}.fallback = {settings.fallback!r} is none of the other functions {others}")
        return self
