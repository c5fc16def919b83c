"""Rows of several adapters in one batch: each gets its own adapter's logprobs, and the base is never written."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_model_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.config import LoraParams, SamplingParams
from reinforge.errors import ModelError
from reinforge.inference import adapter_bank, decoders, speculation
from reinforge.inference import engine as engines
from reinforge.inference.adapter_bank import AdapterBank
from reinforge.inference.adapters import MergedCopy, UnmergedCopy, base_copy, sampling_network
from reinforge.inference.engine import Engine
from reinforge.policy.attention import pad, plain_logits, use_plain_attention
from reinforge.policy.model import Policy, load_policy
from reinforge.types import Adapter, Completion, Example, Prompt, SampleRequest

MIXTURE = {
    "small": LoraParams(rank=1, lora_alpha=3),
    "usual": LoraParams(rank=4, lora_alpha=8),
    "large": LoraParams(rank=9, lora_alpha=5),
    "attention": LoraParams(rank=3, lora_alpha=6, target_modules=("q_proj", "v_proj")),
    "mlp": LoraParams(rank=2, lora_alpha=2, target_modules=("up_proj", "down_proj")),
    "output": LoraParams(rank=5, lora_alpha=9, target_modules=("o_proj", "k_proj", "gate_proj")),
}
"""Ranks, alphas and layers all differ."""
PATHS = ("network", "modules", "plain")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """What decodes: our own network, transformers' modules with slots, or their plain forward."""
    return str(request.param)


@cache
def adapted(folder: Path, name: str, seed: int = 0, dtype: str = "float32") -> Policy:
    """The base with one adapter of the mixture, strong enough to change what is drawn."""
    policy = load_policy(str(folder), MIXTURE[name], seed=0, dtype=dtype, device="cpu")
    generator = torch.Generator().manual_seed(100 * list(MIXTURE).index(name) + seed)
    weights = policy.adapter(0).weights
    policy.load_weights({key: 0.1 * torch.randn(w.shape, generator=generator) for key, w in weights.items()})
    return policy


def engine_on(
    model, path: str, *, bank: AdapterBank | None = None, load_weights=None, network=None, **changes
) -> Engine:
    values = {"max_tokens": 6, "slots": 64, "sampling_params": SamplingParams(), "eos_ids": frozenset()} | changes
    return Engine(
        model,
        decode=lambda ids: " ".join(map(str, ids)),
        shared_prefix=path != "plain",
        network=network,
        bank=bank,
        load_weights=load_weights,
        **values,
    )


def shared_engine(folder: Path, path: str, names=tuple(MIXTURE), dtype: str = "float32", **changes) -> Engine:
    policy = load_policy(str(folder), LoraParams(rank=1), seed=0, dtype=dtype, device="cpu")
    model = base_copy(policy.model)
    if path == "plain":
        use_plain_attention(model)
    network = sampling_network(model, shares_prefix=True) if path == "network" else None
    assert (network is None) == (path != "network")
    bank = AdapterBank(model, network)
    for name in names:
        bank.add(
            name, replace(adapted(folder, name, dtype=dtype).adapter(0), version=len(name)), MIXTURE[name].lora_alpha
        )
    return engine_on(model, path, bank=bank, network=network, **changes)


def request(
    place: int, num_tokens: int, adapter: str | None, num_generations: int = 1, *, greedy=False
) -> SampleRequest:
    ids = torch.randint(256, (num_tokens,), generator=torch.Generator().manual_seed(place)).tolist()
    prompt = Prompt(Example(place, ""), "", tuple(ids))
    return SampleRequest(prompt, num_generations, (7, 0, place), greedy=greedy, adapter=adapter)


def collect(engine: Engine, requests) -> dict[tuple[int, int], Completion]:
    found = {(place, completion.generation): completion for place, completion in engine.sample(requests)}
    assert set(found) == {(i, g) for i, request in enumerate(requests) for g in request.generations}
    return found


def assert_logprobs_are_the_adapters_own(folder: Path, requests, found, copy_class, atol: float = 1e-5) -> None:
    """Those of one forward pass of a model with that adapter alone, over prompt and completion."""
    for (place, generation), completion in found.items():
        model = alone(folder, requests[place].adapter, copy_class)
        prompt = requests[place].prompt.token_ids
        with torch.no_grad():
            logits_1SV = plain_logits(model, *pad([[*prompt, *completion.token_ids]], "cpu"))
        logprobs_TV = logits_1SV[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected_T = logprobs_TV[torch.arange(len(completion.token_ids)), list(completion.token_ids)]
        gap = (torch.tensor(completion.logprobs) - expected_T).abs().max()
        assert gap < atol, (place, generation, requests[place].adapter, gap)


@cache
def alone(folder: Path, name: str | None, copy_class):
    """In float64, so that the only rounding is that of what is tested."""
    if name is None:
        model = base_copy(load_policy(str(folder), LoraParams(rank=1), seed=0, device="cpu").model)
    else:
        model = copy_class(adapted(folder, name).model).model
    use_plain_attention(model)
    return copy.deepcopy(model).double()


def test_logprobs_are_those_of_each_adapter_alone(tiny_model: Path, path: str):
    names = [*MIXTURE, None, "usual", None, "small"]
    requests = [request(place, 3 + 2 * place, name, 1 + place % 3) for place, name in enumerate(names)]
    found = collect(shared_engine(tiny_model, path), requests)
    assert_logprobs_are_the_adapters_own(tiny_model, requests, found, MergedCopy)
    assert_logprobs_are_the_adapters_own(tiny_model, requests, found, UnmergedCopy)
    assert {completion.policy_version for (place, _), completion in found.items() if names[place] == "large"} == {5}
    assert found[6, 0].policy_version == 0
    of_each = [
        plain_logits(alone(tiny_model, name, MergedCopy), torch.ones(1, 4).long(), torch.ones(1, 4).bool())
        for name in (None, *MIXTURE)
    ]
    gaps = [(a - b).abs().max() for i, a in enumerate(of_each) for b in of_each[:i]]
    assert min(gaps) > 0.01  # or all of this would say nothing


@cache
def hypothesis_engine(path: str) -> tuple[Path, Engine]:
    import tempfile

    folder = make_tiny_model_folder("qwen2", Path(tempfile.mkdtemp()))
    return folder, shared_engine(folder, path)


@settings(max_examples=25)
@given(data=st.data(), padding=st.sampled_from([0, 2, 100]), slots=st.integers(1, 12), path=st.sampled_from(PATHS[:2]))
def test_any_mixture_in_any_order(data, padding, slots, path):
    """Few slots: rows end, and others move into their places. Little or much padding: adapters alone or together."""
    folder, engine = hypothesis_engine(path)
    asked = st.lists(
        st.tuples(st.sampled_from([None, *MIXTURE]), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=9
    )
    requests = [request(place, length, name, num) for place, (name, length, num) in enumerate(data.draw(asked))]
    engine._slots, engine._eos_ids, engine._idle_decoder = slots, frozenset(range(0, 260, 3)), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_bank, "MAX_PADDING", padding)
        found = collect(engine, requests)
    assert_logprobs_are_the_adapters_own(folder, requests, found, MergedCopy)


def test_guessed_tokens_get_the_adapter_of_their_row(tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch):
    """With shared prompts, few slots and kept keys: the second call goes on with what the first one said."""
    monkeypatch.setattr(engines, "MAX_ROWS", 64)
    monkeypatch.setattr(decoders, "SHARED_TOKENS", 10)
    for name in ("PASS_COST", "TOKEN_COST", "MIN_GAIN"):
        monkeypatch.setattr(speculation, name, 0.0)
    names = ["usual", None, "large", "usual", "mlp"]
    turns: dict[bool, list[dict[tuple[int, int], Completion]]] = {}
    for guesses in (False, True):
        params = SamplingParams(temperature=0.2, speculation=guesses)
        engine = shared_engine(tiny_qwen2, "network", max_tokens=24, slots=5, sampling_params=params)
        engine._keep_bytes = 10**9 if guesses else 0
        engine._kept = engine._nothing_kept()
        requests = [request(place, 4, name, 2) for place, name in enumerate(names)]
        repeating = [replace(r, prompt=replace(r.prompt, token_ids=r.prompt.token_ids * 5)) for r in requests]
        turns[guesses] = [collect(engine, repeating)]
        said = [r.prompt.token_ids + turns[False][0][i, 1].token_ids + (7, 8) for i, r in enumerate(repeating)]
        going_on = [replace(r, prompt=replace(r.prompt, token_ids=said[i])) for i, r in enumerate(repeating)]
        turns[guesses].append(collect(engine, going_on))
    assert engine.take_figures()["speed/guessed_share"] > 0.02
    for found, expected in zip(turns[True], turns[False], strict=True):
        for key, completion in found.items():
            assert completion.token_ids == expected[key].token_ids
            assert completion.logprobs == pytest.approx(expected[key].logprobs, abs=1e-4)


def test_completions_do_not_depend_on_the_neighbours_adapters(tiny_qwen2: Path, path: str):
    """The same requests alone, among others, and in turned order, with few slots, so that rows move between them."""
    engine = shared_engine(tiny_qwen2, path, slots=4, eos_ids=frozenset(range(0, 260, 5)), max_tokens=10)
    names = [None, *MIXTURE, "usual", None]
    requests = [request(place, 4, name, 2) for place, name in enumerate(names)]
    together = collect(engine, requests)
    assert len({len(completion.token_ids) for completion in together.values()}) > 2
    turned = collect(engine, requests[::-1])
    for place, each in enumerate(requests):
        single = collect(engine, [each])
        for generation in each.generations:
            ids = single[0, generation].token_ids
            assert ids == together[place, generation].token_ids
            assert ids == turned[len(requests) - 1 - place, generation].token_ids


def test_one_prompt_under_several_adapters_is_several_prefixes(tiny_qwen2: Path, path: str):
    engine, names = shared_engine(tiny_qwen2, path), ["usual", "large", None, "usual"]
    same = request(1, 12, None, greedy=True)
    requests = [replace(same, adapter=name) for name in names]
    found = collect(engine, requests)
    assert_logprobs_are_the_adapters_own(tiny_qwen2, requests, found, MergedCopy)
    assert found[0, 0] == found[3, 0]
    assert len({found[place, 0].token_ids for place in range(3)}) == 3


def test_a_base_in_bfloat16_rounds_as_one_adapter_alone_does(tiny_qwen2: Path):
    policy = adapted(tiny_qwen2, "usual", dtype="bfloat16")
    own = UnmergedCopy(policy.model)
    single = engine_on(own.model, "modules", load_weights=own.load)
    requests = [request(place, 5, "usual") for place in range(3)]
    expected = collect(single, [replace(each, adapter=None) for each in requests])
    found = collect(shared_engine(tiny_qwen2, "modules", dtype="bfloat16"), requests)
    for key in expected:
        assert found[key].token_ids == expected[key].token_ids
        assert found[key].logprobs == pytest.approx(expected[key].logprobs, abs=0.02)


def test_the_base_is_bit_identical_after_many_loads(tiny_qwen2: Path, path: str):
    policy = load_policy(str(tiny_qwen2), LoraParams(rank=1), seed=0, device="cpu")
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    model = base_copy(policy.model)
    if path == "plain":
        use_plain_attention(model)
    network = sampling_network(model, shares_prefix=True) if path == "network" else None
    bank = AdapterBank(model, network)
    engine = engine_on(model, path, bank=bank, network=network)
    of_base = collect(engine, [request(0, 9, None)])
    for seed in range(6):
        for name in ("usual", "mlp"):
            bank.add(name, adapted(tiny_qwen2, name, seed).adapter(seed), MIXTURE[name].lora_alpha)
        collect(engine, [request(place, 5, name) for place, name in enumerate(("usual", None, "mlp"))])
        bank.remove("usual")
    assert bank.names == ("mlp",)
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    plain = {name.replace(".base_layer", ""): p for name, p in before.items() if "lora_" not in name}
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, plain[name]) for name, p in model.named_parameters())
    assert collect(engine, [request(0, 9, None)]) == of_base
    assert model.get_input_embeddings().weight is policy.model.get_input_embeddings().weight


def test_a_call_keeps_the_adapters_it_began_with(tiny_qwen2: Path):
    engine = shared_engine(tiny_qwen2, "network", slots=1)
    requests = [request(place, 5, "usual") for place in range(3)]
    expected = collect(engine, requests)
    drawing = engine.sample(requests)
    found = [next(drawing)]
    engine._bank.add("usual", adapted(tiny_qwen2, "usual", seed=1).adapter(2), 8)
    engine._bank.remove("usual")
    found += list(drawing)
    assert {(place, c.generation): c for place, c in found} == expected
    with pytest.raises(ModelError, match=r"no adapter 'usual' here \(loaded: small, large"):
        collect(engine, requests)


def test_an_adapter_that_is_removed_or_replaced_leaves_memory(tiny_qwen2: Path):
    engine = shared_engine(tiny_qwen2, "network", names=("usual", "mlp"))
    loaded = [weakref.ref(engine._bank._loaded[name]) for name in ("usual", "mlp")]
    collect(engine, [request(0, 5, "usual"), request(1, 5, "mlp")])
    engine.remove_adapter("usual")
    engine.add_adapter("mlp", adapted(tiny_qwen2, "mlp", seed=1).adapter(0), MIXTURE["mlp"])
    gc.collect()
    assert [reference() for reference in loaded] == [None, None]


def test_a_new_version_of_an_adapter_is_used_from_the_next_call(tiny_qwen2: Path):
    engine = shared_engine(tiny_qwen2, "network", names=("usual",))
    before = collect(engine, [request(0, 5, "usual")])[0, 0]
    engine._bank.add("usual", adapted(tiny_qwen2, "usual", seed=1).adapter(9), 8)
    after = collect(engine, [request(0, 5, "usual")])[0, 0]
    assert after.policy_version == 9
    assert after.logprobs != before.logprobs


def test_what_does_not_fit_is_refused_with_its_name(tiny_qwen2: Path, tiny_qwen3: Path):
    engine = shared_engine(tiny_qwen2, "network", names=("usual",))
    weights = dict(adapted(tiny_qwen2, "usual").adapter(0).weights)
    q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(match: str, changed) -> None:
        with pytest.raises(ModelError, match=match):
            engine._bank.add("other", Adapter(0, changed), 8)
        assert engine._bank.names == ("usual",)

    refused(
        r"'other' does not fit .*layers\.0\.self_attn\.k_proj takes \[rank, 64\] and \[32, rank\]",
        adapted(tiny_qwen3, "usual").adapter(0).weights,
    )
    refused(r"A and B have \[None, \(64, 4\)\]", {name: w for name, w in weights.items() if name != q_A})
    refused(
        r"nothing here takes its base_model\.model\.lm_head",
        weights | {"base_model.model.lm_head.lora_A.weight": weights[q_A]},
    )
    refused(
        r"NaN or infinite weights at model\.layers\.0\.self_attn\.q_proj", weights | {q_A: weights[q_A] * float("nan")}
    )
    full = AdapterBank(base_copy(adapted(tiny_qwen2, "usual").model), max_adapters=1)
    full.add("one", Adapter(0, weights), 8)
    full.add("one", Adapter(1, weights), 8)
    with pytest.raises(ModelError, match="1 adapters are loaded, which is the most"):
        full.add("two", Adapter(0, weights), 8)


def test_a_sampler_without_a_bank_refuses_names(tiny_qwen2: Path):
    own = MergedCopy(adapted(tiny_qwen2, "usual").model)
    with pytest.raises(ModelError, match="holds no adapters"):
        collect(engine_on(own.model, "modules", load_weights=own.load), [request(0, 5, "usual")])


def test_a_pass_over_other_rows_than_were_laid_out_is_refused(tiny_qwen2: Path):
    engine = shared_engine(tiny_qwen2, "network", names=("usual",))
    call = engine._bank.call(["usual", None])
    with call.rows_of([0, 1]), pytest.raises(ValueError, match="a pass of 3 rows, but adapters are laid out for 2"):
        engine._network.prefix_pass(torch.ones(1, 3, dtype=torch.int64), torch.tensor([3]))
