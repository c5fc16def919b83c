"""Guessed tokens never change what is drawn: completions are the same without, their distribution is the model's."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from reinforge.config import SamplingParams
from reinforge.errors import ModelError
from reinforge.inference import decoders, engine, speculation
from reinforge.inference.adapters import sampling_network
from reinforge.inference.engine import Engine
from reinforge.inference.sampling import draw
from reinforge.inference.speculation import Acceptance, Draft, Index
from reinforge.policy import slots as network_slots
from reinforge.policy.attention import plain_logits, use_plain_attention, use_shared_prefix_attention
from reinforge.policy.counter_random import stream_key, uniform
from reinforge.policy.network import Network
from reinforge.types import Completion, Example, Prompt, SampleRequest

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guess wherever anything was ever guessed right, with any number of rows; longer prompts are shared."""
    monkeypatch.setattr(engine, "MAX_ROWS", 64)
    for name in ("PASS_COST", "TOKEN_COST", "MIN_GAIN"):
        monkeypatch.setattr(speculation, name, 0.0)
    monkeypatch.setattr(decoders, "SHARED_TOKENS", 20)
    monkeypatch.setattr(network_slots, "ROOM_STEP", 4)


def load(folder: Path) -> PreTrainedModel:
    """With less of a past, so that completions repeat themselves as text does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    for layer in model.get_decoder().layers:
        layer.self_attn.o_proj.weight.mul_(0.1)
        layer.mlp.down_proj.weight.mul_(0.1)
    use_shared_prefix_attention(model)
    return model


def make_engine(model: PreTrainedModel, decode=lambda ids: "", **changes) -> Engine:
    named = SamplingParams.model_fields.keys() & changes.keys() - {"max_tokens"}
    params = SamplingParams(**{name: changes.pop(name) for name in named})
    settings = {"max_tokens": 40, "eos_ids": frozenset(), "slots": 64, "shared_prefix": True, "decode": decode}
    network = sampling_network(model, shares_prefix=True)
    assert network is not None
    return Engine(model, sampling_params=params, network=network, **(settings | changes))


def make_requests(num_generations: int = 5, *, greedy: bool = False) -> list[SampleRequest]:
    """One prompt repeats itself, so that there is something to guess from the beginning."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(256, (n,), generator=generator).tolist() for n in (9, 1, 4)] + [[7, 8, 9, 7, 8, 9, 7]]
    return [
        SampleRequest(Prompt(Example(i, ""), "", tuple(ids)), num_generations, key=(3, 1, i), greedy=greedy)
        for i, ids in enumerate(prompts)
    ]


def collect(sampler: Engine, requests) -> dict[tuple[int, int], Completion]:
    return {(place, completion.generation): completion for place, completion in sampler.sample(requests)}


def assert_same(model: PreTrainedModel, requests, **settings) -> dict[str, float]:
    """Token for token with and without -> figures of the engine with."""
    plain = collect(make_engine(model, speculation=False, **settings), requests)
    guessing = make_engine(model, speculation=True, **settings)
    found = collect(guessing, requests)
    assert found.keys() == plain.keys()
    params = SamplingParams(**{name: settings[name] for name in ("temperature", "top_k", "top_p") if name in settings})
    for (place, generation), completion in found.items():
        other = plain[place, generation]
        if completion.token_ids != other.token_ids:
            assert_on_a_border(model, requests[place], completion, other, params)
            continue
        assert (completion.text, completion.finish_reason) == (other.text, other.finish_reason)
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert completion.sampled_logprobs == pytest.approx(other.sampled_logprobs, abs=1e-4)
    return guessing.take_figures()


def assert_on_a_border(
    model: PreTrainedModel, request: SampleRequest, one: Completion, two: Completion, params: SamplingParams
) -> None:
    """Rounding chooses where the random number lies on the border between two tokens; one draw in 100,000."""
    pairs = enumerate(zip(one.token_ids, two.token_ids, strict=False))
    place, tokens = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
    row_1T = torch.tensor([[*request.prompt.token_ids, *one.token_ids[:place]]])
    number = uniform(torch.tensor(stream_key(*request.key, one.generation)), place)
    use_plain_attention(model)
    logits_2V = plain_logits(model, row_1T, torch.ones_like(row_1T))[:, -1].expand(2, -1)
    use_shared_prefix_attention(model)
    drawn = draw(logits_2V, torch.stack([number - 2e-5, number + 2e-5]), params).token_ids_B
    assert set(drawn.tolist()) == set(tokens)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.5},
        {"temperature": 0.25},
        {"temperature": 0.4, "top_k": 20, "top_p": 0.8},
        {"temperature": 0.3, "top_p": 0.9, "slots": 3},
    ],
)
def test_the_same_tokens_are_drawn(tiny_model: Path, eager: None, params: dict):
    figures = assert_same(load(tiny_model), make_requests(), **params)
    assert 0.005 < figures["speed/draft_accepted_share"] < 0.98
    assert figures["speed/guessed_share"] > 0.01


def test_greedy_rows_and_drawn_ones_beside_them(tiny_model: Path, eager: None):
    mixed = [*make_requests(3), *make_requests(1, greedy=True)]
    assert assert_same(load(tiny_model), mixed, temperature=0.3)["speed/guessed_share"] > 0.03


def test_an_eos_token_and_the_limit_inside_a_draft(tiny_qwen2: Path, eager: None):
    """Every token of a row ends it in turn, and every length is the limit."""
    model, requests = load(tiny_qwen2), make_requests(3)
    free = collect(make_engine(model, temperature=0.3), requests)
    for eos in set(free[3, 1].token_ids[::3]):
        assert_same(model, requests, temperature=0.3, eos_ids=frozenset({eos}))
    for limit in range(1, 9):
        assert_same(model, requests, temperature=0.3, max_tokens=limit)


@pytest.mark.parametrize("slots", [2, 64])
def test_a_stop_string_inside_a_draft(tiny_llama: Path, eager: None, slots: int):
    def decode(ids) -> str:
        return bytes(b"abcdefghijklmnopqrstuvwxyz "[i % 27] for i in ids).decode()

    model, requests = load(tiny_llama), make_requests()
    free = collect(make_engine(model, decode, temperature=0.4), requests)
    for start in range(0, 30, 10):
        stop = (free[2, 1].text[start : start + 2], free[3, 2].text[start : start + 3])
        assert_same(model, requests, decode=decode, stop=stop, temperature=0.4, slots=slots)


def test_equal_calls_are_bitwise_equal(tiny_qwen3: Path, eager: None):
    sampler, requests = make_engine(load(tiny_qwen3), temperature=0.5), make_requests()
    assert collect(sampler, requests) == collect(sampler, requests)
    assert sampler.take_figures()["speed/guessed_share"] > 0.1
    assert sampler.take_figures() == {}


def test_the_distribution_is_the_models(eager: None):
    """All 81 completions of four tokens out of three, counted against their probabilities."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    every = list(itertools.product(range(3), repeat=4))
    prompt, num_drawn = (0, 1, 2, 0, 1), 1500
    logprobs_NTV = model(torch.tensor([prompt + row for row in every])).logits[:, 4:8].log_softmax(-1)
    use_shared_prefix_attention(model)
    sampler = make_engine(model, max_tokens=4, slots=16)
    request = SampleRequest(Prompt(Example(0, ""), "", prompt), num_drawn, key=(1,))
    counts = Counter(completion.token_ids for _, completion in sampler.sample([request]))
    assert sampler.take_figures()["speed/guessed_share"] > 0.2
    probabilities = logprobs_NTV.gather(2, torch.tensor(every)[..., None])[..., 0].sum(1).exp()
    expected = [num_drawn * float(p) for p in probabilities]
    likely = [i for i, count in enumerate(expected) if count >= 5]
    rest = num_drawn - sum(expected[i] for i in likely)
    square = sum((counts[every[i]] - expected[i]) ** 2 / expected[i] for i in likely)
    square += (num_drawn - sum(counts[every[i]] for i in likely) - rest) ** 2 / rest
    freedom = len(likely)
    assert freedom > 20
    assert square < freedom + 3 * (2 * freedom) ** 0.5


def test_tokens_that_cannot_be_guessed_cost_no_pass(tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch):
    """Nearly uniform over 262 tokens: what was seen before says nothing."""
    monkeypatch.setattr(engine, "MAX_ROWS", 64)
    figures = assert_same(load(tiny_qwen2), make_requests(), temperature=50.0)
    assert figures == {"speed/guessed_share": 0.0}


def test_nan_behind_a_wrong_guess_is_an_error(tiny_qwen2: Path, eager: None):
    model = load(tiny_qwen2)
    sampler = make_engine(model, temperature=0.3)
    collect(sampler, make_requests())
    model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        collect(sampler, make_requests())


def test_several_tokens_at_once_are_the_tokens_one_by_one(tiny_model: Path):
    """Rows of different lengths behind a shared prefix, a copied one and none; the last tokens are taken back twice."""
    model = load(tiny_model)
    network = Network.of(model)
    assert network is not None
    ids_BT = network.random_ids((4, 9), torch.Generator().manual_seed(2))
    lengths_N = torch.tensor([6, 3, 0])
    computed = network.prefix_pass(network.random_ids((3, 6), torch.Generator().manual_seed(1)), lengths_N)
    prefixes = [network_slots.Prefix.of(computed, index, is_shared=index == 0) for index in range(3)]

    def slots_and_lengths():
        slots = network_slots.NetworkSlots(network, 4)
        for slot, index in enumerate((0, 1, 0, 2)):
            slots.place(slot, prefixes[index])
        return slots, lengths_N[torch.tensor([0, 1, 0, 2])]

    with torch.inference_mode():
        slots, lengths_B = slots_and_lengths()
        expected = torch.stack([slots.step(ids_BT[:, t], lengths_B + t) for t in range(9)], dim=1)
        slots, lengths_B = slots_and_lengths()
        found = slots.extend(ids_BT[:, :3], lengths_B).unflatten(0, (4, 3))
        torch.testing.assert_close(found, expected[:, :3], atol=2e-5, rtol=0)
        for _ in range(2):
            slots.extend(ids_BT[:, :4].flip(1), lengths_B + 3)
            found = slots.extend(ids_BT[:, 3:], lengths_B + 3).unflatten(0, (4, 6))
            torch.testing.assert_close(found, expected[:, 3:], atol=2e-5, rtol=0)


@given(TOKENS, TOKENS, TOKENS, st.integers(1, 4))
def test_a_draft_is_what_followed_the_longest_suffix_last(before, other, row, max_length):
    index = Index()
    index.add(before, 0, ())
    index.add(other, 0, before)
    cut = len(row) // 2
    growing = row[:cut]
    index.add(growing, 0, before)
    growing += row[cut:]
    index.add(growing, cut, before)
    # (text, tokens of it that stand before what can be copied), the newest last
    texts = [(before, 0), (before + other, len(before)), (before + row, len(before))]
    whole = before + row
    for matched in range(min(4, len(whole)), 0, -1):
        ends = [
            (number, end)
            for number, (text, start) in enumerate(texts)
            for end in range(max(start, 1), len(text))
            if end >= matched and text[end - matched : end] == whole[-matched:]
            and end - matched >= start - min(4, start)
        ]  # fmt: skip
        if ends:
            number, end = ends[-1]
            expected = list(texts[number][0][end : end + max_length])
            while number == 2 and len(expected) < max_length:
                expected.append((whole + expected)[end + len(expected)])
            assert index.draft(growing, before, max_length) == Draft(expected, matched)
            return
    assert index.draft(growing, before, max_length) == Draft()


def test_drafts_are_as_long_as_they_pay():
    acceptance = Acceptance()
    always, never = Draft([5] * 12, 4), Draft([6] * 12, 1)
    assert acceptance.best_length([always]) == 0
    for _ in range(40):
        acceptance.count(always, [5] * 13)
        acceptance.count(never, [7])
    assert acceptance.best_length([always]) == 12
    assert acceptance.best_length([never]) == 0
    half = Acceptance()
    for turn in range(40):
        half.count(always, [5 if turn % 2 else 4])
    assert 1 <= half.best_length([always]) <= 4
    assert half.best_length([Draft(), Draft(), Draft(), always]) == 0
