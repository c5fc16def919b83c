"""The Countdown recipe: its problems and splits, rewards, demonstrator, tokenizer, data files and shipped base."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from reinforge.config_file import load_config
from reinforge.data.dataset import load_examples
from reinforge.data.render import Renderer, render_prompts
from reinforge.recipes.countdown import make_data, rewards, task
from reinforge.recipes.countdown.make_base import Figures, batches, build_model, measure, prompt_ids, train
from reinforge.recipes.countdown.tokenizer import build_tokenizer

FOLDER = Path(task.__file__).parent
EXAMPLE = {"numbers": "9 1 5", "target": "15"}
HIT = "<think>9*5=45,1+45=46?;9+5=14,1+14=15!</think><answer>1+(9+5)</answer>"
numbers_strategy = st.tuples(*[st.integers(1, task.MAX_NUMBER)] * 3)


def _key(problem: task.Problem) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(problem.numbers)), problem.target


@pytest.mark.parametrize(
    ("completion", "form", "correct"),
    [
        (HIT, 1.0, 1.0),
        ("<think></think>\n<answer> (9 + 5) * 1 + 1 </answer>\n", 1.0, 0.0),
        ("<think>a</think><answer>9+5+1</answer>", 1.0, 1.0),
        ("<answer>9+5+1</answer>", 0.0, 1.0),
        (HIT.removesuffix("</answer>"), 0.0, 0.0),
        (HIT + "<answer>9+5+1</answer>", 0.0, 0.0),
        ("x" + HIT, 0.0, 1.0),
        ("<think>a<think>b</think><answer>9+5+1</answer>", 0.0, 1.0),
        ("<think>a</think><answer>15</answer>", 1.0, 0.0),
        ("<think>a</think><answer>9+5+1=15</answer>", 1.0, 0.0),
        ("<think>a</think><answer>91+5</answer>", 1.0, 0.0),
        ("<think>a</think><answer>__import__('os')</answer>", 1.0, 0.0),
        ("<think>a</think><answer>9+5+1\u0661</answer>", 1.0, 0.0),
        ("<think>a</think><answer></answer>", 1.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_rewards_of_one_completion(completion: str, form: float, correct: float) -> None:
    assert rewards.format_reward("", completion, EXAMPLE) == form
    assert rewards.correct_reward("", completion, EXAMPLE) == correct


def test_numbers_may_be_written_as_a_list_and_match_as_a_multiset() -> None:
    example = {"numbers": "[5, 5, 1]", "target": "11"}
    assert rewards.correct_reward("", "<answer>5+1+5</answer>", example) == 1.0
    assert rewards.correct_reward("", "<answer>5+5+1</answer>", {"numbers": "5 1", "target": "11"}) == 0.0


def test_the_target_must_be_met_to_a_hundred_thousandth() -> None:
    example = {"numbers": "9 1 5", "target": "1.800009"}
    assert rewards.correct_reward("", "<answer>9*1/5</answer>", example) == 1.0
    assert rewards.correct_reward("", "<answer>9*1/5</answer>", {**example, "target": "1.80001"}) == 0.0


@given(numbers_strategy)
def test_every_try_is_sound_and_its_expression_has_its_value(numbers: task.Numbers) -> None:
    for one in task.tries(numbers):
        example = {"numbers": str(numbers), "target": str(one.value)}
        assert rewards.correct_reward("", f"<answer>{one.expression}</answer>", example) == 1.0
        assert task.claims(f"<think>{one.steps}!", numbers, one.value) == [task.Claim(one.steps, True, True)]
        assert task.claims(f"<think>{one.steps}?", numbers, one.value + 1) == [task.Claim(one.steps, False, False)]
        assert all(0 <= int(number) <= task.MAX_VALUE for number in re.findall("[0-9]+", one.steps))


def test_the_order_of_a_try_follows_the_prompt() -> None:
    found = {one.steps: one.expression for one in task.tries((9, 1, 5))}
    assert found["9*5=45,1+45=46"] == "1+(9*5)"
    assert found["9-5=4,4-1=3"] == "(9-5)-1"


@settings(max_examples=50)
@given(
    numbers_strategy, st.integers(1, task.MAX_TARGET), st.integers(0, 2**32), st.sampled_from([task.SKILL, task.HABIT])
)
def test_demonstrations_are_well_formed_honest_and_never_repeat_a_try(
    numbers: task.Numbers, target: int, seed: int, style: task.Style
) -> None:
    text = task.demonstrate(task.Problem(numbers, target), random.Random(seed), style)
    assert task.outcome(text, numbers, target) in ("correct", "gave_up")
    found = task.claims(text, numbers, target)
    assert 1 <= len(found) <= style.max_tries
    assert all(one.claimed == one.true for one in found)
    assert len({one.steps for one in found}) == len(found)


def test_the_demonstrator_mostly_gives_up() -> None:
    rng = random.Random(0)
    problems = [task.shuffled(problem, rng) for problem in task.split("warm_start") * 5]
    counts = Counter(task.outcome(task.demonstrate(one, rng), one.numbers, one.target) for one in problems)
    assert 0.15 < counts["correct"] / counts.total() < 0.35
    always = [task.demonstrate(one, rng, replace(task.HABIT, persistent=1.0)) for one in problems]
    right = [
        task.outcome(text, one.numbers, one.target) == "correct" for text, one in zip(always, problems, strict=True)
    ]
    assert sum(right) / len(right) > 0.9


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (HIT, "correct"),
        ("<think>9*5=45,1+45=46?</think><answer>1+(9*5)</answer>", "gave_up"),
        ("<think>9+5=14,1+14=15?</think><answer>1*(9+5)</answer>", "gave_up"),
        ("<think>9*5=45,1+45=46!</think><answer>1+(9*5)</answer>", "false_hit"),
        ("<think>9+5=13,1+13=15!</think><answer>1*(9+5)</answer>", "false_hit"),
        ("<think>9+6=15,1*15=15!</think><answer>1*(9+6)</answer>", "false_hit"),
        ("<think>9+5=14,1+14=15!</think><answer>1*(9+5)</answer>", "true_hit_wrong_answer"),
        ("<think>9+5=14,1+14=15!</think><answer>1+(9+5)", "cut_off"),
        ("<think>9*5=45,1+45=46?;9+5=", "cut_off"),
        ("<think></think><answer>1</answer>", "gave_up"),
    ],
)
def test_outcomes(completion: str, expected: str) -> None:
    assert task.outcome(completion, (9, 1, 5), 15) == expected


def test_splits_share_no_problem_and_all_are_solvable() -> None:
    splits = [task.split(name) for name in ("warm_start", "train", "choice", "heldout")]
    keys = [_key(problem) for problems in splits for problem in problems]
    assert len(keys) == len(set(keys))
    assert min(len(problems) for problems in splits) >= 200
    assert all(any(one.value == target for one in task.tries(numbers)) for numbers, target in keys)


@pytest.mark.parametrize("name", make_data.NAMES)
def test_data_files_are_what_the_script_writes_and_stay_clear_of_the_warm_start(name: task.Split) -> None:
    text = (FOLDER / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text == make_data.lines(name)
    rows = [json.loads(line) for line in text.splitlines()]
    shown = []
    for row in rows:
        first, second, third = map(int, row["numbers"].split())
        shown.append(task.Problem((first, second, third), int(row["target"])))
    assert [row["prompt"] for row in rows] == [one.prompt for one in shown]
    assert len(set(shown)) == len(shown)
    assert {_key(one) for one in shown} == {_key(one) for one in task.split(name)}
    assert not {_key(one) for one in shown} & {_key(one) for one in task.split("warm_start")}


def test_hostile_completions_are_scored_in_linear_time() -> None:
    for tags in ("<answer>", "<think>", "<think></think><answer>", "<answer>1", "</answer>", "<think></think>\n"):
        assert rewards.format_reward("", tags * 5_000, EXAMPLE) == 0.0
        assert rewards.correct_reward("", tags * 5_000, EXAMPLE) == 0.0


def test_tokens_of_numbers_words_and_tags_are_single_and_text_survives() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("<think>9*5=45,10?</think>") == [
        *("<think>", "9", "*", "5", "=", "45", ",", "10", "?", "</think>"),
    ]
    assert tokenizer.tokenize("numbers 9 1 target 15") == ["numbers", "Ġ", "9", "Ġ", "1", "Ġtarget", "Ġ", "15"]
    assert tokenizer.decode([*tokenizer.encode(HIT), tokenizer.eos_token_id], skip_special_tokens=True) == HIT
    for text in ("100 007", "naïve ☃ 1.5\n\n", "<|im_end|> assistants"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_tokenizer_is_the_same_however_it_is_loaded(tmp_path: Path) -> None:
    built = build_tokenizer()
    built.save_pretrained(tmp_path)
    build_model(built, seed=0).config.save_pretrained(tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    qwen = AutoTokenizer.from_pretrained(tmp_path)  # brings its own pre-tokenizer
    rng = random.Random(0)
    for problem in task.split("choice"):
        text = task.demonstrate(problem, rng, task.SKILL)
        assert built.encode(text) == raw.encode(text).ids == qwen.encode(text)
        assert prompt_ids(built, problem) == prompt_ids(qwen, problem)


def test_every_prompt_has_the_same_number_of_tokens() -> None:
    tokenizer = build_tokenizer()
    lengths = {len(prompt_ids(tokenizer, problem)) for problem in task.split("heldout")}
    assert lengths == {18}


def test_the_loss_weighs_completions_only_and_verdicts_more() -> None:
    tokenizer = build_tokenizer()
    ids_BT, weights_BT = next(batches(tokenizer, random.Random(0), task.SKILL))
    assert ids_BT.shape == weights_BT.shape
    for ids, weights in zip(ids_BT.tolist(), weights_BT.tolist(), strict=True):
        end = ids.index(tokenizer.eos_token_id, 18)
        assert weights[:18] == [0.0] * 18
        assert weights[end] == 1.0
        assert not any(weights[end + 1 :])
        verdicts = {
            text for text, weight in zip(tokenizer.convert_ids_to_tokens(ids), weights, strict=True) if weight > 1
        }
        assert verdicts
        assert verdicts <= {"?", "!"}


def test_a_seed_repeats_bit_for_bit() -> None:
    tokenizer = build_tokenizer()

    def trained(seed: int) -> list[torch.Tensor]:
        model = build_model(tokenizer, seed)
        train(model, batches(tokenizer, random.Random(seed), task.HABIT), 3, 1.0)
        return list(model.state_dict().values())

    once, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(left, right) for left, right in zip(once, again, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(once, other, strict=True))


def test_the_gate_refuses_each_shortfall() -> None:
    good = Figures({"correct": 0.2, "gave_up": 0.8}, precision=0.95, recall=1.0, mean_tries=2.0, num_completions=100)
    assert good.passes
    assert not replace(good, precision=0.89).passes
    assert not replace(good, outcomes={"correct": 0.2, "gave_up": 0.7, "cut_off": 0.1}).passes
    assert not replace(good, outcomes={"correct": 0.1, "gave_up": 0.9}).passes
    assert not replace(good, outcomes={"correct": 0.3, "gave_up": 0.7}).passes


@pytest.mark.slow
def test_the_shipped_base_is_small_loads_and_passes_its_gate() -> None:
    base = FOLDER / "base"
    assert (base / "model.safetensors").stat().st_size <= 2_000_000
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.config.model_type == "qwen2"
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    rng = random.Random(0)
    figures = measure(model, tokenizer, [task.shuffled(one, rng) for one in task.split("choice")], seed=0)
    assert figures.formatted >= 0.95
    assert figures.precision >= 0.85
    assert figures.outcomes["gave_up"] > 0.5


def test_config_points_at_what_exists_and_a_correct_completion_earns_one() -> None:
    config = load_config([FOLDER / "config.yaml"])
    assert config.base_model == str(FOLDER / "base")
    completion, example = HIT, {"numbers": "9 1 5", "target": "15"}
    total = 0.0
    for name, address in config.reward_fns.functions.items():
        file, _, function = str(address).rpartition(":")
        assert Path(file) == FOLDER / "rewards.py"
        total += config.reward_fns.weights[name] * getattr(rewards, function)("", completion, example)
    assert total == pytest.approx(1.0, abs=1e-12)
    renderer = Renderer.from_folder(FOLDER / "base")
    for path in (config.data.path, config.data.heldout_path):
        examples = load_examples(config.data.model_copy(update={"path": path}), FOLDER)
        prompts = render_prompts(examples, renderer, 100, "error")
        assert {len(prompt.token_ids) for prompt in prompts} == {18}
        assert all(isinstance(value, str) for value in examples[0].columns.values())
