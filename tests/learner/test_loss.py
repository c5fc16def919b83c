"""Every loss against the formula written out with plain numbers, and the properties the learner relies on."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.config import GRPOConfig
from reinforge.learner.loss import LossSettings, StepSize, needs_all_rows, policy_loss

LOSS_TYPES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
MAX_TOKENS = 9


def batch(seed, lengths, *, spread=0.5, dtype=torch.float32):
    """Logprobs, old, reference, advantages and mask of completions with these lengths (0: fully masked)."""
    random = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(1, *lengths))
    logprobs = -3 * torch.rand(shape, generator=random, dtype=dtype)
    old = logprobs + spread * torch.randn(shape, generator=random, dtype=dtype)
    reference = logprobs + spread * torch.randn(shape, generator=random, dtype=dtype)
    advantages = torch.randn(len(lengths), generator=random, dtype=dtype)
    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return logprobs, old, reference, advantages, mask


def size_of(lengths):
    return StepSize(num_completions=len(lengths), num_tokens=sum(lengths))


def on_paper(rows, settings, size):
    """The same loss with Python numbers, one token at a time: rows of (advantage, [(logprob, old, reference)])."""
    total = 0.0
    for advantage, tokens in rows:
        mean_log_ratio = sum(new - old for new, old, _ in tokens) / max(1, len(tokens))
        row = 0.0
        for new, old, reference in tokens:
            ratio = math.exp(mean_log_ratio if settings.sequence_level else new - old)
            if settings.loss_type == "cispo":
                value = -min(ratio, settings.epsilon_high) * advantage * new
            else:
                bounded = ratio if settings.delta is None else min(ratio, settings.delta)
                clipped = min(max(ratio, 1 - settings.epsilon), 1 + settings.epsilon_high)
                value = -min(bounded * advantage, clipped * advantage)
            kl = math.exp(reference - new) - (reference - new) - 1
            row += value + settings.beta * kl * (ratio if settings.correct_kl else 1)
        if settings.loss_type == "grpo":
            total += row / max(1, len(tokens)) / size.num_completions
        elif settings.loss_type == "dr_grpo":
            total += row / (size.num_completions * settings.max_tokens)
        else:
            total += row / size.num_tokens
    return total


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("sequence_level", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("correct_kl", [False, True])
def test_equals_the_formula_on_paper(loss_type, sequence_level, beta, delta, correct_kl):
    lengths = [5, 1, 0, 9, 3, 7]
    chosen = LossSettings(loss_type, sequence_level, 0.2, 0.28, delta, beta, correct_kl, max_tokens=MAX_TOKENS)
    logprobs, old, reference, advantages, mask = batch(3, lengths, dtype=torch.float64)
    loss, _ = policy_loss(logprobs, old, advantages, mask, chosen, size_of(lengths), reference)
    triples = torch.stack([logprobs, old, reference], dim=2).tolist()
    rows = [(advantages[row].item(), triples[row][:length]) for row, length in enumerate(lengths)]
    assert loss.item() == pytest.approx(on_paper(rows, chosen, size_of(lengths)), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    loss_type=st.sampled_from(LOSS_TYPES),
    sequence_level=st.booleans(),
    beta=st.sampled_from([0.0, 0.04]),
    lengths=st.lists(st.integers(0, 12), min_size=2, max_size=12),
    seed=st.integers(0, 2**16),
    cuts=st.sets(st.integers(1, 11)),
)
def test_any_split_into_microbatches_gives_the_same_loss_gradient_and_figures(
    loss_type, sequence_level, beta, lengths, seed, cuts
):
    chosen = LossSettings(loss_type, sequence_level, beta=beta, delta=2.0, max_tokens=MAX_TOKENS)
    size = size_of(lengths)
    logprobs, old, reference, advantages, mask = batch(seed, lengths)

    def gradient(rows):
        leaf = logprobs.clone().requires_grad_()
        sums = None
        for part in rows:
            loss, here = policy_loss(leaf[part], old[part], advantages[part], mask[part], chosen, size, reference[part])
            loss.backward()
            sums = here if sums is None else sums + here
        return leaf.grad, sums.metrics(chosen, size)

    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(cut for cut in cuts if cut < len(lengths)), len(lengths)]
    parts = [order[start:end] for start, end in itertools.pairwise(edges)]
    whole, whole_figures = gradient([torch.arange(len(lengths))])
    split, split_figures = gradient(parts)
    assert (whole - split).norm() <= 1e-6 * whole.norm()
    magnitude = max(1.0, whole.abs().sum().item())
    assert split_figures == pytest.approx(whole_figures, rel=1e-6, abs=1e-6 * magnitude)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("sequence_level", [False, True])
def test_first_update_has_ratio_one_and_the_policy_gradient(loss_type, sequence_level):
    lengths = [4, 6, 2]
    chosen = LossSettings(loss_type, sequence_level, epsilon_high=5.0, max_tokens=MAX_TOKENS)
    logprobs, _, _, advantages, mask = batch(0, lengths)
    leaf = logprobs.clone().requires_grad_()
    loss, sums = policy_loss(leaf, None, advantages, mask, chosen, size_of(lengths))
    loss.backward()
    weight = {"grpo": 1 / (3 * torch.tensor([4.0, 6.0, 2.0])), "dr_grpo": torch.full((3,), 1 / (3 * MAX_TOKENS))}
    per_row = weight.get(loss_type, torch.full((3,), 1 / 12))
    # GSPO's ratio gives each token 1/L of the sum of the weights of its row, which is the same when they are equal.
    assert torch.allclose(leaf.grad, -(per_row * advantages).unsqueeze(1) * mask, rtol=1e-6, atol=1e-8)
    assert sums.ratio_max.item() == 1.0
    assert sums.metrics(chosen, size_of(lengths))["policy/clip_region_share"] == 0.0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("sequence_level", [False, True])
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_is_never_read(loss_type, sequence_level, rubbish):
    lengths = [4, 0, 6]
    chosen = LossSettings(loss_type, sequence_level, beta=0.1, max_tokens=MAX_TOKENS)
    logprobs, old, reference, advantages, mask = batch(1, lengths)
    results = []
    for filling in (0.0, rubbish):
        filled = [values.masked_fill(~mask, filling) for values in (logprobs, old, reference)]
        leaf = filled[0].requires_grad_()
        loss, sums = policy_loss(leaf, filled[1], advantages, mask, chosen, size_of(lengths), filled[2])
        loss.backward()
        results.append((loss.item(), leaf.grad, sums.metrics(chosen, size_of(lengths))))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("sequence_level", [False, True])
def test_rows_with_advantage_zero_may_be_skipped_unless_beta_needs_them(loss_type, sequence_level):
    lengths = [4, 6, 2, 5]
    logprobs, old, reference, advantages, mask = batch(5, lengths)
    advantages[[1, 3]] = 0.0
    for beta in (0.0, 0.04):
        chosen = LossSettings(loss_type, sequence_level, beta=beta, max_tokens=MAX_TOKENS)
        results = []
        for rows in ([0, 1, 2, 3], [0, 2]):
            leaf = logprobs.clone().requires_grad_()
            loss, sums = policy_loss(
                leaf[rows], old[rows], advantages[rows], mask[rows], chosen, size_of(lengths), reference[rows]
            )
            loss.backward()
            figures = sums.metrics(chosen, size_of(lengths))
            figures.pop("policy/ratio_max")  # of the rows that were computed
            results.append((leaf.grad, figures))
        assert torch.equal(results[0][0], results[1][0]) == (not needs_all_rows(chosen))
        assert (results[0][1] == pytest.approx(results[1][1], abs=1e-7)) == (beta == 0.0)


def test_clipping_cuts_the_gradient_only_on_the_pessimistic_side():
    ratios = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5], [0.5, 1.0, 3.0]])
    advantages = torch.tensor([1.0, -1.0, -1.0])
    chosen = LossSettings("dapo", epsilon=0.2, epsilon_high=0.3, delta=2.0)
    leaf = ratios.log().requires_grad_()
    loss, sums = policy_loss(
        leaf, torch.zeros(3, 3), advantages, torch.ones(3, 3, dtype=torch.bool), chosen, StepSize(3, 9)
    )
    loss.backward()
    # A > 0: nothing above 1.3; A < 0: nothing below 0.8, and nothing above delta
    alive = torch.tensor([[0.5, 1.0, 0.0], [0.0, -1.0, -1.5], [0.0, -1.0, 0.0]])
    assert torch.allclose(leaf.grad, -alive / 9)
    figures = sums.metrics(chosen, StepSize(3, 9))
    assert figures["policy/clip_high_share"] == pytest.approx(1 / 9)
    assert figures["policy/clip_low_share"] == pytest.approx(2 / 9)
    assert figures["policy/clip_region_share"] == pytest.approx(3 / 9)
    assert figures["policy/ratio_max"] == pytest.approx(3.0)


def test_cispo_caps_the_weight_but_keeps_every_gradient():
    ratios = torch.tensor([[0.5, 1.0, 8.0]])
    leaf = ratios.log().requires_grad_()
    chosen = LossSettings("cispo", epsilon_high=5.0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, sums = policy_loss(leaf, torch.zeros(1, 3), torch.tensor([2.0]), mask, chosen, StepSize(1, 3))
    loss.backward()
    assert torch.allclose(leaf.grad, -2.0 * torch.tensor([[0.5, 1.0, 5.0]]) / 3)
    assert sums.metrics(chosen, StepSize(1, 3))["policy/clip_high_share"] == pytest.approx(1 / 3)


def test_kl_is_zero_at_the_reference_and_is_reported_per_token():
    chosen = LossSettings(beta=0.5)
    logprobs, _, _, _, mask = batch(2, [3, 4])
    size = size_of([3, 4])
    zeros = torch.zeros(2)
    loss, _ = policy_loss(logprobs, None, zeros, mask, chosen, size, logprobs)
    assert loss.item() == 0.0
    loss, sums = policy_loss(logprobs, None, zeros, mask, chosen, size, logprobs + math.log(2))
    assert sums.metrics(chosen, size)["policy/kl"] == pytest.approx(2 - math.log(2) - 1, rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * (1 - math.log(2)), rel=1e-5)


@pytest.mark.parametrize("correct_kl", [False, True])
def test_corrected_kl_has_the_gradient_of_the_kl_the_uncorrected_one_of_the_kl_the_other_way_round(correct_kl):
    """Exactly, over a whole vocabulary: every token drawn once, weighted by its probability."""
    random = torch.Generator().manual_seed(4)
    logits = torch.randn(20, generator=random, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(20, generator=random, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    exact = (policy.exp() * (policy - reference)) if correct_kl else (reference.exp() * (reference - policy))
    (expected,) = torch.autograd.grad(exact.sum(), logits, retain_graph=True)
    chosen = LossSettings(beta=1.0, correct_kl=correct_kl)
    draws = torch.eye(20, dtype=torch.bool)
    gradient = torch.zeros(20, dtype=torch.float64)
    for token, probability in enumerate(policy.exp().tolist()):
        loss, _ = policy_loss(
            policy[None], None, torch.zeros(1), draws[token][None], chosen, StepSize(1, 1), reference[None]
        )
        gradient += probability * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_beta_without_reference_is_refused():
    logprobs, old, _, advantages, mask = batch(2, [3, 4])
    with pytest.raises(ValueError, match=r"beta = 0\.04 needs reference_logprobs_BT"):
        policy_loss(logprobs, old, advantages, mask, LossSettings(beta=0.04), size_of([3, 4]))


def test_a_step_whose_completions_are_all_masked_gives_zero_and_no_nan():
    chosen = LossSettings(mask_truncated=True)
    size = StepSize.of([4, 4], [True, True], chosen)
    assert size == StepSize(num_completions=2, num_tokens=0)
    for loss_type in LOSS_TYPES:
        leaf = torch.full((2, 4), -1.0, requires_grad=True)
        nothing = torch.zeros(2, 4, dtype=torch.bool)
        loss, sums = policy_loss(leaf, None, torch.ones(2), nothing, LossSettings(loss_type), size)
        loss.backward()
        assert loss.item() == 0.0
        assert not leaf.grad.any()
        assert all(math.isfinite(value) for value in sums.metrics(chosen, size).values())


def test_truncated_completions_count_as_completions_and_as_tokens_only_unmasked():
    lengths, cut = [3, 8, 2], [False, True, False]
    assert StepSize.of(lengths, cut, LossSettings(mask_truncated=True)) == StepSize(3, 5)
    assert StepSize.of(lengths, cut, LossSettings(mask_truncated=False)) == StepSize(3, 13)


def config(**changes):
    return GRPOConfig(base_model="m", reward_fns={"functions": {"r": "r.py:r"}}, **changes)


def test_settings_come_from_the_config():
    chosen = LossSettings.from_config(
        config(
            loss_type="grpo", importance_sampling_level="sequence", epsilon=0.1, delta=3, beta=0.04,
            use_bias_correction_kl=False, mask_truncated_completions=True,
        ),
        max_tokens=77,
    )  # fmt: skip
    assert chosen == LossSettings("grpo", True, 0.1, 0.1, 3.0, 0.04, False, True, 77)
    assert LossSettings.from_config(config(epsilon_high=0.28), 8).epsilon_high == 0.28


def test_cispo_without_a_cap_takes_one_above_the_ratio_one():
    assert LossSettings.from_config(config(loss_type="cispo"), 8).epsilon_high == 5.0
    assert LossSettings.from_config(config(loss_type="cispo", epsilon_high=3), 8).epsilon_high == 3.0
