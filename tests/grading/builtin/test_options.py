"""Options and references that make no sense raise ValueError and say what is needed."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from grading.builtin.cases import USES

from reinforge.errors import SetupError
from reinforge.grading import builtin
from reinforge.grading.builtin import LIBRARIES, find
from reinforge.grading.builtin.tags import RUNGS

BASE = {use.grader: {**use.options, **use.cases[0].arguments} for use in reversed(USES)}


@pytest.mark.parametrize(
    ("grader", "options", "message"),
    [
        ("set_f1", {"keys": 5}, "keys: a list of texts"),
        ("set_f1", {"reference": "neither JSON nor Python"}, "reference: neither JSON nor a Python literal"),
        ("set_f1", {"reference": 5}, "reference: a list is needed, not 5"),
        ("set_f1", {"empty_match": "1"}, "empty_match: a number is needed, not '1'"),
        ("set_f1", {"empty_match": float("nan")}, "empty_match: a number is needed, not nan"),
        ("span_f1", {"matcher": "semantic"}, "matcher: one of ratio, partial, words, exact is needed"),
        ("span_f1", {"threshold": 90}, "threshold: a number from 0 to 1 is needed, not 90"),
        ("span_f1", {"source": 5}, "source: a text is needed"),
        ("icd_codes", {"exclusive": ["E10", "E11"]}, "exclusive: pairs of code beginnings are needed, not 'E10'"),
        ("icd_codes", {"reference": ["a code that is far too long"]}, "reference: a list of codes is needed"),
        ("record_checks", {"key": []}, "key: a list of texts is needed, at least 1 of them"),
        ("record_checks", {"reference": [{"title": " "}]}, "reference: records with title are needed"),
        ("record_checks", {"existing": ["Lunch"]}, "existing: records with fields are needed"),
        ("record_checks", {"weights": {"speed": 1}}, "weights: a table of complete, category, free"),
        ("record_checks", {"weights": {"free": 0}}, "weights: each must be above 0"),
        ("label", {"classes": ["fraud"]}, "classes: at least two different names"),
        ("label", {"classes": ["fraud", "Fraud."]}, "classes: at least two different names"),
        ("label", {"classes": {"fraud": -1, "allowed": 1}}, "classes.fraud: a number from 0 on is needed, not -1"),
        ("exact_answer", {"compare": "semantic"}, "compare: one of"),
        ("exact_answer", {"reference": []}, "the list of answers is empty"),
        ("exact_answer", {"tag": "answer", "after": "####"}, "only one of them"),
        ("exact_answer", {"tag": "<answer>"}, "tag: a name without"),
        ("numeric_close", {"reach": 0.5}, "reach: a number from 1 on is needed"),
        ("numeric_close", {"rel_tol": -1}, "rel_tol: a number from 0 on"),
        ("equation", {"numbers": ["nine"]}, "numbers: a list of numbers from 0 on"),
        ("equation", {"numbers": [-9]}, "numbers: a list of numbers from 0 on"),
        ("equation", {"reference": True}, "reference: a number is needed, not True"),
        ("equation", {"max_length": 10**6}, "max_length: a number from 1 to 1000"),
        ("math_equal", {"timeout_s": 0}, "timeout_s: a number from 0.001 on"),
        ("tag_format", {"layout": "strict"}, "layout: one of exact, lines, loose"),
        ("tag_format", {"tags": []}, "tags: a list of texts is needed, at least 1 of them"),
        ("tag_count", {"tags": ["a", "a"]}, "tags: no name may stand twice"),
        ("tag_ladder", {"rungs": {"nice": 1}}, "rungs: weights by name"),
        ("tag_ladder", {"rungs": dict.fromkeys(RUNGS, 0)}, "at least one needs a weight above 0"),
        ("ast_grep", {"languages": ["klingon"]}, "languages: some of typescript"),
        ("ast_grep", {"reference": ["a b"]}, "'a b' is no pattern in typescript, javascript, ts, js"),
        ("ast_grep", {"reference": [{"pattren": "x"}]}, "reference: a pattern with additional_greps"),
        ("json_schema", {"schema": "[1]"}, "schema: an object is needed"),
        ("json_schema", {"schema": {"$ref": "#/nowhere"}}, "cannot be resolved"),
        ("copied_prompt", {"run": 0}, "run: a number from 1 to 100"),
        ("length", {"unit": "tokens"}, "unit: one of words, characters"),
        ("gate", {"share": 2}, "share: a number from 0 to 1"),
        ("gate", {"below": "b"}, "below: a number is needed, not 'b'"),
        ("combine", {"clip": [1, -1]}, "clip: lowest 1 is above highest -1"),
        ("combine", {"clip": 1}, r"clip: \[lowest, highest\] is needed"),
    ],
)
def test_a_bad_option_is_named(grader: str, options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        find(grader)(**{**BASE[grader], **options})


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Block())
from reinforge.errors import SetupError
try:
    from reinforge.grading.builtin import {grader}
except SetupError as error:
    print(error)
from reinforge.grading.builtin import set_f1, equation, label, record_checks, repetition
print(set_f1(input="[1]", reference=[1]).score)
"""


@pytest.mark.parametrize("grader", LIBRARIES)
def test_a_missing_package_is_named_and_the_others_work(grader: str):
    code = BLOCKED.format(grader=grader, module=LIBRARIES[grader].replace("-", "_"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    error, score = done.stdout.splitlines()
    assert error.startswith(f"{grader} needs the package {LIBRARIES[grader]}. pip install 'reinforge[graders]'")
    assert score == "1.0"


def test_what_is_installed_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(builtin.LIBRARIES, "set_f1", "no-such-package")
    with pytest.raises(SetupError, match="set_f1 needs the package no-such-package"):
        find("set_f1")


def test_schemas_follow_their_own_references_and_know_unique_entries():
    check = find("json_schema")
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    tree = {"$defs": {"node": node}, "$ref": "#/$defs/node"}
    assert check(input='{"next": {"next": {}}}', schema=tree).score == 1.0
    assert check(input='{"next": {"next": 5}}', schema=tree).reason == "$.next.next: 5 is not of type 'object'"
    unique = '{"type": "array", "uniqueItems": true}'
    assert check(input='[1, true, "1", [1], {"a": 1}]', schema=unique).score == 1.0
    twice = '[{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]'
    assert check(input=twice, schema=unique).reason == "$: the entries are not unique"
    assert check(input=[[i] if i % 2 else str(i) for i in range(20_000)], schema=unique).score == 1.0


def test_a_schema_elsewhere_is_not_asked_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        schema = {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"}
        with pytest.raises(ValueError, match="nothing is fetched"):
            find("json_schema")(input="{}", schema=schema)
        with pytest.raises(TimeoutError):
            server.accept()
