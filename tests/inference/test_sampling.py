"""What is drawn against the exact distribution, and against transformers' own filters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from reinforge.config import SamplingParams
from reinforge.inference.sampling import draw, invert_cdf
from reinforge.policy.counter_random import stream_key, uniform

PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.7),
    SamplingParams(temperature=1.7, top_k=9, top_p=0.8),
    SamplingParams(top_k=1),
    SamplingParams(top_p=1e-6),
    SamplingParams(top_k=1000),
]


def transformers_logprobs(logits_BV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """[B, V] logprobs after the filters, -inf where a token was cut."""
    filters = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        filters.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        filters.append(TopPLogitsWarper(params.top_p))
    return filters(None, logits_BV.clone()).log_softmax(-1)


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_frequencies_and_logprobs_are_those_of_the_exact_distribution(params: SamplingParams):
    """40 000 draws from a fixed stream, so the same at every run: chi-square within 4.5 standard deviations."""
    num_draws, logits_1V = 40_000, 1.5 * torch.randn(1, 24, generator=torch.Generator().manual_seed(3))
    exact_V = transformers_logprobs(logits_1V, params)[0]
    uniform_B = uniform(torch.tensor(stream_key("frequencies")), torch.arange(num_draws))
    draws = draw(logits_1V.expand(num_draws, -1), uniform_B, params)
    counts_V = torch.bincount(draws.token_ids_B, minlength=24).double()
    expected_V = exact_V.double().exp() * num_draws
    assert counts_V[expected_V == 0].sum() == 0
    kept = expected_V > 0
    chi_square = float(((counts_V - expected_V)[kept] ** 2 / expected_V[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert chi_square <= freedom + 4.5 * (2 * freedom) ** 0.5
    torch.testing.assert_close(draws.sampled_logprobs_B, exact_V[draws.token_ids_B], atol=2e-6, rtol=0)
    plain_V = (logits_1V[0] / params.temperature).log_softmax(-1)
    torch.testing.assert_close(draws.logprobs_B, plain_V[draws.token_ids_B], atol=2e-6, rtol=0)


@given(
    vocabulary=st.integers(1, 40),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.2, 3.0),
    seed=st.integers(0, 2**31),
)
def test_no_token_that_transformers_cuts_is_drawn(vocabulary, top_k, top_p, temperature, seed):
    params = SamplingParams(top_k=top_k, top_p=top_p, temperature=temperature)
    logits_BV = 3 * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed))
    draws = draw(logits_BV, uniform(torch.tensor(seed), torch.arange(4)), params)
    exact_B = transformers_logprobs(logits_BV, params).gather(1, draws.token_ids_B[:, None])[:, 0]
    # At the very edge of top_p two roundings may disagree about one token; its mass then bounds the difference.
    edge = torch.isinf(exact_B) | ((draws.sampled_logprobs_B - exact_B).abs() > 1e-5)
    for b in edge.nonzero()[:, 0].tolist():
        cdf = logits_BV[b].div(temperature).topk(min(top_k or vocabulary, vocabulary)).values.softmax(-1).cumsum(0)
        assert float((cdf - top_p).abs().min()) < 1e-6


def test_greedy_takes_the_first_of_the_most_likely_tokens():
    logits = torch.tensor([[1.0, 5.0, 5.0, 2.0], [9.0, 0.0, 0.0, 0.0]])
    draws = draw(logits, torch.tensor([0.99, 0.999999]).double(), SamplingParams(), torch.tensor([True, True]))
    assert draws.token_ids_B.tolist() == [1, 0]
    assert draws.sampled_logprobs_B.tolist() == [0.0, 0.0]
    torch.testing.assert_close(draws.logprobs_B, logits.log_softmax(-1)[[0, 1], [1, 0]])


def test_a_token_of_no_probability_is_never_drawn():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    numbers = torch.tensor([0.0, 0.25 - 1e-12, 0.25, 1 - 2.0**-53], dtype=torch.float64)
    assert invert_cdf(probs.expand(4, -1), numbers).tolist() == [1, 1, 3, 3]


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    numbers = uniform(torch.tensor(1), torch.arange(8))
    half, full = draw(logits, numbers, SamplingParams()), draw(logits.float(), numbers, SamplingParams())
    assert torch.equal(half.token_ids_B, full.token_ids_B)
    assert torch.equal(half.logprobs_B, full.logprobs_B)


def test_one_number_decides_one_token_whatever_the_other_rows_are():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    numbers = uniform(torch.tensor(2), torch.arange(5))
    params = SamplingParams(top_p=0.9)
    together = draw(logits, numbers, params).token_ids_B
    alone = [int(draw(logits[i : i + 1], numbers[i : i + 1], params).token_ids_B) for i in range(5)]
    assert together.tolist() == alone
