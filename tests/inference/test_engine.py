"""The engine against transformers' own generate and forward, and against itself in other circumstances."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from reinforge.config import LoraParams, SamplingParams
from reinforge.errors import ModelError
from reinforge.inference import decoders
from reinforge.inference.adapters import sampling_copy, sampling_network
from reinforge.inference.engine import Engine
from reinforge.inference.sampling import draw
from reinforge.policy import slots as network_slots
from reinforge.policy.attention import pad, plain_logits, use_plain_attention, use_shared_prefix_attention
from reinforge.policy.counter_random import stream_key, uniform
from reinforge.policy.model import load_policy
from reinforge.types import Adapter, Completion, Example, Prompt, SampleRequest

LENGTHS = (9, 1, 4, 17, 2)
NO_EOS: frozenset[int] = frozenset()


@pytest.fixture(params=["modules", "network"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What decodes in this file's engines: transformers' modules, or our own network, where longer prompts of larger
    groups are shared and others copied."""
    monkeypatch.setattr(decoders, "SHARED_TOKENS", 20)
    monkeypatch.setattr(network_slots, "ROOM_STEP", 4)
    monkeypatch.setattr(sys.modules[__name__], "PATH", request.param)
    return request.param


PATH = "modules"


def load(folder: Path, *, shared_prefix: bool = True) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (use_shared_prefix_attention if shared_prefix else use_plain_attention)(model)
    return model


def make_engine(model: PreTrainedModel, folder: Path, **changes) -> Engine:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = {
        "sampling_params": SamplingParams(),
        "max_tokens": 12,
        "eos_ids": NO_EOS,
        "decode": lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        "slots": 64,
        "shared_prefix": True,
    }
    if PATH == "network" and "shared_prefix" not in changes and "network" not in changes:
        network = sampling_network(model.requires_grad_(False), shares_prefix=True)
        assert network is not None
        settings["network"] = network
    return Engine(model, **(settings | changes))


def test_a_group_drawn_in_two_parts_is_the_one_drawn_whole(tiny_qwen2):
    engine = make_engine(load(tiny_qwen2), tiny_qwen2)
    whole = collect(engine, random_requests(5))
    parts = [replace(request, num_generations=3, first_generation=2) for request in random_requests(5)]
    found = collect(engine, parts)
    assert set(found) == {(place, generation) for place in range(len(LENGTHS)) for generation in (2, 3, 4)}
    assert all(completion.token_ids == whole[key].token_ids for key, completion in found.items())


def make_request(token_ids, place: int, num_generations: int = 1, *, greedy: bool = False) -> SampleRequest:
    prompt = Prompt(Example(place, ""), "", tuple(token_ids))
    return SampleRequest(prompt, num_generations, key=(3, 1, place), greedy=greedy)


def random_requests(num_generations: int = 1, *, greedy: bool = False, lengths=LENGTHS) -> list[SampleRequest]:
    generator = torch.Generator().manual_seed(5)
    return [
        make_request(torch.randint(256, (n,), generator=generator).tolist(), place, num_generations, greedy=greedy)
        for place, n in enumerate(lengths)
    ]


def collect(engine: Engine, requests) -> dict[tuple[int, int], Completion]:
    """By (place, generation); every pair exactly once."""
    found: dict[tuple[int, int], Completion] = {}
    for place, completion in engine.sample(requests):
        assert (place, completion.generation) not in found
        found[place, completion.generation] = completion
    assert set(found) == {(i, g) for i, request in enumerate(requests) for g in request.generations}
    return found


def reference_logits(folder: Path, requests, completions: dict[tuple[int, int], Completion]) -> dict:
    """[T, V] per (place, generation): transformers' plain padded forward at the positions that predict the tokens."""
    model = load(folder, shared_prefix=False)
    keys = list(completions)
    prompts = [requests[place].prompt.token_ids for place, _ in keys]
    rows = [(*prompt, *completions[key].token_ids) for prompt, key in zip(prompts, keys, strict=True)]
    with torch.no_grad():
        logits_BSV = plain_logits(model, *pad(rows, "cpu"))
    return {
        key: logits_BSV[i, len(prompt) - 1 : len(rows[i]) - 1]
        for i, (key, prompt) in enumerate(zip(keys, prompts, strict=True))
    }


def test_greedy_is_what_transformers_generates(tiny_model: Path):
    requests = random_requests(greedy=True)
    eos = frozenset({258})
    found = collect(make_engine(load(tiny_model), tiny_model, max_tokens=40, eos_ids=eos), requests)
    model = load(tiny_model, shared_prefix=False)
    for place, request in enumerate(requests):
        prompt_1L = torch.tensor([request.prompt.token_ids])
        expected_1S = model.generate(
            prompt_1L,
            attention_mask=torch.ones_like(prompt_1L),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=list(eos),
            pad_token_id=256,
        )
        assert found[place, 0].token_ids == tuple(expected_1S[0, prompt_1L.shape[1] :].tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_plain_forward(tiny_model: Path, temperature: float):
    requests = random_requests(num_generations=3)
    engine = make_engine(load(tiny_model), tiny_model, sampling_params=SamplingParams(temperature=temperature))
    found = collect(engine, requests)
    for key, logits_TV in reference_logits(tiny_model, requests, found).items():
        tokens_T = torch.tensor(found[key].token_ids)
        expected_T = (logits_TV / temperature).log_softmax(-1).gather(1, tokens_T[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found[key].logprobs), expected_T, atol=1e-5, rtol=0)
        assert found[key].sampled_logprobs == found[key].logprobs


def test_truncated_logprobs_are_renormalised_over_what_was_kept(tiny_qwen2: Path):
    requests = random_requests(num_generations=4)
    params = SamplingParams(temperature=1.3, top_k=20, top_p=0.8)
    found = collect(make_engine(load(tiny_qwen2), tiny_qwen2, sampling_params=params), requests)
    for key, logits_TV in reference_logits(tiny_qwen2, requests, found).items():
        for t, token in enumerate(found[key].token_ids):
            probs_V = (logits_TV[t] / 1.3).softmax(-1)
            ids = probs_V.argsort(descending=True)[:20].tolist()
            top, kept, mass = float(probs_V[ids].sum()), [], 0.0
            for i in ids:
                if mass >= 0.8 * top:
                    break
                kept.append(i)
                mass += float(probs_V[i])
            assert token in kept
            assert found[key].logprobs[t] == pytest.approx(float(probs_V[token].log()), abs=1e-5)
            assert found[key].sampled_logprobs[t] == pytest.approx(float(probs_V[token].log()) - _log(mass), abs=1e-5)


def test_each_token_is_what_key_generation_and_position_decide(tiny_qwen3: Path):
    requests = random_requests(num_generations=2)
    found = collect(make_engine(load(tiny_qwen3), tiny_qwen3), requests)
    for (place, generation), logits_TV in reference_logits(tiny_qwen3, requests, found).items():
        stream = torch.tensor(stream_key(*requests[place].key, generation))
        draws = draw(logits_TV, uniform(stream, torch.arange(len(logits_TV))), SamplingParams())
        assert draws.token_ids_B.tolist() == list(found[place, generation].token_ids)


@pytest.mark.parametrize("slots", [1, 3, 7])
def test_few_slots_draw_the_same(tiny_model: Path, slots: int):
    """Slots are refilled, and the rows of one group enter at different times."""
    model, requests = load(tiny_model), random_requests(num_generations=4)
    settings = {"eos_ids": frozenset(range(40))}  # so that lengths differ
    many = collect(make_engine(model, tiny_model, **settings), requests)
    few = collect(make_engine(model, tiny_model, slots=slots, **settings), requests)
    assert len({completion.num_tokens for completion in many.values()}) > 4
    assert {key: c.token_ids for key, c in few.items()} == {key: c.token_ids for key, c in many.items()}


def test_company_does_not_matter(tiny_qwen3: Path):
    """A request alone, or among others in another order, on an engine that has sampled before: the same draws."""
    requests = random_requests(num_generations=2)
    engine = make_engine(load(tiny_qwen3), tiny_qwen3, eos_ids=frozenset(range(20)))
    together = collect(engine, requests)
    backwards = collect(engine, requests[::-1])
    for place, request in enumerate(requests):
        alone = collect(engine, [request])
        for generation in range(2):
            expected = together[place, generation].token_ids
            assert alone[0, generation].token_ids == expected
            assert backwards[len(requests) - 1 - place, generation].token_ids == expected


def test_generations_keys_and_groups_draw_differently(tiny_llama: Path):
    same = [make_request([5, 6, 7], place, 3) for place in range(2)]
    found = collect(make_engine(load(tiny_llama), tiny_llama), same)
    assert len({completion.token_ids for completion in found.values()}) == 6


def test_plain_path_draws_what_slots_draw(tiny_model: Path):
    requests = random_requests(num_generations=3)
    settings = {"eos_ids": frozenset(range(30)), "slots": 4}
    slots = collect(make_engine(load(tiny_model), tiny_model, **settings), requests)
    plain_model = load(tiny_model, shared_prefix=False)
    plain = collect(make_engine(plain_model, tiny_model, shared_prefix=False, **settings), requests)
    for key, completion in slots.items():
        assert plain[key].token_ids == completion.token_ids
        assert plain[key].logprobs == pytest.approx(completion.logprobs, abs=1e-5)


def test_any_eos_ends_and_is_kept(tiny_qwen2: Path):
    model, request = load(tiny_qwen2), random_requests(greedy=True)[0]
    free = collect(make_engine(model, tiny_qwen2), [request])[0, 0]
    assert (free.finish_reason, free.num_tokens) == ("length", 12)
    for eos in ({free.token_ids[5], 999}, {free.token_ids[5], free.token_ids[7]}):
        ended = collect(make_engine(model, tiny_qwen2, eos_ids=frozenset(eos)), [request])[0, 0]
        first = next(t for t, token in enumerate(free.token_ids) if token in eos)
        assert ended.token_ids == free.token_ids[: first + 1]
        assert ended.finish_reason == "stop"
        tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
        assert ended.text == tokenizer.decode(free.token_ids[:first], skip_special_tokens=True)
        assert ended.logprobs == pytest.approx(free.logprobs[: first + 1], abs=1e-6)


def test_greedy_and_drawn_requests_share_a_batch(tiny_qwen2: Path):
    model = load(tiny_qwen2)
    greedy, drawn = random_requests(greedy=True, lengths=(6,)), random_requests(2, lengths=(6,))
    engine = make_engine(model, tiny_qwen2)
    mixed = collect(engine, [*greedy, *drawn])
    assert mixed[0, 0].token_ids == collect(engine, greedy)[0, 0].token_ids
    assert mixed[0, 0].sampled_logprobs == (0.0,) * 12
    assert mixed[1, 1].token_ids == collect(engine, drawn)[0, 1].token_ids
    assert mixed[1, 1].sampled_logprobs == mixed[1, 1].logprobs


def test_one_prompt_of_one_token_and_nothing_at_all(tiny_llama: Path):
    engine = make_engine(load(tiny_llama), tiny_llama, max_tokens=1)
    assert collect(engine, [make_request([7], 0, 2)])[0, 1].num_tokens == 1
    assert list(engine.sample([])) == []


def test_two_unfinished_calls_do_not_disturb_each_other(tiny_qwen2: Path):
    engine = make_engine(load(tiny_qwen2), tiny_qwen2, eos_ids=frozenset(range(30)), slots=3)
    requests = random_requests(num_generations=2)
    expected = collect(engine, requests)
    first, second = engine.sample(requests), engine.sample(requests)
    halves = [next(first), next(second), *first, *second]
    assert sorted(c.token_ids for _, c in halves) == sorted(2 * [c.token_ids for c in expected.values()])


def test_a_loaded_adapter_is_sampled_from(tiny_qwen2: Path):
    policy = load_policy(str(tiny_qwen2), LoraParams(rank=4), seed=1)
    sampled = sampling_copy(policy.model)
    engine = make_engine(sampled.model, tiny_qwen2, load_weights=sampled.load)
    requests = random_requests(greedy=True)
    before = collect(engine, requests)
    generator = torch.Generator().manual_seed(1)
    weights = {n: 0.3 * torch.randn(w.shape, generator=generator) for n, w in policy.adapter(0).weights.items()}
    engine.load(Adapter(7, weights))
    after = collect(engine, requests)
    assert {c.policy_version for c in before.values()} == {0}
    assert {c.policy_version for c in after.values()} == {7}
    policy.load_weights(weights)
    unshared = collect(make_engine(policy.model, tiny_qwen2, network=None), requests)
    assert [c.token_ids for c in after.values()] == [unshared[key].token_ids for key in after]
    assert [c.token_ids for c in after.values()] != [before[key].token_ids for key in after]


def test_fixed_weights_take_no_adapter(tiny_qwen2: Path):
    with pytest.raises(ModelError, match="without an adapter"):
        make_engine(load(tiny_qwen2), tiny_qwen2).load(Adapter(1, {}))


def test_logits_that_are_no_numbers_are_an_error_and_leave_nothing_behind(tiny_qwen2: Path):
    model, requests = load(tiny_qwen2), random_requests()
    engine = make_engine(model, tiny_qwen2)
    expected = collect(engine, requests)
    weight = model.get_decoder().layers[0].self_attn.v_proj.weight
    healthy = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
        with pytest.raises(ModelError, match="NaN after 9 prompt tokens"):
            collect(engine, requests)
        weight.copy_(healthy)
    assert collect(engine, requests) == expected


@pytest.mark.parametrize("slots", [2, 64])
def test_stop_strings_end_a_completion_and_leave_the_text(tiny_llama: Path, slots: int):
    """Stop strings taken from what is generated freely: two bytes that cross a token border each time."""
    model, requests = load(tiny_llama), random_requests(num_generations=3)
    alphabet = "abcdefghijklmnopqrstuvwxyzäöü ".encode()

    def decode(ids) -> str:  # a readable and partly multi-byte alphabet for random tokens
        return bytes(alphabet[i % len(alphabet)] for i in ids).decode(errors="replace")

    free = collect(make_engine(model, tiny_llama, decode=decode, max_tokens=30), requests)
    stop = (free[0, 0].text[7:9].replace("\ufffd", "q"), free[3, 1].text[7:9].replace("\ufffd", "q"), "ä")
    params = SamplingParams(stop=stop)
    ended = collect(
        make_engine(model, tiny_llama, decode=decode, max_tokens=30, sampling_params=params, slots=slots), requests
    )
    for key, completion in ended.items():
        ends = [t for t in range(1, 31) if any(s in decode(free[key].token_ids[:t]) for s in stop)]
        num_tokens = ends[0] if ends else 30
        assert completion.token_ids == free[key].token_ids[:num_tokens]
        assert completion.finish_reason == ("stop" if ends else "length")
        text = decode(completion.token_ids)
        assert completion.text == text[: min([text.find(s) for s in stop if s in text], default=len(text))]
    assert {c.finish_reason for c in ended.values()} == {"stop", "length"}


def _log(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).log())
