"""Importance correction: by hand, in expectation, and off."""

import math

import pytest
import torch

from reinforge.config import SamplingParams
from reinforge.config_rollout import ImportanceCorrection
from reinforge.inference.sampling import draw
from reinforge.learner.importance import correction_weights
from reinforge.learner.loss import LossSettings, StepSize, policy_loss

RATIOS = [[0.5, 1.0, 3.0], [4.0, 0.5, 9.0]]
MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("mode", "level", "expected", "mean", "largest", "capped"),
    [
        ("truncate", "token", [[0.5, 1.0, 2.0], [2.0, 0.5]], 6.0 / 5, 4.0, 2 / 5),
        ("mask", "token", [[0.5, 1.0, 0.0], [0.0, 0.5]], 2.0 / 5, 4.0, 2 / 5),
        ("truncate", "sequence", [[1.5, 1.5, 1.5], [2.0, 2.0]], 3.5 / 2, 2.0, 0.0),
        ("mask", "sequence", [[1.5, 1.5, 1.5], [2.0, 2.0]], 3.5 / 2, 2.0, 0.0),
    ],
)
def test_weights_by_hand(mode, level, expected, mean, largest, capped):
    """Cap 2; a ratio of exactly the cap is not above it. The last token is padding."""
    drawn = -torch.log(torch.tensor(RATIOS))  # the learner's logprob is 0: its ratios are RATIOS
    correction = ImportanceCorrection(mode=mode, level=level, cap=2.0 + 1e-6)
    weights, sums = correction_weights(torch.zeros(2, 3), drawn, MASK, correction)
    found = weights.expand(2, 3)[MASK].tolist()
    assert found == pytest.approx([weight for row in expected for weight in row], rel=1e-5)
    assert list(sums.metrics().values()) == pytest.approx([mean, largest, capped], rel=1e-5)
    parts = [correction_weights(torch.zeros(1, 3), drawn[i : i + 1], MASK[i : i + 1], correction)[1] for i in (0, 1)]
    assert (parts[0] + parts[1]).metrics() == pytest.approx(sums.metrics())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_the_loss_of_a_token_is_multiplied_and_the_kl_penalty_is_not(loss_type):
    first = torch.log(torch.tensor([[0.2, 0.3, 0.9]]))
    drawn = torch.log(torch.tensor([[0.1, 0.6, 0.1]]))  # ratios 2, 0.5, 9
    advantages, mask, size = torch.tensor([1.5]), torch.ones(1, 3, dtype=torch.bool), StepSize(1, 3)

    def gradient(correction, beta):
        leaf = first.clone().requires_grad_()
        settings = LossSettings(loss_type, beta=beta, epsilon_high=5.0, correction=correction)
        loss, _ = policy_loss(leaf, None, advantages, mask, settings, size, first - 1, drawn)
        loss.backward()
        return leaf.grad

    off, on = ImportanceCorrection(mode="off"), ImportanceCorrection(mode="truncate", cap=3.0)
    plain = gradient(off, 0.0)
    assert torch.allclose(gradient(on, 0.0), plain * torch.tensor([2.0, 0.5, 3.0]))
    assert torch.allclose(gradient(on, 0.1) - gradient(on, 0.0), gradient(off, 0.1) - plain)


def test_off_needs_no_drawn_logprobs_and_changes_no_bit():
    logprobs, mask = -torch.rand(4, 6, generator=torch.Generator().manual_seed(1)), torch.ones(4, 6, dtype=torch.bool)
    advantages, size, settings = torch.tensor([1.0, -1.0, 0.5, -0.5]), StepSize(4, 24), LossSettings()
    without, sums = policy_loss(logprobs, None, advantages, mask, settings, size)
    given, _ = policy_loss(logprobs, None, advantages, mask, settings, size, drawn_logprobs_BT=logprobs * 2)
    assert without.item() == given.item()
    assert not any("importance" in name for name in sums.metrics(settings, size))
    with pytest.raises(ValueError, match="needs drawn_logprobs_BT"):
        policy_loss(logprobs, None, advantages, mask, LossSettings(correction=ImportanceCorrection(mode="mask")), size)


def test_the_right_denominator_is_the_distribution_that_was_drawn_from():
    """With top_p a token is drawn from q, the kept tokens renormalised. Weights pi / q give the sum over the kept
    tokens of pi f exactly; pi / pi_sampler, blind to top_p, gives it divided by the kept mass."""
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -2.0])
    params = SamplingParams(top_p=0.8)
    draws = draw(logits.repeat(1000, 1), (torch.arange(1000) + 0.5) / 1000, params, None)
    sampler = torch.log_softmax(logits, 0)
    q = {}
    for token, sampled in zip(draws.token_ids_B.tolist(), draws.sampled_logprobs_B.tolist(), strict=True):
        q[token] = math.exp(sampled)
    assert sum(q.values()) == pytest.approx(1.0, abs=1e-5)
    assert len(q) < len(logits)

    pi = torch.softmax(logits + torch.tensor([0.3, -0.2, 0.1, 0.2, 0.0]), 0)  # the learner has moved on
    f = [0.7, -1.0, 2.0, 0.4, 1.1]
    wanted = sum(pi[token].item() * f[token] for token in q)
    kept_mass = sum(sampler[token].exp().item() for token in q)
    tokens = list(q)
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    correction = ImportanceCorrection(mode="truncate", cap=100.0)

    def expected(denominator):
        weights, _ = correction_weights(pi.log()[tokens][None], denominator[None], mask, correction)
        return sum(q[token] * weight * f[token] for token, weight in zip(tokens, weights[0].tolist(), strict=True))

    drawn = torch.log(torch.tensor([q[token] for token in tokens]))
    assert expected(drawn) == pytest.approx(wanted, rel=1e-5)
    assert expected(sampler[tokens]) == pytest.approx(wanted / kept_mass, rel=1e-5)
    assert kept_mass < 0.95
