"""The GSM8K recipe: gold replies earn full marks on every row, extraction is stable, the config holds together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.config import DataConfig
from reinforge.config_file import load_config
from reinforge.data.dataset import load_examples
from reinforge.data.render import Renderer, render_prompts
from reinforge.recipes.gsm8k import rewards
from reinforge.types import Example

RECIPE = Path(rewards.__file__).parent
FUNCTIONS = {
    rewards.correctness_reward: 2.0,
    rewards.int_reward: 0.5,
    rewards.strict_format_reward: 0.5,
    rewards.soft_format_reward: 0.5,
    rewards.xml_count_reward: 0.5,
}


def reply(reasoning: str, answer: str) -> str:
    """In the layout that the system prompt asks for."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def scores(completion: Any, answer: str) -> list[float]:
    """Of the five functions, in the order of FUNCTIONS."""
    return [function(["?"], [completion], answer=[answer], question=["?"])[0] for function in FUNCTIONS]


def gold_reply(answer: str) -> str:
    reasoning, _, gold = answer.partition("####")
    return reply(reasoning.strip(), gold.strip())


def check_gold_replies(examples: list[Example]) -> None:
    answers = [example.columns["answer"] for example in examples]
    for shaped in (gold_reply, lambda answer: [{"role": "assistant", "content": gold_reply(answer) + "\n"}]):
        completions = [shaped(answer) for answer in answers]
        for function, full_marks in FUNCTIONS.items():
            given = function([""] * len(answers), completions, answer=answers)
            assert [index for index, score in enumerate(given) if score != full_marks] == []
    for answer in answers:
        gold = rewards.extract_hash_answer(answer)
        assert gold
        assert rewards.extract_hash_answer(f"#### {gold}") == gold
        assert rewards.plain_number(rewards.extract_xml_answer(reply("", gold))) == gold


def load(path: Path, **settings: Any) -> list[Example]:
    return load_examples(DataConfig(path=str(path), prompt_column="question", **settings), Path())


def test_gold_replies_earn_full_marks_on_the_sample():
    examples = load(RECIPE / "sample.jsonl")
    check_gold_replies(examples)
    golds = [rewards.extract_hash_answer(example.columns["answer"]) for example in examples]
    assert golds == ["22", "1350", "111", "-5", "6", "160"]


@pytest.mark.parametrize(("split", "num_rows"), [("train", 7473), ("test", 1319)])
def test_gold_replies_earn_full_marks_on_every_real_row(shared_data, split, num_rows):
    examples = load(shared_data / "gsm8k", split=split)
    assert len(examples) == num_rows
    check_gold_replies(examples)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("so 72.\n#### 72", "72"),
        ("#### 72.5", "72.5"),
        ("#### $1,234,567.", "1234567"),
        ("#### -$3", "-3"),
        ("#### 1,2", "1,2"),
        ("#### .5", ".5"),
        ("a #### 1 #### 2", "2"),
        ("### 72", ""),
        ("72", ""),
        ("", ""),
    ],
)
def test_gold_extraction(text, gold):
    assert rewards.extract_hash_answer(text) == gold


@settings(deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="0123456789,.$- \n\u00a0#")))
def test_extraction_is_idempotent(text):
    once = rewards.plain_number(text)
    assert rewards.plain_number(once) == once


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (reply("1 + 1", "1,350"), [2.0, 0.5, 0.5, 0.5, 0.5]),
        (reply("1 + 1", "$1350."), [2.0, 0.5, 0.5, 0.5, 0.5]),
        (reply("1 + 1", "1351"), [0.0, 0.5, 0.5, 0.5, 0.5]),
        (reply("1 + 1", "many"), [0.0, 0.0, 0.5, 0.5, 0.5]),
        ("<reasoning>a</reasoning><answer>1350</answer>", [2.0, 0.5, 0.0, 0.5, 0.5]),
        (reply("a", "1350") + "\nDone.", [2.0, 0.5, 0.0, 0.5, 0.5]),
        (reply("a", "1") + reply("b", "1350"), [2.0, 0.5, 0.0, 0.5, 0.0]),
        ("<reasoning>\na\n</reasoning>\n<answer>\n1350", [0.0, 0.0, 0.0, 0.0, 0.375]),
        ("<answer>1350</answer><reasoning>a</reasoning>", [2.0, 0.5, 0.0, 0.0, 0.5]),
        ("1350", [0.0] * 5),
        ("", [0.0] * 5),
    ],
)
def test_what_replies_earn(completion, expected):
    assert scores(completion, "45 * 30\n#### 1,350") == expected


def test_an_answer_column_that_is_the_gold_already_counts():
    assert scores(reply("", "72"), "72")[0] == 2.0
    assert scores(reply("", ""), "#### ")[0] == 0.0


def test_hostile_replies_are_scored_in_linear_time():
    for tags in ("<reasoning></reasoning><answer>", "<reasoning>\n", "</answer>", "<answer>1,2", "1. . ."):
        assert scores(tags * 5_000, "#### 1")[0] == 0.0


def test_config_points_at_what_exists_and_renders(tiny_qwen2):
    config = load_config([RECIPE / "config.yaml"], [f"data.path={RECIPE / 'sample.jsonl'}"])
    for reference in config.reward_fns.functions.values():
        file, _, function = str(reference).rpartition(":")
        assert Path(file).name == "rewards.py"
        assert getattr(rewards, function) in FUNCTIONS
    assert len(config.reward_fns.functions) == len(FUNCTIONS)
    examples = load_examples(config.data, RECIPE)
    assert examples[0].prompt[0]["role"] == "system"
    assert all(tag in examples[0].prompt[0]["content"].splitlines() for tag in rewards.TAGS)
    assert set(examples[0].columns) == {"answer"}
    prompts = render_prompts(examples, Renderer.from_folder(tiny_qwen2), 2000, "error")
    assert all(prompt.text.endswith("<|assistant|>") for prompt in prompts)
