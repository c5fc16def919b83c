"""What the text of a reward function shows without running it: warnings, each with line and fix.

The text is parsed, never executed: the checks run in our own process, before any worker starts.

| check | finds |
|---|---|
| G02 | a function that can end without returning a value |
| G19 | use of the network where no host is allowed, and environment variables, which workers do not have |
| G21 | a reward function defined beside the used ones, and not used |
| G23 | absolute paths: what lies there is another file, or none, in a worker |
| G25 | columns used as what they are in the data, where the function gets text (column_traps.py) |
| G26 | a reward function without a docstring |
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.column_traps import column_traps
from reinforge.grading.language.spec import PythonGrader, read, walk
from reinforge.grading.reward_function import DEFAULT_FUNCTION, RewardFunction
from reinforge.types import Example

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

NETWORK_MODULES = frozenset(
    {"aiohttp", "anthropic", "boto3", "ftplib", "google.generativeai", "grpc", "http.client", "httpx"}
    | {"huggingface_hub", "openai", "requests", "smtplib", "socket", "urllib.request", "urllib3", "websocket"}
    | {"websockets", "xmlrpc.client"}
)
_ABSOLUTE = re.compile(r"(~?/|[A-Za-z]:[\\/])(?:[\w.@+-]+[\\/])*[\w.@+-]+[\\/]?")
_REWARD_PARAMETERS = ({"prompts"}, {"completions"}, {"sample", "item"}, {"prompt", "completion"})


@dataclass(frozen=True, slots=True)
class LintWarning:
    """One thing in a source text that will probably go wrong.

    Example:
        >>> [w.message for w in lint("def f(prompt, completion, example):\\n    'Says no.'\\n    print(1)", {"f"})]
        ['f returns no value, so every score is an error']
    """

    check: str
    """G02, G19, ...: as in the table above."""
    function: str
    """In the source; empty where the whole file is meant."""
    line: int
    message: str
    fix: str
    file_name: str = ""

    def __str__(self) -> str:
        place = PurePath(self.file_name).name
        return f"{place + ':' if place else 'line '}{self.line}: {self.message}. {self.fix}"


def lint_functions(
    functions: Sequence[RewardFunction],
    runtime: RewardFunctionsRuntimeConfig | None = None,
    settings: Mapping[str, RewardFunctionSettings] | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[LintWarning, ...]:
    """Warnings about the source texts of these functions, each text looked at once; see `lint`. `settings` by display
    name. A text whose functions may reach different hosts counts as one that may reach all of them."""
    runtime = runtime or RewardFunctionsRuntimeConfig()
    by_text: dict[tuple[str, str], list[RewardFunction]] = {}
    for part in (part for function in functions for part in _in_python(function)):
        by_text.setdefault((part.source, part.file_name), []).append(part)
    found: list[LintWarning] = []
    for (source, file_name), used in by_text.items():
        own = [(settings or {}).get(function.name, RewardFunctionSettings()) for function in used]
        hosts = [runtime.allowed_hosts if of.allowed_hosts is None else of.allowed_hosts for of in own]
        secrets = [runtime.secrets if of.secrets is None else of.secrets for of in own]
        found += lint(
            source,
            {function.function_name for function in used},
            file_name=file_name,
            typed=runtime.typed_examples,
            columns=columns,
            allowed_hosts={host for some in hosts for host in some},
            secrets={secret for some in secrets for secret in some},
        )
    return tuple(found)


def _in_python(function: RewardFunction) -> Iterator[RewardFunction]:
    """The function, or the Python functions inside a grader."""
    if function.dialect != "grader":
        yield function
        return
    for path, node in walk(read(json.loads(function.source), function.file_name)):
        if isinstance(node, PythonGrader):
            place = ".".join([function.name, *path])
            yield replace(function, source=node.source, file_name=place, function_name=DEFAULT_FUNCTION)


def column_types(examples: Iterable[Example]) -> dict[str, str]:
    """Each column and the name of its values' type; values of None tell nothing.

    >>> column_types([Example(0, "p", {"a": None, "b": [1]}), Example(1, "p", {"a": True, "b": [2]})])
    {'b': 'list', 'a': 'bool'}
    """
    types: dict[str, str] = {}
    for example in examples:
        for column, value in example.columns.items():
            if value is not None:
                types.setdefault(column, type(value).__name__)
    return types


def lint(
    source: str,
    used: Collection[str],
    *,
    file_name: str = "",
    typed: bool = False,
    columns: Mapping[str, str] | None = None,
    allowed_hosts: Collection[str] = (),
    secrets: Collection[str] = (),
) -> tuple[LintWarning, ...]:
    """Warnings about a module text, in the order of its lines; none for a text that does not parse (loading tells).

    `used` are the functions that judge. `typed`: Predibase-form functions get native values. `columns`: the data's
    columns and the names of their Python types, where data is at hand. `allowed_hosts`, `secrets`: what a worker has.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    functions = {node.name: node for node in tree.body if isinstance(node, FunctionNode)}
    judging = [functions[name] for name in functions if name in used]
    found = [*_unused(tree, functions, used), *_absolute_paths(tree), *_environment(tree, secrets)]
    found += [] if allowed_hosts else _network(tree)
    for node in judging:
        found += [*_returns(node), *_docstring(node), *([] if typed else _traps(node, columns))]
    placed = (replace(warning, file_name=file_name) for warning in found)
    return tuple(sorted(placed, key=lambda warning: (warning.line, warning.check)))


def _unused(tree: ast.Module, functions: Mapping[str, FunctionNode], used: Collection[str]) -> Iterator[LintWarning]:
    """A whole reward left out by mistake trains for hours before anybody misses it (S2-026)."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    for name, node in functions.items():
        if name not in used and name not in read and not name.startswith("_") and _looks_like_a_reward(node):
            message = f"{name} looks like a reward function and is not used"
            yield LintWarning("G21", name, node.lineno, message, "Add it to reward_fns.functions, or remove it.")


def _looks_like_a_reward(node: FunctionNode) -> bool:
    names = {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
    return any(wanted <= names for wanted in _REWARD_PARAMETERS)


def _absolute_paths(tree: ast.Module) -> Iterator[LintWarning]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                continue
            if _ABSOLUTE.fullmatch(argument.value) and _takes_a_path(call, argument.value):
                message = f"the absolute path {argument.value} is not there in a worker, or is another file"
                fix = "Put what the function needs into its file, or into a column of the data."
                yield LintWarning("G23", "", argument.lineno, message, fix)


def _takes_a_path(call: ast.Call, text: str) -> bool:
    """Whether the argument is meant as a path: of a call that opens or loads something."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return bool(
        re.fullmatch(r"open|Path|\w*[Pp]ath|\w*(load|read|import|from_pretrained|connect|listdir|glob)\w*", name)
    )


def _network(tree: ast.Module) -> Iterator[LintWarning]:
    for module, line in _imports(tree):
        parents = {module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)}
        if parents & NETWORK_MODULES:
            message = f"{module} is imported, but no host is allowed, so every connection will fail"
            yield LintWarning("G19", "", line, message, "Name the host in reward_fns.runtime.allowed_hosts.")


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & NETWORK_MODULES
            yield from ((name, node.lineno) for name in submodules or {node.module})


def _environment(tree: ast.Module, secrets: Collection[str]) -> Iterator[LintWarning]:
    """`os.environ["KEY"]`, `os.environ.get("KEY")`, `os.getenv("KEY")`."""
    for node in ast.walk(tree):
        name: ast.expr | None = None
        match node:
            case ast.Subscript(value=read, slice=index) if _dotted(read) in ("os.environ", "environ"):
                name = index
            case ast.Call(func=called, args=[first, *_]) if _dotted(called) in _ENVIRONMENT_CALLS:
                name = first
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value not in secrets:
            message = f"the environment variable {name.value} is not set in a worker"
            yield LintWarning("G19", "", name.lineno, message, "Name it in reward_fns.runtime.secrets.")


_ENVIRONMENT_CALLS = ("os.getenv", "getenv", "os.environ.get", "environ.get")


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is such a chain; "" of any other."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def _docstring(node: FunctionNode) -> Iterator[LintWarning]:
    if not ast.get_docstring(node):
        message = f"{node.name} has no docstring"
        yield LintWarning("G26", node.name, node.lineno, message, "Say in one line what earns how much.")


def _traps(node: FunctionNode, columns: Mapping[str, str] | None) -> Iterator[LintWarning]:
    for trap in column_traps(node, columns):
        yield LintWarning("G25", node.name, trap.line, trap.message, trap.fix)


def _returns(node: FunctionNode) -> Iterator[LintWarning]:
    own = list(_own_nodes(node))
    if any(isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in own):
        message = f"{node.name} is a generator, so every score is an error"
        yield LintWarning("G02", node.name, node.lineno, message, "Use return instead of yield.")
    elif not any(isinstance(inner, ast.Return) and inner.value is not None for inner in own):
        if _can_end(node.body):
            message = f"{node.name} returns no value, so every score is an error"
            yield LintWarning("G02", node.name, node.lineno, message, "Return a number.")
    elif _can_end(node.body):
        message = f"{node.name} can end without a return: such a score is an error, not 0"
        yield LintWarning("G02", node.name, node.lineno, message, "End it with return 0.0.")


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a function, but not what belongs to functions and classes inside it."""
    waiting = [*ast.iter_child_nodes(node)]
    while waiting:  # not recursive: texts may nest deeper than Python does
        child = waiting.pop()
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(child)


def _can_end(body: Sequence[ast.stmt]) -> bool:
    """Whether control can reach the end of these statements; in doubt no, since a warning must be right."""
    return all(_can_pass(statement) for statement in body)


def _can_pass(statement: ast.stmt) -> bool:
    match statement:
        case ast.Return() | ast.Raise() | ast.Continue() | ast.Break():
            return False
        case ast.If():
            return _can_end(statement.body) or _can_end(statement.orelse)
        case ast.With() | ast.AsyncWith():
            return _can_end(statement.body)
        case ast.While() if isinstance(statement.test, ast.Constant) and statement.test.value:
            return any(isinstance(inner, ast.Break) for inner in _own_nodes(statement))
        case ast.Try():
            if statement.finalbody and not _can_end(statement.finalbody):
                return False
            body = _can_end([*statement.body, *statement.orelse])
            return body or any(_can_end(handler.body) for handler in statement.handlers)
        case ast.Match():
            last = statement.cases[-1]
            whole = isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None and last.guard is None
            return not whole or any(_can_end(case.body) for case in statement.cases)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name("sys"), attr="exit"))):
            return False
        case _:
            return True
