"""Steps in fixed shapes give the logits of plain ones, at every edge of a bucket and when a recording is replayed."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AutoModelForCausalLM

from reinforge.config import SamplingParams
from reinforge.inference import engine
from reinforge.inference.adapters import sampling_network
from reinforge.inference.engine import Engine
from reinforge.inference.fixed_decoder import FixedDecoder
from reinforge.policy import slots
from reinforge.policy.attention import use_shared_prefix_attention
from reinforge.policy.fixed_slots import FixedSlots, bucket
from reinforge.policy.slots import NetworkSlots, Prefix
from reinforge.types import Example, Prompt, SampleRequest

LENGTHS = (7, 0, 3, 4, 5, 11, 12, 1, 15)
"""Of prefixes, around the edges of rooms of 4, 8, 12 and 16 tokens."""


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch):
    monkeypatch.setattr(slots, "ROOM_STEP", 4)


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    use_shared_prefix_attention(model)
    network = sampling_network(model, shares_prefix=True)
    assert network is not None
    return model, network


def prefixes(network, *, is_shared):
    generator = torch.Generator().manual_seed(0)
    computed = network.prefix_pass(network.random_ids((len(LENGTHS), 15), generator), torch.tensor(LENGTHS))
    return [Prefix.of(computed, index, is_shared=is_shared) for index in range(len(LENGTHS))]


def assert_same_steps(network, plain, fixed, num_rows, first):
    """Three steps of rows that begin behind prefixes `first` and the next ones."""
    places = [(first + row) % len(LENGTHS) for row in range(num_rows)]
    for kind, target in ((True, plain), (False, fixed)):
        known = prefixes(network, is_shared=kind)
        for slot, place in enumerate(places):
            target.place(slot, known[place])
    lengths_B = torch.tensor([LENGTHS[place] for place in places])
    generator = torch.Generator().manual_seed(num_rows)
    for _ in range(3):
        token_ids_B = network.random_ids((1, num_rows), generator)[0]
        expected = plain.step(token_ids_B, lengths_B)
        found = fixed.fixed_step(token_ids_B, lengths_B, int(lengths_B.max()))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        lengths_B = lengths_B + 1


@torch.inference_mode()
def test_every_edge_of_the_buckets(tiny_model):
    seen = set()

    def watched(compute):
        return lambda *shape: (seen.add(shape), compute(*shape))[1]

    _, network = load(tiny_model)
    plain, fixed = NetworkSlots(network, 9), FixedSlots(network, 9, 18, watched)
    for num_rows in (*range(9, 0, -1), 4, 9):  # what earlier rows left stands in the slots
        for first in (0, 3):
            assert_same_steps(network, plain, fixed, num_rows, first)
    assert {rows for rows, _ in seen} == {1, 2, 3, 4, 6, 8, 9}
    assert {room for _, room in seen} == {8, 12, 16, 20}


def test_a_step_reads_nothing_but_its_buffers_so_that_a_recording_of_it_can_be_replayed(tiny_qwen2):
    """What a CUDA graph asks of it, tried with torch's tracer: it records operators on tensors, refuses to look at a
    value, and replays them on the tensors of the recording."""
    recorded = {}

    def recording(compute):
        def run(*shape):
            if shape not in recorded:
                recorded[shape] = make_fx(lambda: compute(*shape))()
            return recorded[shape]()

        return run

    _, network = load(tiny_qwen2)
    with torch.no_grad():
        plain, fixed = NetworkSlots(network, 6), FixedSlots(network, 6, 18, recording)
        for num_rows, first in ((6, 0), (5, 2), (6, 4)):
            assert_same_steps(network, plain, fixed, num_rows, first)
    assert 0 < len(recorded) < 9  # of nine steps


def test_the_engine_draws_the_same_completions(tiny_qwen2, monkeypatch):
    def completions(takes_fixed):
        monkeypatch.setattr(engine, "fixed_shapes_pay", lambda network: takes_fixed)
        model, network = load(tiny_qwen2)
        sampler = Engine(
            model,
            sampling_params=SamplingParams(),
            max_tokens=9,
            eos_ids=frozenset(range(60)),
            decode=str,
            slots=5,
            shared_prefix=True,
            network=network,
        )
        found = []
        for call in range(2):
            requests = [
                SampleRequest(Prompt(Example(n, "x"), "x", tuple(range(60 + n, 60 + 2 * n))), 4, (call, n))
                for n in (9, 1, 40, 5)
            ]
            found += sorted(sampler.sample(requests), key=lambda pair: (pair[0], pair[1].generation))
        assert isinstance(sampler._idle_decoder, FixedDecoder) == takes_fixed
        return found

    plain, fixed = completions(False), completions(True)
    assert [(place, c.token_ids) for place, c in plain] == [(place, c.token_ids) for place, c in fixed]
    for (_, expected), (_, found) in zip(plain, fixed, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-5)


def test_a_bucket_is_never_much_larger_than_needed():
    for count in range(1, 300):
        assert count <= bucket(count, 1, 300) <= max(2, 1.5 * count)
    assert bucket(9, 4, 10) == 10
