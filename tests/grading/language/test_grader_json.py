"""Graders as JSON text: lines of what is wrong, and repairs that give back exactly what was meant."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.errors import RewardError
from reinforge.grading.language.grader_json import parse_json, read_json, repaired_text
from reinforge.grading.language.json_repair import repair
from reinforge.grading.language.spec import find_problems
from reinforge.grading.language.text_positions import lines_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)

# As it was printed: line breaks in the source, curly quotes in the name.
CHIP = """{
  "type": "python",
  “name”: “donors_caas”,
  "image_tag": "alpha",
  "source": "from collections import Counter

def grade(sample, item) -> float:
    predicted = Counter((d['name'], d['value']) for d in sample['output_json']['predicted'])
    expected = Counter((d['name'], d['value']) for d in item['reference_answer'])
    tp = sum((predicted & expected).values())
    return 2 * tp / (sum(predicted.values()) + sum(expected.values()))",
}
"""


@given(VALUES, st.booleans())
def test_json_is_never_changed(value, indented):
    text = json.dumps(value, indent=1 if indented else None, ensure_ascii=not indented)
    mended, defects = repair(text)
    assert json.loads(mended) == value
    assert mended == text
    assert defects == []


def damaged(value):
    """JSON of the value with raw line breaks, curly quotes and trailing commas."""
    if isinstance(value, str):
        return "“" + json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\n", "\n") + "”"
    if isinstance(value, list):
        return "[" + "".join(f"{damaged(entry)},\n" for entry in value) + "]"
    if isinstance(value, dict):
        return "{\n" + "".join(f"{damaged(key)} : {damaged(entry)} ,\n" for key, entry in value.items()) + "}"
    return json.dumps(value)


# Texts in which no quote stands where one could end a text.
HARMLESS = st.text(st.characters(exclude_characters='"“”\\:,}]\x85\u2028\u2029'), max_size=20).map(str.strip)


@given(
    st.recursive(
        HARMLESS | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HARMLESS, inner, max_size=3),
        max_leaves=12,
    )
)
def test_damaged_json_comes_back_as_it_was_meant(value):
    mended, _ = repair(damaged(value))
    assert json.loads(mended) == value


@given(st.text("{}[]\",:“”'\\ntrue01.e\n\t\ufeff ", max_size=80))
def test_any_text_is_repaired_to_json_or_left(text):
    repaired = repair(text)
    if repaired is not None:
        json.loads(repaired[0])


def test_a_printed_grader_is_told_line_by_line_and_repaired():
    with pytest.raises(RewardError) as caught:
        read_json(CHIP, "chip.json")
    assert caught.value.message.splitlines() == [
        "this is not JSON:",
        'chip.json:3: a curly quote around a text: write ".',
        'chip.json:3: a curly quote around a text: write ".',
        "chip.json:5: a text goes over 7 lines: write each line break as \\n.",
        "chip.json:11: a comma before }: remove it.",
    ]
    assert "grader validate chip.json --fix" in caught.value.hint
    text, defects = repaired_text(CHIP)
    node = read_json(text)
    assert len(defects) == 4
    assert node.name == "donors_caas"
    assert node.source.splitlines()[2] == "def grade(sample, item) -> float:"
    assert repaired_text(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"a": "C:\\d"}', {"a": "C:\\d"}),
        ("{'a': 'it\\'s'}", {"a": "it's"}),
        ('{"a": "say "hi" to x"}', {"a": 'say "hi" to x'}),
        ('\ufeff{"a":\u00a01}', {"a": 1}),
        ('{"a": "x\ty"}', {"a": "x\ty"}),
        ('{"a": "keeps “these” quotes",}', {"a": "keeps “these” quotes"}),
    ],
)
def test_repairs(text, meant):
    assert json.loads(repair(text)[0]) == meant


@pytest.mark.parametrize("text", ["", "{", '{"a" 1}', "{a: 1}", "nothing", '{"a": 1} {', "[" * 100_000])
def test_what_cannot_be_repaired_is_told_with_its_line(text):
    started = time.process_time()
    with pytest.raises(RewardError, match=r"f\.json(:1: this is not JSON|: it is nested too deeply)"):
        parse_json(text, "f.json")
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type": "multi",\n "graders": {\n  "a": {"type": "string_check"}\n },\n "calculate_output": "a"}',
         ["f.json:3: graders.a.input: is not set", "f.json:3: graders.a.reference: is not set",
          "f.json:3: graders.a.operation: is not set"]),
        ('{"type": "multi",\n "graders": [\n  {"type": "x", "name": "a"}\n ],\n "calculate_output": "a"}',
         ['f.json:3: graders.0.type: "x" is no type of grader']),
        ('{\n "type": "gate",\n "share":\n 2,\n "a": 1,\n "b": {"type": 1}}',
         ["f.json:5: a: a grader is a table", "f.json:6: b.type: 1 is no type", "f.json:3: share: 2, but"]),
        ("[1]", ["f.json:1: a grader is a table with a type, not [1]"]),
        ('{"type": "python",\n"type": "multi"}', ['f.json: "type" is set twice in one table']),
        ('{"type": NaN}', ["f.json: NaN is no number of JSON"]),
    ],
)  # fmt: skip
def test_every_problem_has_its_line(text, said):
    with pytest.raises(RewardError) as caught:
        read_json(text, "f.json")
    told = caught.value.message.splitlines()
    assert len(told) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(told, said, strict=True)), told


@given(VALUES)
def test_every_value_has_a_line(value):
    lines = lines_of(json.dumps(value, indent=2))
    assert lines[()] == 1
    paths = []

    def walk(inner, path):
        paths.append(path)
        children = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, child in children:
            walk(child, (*path, key))

    walk(value, ())
    assert list(lines) == paths
    assert list(lines.values()) == sorted(lines.values())


def test_deep_values_are_refused_without_recursion():
    node = {}
    for _ in range(100_000):
        node = {"type": "gate", "a": node}
    (problem,) = find_problems(node)[1]
    assert problem.text == "it is nested more than 32 deep"


def test_numbers_of_any_length_and_tables_of_any_width_are_refused_at_once():
    for text in ("9" * 5000, f'{{"type": "gate", "share": -{"9" * 5000}}}'):
        with pytest.raises(RewardError, match=r"check\.json: a whole number in it has more than 4,300 digits"):
            read_json(text, "check.json")
        assert repaired_text(text) == (text, [])
    for number in ("9" * 400, "9" * 4300):
        with pytest.raises(RewardError, match="clip"):
            read_json(json.dumps({**COMBINE, "clip": [0]}).replace("[0]", f"[0, {number}]"), "check.json")
    wide = "{" + ", ".join(f'"k{number}": 0' for number in range(60_000)) + ', "k59999": 1}'
    started = time.process_time()
    with pytest.raises(RewardError, match='"k59999" is set twice'):
        read_json(wide)
    assert time.process_time() - started < 5


def test_a_clip_whose_ends_are_swapped_is_refused():
    with pytest.raises(RewardError, match="clip: the lowest, 1, is above the highest, 0"):
        read_json(json.dumps({**COMBINE, "clip": [1, 0]}))
    read_json(json.dumps({**COMBINE, "clip": [0, 0]}))


EQUAL = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "x"}
COMBINE = {"type": "combine", "graders": {"a": EQUAL}}
