"""How right completions are made: layouts, answers, and the probes that are made from them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reinforge.config import RewardFunctionSettings
from reinforge.data.template import fill_template
from reinforge.grading.grader import RewardFunctionGrader
from reinforge.grading.reward_function import load_reward_functions
from reinforge.lab.find_gold import GoldOptions, find_gold
from reinforge.lab.gold import Gold, GoldRecipe, answer_columns, split_answer
from reinforge.lab.layouts import asked_layout, json_keys, source_layouts
from reinforge.lab.probes import Answers, fuzz, probes
from reinforge.lab.subject import Request, examine_request
from reinforge.sandbox.limits import Limits
from reinforge.types import Example

R1 = "<think>\n{reasoning}\n</think>\n<answer>\n{answer}\n</answer>"


@pytest.mark.parametrize(
    ("prompt", "layout"),
    [
        ("Use\n<think>\nyour steps\n</think>\n<answer>\nthe number\n</answer>\nand nothing else.", R1),
        ("Put it in <answer></answer>.", "<answer>{answer}</answer>"),
        ("First <work>...</work><answer>...</answer>.", "<work>{reasoning}</work><answer>{answer}</answer>"),
        ("Think in <think> tags and answer in <answer> tags.", "<think>{reasoning}</think>\n<answer>{answer}</answer>"),
        ("<document>text</document> What is its title?", None),
        ("End with #### and the number.", "{reasoning}\n#### {answer}"),
        ("Put the result in \\boxed{}.", "{reasoning} \\boxed{{{answer}}}"),
        ("Write <plan>a {b}</plan> <code>c</code>.", "<plan>{reasoning}</plan> <code>{answer}</code>"),
        ("2 + 2?", None),
    ],
)  # fmt: skip
def test_layouts_that_prompts_ask_for(prompt: str, layout: str | None):
    assert asked_layout(prompt) == layout
    if layout is not None:
        assert "42" in fill_template(layout, {"answer": "42", "reasoning": "r"})


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ('A = re.compile(r"<answer>(.*?)</answer>")', "<answer>{answer}</answer>"),
        ('TAGS = ("<think>", "</think>", "<answer>")', "<think>{reasoning}</think><answer>{answer}</answer>"),
        ('"""Wants <b>bold</b>."""\nx = text.split("####")', "{reasoning}\n#### {answer}"),
        ('x = sample["output_json"]["codes"]', '{{"codes": {answer_json}}}'),
        ('{"type": "tag_format", "tags": ["plan", "code"]}', "<plan>{reasoning}</plan><code>{answer}</code>"),
        ("def f(a, b, c):\n    return 1.0", "{answer}"),
        ("def broken(:", "{answer}"),
    ],
)
def test_layouts_that_sources_hint_at(source: str, first: str):
    layouts = source_layouts(source)
    assert layouts[0] == first
    assert layouts[-1] == "{answer}"
    for layout in layouts:
        fill_template(layout, {"answer": "1", "answer_json": "1", "reasoning": ""})


def test_keys_of_json_completions():
    assert json_keys('a = (sample.get("output_json") or {}).get("passages")')[0] == "passages"
    assert json_keys("return 1.0") == ()


def test_a_json_layout_makes_valid_json_of_any_answer():
    for answer in ("plain", 'with "quotes"', 2, None, [{"a": 1}]):
        recipe = GoldRecipe("answer", '{{"x": {answer_json}}}')
        gold = recipe.make(Example(0, "p", {"answer": answer}))
        if answer is None:
            assert gold is None
        else:
            assert gold is not None
            assert json.loads(gold.text) == {"x": answer}
            assert json.loads(gold.with_answer('"other"') or "") == {"x": "other"}


def test_columns_that_may_hold_the_answer():
    example = Example(0, "p", {"id": 1, "label": "a", "target": 2, "note": ""})
    assert answer_columns([example], []) == ["target", "label"]
    assert answer_columns([example], ["return example['note']"]) == ["target", "label", "note"]
    assert answer_columns([example], ["def f(completions, label, **columns):"]) == ["label", "target"]
    assert answer_columns([Example(0, "p", {"x": 1})], []) == ["x"]


def test_a_column_named_answer_is_the_answer_whatever_is_rewarded(tmp_path):
    columns = {"answer": "4", "solution": "two and two are four, as everybody knows", "completion": "5"}
    example = Example(0, "2 + 2?", columns)
    source = "def wordy(prompt, completion, example):\n    return len(completion) / 100  # not example['solution']\n"
    assert answer_columns([example], ["def f(prompt, completion, example):"])[0] == "answer"
    (tmp_path / "wordy.py").write_text(source + "ANSWER = 'answer'\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "2 + 2?", **columns}) + "\n")
    report = examine_request(Request("wordy.py", "rows.jsonl"), tmp_path)
    assert "answers: column answer, assumed" in report.assumptions


def test_the_answer_behind_hashes():
    assert split_answer("4 + 4 = 8.\n#### 1,234 ") == ("4 + 4 = 8.", "1,234")
    assert split_answer([1]) == ("", [1])
    recipe = GoldRecipe("answer", R1)
    gold = recipe.make(Example(3, "p", {"answer": "4 + 4 = 8.\n#### 8"}))
    assert gold == Gold(3, "<think>\n4 + 4 = 8.\n</think>\n<answer>\n8\n</answer>", "8", "8")


def golds(*answers: object) -> list[Gold]:
    recipe = GoldRecipe("answer", "<think>{reasoning}</think><answer>{answer}</answer>")
    made = [recipe.make(Example(row, "p", {"answer": answer})) for row, answer in enumerate(answers)]
    return [gold for gold in made if gold is not None]


def named(all_golds: list[Gold], place: int = 0) -> dict[str, str]:
    return {probe.name: probe.text for probe in probes(all_golds[place], "the prompt", Answers(all_golds))}


def test_probes_of_a_number():
    made = named(golds("72", "1,350", "72"))
    answer = {name: text.partition("<answer>")[2].removesuffix("</answer>") for name, text in made.items()}
    assert answer["another row's answer"] == "1,350"
    assert answer["all answers listed"] == "72, 1,350"
    assert answer["two answers in one"] == "1,350 or 72"
    assert answer["most frequent answer"] == "72"
    assert answer["form without an answer"] == ""
    assert answer["spaces around the answer"] == " 72 "
    assert made["copied prompt"] == "the prompt"
    assert made["answer in the thinking only"].startswith("<think>72 ")
    assert made["cut off"] in golds("72")[0].text
    assert made["answer outside its tags"].startswith("72\n<think>")
    assert named(golds("72", "1,350"), 1)["no thousands comma"].endswith("<answer>1350</answer>")
    assert named(golds("1350", "72"))["thousands comma"].endswith("<answer>1,350</answer>")


def test_probes_of_lists_and_tables():
    made = named(golds([1, 2, 3, 4], [5]))
    assert made["half of the answer"].endswith("<answer>[1, 2]</answer>")
    assert made["compact JSON"].endswith("<answer>[1,2,3,4]</answer>")
    made = named(golds({"a": ["x", "y"], "b": 1}, {"a": [], "b": 2}))
    assert made["half of the answer"].endswith('<answer>{"a": ["x"], "b": 1}</answer>')
    assert "half of the answer" not in named(golds(["only"], []))


def test_an_empty_answer_has_no_trick_that_is_it():
    made = named(golds([], [1]))
    assert {"form without an answer", "all answers listed", "two answers in one"} & set(made) == set()
    assert golds([], [1])[0].is_empty


def test_code_blocks_get_other_first_lines():
    gold = Gold(0, "```typescript src/a.ts\nx\n```", None, "x")
    made = {probe.name: probe.text for probe in probes(gold, "", Answers([gold]))}
    assert made["```ts instead of ```typescript"] == "```ts src/a.ts\nx\n```"
    assert made["code block without its path"] == "```typescript\nx\n```"


answers = st.one_of(
    st.text(max_size=20), st.integers(), st.lists(st.integers(), max_size=4), st.booleans(),
    st.dictionaries(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=3), max_size=3),
)  # fmt: skip


@given(st.lists(answers, min_size=1, max_size=4))
def test_probes_differ_from_the_right_completion_and_from_each_other(drawn: list[object]):
    made = golds(*drawn)
    for gold in made:
        found = [probe for probe in probes(gold, "prompt", Answers(made)) if probe.kind != "constant"]
        texts = [probe.text for probe in found]
        assert len(set(texts)) == len(texts)
        assert gold.text not in texts
        assert probes(gold, "prompt", Answers(made)) == probes(gold, "prompt", Answers(made))
    assert {probe.kind for probe in fuzz(made[0])} == {"fuzz"}


def test_a_layout_whose_judgements_are_lost_is_not_taken_for_one_that_scores_0(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "WANTED = 'either <b>bold</b> or #### and the number'\n\n"
        "def strict(prompt, completion, example):\n"
        "    if not completion.startswith('<b>'):\n"
        "        raise ValueError('lost')\n"
        "    return -0.25\n"
    )
    functions = load_reward_functions({"strict": "rewards.py:strict"}, {}, tmp_path)
    grader = RewardFunctionGrader(functions, None, {"strict": RewardFunctionSettings(on_error="mask")})
    examples = [Example(place, "2 + 2?", {"answer": str(place)}) for place in range(3)]
    try:
        found = find_gold(functions, examples, GoldOptions(answer_column="answer"), grader, Limits())
    finally:
        grader.close()
    assert [gold.text for gold in found.golds] == ["<b>0</b>", "<b>1</b>", "<b>2</b>"]
