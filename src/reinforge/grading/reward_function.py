"""Reward functions: where their text comes from, and which of the known forms each has.

| dialect | call | returns |
|---|---|---|
| `predibase` | `reward(prompt, completion, example)` for each completion | a number |
| `trl` | `reward(prompts=[...], completions=[...], **columns)` for all completions of a prompt | a list of numbers |
| `openai` | `grade(sample, item)` for each completion | a number |

A function with a parameter named `prompts` or `completions` is `trl`; one with the parameters `sample` and `item` is
`openai`; one with three parameters is `predibase`, whatever their names (more must have defaults). All may be
`async def`, and each number may be a result `{"score": 0.5, "valid": True, "reason": "...", "metrics": {...}}` instead
(values.py). User code is never run here: a worker process loads it and tells what parameters its functions have.

A function is given as `file.py:function`, as `file.py` (the file's function `grade`), as source text of more than one
line (its function `grade`), or in Python as the function itself.

A fourth dialect, `grader`, is no Python: a grader of OpenAI's language (language/spec.py) or a built-in one. It is
given as its table, as `file.json`, or by a built-in's name; its source is the grader's JSON text.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reinforge.errors import RewardError
from reinforge.grading import builtin
from reinforge.grading.callable_source import source_of_callable
from reinforge.grading.describe import TOO_LONG_HINT, describe_source
from reinforge.grading.language.grader_check import check_grader
from reinforge.grading.language.grader_json import read_json
from reinforge.grading.language.spec import PythonGrader, canonical_text, columns_of, read, walk
from reinforge.grading.language.spec_base import GraderNode
from reinforge.grading.model_folders import with_models
from reinforge.requirements import check_pins
from reinforge.sandbox.pool import FunctionFacts, Limits, Parameter

Dialect = Literal["predibase", "trl", "openai", "grader"]

FORMS = """Accepted forms:
  def reward(prompt, completion, example): ...        # returns one number; example holds the row's columns as text
  def reward(prompts, completions, **columns): ...    # returns a list with one number (or None) per completion
  def grade(sample, item): ...                        # returns one number; sample["output_text"] is the completion"""
Reference = str | Mapping[str, Any] | Callable[..., Any]
"""How a config gives a function: where it is, its text, a grader's table, or the function itself."""
DEFAULT_FUNCTION = "grade"
"""Of a file or text given without naming one."""


@dataclass(frozen=True, slots=True)
class SourceText:
    """A function before it is loaded."""

    source: str
    file_name: str
    """For tracebacks."""
    function_name: str
    """In `source`; empty when that is a grader."""


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """One version of a reward function: its whole text and how it is called."""

    name: str
    """Display name: of the scores, the weights and the charts."""
    version: str
    """`<name>_v<n>`; the text of a version never changes."""
    source: str
    """The whole module text it lives in; nothing else is needed to run it but installed packages."""
    file_name: str
    """For tracebacks."""
    function_name: str
    """In `source`; empty for a grader."""
    dialect: Dialect
    parameters: tuple[Parameter, ...]
    weight: float = 1.0
    doc: str = ""
    """First line of its docstring."""
    packages: tuple[str, ...] = ()
    """`name==version` of the environment it runs in (sandbox/environments.py); (): what is installed beside us."""

    @property
    def sha256(self) -> str:
        """Of the source's UTF-8 text."""
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()

    def to_record(self) -> dict[str, Any]:
        """As JSON for the run record: enough to run it again without its file."""
        return asdict(self) | {"sha256": self.sha256}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> RewardFunction:
        """The function that `to_record` wrote; RewardError when its text, or a package, has changed since."""
        fields = {key: value for key, value in record.items() if key != "sha256"}
        parameters = tuple(Parameter(**parameter) for parameter in fields.pop("parameters"))
        try:
            packages = check_pins(fields.pop("packages", ()))
        except ValueError as error:
            hint = "The record was changed since the run wrote it."
            raise RewardError(f"the recorded packages of {fields.get('version')}: {error}.", hint=hint) from None
        function = cls(**fields, parameters=parameters, packages=packages)
        if function.sha256 != record["sha256"]:
            raise RewardError(f"the recorded source of {function.version} does not match its sha256.")
        return function

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns without which a TRL-form call or a grader must fail. (What other functions read, nobody knows.)"""
        if self.dialect == "grader":
            names = columns_of(read(json.loads(self.source), self.file_name))
            return tuple(name for name in names if name not in ("prompt", "messages", "tools"))
        if self.dialect != "trl":
            return ()
        return tuple(
            p.name for p in self.parameters if p.by_keyword and not p.has_default and p.name not in TRL_ARGUMENTS
        )

    @property
    def file_suffix(self) -> str:
        """What a file with its source ends in."""
        return ".json" if self.dialect == "grader" else ".py"

    @property
    def takes_token_ids(self) -> bool:
        """Whether a call is given the completions' token ids."""
        return self.dialect == "trl" and any(
            p.name == "completion_ids" or p.kind == "var_keyword" for p in self.parameters
        )


TRL_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""What TRL itself passes. There is no trainer here, so the last three are None; the last two only where a parameter
asks for them by name."""


def detect_dialect(parameters: tuple[Parameter, ...]) -> Dialect | None:
    """The form of a function by its parameters; None when it fits none. A further dialect is one more rule here.

    Example:
        >>> three = tuple(Parameter(name, "positional_or_keyword", False) for name in ("prompt", "completion", "row"))
        >>> detect_dialect(three), detect_dialect(three[:2])
        ('predibase', None)
    """
    if any(p.kind == "positional_only" for p in parameters):
        return None
    names = {p.name for p in parameters if p.by_keyword}
    if names & {"prompts", "completions"}:
        return "trl"
    positional = [p for p in parameters if p.kind == "positional_or_keyword"]
    keyword_only = [p for p in parameters if p.kind == "keyword_only"]
    if [p.name for p in positional[:2]] == ["sample", "item"]:
        return "openai" if all(p.has_default for p in (*positional[2:], *keyword_only)) else None
    if len(positional) >= 3 and all(p.has_default for p in (*positional[3:], *keyword_only)):
        return "predibase"
    return None


def load_reward_functions(
    functions: Mapping[str, Reference],
    weights: Mapping[str, float],
    base_dir: Path,
    limits: Limits | None = None,
) -> tuple[RewardFunction, ...]:
    """Load every function of a config: display name -> what `locate` takes.

    Raises RewardError naming the function, the file and line, and the fix.
    """
    loaded = []
    facts_by_source: dict[tuple[str, str, Limits | None], tuple[FunctionFacts, ...]] = {}
    for name, reference in functions.items():
        text = locate(name, reference, base_dir)
        if not text.function_name:
            loaded.append(load_text(name, text, weight=weights.get(name, 1.0), limits=limits))
            continue
        key = (text.source, text.file_name, limits and limits.of(name))
        if key not in facts_by_source:
            facts_by_source[key] = describe_source(*key)
        fact = _find(name, text, facts_by_source[key])
        loaded.append(_build(name, text, fact, limits, weights.get(name, 1.0)))
    return tuple(loaded)


def load_text(
    name: str, text: SourceText, *, weight: float = 1.0, number: int = 1, limits: Limits | None = None
) -> RewardFunction:
    """Load one function as its version `<name>_v<number>`; RewardError when it cannot be."""
    limits = limits and limits.of(name)
    if not text.function_name:
        return _build_grader(name, text, weight, number, limits)
    fact = _find(name, text, describe_source(text.source, text.file_name, limits))
    return _build(name, text, fact, limits, weight, number)


def load_rewards_file(reference: str, base_dir: Path, limits: Limits | None = None) -> tuple[RewardFunction, ...]:
    """`rewards.py:function`, or all functions of `rewards.py` that have a known form by their parameters' names; or a
    grader, as `grader.json` or by a built-in's name."""
    _, colon, function_name = reference.rpartition(":")
    if reference.endswith(".json") or reference in builtin.BUILTINS:
        return load_reward_functions({Path(reference).stem: reference}, {}, base_dir, limits)
    if colon and not reference.endswith(".py"):
        return load_reward_functions({function_name: reference}, {}, base_dir, limits)
    source, file_name = _read(reference, reference, base_dir)
    facts = [
        fact
        for fact in describe_source(source, file_name, limits)
        if fact.own and not fact.name.startswith("_") and _named_like_a_reward(fact.parameters)
    ]
    if not facts:
        raise RewardError(f"{file_name} has no reward function.", hint=FORMS)
    return tuple(_build(fact.name, SourceText(source, file_name, fact.name), fact, limits) for fact in facts)


def locate(name: str, reference: Reference, base_dir: Path) -> SourceText:
    """The text that one entry of the config means; RewardError when there is none."""
    if isinstance(reference, Mapping):
        return _grader_text(read(reference, f'reward function "{name}"'), f"<{name}>", base_dir)
    if not isinstance(reference, str):
        shipped = builtin.name_of(reference)
        if shipped is not None:
            return locate(name, shipped, base_dir)
        return SourceText(*source_of_callable(name, reference))
    if reference.endswith(".json"):
        source, file_name = _read(name, reference, base_dir)
        return _grader_text(read_json(source, file_name), file_name, (base_dir / file_name).parent)
    if reference in builtin.BUILTINS:
        return _grader_text(read({"type": reference}, f'reward function "{name}"'), f"<{name}>", base_dir)
    if "\n" in reference:
        return SourceText(reference, f"<{name}>", DEFAULT_FUNCTION)
    if reference.endswith(".py"):
        return SourceText(*_read(name, reference, base_dir), DEFAULT_FUNCTION)
    path, colon, function_name = reference.rpartition(":")
    if not colon or not path or not function_name.isidentifier():
        close = difflib.get_close_matches(reference, builtin.BUILTINS, n=1)
        meant_builtin = f", or the built-in grader {close[0]}" if close else ""
        raise RewardError(
            f'reward function "{name}" is given as "{reference}", which names no function.',
            hint=f'Write it as file.py:function, for instance "{reference.rstrip(":")}:{name}"{meant_builtin}.',
        )
    return SourceText(*_read(name, path, base_dir), function_name)


def _grader_text(node: GraderNode, file_name: str, base_dir: Path) -> SourceText:
    settled = read(with_models(node.to_json(), base_dir), file_name)
    return SourceText(canonical_text(settled), file_name, "")


def _build_grader(name: str, text: SourceText, weight: float, number: int, limits: Limits | None) -> RewardFunction:
    node = read(json.loads(text.source), text.file_name)
    check_grader(node, name, limits)
    has_python = any(isinstance(part, PythonGrader) for _, part in walk(node))
    packages = limits.packages if limits and has_python else ()  # all else in a grader is ours
    version = f"{name}_v{number}"
    return RewardFunction(name, version, text.source, text.file_name, "", "grader", (), weight, node.type, packages)


def text_on_disk(function: RewardFunction) -> str | None:
    """What the file that a function came from holds now; None when it came from none, or there is none any more."""
    try:
        if function.dialect == "grader":
            return locate(function.name, function.file_name, Path()).source
        return _read(function.name, function.file_name, Path())[0]
    except RewardError:
        return None


def _read(name: str, path: str, base_dir: Path) -> tuple[str, str]:
    full, most = base_dir / path, Limits().max_source_bytes
    try:
        if (size := full.stat().st_size) > most:  # before it is read: it may be a data set named by mistake
            text = f'reward function "{name}": {full} has {size:,} bytes, at most {most:,} are taken.'
            raise RewardError(text, hint=TOO_LONG_HINT)
        with tokenize.open(full) as file:
            return file.read(), str(full)
    except FileNotFoundError:
        raise RewardError(
            f'reward function "{name}": there is no file {full}.', hint=_missing_hint(path, full)
        ) from None
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise RewardError(f'reward function "{name}": {full} cannot be read: {error}.') from None


def _missing_hint(path: str, full: Path) -> str:
    """What was probably meant: another file there, or one of the built-in graders."""
    beside = [file.name for file in full.parent.glob("*") if file.suffix in (".py", ".json")]
    if near := difflib.get_close_matches(full.name, beside, n=1, cutoff=0.7):
        return f"Did you mean {Path(path).with_name(near[0])}?"
    close = difflib.get_close_matches(path, builtin.BUILTINS, n=1)
    return f"Did you mean the built-in grader {close[0]}?" if close else f"Paths are relative to {full.parent}."


def _find(name: str, text: SourceText, facts: tuple[FunctionFacts, ...]) -> FunctionFacts:
    for fact in facts:
        if fact.name == text.function_name:
            return fact
    own = [fact.name for fact in facts if fact.own]
    near = difflib.get_close_matches(text.function_name, own, n=1)
    raise RewardError(
        f'reward function "{name}": {text.file_name} has no function {text.function_name} '
        f"(found: {', '.join(own) or 'none'}).",
        hint=f"Name the one you mean: {text.file_name}:{(near or own)[0]}." if own else "",
    )


def _build(
    name: str, text: SourceText, fact: FunctionFacts, limits: Limits | None, weight: float = 1.0, number: int = 1
) -> RewardFunction:
    parameters, file_name = fact.parameters, text.file_name
    dialect = detect_dialect(parameters)
    if dialect is None:
        shown = ", ".join({"var_positional": "*", "var_keyword": "**"}.get(p.kind, "") + p.name for p in parameters)
        place = f"{file_name}:{fact.line}" if fact.line else file_name
        raise RewardError(f"{place}: {fact.name}({shown}) has none of the known forms.", hint=FORMS)
    version = f"{name}_v{number}"
    packages = limits.packages if limits else ()
    return RewardFunction(
        name, version, text.source, file_name, fact.name, dialect, parameters, weight, fact.doc, packages
    )


def _named_like_a_reward(parameters: tuple[Parameter, ...]) -> bool:
    """Stricter than `detect_dialect`: helper functions with three parameters are no reward functions."""
    names = [p.name for p in parameters]
    return detect_dialect(parameters) in ("trl", "openai") or (names[:2] == ["prompt", "completion"] and len(names) > 2)
