"""No pass leaves a tensor on another device than the model's.

There is no second device on every machine, so the mistake is provoked the other way round: torch's default device is
"meta", whose tensors hold nothing. A tensor made without naming the model's device lands there, and the pass fails or
gives something else.
"""

import pytest
import torch
from builders import gradients, make_batch, make_learner, make_policy

from reinforge.config import SamplingParams
from reinforge.inference import engine
from reinforge.inference.adapters import sampling_copy, sampling_network
from reinforge.inference.decoders import NetworkDecoder, SlotDecoder
from reinforge.inference.engine import Engine
from reinforge.inference.fixed_decoder import FixedDecoder
from reinforge.policy.network import Network, largest_gap
from reinforge.policy.slots import step_gap
from reinforge.types import Example, Prompt, SampleRequest


@pytest.fixture(scope="module")
def policy(tiny_qwen2):
    return make_policy(tiny_qwen2)


def test_a_tensor_made_without_a_device_is_noticed(policy, monkeypatch):
    def keys_anywhere(network, num_slots, room):
        return torch.zeros(num_slots, network.num_kv_heads, room, network.head_size)

    monkeypatch.setattr(Network, "new_keys", keys_anywhere)
    assert step_gap(policy.network, policy.model) < 2e-5
    with torch.device("meta"):
        try:
            gap = step_gap(policy.network, policy.model)
        except (RuntimeError, NotImplementedError):
            return
    assert not gap < 2e-5  # some operators take such a tensor and compute nonsense


def test_passes_and_steps(policy):
    with torch.device("meta"):
        assert largest_gap(policy.network, policy.model) < 2e-5
        assert step_gap(policy.network, policy.model) < 2e-5


@pytest.mark.parametrize("takes", [NetworkDecoder, FixedDecoder, SlotDecoder])
def test_sampling(policy, takes, monkeypatch):
    monkeypatch.setattr(engine, "fixed_shapes_pay", lambda network: takes is FixedDecoder)

    def completions():
        own = sampling_copy(policy.model)
        sampler = Engine(
            own.model,
            sampling_params=SamplingParams(top_k=20, top_p=0.9),
            max_tokens=6,
            eos_ids=frozenset({1, 7, 9, 20, 31}),
            decode=str,
            slots=5,
            shared_prefix=True,
            load_weights=own.load,
            network=sampling_network(own.model, True) if takes is not SlotDecoder else None,
        )
        long = tuple(5 + i % 190 for i in range(300))
        prompts = [Prompt(Example(p, "x"), "x", ids) for p, ids in enumerate((long, (*long[:280], 3, 4), (6, 8, 5)))]
        requests = [SampleRequest(prompt, 3, (place,)) for place, prompt in enumerate(prompts)]
        found = sorted((place, c.generation, c.token_ids, c.logprobs) for place, c in sampler.sample(requests))
        assert type(sampler._idle_decoder) is takes
        return found

    expected = completions()
    with torch.device("meta"):
        assert completions() == expected


@pytest.mark.parametrize("changes", [{}, {"beta": 0.1}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_learning(tiny_qwen2, changes, dropout):
    learner = make_learner(make_policy(tiny_qwen2, dropout=dropout), tokens_per_microbatch=16, **changes)
    learner.optimizer = torch.optim.SGD(learner.policy.trainable().values(), lr=0)  # AdamW keeps a step count apart
    batch = make_batch([5, 9], [[3, 7], [2, 6]])
    expected = gradients(learner, batch)
    with torch.device("meta"):
        found = gradients(learner, batch)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
