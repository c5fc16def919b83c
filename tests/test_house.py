"""Rules of the house that no single module can see: layers, sizes, words, light imports, reference pages in step."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import reinforge
from reinforge import errors
from reinforge.cli.main import COMMANDS, cli
from reinforge.config_problems import config_keys
from reinforge.insight.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "reinforge"
MODULES = sorted(SOURCE.rglob("*.py"))

LAYER_0 = {"types", "roles", "errors", "model_files", "requirements", "config", "config_rewards", "config_rollout"}
LAYER_1 = {"config_problems", "config_file", "run_store", "data", "grading", "sandbox", "insight"}
LAYER_2 = {"policy", "learner", "inference", "rollout"}
LAYER_3 = {"loop", "evaluation", "evaluation_watch", "gold_check", "reward_updates", "resume_changes", "lab"}
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "roles": {"types"},
    "model_files": set(),
    "requirements": set(),
    "config": {"config_rewards", "config_rollout"},
    "config_rewards": {"requirements", "config_rollout"},
    "config_rollout": set(),
    "config_problems": {"config"},
    "config_file": {"config", "config_problems", "errors"},
    "sandbox": LAYER_0,
    "grading": LAYER_0 | {"sandbox", "run_store.judgements", "run_store.network_log"},
    "data": LAYER_0,
    "run_store": LAYER_0,
    "insight": LAYER_0 | {"run_store"},
    "policy": LAYER_0 | LAYER_1,
    "learner": LAYER_0 | LAYER_1 | {"policy"},
    "inference": LAYER_0 | LAYER_1 | {"policy"},
    "rollout": LAYER_0 | LAYER_1,
    "evaluation": LAYER_0 | LAYER_1 | {"rollout"},
    "evaluation_watch": LAYER_0 | LAYER_1 | {"rollout"},
    "gold_check": LAYER_0 | LAYER_1,
    "loop": LAYER_0 | LAYER_1 | {"rollout", "evaluation", "evaluation_watch", "gold_check", "learner.advantage"},
    "reward_updates": LAYER_0 | LAYER_1,
    "resume_changes": LAYER_0 | LAYER_1 | {"reward_updates"},
    "lab": LAYER_0 | LAYER_1,
    "cluster": LAYER_0 | LAYER_1 | LAYER_2 | LAYER_3,
}
"""First name below `reinforge` -> what it may import of ours. Those on top may import anything."""
TOP = {
    "__init__",
    "__main__",
    "api",
    "verification",
    "reward_replay",
    "reward_changes",
    "plot",
    "demo",
    "cli",
    "recipes",
}

HEAVY = {
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "tokenizers",
    "jinja2",
    "datasets",
    "pyarrow",
    "numpy",
    "matplotlib",
}
"""Not in the base installation."""
MAY_BE_HEAVY = {"policy": HEAVY, "learner": {"torch", "safetensors"}, "inference": {"torch", "transformers", "peft"}}
MAY_BE_HEAVY |= {
    "cluster": {"torch"},
    "plot": {"matplotlib"},
    "recipes": HEAVY,
    "data": {"tokenizers", "jinja2", "pyarrow", "datasets"},
}

TRANSFORMERS_INTERNALS = (
    "cache_utils",
    "masking_utils",
    "modeling_utils",
    "integrations",
    "DynamicCache",
    "AttentionInterface",
)
TRANSFORMERS_INTERNALS += ("AttentionMaskInterface", "ALL_ATTENTION_FUNCTIONS", "past_key_values")

FOREIGN_FILES = {"grading/reward_function.py", "predibase.py"}
FOREIGN_FILES |= {f"grading/language/{name}.py" for name in ("spec", "local_grader", "grader_api", "grader_check")}
FOREIGN_FILES |= {f"server/{name}_api.py" for name in ("openai", "predibase", "lorax")}
FOREIGN_WORDS = {
    "item",
    "response",
    "responses",
    "teacher",
    "trajectory",
    "episode",
    "evaluator",
    "ref_model",
}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, also those inside functions and for type checking."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            package = node.module or ""
            is_file = (SOURCE.parent / package.replace(".", "/")).with_suffix(".py").is_file()
            yield from ((package if is_file else f"{package}.{alias.name}", node.lineno) for alias in node.names)


def allowed(imported: str, may: set[str]) -> bool:
    parts = imported.split(".")[1:]
    return any(parts[: len(rule.split("."))] == rule.split(".") for rule in may)


def test_imports_point_one_way():
    wrong = []
    for path in MODULES:
        part = part_of(path)
        may = MAY_IMPORT.get(part)
        for module, line in imports_of(path):
            if may is None or not module.startswith("reinforge.") or module.split(".")[1] == part:
                continue
            if not allowed(module, may):
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert wrong == []


def test_every_part_of_the_package_has_its_layer():
    known = set(MAY_IMPORT) | TOP
    assert {part_of(path) for path in MODULES} <= known


def test_heavy_packages_stay_in_their_layers():
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in MODULES
        for module, line in imports_of(path)
        if module.split(".")[0] in HEAVY - MAY_BE_HEAVY.get(part_of(path), set())
    ]
    assert wrong == []
    for path in (SOURCE / "learner" / "advantage.py", SOURCE / "sandbox" / "runner.py"):
        names = {module.split(".")[0] for module, _ in imports_of(path)}
        assert not names & HEAVY
    assert "reinforge" not in {module.split(".")[0] for module, _ in imports_of(SOURCE / "sandbox" / "runner.py")}


def test_only_one_file_touches_the_internals_of_transformers():
    wrong = []
    for path in MODULES:
        if name_of(path) == "policy/attention.py":
            continue
        for module, line in imports_of(path):
            if module.startswith("transformers") and set(module.split(".")) & set(TRANSFORMERS_INTERNALS):
                wrong.append(f"{name_of(path)}:{line} imports {module}")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.keyword | ast.Attribute) and "past_key_values" in (
                getattr(node, "arg", None), getattr(node, "attr", None)
            ):  # fmt: skip
                wrong.append(f"{name_of(path)}:{node.lineno} uses past_key_values")
    assert wrong == []


BLOCK_HEAVY = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {sorted(HEAVY)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.split('.')[0])
sys.meta_path.insert(0, Block())
"""


def run_without_heavy_packages(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK_HEAVY + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_base_imports_without_torch(tmp_path: Path):
    light = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if part_of(path) in LAYER_0 | (LAYER_1 - {"data"}) | LAYER_3 | {"rollout"} | (TOP - {"recipes", "__main__"})
        and path.name != "runner.py"
    ]
    assert len(light) > 30
    code = f"import importlib\nfor name in {light}: importlib.import_module(name)"
    result = run_without_heavy_packages(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_base_grades_and_shows_without_torch_and_says_what_training_needs(tmp_path: Path):
    (tmp_path / "rewards.py").write_text("def right(prompt, completion, example):\n    return 1.0\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "train.yaml").write_text(
        "base_model: .\nreward_fns: {functions: {right: rewards.py:right}}\ndata: {path: rows.jsonl, heldout: 0}\n"
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"from reinforge.cli.main import main; main({list(arguments)!r})"
        return run_without_heavy_packages(code, tmp_path)

    for arguments in (
        ["grade", "rewards.py", "--data", "rows.jsonl"],
        ["runs", "list"],
        ["train", "train.yaml", "--dry-run"],
    ):
        result = command(*arguments)
        assert result.returncode == 0, (arguments, result.stderr)
    result = command("train", "train.yaml")
    assert result.returncode == 4
    assert 'pip install "reinforge[train]"' in result.stderr


def test_help_answers_at_once():
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([sys.executable, "-m", "reinforge", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.stdout.startswith(b"Usage: reinforge")
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.5


def test_the_listed_help_is_the_commands_own():
    context = click.Context(cli)
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert (command.help or "").split("\n\n")[0].strip() == line


def test_public_names_are_there_and_only_they():
    for name in reinforge.__all__:
        assert getattr(reinforge, name).__name__ == name
    assert dir(reinforge) == sorted([*reinforge.__all__, "__version__"])
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = reinforge.nothing


@cache
def reference():
    """docs/make_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["builtin_graders.md", "config.md", "cli.md", "errors.md", "graders.md", "metrics.md", "run_directory.md"]
)
def test_reference_pages_are_what_the_code_says(name: str):
    stored = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert stored == reference().page_text(reference().PAGES[name]), "stale: run `make docs`"


def test_every_option_error_exit_code_and_metric_stands_in_a_reference_page():
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert set(pages) == set(reference().PAGES)
    missing = [key for key in config_keys() if f"`{key}`" not in pages["config.md"]]
    missing += [name for name in METRICS if f"`{name}`" not in pages["metrics.md"]]
    for kind in error_classes():
        missing += [word for word in (f"`{kind.code}`", f"`{kind.__name__}`") if word not in pages["errors.md"]]
    codes = {"0", "130/143"} | {str(kind.exit_code) for kind in error_classes() if kind is not errors.Interrupted}
    missing += [code for code in codes if f"\n| {code} | " not in pages["errors.md"]]
    for option in all_options():
        missing += [] if re.search(rf"(?<![\w-]){re.escape(option)}\b", pages["cli.md"]) else [option]
    assert missing == []


def test_every_error_stands_in_the_tree_and_has_a_code_of_its_own():
    kinds = error_classes()
    tree = dict(re.findall(r"([A-Z]\w+) +(\d+)", (errors.__doc__ or "").partition("Exit codes:")[0]))
    assert {kind.__name__: str(kind.exit_code) for kind in kinds} == tree
    assert len({kind.code for kind in kinds}) == len(kinds)


def error_classes() -> list[type[errors.ReinforgeError]]:
    found = [errors.ReinforgeError]
    for kind in found:
        found += kind.__subclasses__()
    return found


def all_options() -> Iterator[str]:
    def walk(command: click.Command, context: click.Context) -> Iterator[str]:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield from parameter.opts
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                yield from walk(child, click.Context(child, info_name=name, parent=context))

    return walk(cli, click.Context(cli))


def test_files_and_functions_stay_small():
    large = [name_of(path) for path in MODULES if len(path.read_text().splitlines()) > MAX_FILE_LINES]
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                large += [f"{name_of(path)}:{node.lineno} {node.name}: {length} lines"] * (length > MAX_FUNCTION_LINES)
    assert large == []


def test_foreign_words_stay_in_the_files_that_translate_them():
    wrong = [
        f"{name_of(path)}:{line} {word}"
        for path in MODULES
        if name_of(path) not in FOREIGN_FILES
        for word, line in names_defined_in(path)
        if word.strip("_") in FOREIGN_WORDS
    ]
    assert wrong == []


def names_defined_in(path: Path) -> Iterator[tuple[str, int]]:
    """Functions, classes, their fields and parameters: what others see. Local variables are free."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node.lineno
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            yield from ((argument.arg, argument.lineno) for argument in every)
        elif isinstance(node, ast.ClassDef):
            yield node.name.lower(), node.lineno
            fields = [field.target for field in node.body if isinstance(field, ast.AnnAssign)]
            yield from ((field.id, field.lineno) for field in fields if isinstance(field, ast.Name))


def test_no_file_of_the_repository_names_the_place_it_was_written_in():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the repository is unknown")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    places = re.compile(rb"(?<![\w.])/(?:work|opt/pypi\S*|root)/" + rb"\w")
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and not os.path.samefile(path, __file__):
            wrong += [f"{name}: {match[0].decode()}" for match in places.finditer(path.read_bytes())]
    assert wrong == []
