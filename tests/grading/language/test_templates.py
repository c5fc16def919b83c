"""Templates: one pass, exact paths, faults that name what is there."""

from __future__ import annotations

import contextlib
import difflib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.grading.calls import openai_sample
from reinforge.grading.language.error_flags import CompletionFault, GraderFault
from reinforge.grading.language.templates import Path, Template

ROW = {"answer": 15, "nested": {"a": [{"b": "deep"}]}, "none": None, "my column": "x", "text": "t"}


def fill(template, completion="out"):
    return Template.parse(template).fill({"item": ROW, "sample": openai_sample(completion)})


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("", ""),
        ("no braces } {", "no braces } {"),
        ("{{item.answer}}", "15"),
        ("{{ item.answer }}/{{item.answer}}", "15/15"),
        ("{{item.nested.a[0].b}}", "deep"),
        ("{{item[\"my column\"]}} {{item['text']}}", "x t"),
        ("{{item.none}}", "null"),
        ("{{item.nested}}", '{"a": [{"b": "deep"}]}'),
        ('{"x": {{item.answer}}}', '{"x": 15}'),
        ("<{{sample.output_text}}>", "<out>"),
        ("{{sample.choices[0].message.content}}", "out"),
        ("{{sample.output_tools}}", "[]"),
    ],
)
def test_filling(template, filled):
    assert fill(template) == filled


def test_a_completion_is_never_expanded():
    hostile = "{{item.answer}} {{ {{item.text}} }} {{sample.output_text}}"
    assert fill("{{sample.output_text}}|{{item.text}}", hostile) == f"{hostile}|t"
    assert fill("{{sample.output_json}}", '["{{item.answer}}"]') == '["{{item.answer}}"]'


@given(st.text(), st.text())
def test_whatever_the_model_writes_comes_through_as_it_is(before, after):
    text = f"{before}{{{{item.answer}}}}{after}"
    assert fill("a{{sample.output_text}}b", text) == f"a{text}b"


@given(st.text("{}ab. []\"'0item.sample_output", max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        template = Template.parse(text)
    except ValueError:
        return
    assert "{{" not in "".join(part for part in template.parts if isinstance(part, str))
    with contextlib.suppress(GraderFault):
        assert isinstance(template.fill({"item": ROW, "sample": openai_sample("x")}), str)


def test_a_path_alone_hands_over_the_value():
    namespaces = {"item": ROW, "sample": openai_sample('{"codes": ["E11"]}')}
    assert Template.parse("{{item.nested.a}}").value(namespaces) == [{"b": "deep"}]
    assert Template.parse(" {{sample.output_json.codes}}").value(namespaces) == ' ["E11"]'
    assert Template.parse("{{sample.output_json.codes}}").value(namespaces) == ["E11"]


@pytest.mark.parametrize(
    ("template", "kind", "fault", "said"),
    [
        ("{{item.anwser}}", "invalid_variable_error", GraderFault, 'the row has no "anwser" .*did you mean answer?'),
        ("{{item.nested.a[1]}}", "invalid_variable_error", GraderFault, "item.nested.a is a list of 1, .* entry 1"),
        ("{{item.none.x}}", "invalid_variable_error", GraderFault, "item.none is null"),
        ("{{item.answer[0]}}", "invalid_variable_error", GraderFault, "item.answer is a int"),
        ("{{sample.output_audio}}", "invalid_variable_error", GraderFault, 'no "output_audio"'),
        ("{{sample.output_json.codes}}", "sample_parse_error", CompletionFault, "the completion is not JSON"),
        ("{{sample.output_tools[0].function.name}}", "invalid_variable_error", CompletionFault, "a list of 0"),
    ],
)
def test_what_is_missing(template, kind, fault, said):
    with pytest.raises(GraderFault, match=said) as caught:
        fill(template)
    assert caught.value.kind == kind
    assert type(caught.value) is fault


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{answer}}", "{{answer}} does not begin with item or sample"),
        ("{{items.x}}", "does not begin with item or sample"),
        ("{{item.a b}}", 'is no path: after item.a write .name, \\[0\\] or \\["name"\\]'),
        ("{{item..a}}", "is no path"),
        ("{{item[-1]}}", "is no path"),
        ("{{sample.text}}", "sample has output_text, output_json, output_tools, choices"),
        ("{{sample.ouput_text}}", "did you mean output_text"),
        ("a {{item.x", "never closed"),
        ("{{}}", "does not begin"),
    ],
)
def test_what_is_no_template(template, said):
    with pytest.raises(ValueError, match=said):
        Template.parse(template)


def test_columns_are_the_first_names_below_item():
    template = Template.parse("{{item.nested.a[0]}} {{sample.output_text}} {{item['my column']}} {{item}}")
    assert template.columns == ("nested", "my column")
    assert Path.parse("item").steps == ()


def test_json_is_read_to_64_levels_wherever_the_stack_ends():
    for depth in (1, 50, 63, 64):
        text = "[" * depth + "]" * depth
        assert fill("{{sample.output_json}}", text) == text
    for depth in (*range(65, 1001), 5000, 100_000):
        assert "output_json" not in openai_sample("[" * depth + "]" * depth)
    for opened, closed in (('{"a":', "}"), ('[0,{"a":[1],"b":', "}]")):
        assert "output_json" not in openai_sample(opened * 65 + "1" + closed * 65)
    assert openai_sample(f"[{'[],' * 5000}[]]")["output_json"] == [[]] * 5001


def test_integers_of_more_digits_than_python_reads_are_no_json():
    assert openai_sample("9" * 4300)["output_json"] == 10**4300 - 1
    for text in ("9" * 4301, f'{{"a": [-{"9" * 5000}]}}', "1e999"):
        assert "output_json" not in openai_sample(text)


def test_a_completions_own_names_are_quoted_in_part_and_never_compared_at_length(monkeypatch):
    compared = []
    real = difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda word, names, **k: compared.append(names) or real(word, names, **k)
    )
    many = {f"{'k' * 1000}{number}": 1 for number in range(500)} | {"answers": 1}
    for table in ({"a" * 200_000: 1, "answers": 2}, many):
        with pytest.raises(CompletionFault) as fault:
            fill("{{sample.output_json.answer}}", json.dumps(table))
        assert len(str(fault.value)) < 1000
    with pytest.raises(CompletionFault, match=r"did you mean answers\?"):
        fill("{{sample.output_json.answer}}", '{"answers": 1}')
    assert max(map(len, compared)) <= 100
    assert max(len(name) for names in compared for name in names) <= 60
