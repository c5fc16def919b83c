"""YAML and TOML files, and `-o key=value`, to one GRPOConfig; and back to YAML.

Files are merged from left to right, tables key by key, then the overrides. Nothing is guessed: unknown and duplicate
keys are errors, scalars follow YAML 1.2 (`1e-6` is a number; `no`, `off`, `1_000`, `010` and `12:30:00` are texts) and
types are strict. Every problem found is reported at once, each with its place. Relative paths are made absolute when
they are read, each against the folder of the file that set it (the working directory for `-o`), so a stored config
means the same from everywhere.
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reinforge.config import GRPOConfig, JudgeConfig
from reinforge.config_problems import KeyPath, Origin, explain, quoted_override
from reinforge.errors import ConfigError, UsageError

DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".parquet"}

YAML_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""The scalars that are not texts: tag -> (pattern, possible first characters). YAML 1.2 core without 0o, 0x and
leading zeros, which older readers take for other numbers."""


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> GRPOConfig:
    """Read, merge, check. Overrides are `dotted.key=value`, the value written as in YAML.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "a.yaml").write_text("base_model: org/m\\nreward_fns: {functions: {right: rewards.py:right}}")
    >>> load_config([folder / "a.yaml"], ["learning_rate=1e-6", "sampling_params.stop=[END]"]).learning_rate
    1e-06
    """
    whole = _merged([*map(_read_file, paths), *map(_read_override, overrides)])
    _make_paths_absolute(whole)
    start = Origin(str(paths[0]) if paths else "config", Path())
    try:
        # Through JSON: there, strict types still take a list for a tuple and 1 for 1.0.
        return GRPOConfig.model_validate_json(json.dumps(whole.values), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error.errors(), whole.values, whole.origins, start))) from None


def judge_with(judge: JudgeConfig, overrides: Sequence[str]) -> JudgeConfig:
    """Other settings of the judge, where there is no whole config to change: each `reward_fns.judge.KEY=VALUE`.

    >>> judge_with(JudgeConfig(), ["reward_fns.judge.budget_tokens=9000"]).budget_tokens
    9000
    """
    layer = _merged(map(_read_override, overrides))
    changed = {"reward_fns": {"judge": judge.model_dump(mode="json")}}
    _merge(changed, layer.values)
    try:
        return JudgeConfig.model_validate_json(json.dumps(changed["reward_fns"]["judge"]), strict=True)
    except ValidationError as error:
        errors = [{**one, "loc": ("reward_fns", "judge", *one["loc"])} for one in error.errors()]
        raise ConfigError("\n".join(explain(errors, changed, layer.origins, Origin("config", Path())))) from None


def machine_with(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The values of settings of a run's config that say how it computes (`slots=64`), after overrides: all settings
    that these name."""
    layer = _merged(map(_read_override, overrides))
    changed = {**config, **layer.values}
    try:
        checked = GRPOConfig.model_validate_json(json.dumps(changed), strict=True)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(explain(error.errors(), changed, layer.origins, Origin("config", Path())))
        ) from None
    return {name: getattr(checked, name) for name in layer.values}


def to_yaml(config: GRPOConfig) -> str:
    """The whole config, defaults included. `load_config` of the text gives an equal config.

    A reward function given as a Python object is written as the file and name it comes from.
    """
    functions = {name: _function_address(fn) for name, fn in config.reward_fns.functions.items()}
    reward_fns = config.reward_fns.model_copy(update={"functions": functions})
    values = config.model_copy(update={"reward_fns": reward_fns}).model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def _function_address(function: str | dict[str, Any] | Callable[..., Any]) -> str | dict[str, Any]:
    if isinstance(function, str | dict):
        return function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        return f"{Path(inspect.getfile(function)).resolve()}:{name}"
    except (TypeError, OSError):  # an instance, or a function typed at a prompt
        return f"<python>:{name}"


@dataclass
class _Layer:
    """What one file or override says. `origins` has an entry for every key, at least for its parent."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def merge(self, newer: _Layer) -> None:
        _merge(self.values, newer.values)
        self.origins |= newer.origins
        self.problems += newer.problems


def _merged(layers: Iterable[_Layer]) -> _Layer:
    whole = _Layer()
    for layer in layers:
        whole.merge(layer)
    if whole.problems:
        raise ConfigError("\n".join(whole.problems))
    return whole


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = value


def _read_file(path: str | Path) -> _Layer:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"There is no config file {path}.", hint=_files_nearby(path)) from None
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{path} cannot be read as a config file: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).", hint="Save it as UTF-8.") from None
    if path.suffix == ".toml":
        return _read_toml(text, path)
    if path.suffix in (".yaml", ".yml"):
        return _read_yaml(text, path)
    raise UsageError(f"{path}: a config file ends in .yaml, .yml or .toml.")


def _files_nearby(path: Path) -> str:
    found = sorted(p.name for suffix in ("yaml", "yml", "toml") for p in path.parent.glob(f"*.{suffix}"))[:5]
    return f"That folder has {', '.join(found)}." if found else ""


def _read_override(text: str) -> _Layer:
    key, equals, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise UsageError(f"-o {text}: an override is written key=value, for instance -o lora.rank=8.")
    origin = Origin(f"-o {text}", Path.cwd())
    layer = _Layer(origins={path[:depth]: origin for depth in range(1, len(path) + 1)})
    parsed: Any = _parse_yaml(value, origin, path, layer)
    for part in reversed(path):
        parsed = {part: parsed}
    layer.values = parsed
    return layer


def _read_yaml(text: str, path: Path) -> _Layer:
    layer = _Layer()
    values = _parse_yaml(text, Origin(str(path), path.resolve().parent), (), layer)
    if isinstance(values, dict):
        layer.values = values
    elif values is not None:
        layer.problems.append(f"{path}:1  A config is a table of `key: value` lines, not {values!r}.")
    return layer


class _Loader(yaml.SafeLoader):
    """Parses nodes; values are made by `_NodeReader`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (yaml's own interface)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or our reader would take for something else than text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Unicode's line breaks are escaped: outside double quotes a YAML reader makes spaces of them."""
        style = '"' if any(char in text for char in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)

for _tag, (_pattern, _first) in YAML_SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _parse_yaml(text: str, origin: Origin, path: KeyPath, layer: _Layer) -> Any:
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)):
            raise ConfigError(f"{origin.place}  Aliases (*name) are not read.", hint="Write the value out.")
        node = _Loader(text).get_single_node()
        return None if node is None else _NodeReader(origin, layer).read(node, path)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = origin.at(mark.line + 1) if mark else origin
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        line = "".join(text.splitlines()[mark.line : mark.line + 1]) if mark else ""
        raise ConfigError(f"{place.place}  This is not YAML: {problem}.", hint=_quoting_hint(line, origin)) from None
    except RecursionError:
        raise ConfigError(f"{origin.place}  Values are nested too deeply.") from None


def _quoting_hint(line: str, origin: Origin) -> str:
    """What to do where a value begins with a brace or bracket, which YAML takes for a table or list."""
    if origin.override:
        return f"If a text is meant, quote it: {quoted_override(origin.override)}"
    begun = re.fullmatch(r"\s*([\w.-]+): *([\[{].*[\]}].*\S)\s*", line)
    return f"If a text is meant, quote it: {begun[1]}: {json.dumps(begun[2], ensure_ascii=False)}" if begun else ""


@dataclass
class _NodeReader:
    """YAML nodes to plain values, with the place of every key noted in the layer."""

    origin: Origin
    layer: _Layer

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        here = self.origin.at(node.start_mark.line + 1)
        self.layer.origins.setdefault(path, here)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._read_table(node, path)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.read(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "null", "bool", "int", "float"):
            return self._read_scalar(node, kind, path)
        self.layer.problems.append(f"{here.place}  The tag {node.tag} is not read. Write a plain value.")
        return None

    def _read_table(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = self.origin.at(key_node.start_mark.line + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                self.layer.problems.append(f"{here.place}  A key must be a word, not a list or table.")
                continue
            key = key_node.value  # as written: a function may be called `no` or `1.10`
            below = (*path, key)
            if key in table:
                first = self.layer.origins[below].place
                self.layer.problems.append(f"{here.place}  {dotted(below)} is set twice (first at {first}). Keep one.")
                continue
            self.layer.origins[below] = here
            table[key] = self.read(value_node, below)
        return table

    def _read_scalar(self, node: yaml.ScalarNode, kind: str, path: KeyPath) -> Any:
        text = node.value
        here = self.origin.at(node.start_mark.line + 1)
        self.layer.origins[path] = here.written(text if kind in ("int", "float") else "")
        try:
            if kind == "str":
                text.encode()
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            return int(text) if kind == "int" else float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError):  # an explicit tag that does not fit, 5000 digits, half a surrogate pair
            self.layer.problems.append(f"{here.place}  {text[:40]!r} is not a {kind}.")
            return None


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _read_toml(text: str, path: Path) -> _Layer:
    origin = Origin(str(path), path.resolve().parent)
    try:
        layer = _Layer(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        line = re.search(r"at line (\d+)", str(error))
        place = origin.at(int(line[1])).place if line else origin.place
        raise ConfigError(f"{place}  This is not TOML: {error}.") from None
    layer.origins[()] = origin
    layer.origins |= {key: origin.at(line) for key, line in _toml_lines(text).items()}
    _refuse_dates(layer.values, (), layer)
    return layer


def _toml_lines(text: str) -> dict[KeyPath, int]:
    """Line of each key that starts a line; keys inside inline tables are found at their parent's line."""
    lines: dict[KeyPath, int] = {}
    table: tuple[str, ...] = ()
    inside_text = False
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        setting = re.match(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*'|\s*\.\s*)+?)\s*=", line)
        if not inside_text and header:
            table = _toml_key(header[1])
            lines.setdefault(table, number)
        elif not inside_text and setting:
            lines.setdefault((*table, *_toml_key(setting[1])), number)
        inside_text ^= (line.count('"""') + line.count("'''")) % 2 == 1
    return lines


def _toml_key(text: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[\w-]+", text))


def _refuse_dates(value: object, path: KeyPath, layer: _Layer) -> None:
    """TOML has dates and times; no setting of ours does, and a text may have been meant."""
    if isinstance(value, dict):
        for key, child in value.items():
            _refuse_dates(child, (*path, key), layer)
    elif isinstance(value, list):
        for place, child in enumerate(value):
            _refuse_dates(child, (*path, place), layer)
    elif isinstance(value, date | time):
        where = Origin.find(layer.origins, path).place
        layer.problems.append(f"{where}  {dotted(path)} is a date or time. If a text is meant, put it in quotes.")


def _make_paths_absolute(layer: _Layer) -> None:
    """`file.py:function` and `file.json`, and the model and data where they name something on this disk."""
    functions = _table(_table(layer.values, "reward_fns"), "functions")
    for name, address in functions.items():
        if not isinstance(address, str) or "\n" in address:  # a source text names no file
            continue
        folder = Origin.find(layer.origins, ("reward_fns", "functions", name)).folder
        if address.endswith((".py", ".json")):
            functions[name] = _absolute(folder, address)
        elif ".py:" in address:
            file, _, function = address.rpartition(":")
            functions[name] = f"{_absolute(folder, file)}:{function}"
    recheck, cases = _table(_table(layer.values, "reward_fns"), "recheck"), ("reward_fns", "recheck", "cases")
    if isinstance(recheck.get("cases"), str):
        recheck["cases"] = _absolute(Origin.find(layer.origins, cases).folder, recheck["cases"])
    data = _table(layer.values, "data")
    for table, path in ((layer.values, ("base_model",)), (data, ("data", "path")), (data, ("data", "heldout_path"))):
        value = table.get(path[-1])
        if isinstance(value, str) and value:
            folder = Origin.find(layer.origins, path).folder
            table[path[-1]] = _absolute(folder, value) if _is_local(folder, value) else value


def _table(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _is_local(folder: Path, value: str) -> bool:
    """Whether this is a path here, rather than a hub id `org/name`."""
    return value.startswith((".", "~", "/")) or Path(value).suffix in DATA_SUFFIXES or (folder / value).exists()


def _absolute(folder: Path, value: str) -> str:
    return str((folder / Path(value).expanduser()).resolve())
