"""Prompts with common beginnings have the keys and values they have alone, and draw the same tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from reinforge.config import LoraParams, SamplingParams
from reinforge.inference import decoders, kept_keys, prefill
from reinforge.inference.adapter_bank import AdapterBank
from reinforge.inference.adapters import base_copy, sampling_copy, sampling_network
from reinforge.inference.engine import Engine
from reinforge.inference.kept_keys import KeptKeys
from reinforge.inference.prefill import Prefill
from reinforge.policy.attention import use_shared_prefix_attention
from reinforge.policy.model import load_policy
from reinforge.policy.prompt_parts import prompt_parts
from reinforge.policy.slots import Prefix
from reinforge.types import Adapter, Example, Prompt, SampleRequest

few_examples = settings(max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def small_thresholds(monkeypatch):
    """What is shared only where it is long is shared here."""
    monkeypatch.setattr(prefill, "prompt_parts", lambda prompts: prompt_parts(prompts, 2))
    monkeypatch.setattr(kept_keys, "MIN_REUSED_TOKENS", 2)
    monkeypatch.setattr(decoders, "SHARED_TOKENS", 20)


@pytest.fixture
def network(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).requires_grad_(False)
    use_shared_prefix_attention(model)
    found = sampling_network(model, shares_prefix=True)
    assert found is not None
    return found


@st.composite
def prompt_lists(draw):
    """Prompts that begin with pieces from a small stock: forks at several depths, equal ones, one inside another."""
    pieces = draw(st.lists(st.lists(st.integers(0, 199), max_size=6).map(tuple), min_size=1, max_size=4))
    chosen = st.lists(st.sampled_from(pieces), max_size=4).map(lambda some: sum(some, ()))
    return draw(st.lists(chosen, min_size=1, max_size=7))


def assert_alone(network, token_ids, found: Prefix):
    alone = network.prefix_pass(torch.tensor([token_ids], dtype=torch.long), torch.tensor([len(token_ids)]))
    assert found.length == len(token_ids)
    for ours, expected in zip(found.keys + found.values, alone.tensors(), strict=True):
        torch.testing.assert_close(ours, expected[0], atol=1e-5, rtol=0)


@few_examples
@given(prompts=prompt_lists(), split=st.integers(0, 7), chunk=st.sampled_from([1, 9, 8192]))
@torch.inference_mode()
def test_keys_and_values_are_those_of_each_prompt_alone(network, prompts, split, chunk):
    """Asked for in two parts, in passes of different sizes; and nothing is left in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "PREFILL_TOKENS", chunk)
        run = Prefill(network, prompts)
        found = [*(run.run(prompts[:split]) if split else []), *(run.run(prompts[split:]) if prompts[split:] else [])]
    for prompt, prefix in zip(prompts, found, strict=True):
        assert_alone(network, prompt, prefix)
    assert run._computed == {}


@few_examples
@given(earlier=prompt_lists(), prompts=prompt_lists())
@torch.inference_mode()
def test_kept_keys_change_nothing(network, earlier, prompts):
    kept = KeptKeys(10**9)
    for prompt, prefix in zip(earlier, Prefill(network, earlier).run(earlier), strict=True):
        kept.put(0, prompt, prefix)
    everything = [*prompts, *earlier, earlier[0] + prompts[0]]
    for prompt, prefix in zip(everything, Prefill(network, everything, kept).run(everything), strict=True):
        assert_alone(network, prompt, prefix)


def make_engine(policy, keep_bytes: int = 0) -> Engine:
    own = sampling_copy(policy.model)
    network = sampling_network(own.model, shares_prefix=True)
    return engine_on(own.model, network, load_weights=own.load, keep_bytes=keep_bytes)


def engine_on(model, network, **changes) -> Engine:
    return Engine(
        model,
        sampling_params=SamplingParams(),
        max_tokens=6,
        eos_ids=frozenset(range(20)),
        decode=str,
        slots=5,
        shared_prefix=True,
        network=network,
        **changes,
    )


def drawn(engine: Engine, prompts, adapters=None):
    requests = [
        SampleRequest(Prompt(Example(place, ""), "", ids), 2, (3, 1, place), adapter=adapters and adapters[place])
        for place, ids in enumerate(prompts)
    ]
    return {(place, c.generation): c for place, c in engine.sample(requests)}


def assert_same(found, expected):
    assert {key: c.token_ids for key, c in found.items()} == {key: c.token_ids for key, c in expected.items()}
    for key, completion in found.items():
        assert completion.logprobs == pytest.approx(expected[key].logprobs, abs=1e-5)


@settings(few_examples, max_examples=8)
@given(prompts=prompt_lists())
def test_completions_are_those_drawn_without_sharing(tiny_policy, prompts):
    prompts = [(5, *prompt) for prompt in prompts]
    shared = drawn(make_engine(tiny_policy), prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "prompt_parts", lambda prompts: prompt_parts(prompts, 10**9))
        assert_same(shared, drawn(make_engine(tiny_policy), prompts))


@pytest.fixture(scope="module")
def tiny_policy(tiny_qwen2):
    return load_policy(str(tiny_qwen2), LoraParams(rank=4), seed=1, device="cpu")


def talk(engine: Engine, turns: int = 4):
    """What is drawn in turns that each begin with all that was said before."""
    said, answers = tuple(range(30, 40)), []
    for turn in range(turns):
        said += (100 + turn, 120 + turn, 7)
        answers.append(drawn(engine, [said]))
        said += answers[-1][0, 0].token_ids
    return answers


def test_a_conversation_says_the_same_and_runs_only_what_is_new(tiny_policy, monkeypatch):
    num_run = []
    original = prefill.run_behind

    def counted(network, tokens, before):
        num_run.append(sum(len(ids) - (p.length if p else 0) for ids, p in zip(tokens, before, strict=True)))
        return original(network, tokens, before)

    expected = talk(make_engine(tiny_policy))
    monkeypatch.setattr(prefill, "run_behind", counted)
    for found, answer in zip(talk(make_engine(tiny_policy, keep_bytes=10**9)), expected, strict=True):
        assert_same(found, answer)
    assert num_run == [12, 3, 3, 3]  # the answer's last token and the two of the message that are no input of a step


def test_nothing_computed_with_an_earlier_adapter_is_used(tiny_policy):
    generator = torch.Generator().manual_seed(1)
    shapes = tiny_policy.adapter(0).weights.items()
    weights = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes}
    keeping, plain = make_engine(tiny_policy, keep_bytes=10**9), make_engine(tiny_policy)
    prompts = [tuple(range(30, 50)), (*range(30, 45), 3, 4)]
    before = drawn(keeping, prompts)
    unfinished = keeping.sample([SampleRequest(Prompt(Example(0, ""), "", prompts[0]), 2, (9,))])
    next(unfinished)
    for engine in (keeping, plain):
        engine.load(Adapter(0, weights))  # the same version again: it is the loading that counts
    list(unfinished)
    expected = drawn(plain, prompts)
    assert_same(drawn(keeping, prompts), expected)
    assert any(before[key].token_ids != expected[key].token_ids for key in before)


def test_the_same_prompt_under_other_adapters_is_another(tiny_policy):
    """Of a bank, also when one is replaced by another of its name."""
    generator = torch.Generator().manual_seed(2)
    shapes = {name: tensor.shape for name, tensor in tiny_policy.adapter(0).weights.items()}
    adapters = [Adapter(0, {n: 0.3 * torch.randn(s, generator=generator) for n, s in shapes.items()}) for _ in "abc"]
    found = {}
    for keep_bytes in (0, 10**9):
        model = base_copy(tiny_policy.model)
        network = sampling_network(model, shares_prefix=True)
        engine = engine_on(model, network, bank=AdapterBank(model, network), keep_bytes=keep_bytes)
        engine._bank.add("a", adapters[0], 8)
        engine._bank.add("b", adapters[1], 8)
        prompt = tuple(range(30, 50))
        found[keep_bytes] = [drawn(engine, [prompt] * 3, adapters=["a", "b", None]) for _ in range(2)]
        engine._bank.add("a", adapters[2], 8)
        found[keep_bytes].append(drawn(engine, [prompt] * 3, adapters=["a", "b", None]))
    for kept, plain in zip(found[10**9], found[0], strict=True):
        assert_same(kept, plain)
    first, _, last = found[0]
    texts = [draws[place, 0].token_ids for draws, place in ((first, 0), (first, 1), (first, 2), (last, 0))]
    assert len(set(texts)) > 2
