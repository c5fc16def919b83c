"""What is written for CUDA, on a GPU. Skipped where there is none: docs/how-to/gpu.md says what that leaves unknown."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS multiplies for the first time

import pytest
import torch
from builders import gradients, make_batch, make_config
from fakes import FakeGrader

from reinforge.config import LoraParams, SamplingParams
from reinforge.inference.adapters import sampling_copy, sampling_network
from reinforge.inference.engine import Engine
from reinforge.inference.fixed_decoder import FixedDecoder, Graphs
from reinforge.learner.advantage import advantages
from reinforge.learner.update import LocalLearner
from reinforge.policy import attention_kernels, plain_attention
from reinforge.policy.attention_kernels import CudaFlash, flash_gap
from reinforge.policy.device import set_arithmetic
from reinforge.policy.fixed_slots import FixedSlots
from reinforge.policy.logit_gap import is_rounding, logit_gap
from reinforge.policy.model import load_policy
from reinforge.policy.network import largest_gap
from reinforge.policy.slots import NetworkSlots, step_gap
from reinforge.rollout.collect import collect
from reinforge.types import Batch, Example, Prompt, SampleRequest, Score

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")

DEVICE = torch.device("cuda")
DTYPES = ("float32", "bfloat16")


def make_policy(folder, dtype, device=DEVICE):
    policy = load_policy(str(folder), LoraParams(rank=4, lora_alpha=8), seed=0, dtype=dtype, device=str(device))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.trainable().items():
        if "lora_B" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    assert policy.network is not None
    return policy


def make_learner(policy, **changes):
    return LocalLearner(policy, make_config(**changes), max_tokens=32, learning_rate=1e-3)


def make_engine(policy):
    own = sampling_copy(policy.model)
    network = sampling_network(own.model, shares_prefix=True)
    assert network is not None
    engine = Engine(
        own.model,
        sampling_params=SamplingParams(),
        max_tokens=24,
        eos_ids=frozenset(range(10)),
        decode=str,
        slots=7,
        shared_prefix=True,
        load_weights=own.load,
        network=network,
    )
    engine.load(policy.adapter(1))
    return engine


def requests(num_prompts=5):
    prompts = [tuple(10 + (7 * p + i) % 180 for i in range(3 + 40 * p)) for p in range(num_prompts)]
    return [SampleRequest(Prompt(Example(p, "x"), "x", ids), 4, (0, p)) for p, ids in enumerate(prompts)]


def test_the_flash_kernel_agrees_with_the_plain_form():
    assert flash_gap(CudaFlash, DEVICE) < attention_kernels.MAX_FLASH_GAP


@pytest.mark.parametrize("is_causal", [True, False])
def test_the_plain_form_is_that_of_the_cpu(is_causal):
    shapes = [(3, 4, 70, 16), (3, 4, 70, 16), (3, 1, 70, 16), (3, 1, 70, 16)]
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)]

    def computed(grad, query, key, value):
        out, sums = plain_attention.forward(query, key, value, is_causal, None)
        return out, sums, *plain_attention.backward(grad, query, key, value, out, sums + 0.5, is_causal)

    set_arithmetic(DEVICE, deterministic=False)
    for expected, found in zip(computed(*given), computed(*(g.to(DEVICE) for g in given)), strict=True):
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_passes_and_steps_are_the_models(tiny_model, dtype):
    policy = make_policy(tiny_model, dtype)
    assert is_rounding(largest_gap(policy.network, policy.model), policy.network.dtype)
    assert is_rounding(step_gap(policy.network, policy.model), policy.network.dtype)


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_gradients_are_those_of_a_float32_cpu(tiny_qwen2, dtype, allowed):
    batch = make_batch([5, 40], [[3, 7, 20], [2, 6, 30]])
    exact = gradients(make_learner(make_policy(tiny_qwen2, "float32", "cpu")), batch)
    found = gradients(make_learner(make_policy(tiny_qwen2, dtype)), batch)
    norm = torch.sqrt(sum(g.square().sum() for g in exact.values()))
    gap = torch.sqrt(sum((found[name].cpu() - exact[name]).square().sum() for name in exact))
    assert gap < allowed * norm


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_replayed_graphs_give_the_logits_of_plain_steps(tiny_qwen2, dtype):
    network = make_policy(tiny_qwen2, dtype).network
    plain = NetworkSlots(network, 6)
    fixed = FixedSlots(network, 6, 140, Graphs)  # a failing recording warns, and warnings are errors here
    for num_rows in (6, 5, 2, 6):
        lengths_B = torch.zeros(num_rows, dtype=torch.int64, device=DEVICE)
        for step in range(70):  # into the second room
            ids_B = network.random_ids((1, num_rows), torch.Generator().manual_seed(step))[0]
            expected, found = plain.step(ids_B, lengths_B), fixed.fixed_step(ids_B, lengths_B, step)
            assert is_rounding(logit_gap(found, expected), network.dtype)
            lengths_B += 1


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_the_learner_finds_the_samplers_logprobs(tiny_qwen2, dtype, allowed):
    policy = make_policy(tiny_qwen2, dtype)
    engine = make_engine(policy)
    found = collect_groups(engine)
    assert isinstance(engine._idle_decoder, FixedDecoder)
    metrics = make_learner(policy).update(found).metrics
    assert metrics["policy/logprob_gap_max"] < allowed


def collect_groups(engine):
    """Longer completions earn more."""
    asked, grader = requests(), FakeGrader(lambda completion: Score("length", "length_v1", completion.num_tokens / 24))
    groups = tuple(collect(asked, [0] * len(asked), engine, grader).groups)
    return Batch(groups, advantages([group.rewards_G for group in groups], "group"))


@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation.*:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES)
def test_deterministic_mode_repeats_and_resumes_bitwise(tiny_qwen2, tmp_path, dtype):
    set_arithmetic(DEVICE, deterministic=True)
    try:
        batches = [make_batch([5, 40], [[3, 7, 20], [2, 6, 30]], seed=seed) for seed in range(4)]

        def trained(stop):
            policy = make_policy(tiny_qwen2, dtype)
            learner = make_learner(policy)
            for place, batch in enumerate(batches):
                if place == stop:
                    folder = tmp_path / str(stop)
                    folder.mkdir()
                    learner.save(folder)
                    learner = make_learner(make_policy(tiny_qwen2, dtype))
                    learner.restore(folder)
                learner.update(batch)
            drawn = sorted(
                (p, c.generation, c.token_ids, c.logprobs) for p, c in make_engine(policy).sample(requests())
            )
            return learner.state_hash(), drawn

        first = trained(stop=None)
        assert trained(stop=None) == first
        assert trained(stop=2)[0] == first[0]
    finally:
        set_arithmetic(DEVICE, deterministic=False)
