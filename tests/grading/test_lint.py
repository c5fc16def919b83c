"""Warnings about source texts: each bad text gives its warning with its line, each good one none."""

from __future__ import annotations

from pathlib import Path

import pytest

import reinforge
from reinforge.config import RewardFunctionSettings, RewardFunctionsRuntimeConfig
from reinforge.grading.column_traps import column_traps
from reinforge.grading.lint import lint, lint_functions
from reinforge.grading.reward_function import load_reward_functions, load_rewards_file

HEAD = "def f(prompt, completion, example):\n    '''Doc.'''\n"
COLUMNS = {"flag": "bool", "numbers": "list", "target": "int", "gold": "str", "row": "dict"}


def found(source: str, used: set[str] | None = None, **options: object) -> list[tuple[str, int]]:
    return [(w.check, w.line) for w in lint(source, {"f"} if used is None else used, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ("    print(completion)", "G02"),
        ("    if completion:\n        return 1.0", "G02"),
        ("    for c in completion:\n        return 1.0", "G02"),
        ("    try:\n        return 1.0\n    except ValueError:\n        pass", "G02"),
        ("    yield 1.0", "G02"),
        ("    match completion:\n        case 'a':\n            return 1.0", "G02"),
        ("    return float(open('/data/gold.txt').read() == completion)", "G23"),
        ("    return float(Path('~/gold.json').exists())", "G23"),
        ("    return float(os.environ['API_KEY'] == completion)", "G19"),
        ("    return float(os.getenv('API_KEY') == completion)", "G19"),
        ("    return float(bool(example['flag']))", "G25"),
        ("    return 1.0 if example['flag'] else 0.0", "G25"),
        ("    return float(not example['flag'])", "G25"),
        ("    flag = example.get('flag')\n    return 1.0 if flag and completion else 0.0", "G25"),
        ("    return float(example['target'] == 15)", "G25"),
        ("    return float(example['target'] == int(completion))", "G25"),
        ("    return example['target'] / 2", "G25"),
        ("    return float(sum(int(n) for n in example['numbers']))", "G25"),
        ("    return float(len(example['numbers']))", "G25"),
        ("    return float(example['numbers'][0] in completion)", "G25"),
        ("    return float(example['row']['a'] in completion)", "G25"),
        ("    return float(isinstance(example['numbers'], list))", "G25"),
    ],
)
def test_each_fault_is_found_once(body: str, check: str):
    warnings = lint("import os\nfrom pathlib import Path\n" + HEAD + body, {"f"}, columns=COLUMNS)
    assert [warning.check for warning in warnings] == [check]
    assert warnings[0].fix


@pytest.mark.parametrize(
    "body",
    [
        "    return 1.0 if example['gold'] else 0.0",
        "    return float(example['gold'][0] == completion)",
        "    return float(example.get('gold') is None)",
        "    numbers = ast.literal_eval(example['numbers'])\n    return float(len(numbers))",
        "    flag = example['flag']\n    flag = flag == 'True'\n    return 1.0 if flag else 0.0",
        "    if completion:\n        return 1.0\n    else:\n        return 0.0",
        "    try:\n        return float(completion)\n    except ValueError:\n        return 0.0",
        "    while True:\n        if completion:\n            return 1.0",
        "    match completion:\n        case 'a':\n            return 1.0\n        case _:\n            return 0.0",
        "    with x as y:\n        return 1.0",
        "    raise ValueError",
        "    return float(re.fullmatch('/a/b', completion) is not None)",
        "    path = '/home/user/' + completion\n    return float(path.endswith('/x'))",
        "    return float(int(example['target']) == 15)",
        "    def helper():\n        print(1)\n    return 1.0",
    ],
)
def test_good_texts_give_no_warning(body: str):
    assert lint("import ast, re\n" + HEAD + body, {"f"}, columns=COLUMNS) == ()


def test_without_the_data_only_what_is_wrong_for_any_text():
    assert found(HEAD + "    return 1.0 if example['flag'] else 0.0") == []
    assert found(HEAD + "    return float(len(example['numbers']))") == []
    assert found(HEAD + "    return float(example['target'] == 15)") == [("G25", 3)]


def test_typed_examples_have_no_type_traps():
    assert found(HEAD + "    return float(example['target'] == 15)", typed=True) == []


def test_the_row_of_another_form_is_typed_already():
    assert found("def f(sample, item):\n    '''Doc.'''\n    return float(item['target'] == 15)") == []


def test_unused_reward_functions_are_named_but_helpers_are_not():
    source = (
        HEAD + "    return helper(prompt, completion, example)\n"
        "def helper(prompt, completion, example):\n    return 1.0\n"
        "def strict(completions, **columns):\n    return [0.0]\n"
        "def gold(example):\n    return ''\n"
        "def _private(prompt, completion, example):\n    return 1.0\n"
    )
    assert found(source) == [("G21", 6)]
    assert found(source, {"f", "strict"}) == [("G26", 6)]


@pytest.mark.parametrize(
    "line",
    ["import requests", "from urllib import request", "import urllib.request", "from openai import OpenAI",
     "import http.client as h", "from urllib.request import urlopen"],
)  # fmt: skip
def test_network_use_is_told_unless_hosts_are_allowed(line: str):
    source = f"{line}\n{HEAD}    return 1.0"
    assert found(source) == [("G19", 1)]
    assert found(source, allowed_hosts=["api.example.com"]) == []


def test_what_needs_no_network_is_no_network():
    assert found(f"import urllib.parse, http\nfrom urllib import parse\n{HEAD}    return 1.0") == []


def test_secrets_that_a_worker_has_are_no_fault():
    source = f"import os\n{HEAD}    return float(os.environ.get('KEY') == completion)"
    assert found(source, secrets=["KEY"]) == []
    assert found(source, secrets=["OTHER"]) == [("G19", 4)]


@pytest.mark.parametrize("source", ["def f(:", "\0", "(" * 10_000, "x = " + "-" * 100_000 + "1", "1" + "+1" * 50_000])
def test_texts_that_do_not_parse_give_nothing(source: str):
    assert lint(source, {"f"}) == ()


def test_functions_of_one_file_are_looked_at_together(tmp_path: Path):
    (tmp_path / "rewards.py").write_text(
        "def a(prompt, completion, example):\n    '''Doc.'''\n    return 1.0\n"
        "def b(prompt, completion, example):\n    return 1.0\n"
    )
    both = load_rewards_file("rewards.py", tmp_path)
    assert [str(warning) for warning in lint_functions(both)] == [
        "rewards.py:4: b has no docstring. Say in one line what earns how much."
    ]
    assert [warning.check for warning in lint_functions(both[:1])] == ["G21"]


def test_the_recipes_are_clean():
    folder = Path(reinforge.__file__).parent / "recipes"
    for name in ("countdown", "gsm8k"):
        functions = load_rewards_file("rewards.py", folder / name)
        assert lint_functions(functions, columns={"numbers": "str", "target": "str", "answer": "str"}) == ()


def test_python_inside_a_grader_is_looked_at_too():
    source = "import urllib.request\ndef grade(sample, item):\n    print(sample)\n"
    python = {"type": "python", "source": source}
    node = {"type": "multi", "graders": {"a": python}, "calculate_output": "a"}
    warnings = lint_functions(load_reward_functions({"mixed": node}, {}, Path()))
    assert [(w.file_name, w.check, w.line) for w in warnings] == [
        ("mixed.a", "G19", 1), ("mixed.a", "G02", 2), ("mixed.a", "G26", 2),
    ]  # fmt: skip


def test_hosts_and_secrets_of_the_config_count(tmp_path: Path):
    (tmp_path / "rewards.py").write_text(f"import os, urllib.request\n{HEAD}    return float(os.environ['KEY'])\n")
    functions = load_rewards_file("rewards.py", tmp_path)
    assert [warning.check for warning in lint_functions(functions)] == ["G19", "G19"]
    runtime = RewardFunctionsRuntimeConfig(allowed_hosts=("api.example.org",), secrets=("KEY",))
    assert lint_functions(functions, runtime) == ()
    own = {"f": RewardFunctionSettings(allowed_hosts=(), secrets=())}
    assert [warning.line for warning in lint_functions(functions, runtime, own)] == [1, 4]
    assert [warning.line for warning in lint_functions(functions, runtime, {"other": own["f"]})] == []


def test_a_trap_is_told_with_its_line_and_the_way_out():
    import ast

    node = ast.parse("def f(p, c, row):\n    numbers = row['numbers']\n    return numbers[0]").body[0]
    assert isinstance(node, ast.FunctionDef)
    (trap,) = column_traps(node, {"numbers": "list"})
    assert (trap.line, trap.message) == (3, 'row["numbers"] is text here: this takes one of its characters')
    assert "reinforge rewards helpers" in trap.fix
