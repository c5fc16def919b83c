"""The learner is exact: however a step is split, shared or recomputed, the gradient is the same."""

from dataclasses import replace

import pytest
import torch
from builders import gradients, make_batch, make_learner, make_policy, relative_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reinforge.errors import ReinforgeError
from reinforge.insight.metrics import is_registered
from reinforge.learner import batch as batching
from reinforge.learner import logprob
from reinforge.policy import attention
from reinforge.policy.model import Policy, find_network
from reinforge.types import Batch

EXACT = 1e-6
"""Of the gradient's norm: float32 rounding in another order of summation."""

shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=4)), min_size=1, max_size=4
)


def plain(policy: Policy) -> Policy:
    """The same policy through transformers' own forward."""
    attention.use_plain_attention(policy.model)
    return Policy(policy.peft_model, policy.model, policy.folder, False, policy.dropout_keys)


def shared(policy: Policy) -> Policy:
    """Prompts run once, through transformers' modules."""
    attention.use_shared_prefix_attention(policy.model)
    return Policy(policy.peft_model, policy.model, policy.folder, True, policy.dropout_keys)


def own(policy: Policy) -> Policy:
    """Prompts run once, through our own network where there is no dropout."""
    return replace(shared(policy), network=find_network(policy.model))


@pytest.fixture(scope="module")
def policies(tiny_qwen2, tiny_qwen3, tiny_llama):
    return [make_policy(folder, dropout=d) for folder in (tiny_qwen2, tiny_qwen3, tiny_llama) for d in (0.0, 0.2)]


@pytest.mark.parametrize("share", [shared, own])
@given(shapes=shapes, which=st.integers(0, 5), seed=st.integers(0, 99), beta=st.sampled_from([0.0, 0.04]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_shared_prefix_equals_repeated_prompts_in_one_padded_batch(policies, share, shapes, which, seed, beta):
    batch = make_batch([p for p, _ in shapes], [c for _, c in shapes], seed=seed)
    policy = policies[which]
    repeated = gradients(make_learner(plain(policy), beta=beta, tokens_per_microbatch=10**9), batch)
    once = gradients(make_learner(share(policy), beta=beta, tokens_per_microbatch=10**9), batch)
    assert relative_difference(once, repeated) < EXACT


@pytest.mark.parametrize("share", [shared, own])
@given(
    shapes=shapes, budget=st.integers(1, 60), which=st.integers(0, 5), loss=st.sampled_from(["grpo", "dapo", "dr_grpo"])
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_split_into_microbatches_gives_the_same_gradient(policies, share, shapes, budget, which, loss):
    batch = make_batch([p for p, _ in shapes], [c for _, c in shapes])
    policy = share(policies[which])
    whole = gradients(make_learner(policy, loss_type=loss, tokens_per_microbatch=10**9), batch)
    split = gradients(make_learner(policy, loss_type=loss, tokens_per_microbatch=budget), batch)
    assert relative_difference(split, whole) < EXACT


def with_common_beginning(batch: Batch, num_common: int) -> Batch:
    """The same completions behind prompts that begin alike."""
    common = tuple(range(100, 100 + num_common))
    prompts = [replace(group.prompt, token_ids=common + group.prompt.token_ids) for group in batch.groups]
    groups = [replace(group, prompt=prompt) for group, prompt in zip(batch.groups, prompts, strict=True)]
    return replace(batch, groups=tuple(groups))


@given(
    shapes=shapes, num_common=st.integers(1, 9), budget=st.sampled_from([1, 20, 50, 10**9]), which=st.integers(0, 5),
    beta=st.sampled_from([0.0, 0.04]), recompute=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_common_beginning_run_once_gives_the_same_gradient(
    policies, monkeypatch, shapes, num_common, budget, which, beta, recompute
):
    batch = with_common_beginning(make_batch([p for p, _ in shapes], [c for _, c in shapes]), num_common)
    policy = own(policies[which])
    monkeypatch.setattr(batching, "MIN_SAVED_TOKENS", 10**9)
    repeated = gradients(make_learner(policy, beta=beta, tokens_per_microbatch=10**9), batch)
    monkeypatch.setattr(batching, "MIN_SAVED_TOKENS", 1)
    changes = {"tokens_per_microbatch": budget, "gradient_checkpointing": recompute}
    once = gradients(make_learner(policy, beta=beta, **changes), batch)
    assert relative_difference(once, repeated) < EXACT


def test_equal_prompts_and_prompts_that_begin_others_share_their_beginning(policies, monkeypatch):
    """Of which nothing, or nothing but the last token, is left to run for some or all of them."""
    batch = make_batch([1] * 5, [[3, 5], [4], [2, 6], [1], [7, 2]])
    for lengths in ([9] * 5, [9, 9, 12, 20, 9], [9, 10, 10, 10, 11], [1, 9, 9, 1, 4]):
        prompts = [
            replace(g.prompt, token_ids=tuple(range(50, 50 + n))) for g, n in zip(batch.groups, lengths, strict=True)
        ]
        groups = tuple(replace(g, prompt=prompt) for g, prompt in zip(batch.groups, prompts, strict=True))
        alike = replace(batch, groups=groups)
        repeated = gradients(make_learner(plain(policies[0]), beta=0.04), alike)
        with monkeypatch.context() as patch:
            patch.setattr(batching, "MIN_SAVED_TOKENS", 1)
            once = gradients(make_learner(own(policies[0]), beta=0.04), alike)
        assert relative_difference(once, repeated) < EXACT


def test_a_common_beginning_is_counted_once_where_it_pays(policies, monkeypatch):
    batch = with_common_beginning(make_batch([5] * 6, [[3, 4]] * 6), 40)
    rows = batching.rows_to_compute(batch, make_learner(policies[0]).settings)
    planned = {}
    for packed in (True, False):
        for min_saved in (200, 201):
            monkeypatch.setattr(batching, "MIN_SAVED_TOKENS", min_saved)
            chunks = batching.plan(rows, 55, shared_prefix=True, packed=packed)
            planned[packed, min_saved] = [(len(chunk.prompts), chunk.num_common) for chunk in chunks]
    assert planned[True, 200] == [(3, 40), (3, 40)]
    chunks = batching.plan(rows, 45, shared_prefix=True, packed=True)  # nothing larger than the longest prompt
    assert [(len(chunk.prompts), chunk.num_common) for chunk in chunks] == [(1, 0)] * 6
    assert planned[True, 201] == planned[False, 200] == planned[False, 201] == [(1, 0)] * 6


@pytest.mark.parametrize("share", [shared, own, plain])
def test_gradient_checkpointing_changes_nothing(policies, share):
    batch = make_batch([9, 4, 1], [[5, 8, 2], [3, 3, 7], [1, 6, 4]])
    for policy in policies:
        kept = gradients(make_learner(share(policy), beta=0.04), batch)
        recomputed = gradients(make_learner(share(policy), beta=0.04, gradient_checkpointing=True), batch)
        assert relative_difference(recomputed, kept) < EXACT


def test_skipping_completions_without_advantage_changes_nothing(policies):
    advantages_PG = [[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]
    batch = make_batch([5, 6], [[4, 5, 6], [3, 8, 2]], advantages_PG=advantages_PG)
    learner = make_learner(shared(policies[0]))
    skipped = learner.update(batch).metrics
    assert skipped["policy/skipped_share"] == pytest.approx(4 / 6)
    assert skipped["policy/trained_tokens"] == 5
    tiny = [[1e-30] * 3, [1.0, 1e-30, -1.0]]  # computed, yet worth nothing
    everything = make_batch([5, 6], [[4, 5, 6], [3, 8, 2]], advantages_PG=tiny)
    assert make_learner(shared(policies[0])).update(everything).metrics["policy/skipped_share"] == 0
    ours = gradients(make_learner(shared(policies[0])), batch)
    assert relative_difference(ours, gradients(make_learner(shared(policies[0])), everything)) < EXACT


def test_a_batch_that_teaches_nothing_leaves_the_weights_alone(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2), weight_decay=0.1)
    before = learner.state_hash()
    update = learner.update(make_batch([3], [[4, 5]], advantages_PG=[[0.0, 0.0]]))
    assert learner.state_hash() == before
    assert update.metrics["policy/skipped_share"] == 1.0
    assert update.metrics["policy/grad_norm"] == 0.0
    assert learner.steps_done == 1


def test_base_weights_are_never_written(tiny_qwen2):
    policy = make_policy(tiny_qwen2)
    frozen = {name: p for name, p in policy.model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in frozen.items()}
    learner = make_learner(policy, beta=0.04)
    for seed in range(3):
        learner.update(make_batch([4, 5], [[3, 6], [2, 7]], seed=seed))
    assert all(torch.equal(before[name], p) for name, p in frozen.items())


def test_the_second_update_is_clipped_against_the_first_pass(tiny_qwen2):
    learner = make_learner(
        make_policy(tiny_qwen2), num_iterations=2, learning_rate=0.05, epsilon=0.01, max_grad_norm=100
    )
    batch = make_batch([4, 5], [[3, 6], [2, 7]])
    first = learner.update(batch)
    assert first.old_logprobs_PGT is not None
    assert first.metrics["policy/ratio_max"] == 1.0
    second = learner.update(batch.after(first))
    assert second.metrics["policy/ratio_max"] > 1.0
    assert second.metrics["policy/clip_region_share"] > 0.0
    assert second.old_logprobs_PGT is None


def test_every_figure_of_the_learner_is_explained(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2), beta=0.04)
    metrics = learner.update(make_batch([4, 5], [[3, 6], [2, 7]])).metrics
    assert [name for name in metrics if not is_registered(name)] == []


def test_dropout_masks_repeat_in_the_second_update(tiny_qwen2):
    """With the weights unchanged in between, the ratio stays 1 although inputs are dropped."""
    learner = make_learner(make_policy(tiny_qwen2, dropout=0.3), num_iterations=2, learning_rate=1e-12)
    batch = make_batch([4, 5], [[3, 6], [2, 7]])
    second = learner.update(batch.after(learner.update(batch)))
    assert second.metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)


def test_dropout_drops_about_its_share_and_differs_between_completions(tiny_qwen2):
    policy = make_policy(tiny_qwen2, dropout=0.3)
    batch = make_batch([4], [[6, 6]], advantages_PG=[[1.0, -1.0]])
    kept = gradients(make_learner(make_policy(tiny_qwen2)), batch)
    assert relative_difference(gradients(make_learner(policy), batch), kept) > 1e-3


def test_save_and_restore_are_exact(tiny_qwen2, tmp_path):
    straight = make_learner(make_policy(tiny_qwen2), weight_decay=0.01)
    batches = [make_batch([4, 5], [[3, 6], [2, 7]], seed=s) for s in range(4)]
    for batch in batches[:2]:
        straight.update(batch)
    straight.save(tmp_path)
    resumed = make_learner(make_policy(tiny_qwen2, seed=9), weight_decay=0.01)
    resumed.restore(tmp_path)
    assert resumed.state_hash() == straight.state_hash()
    for batch in batches[2:]:
        straight.update(batch)
        resumed.update(batch)
    assert resumed.state_hash() == straight.state_hash()
    assert resumed.steps_done == 4


@pytest.mark.parametrize("rows", [64, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_equal_autograd_of_a_plain_log_softmax(monkeypatch, rows, temperature):
    monkeypatch.setattr(logprob, "CPU_CHUNK_LOGITS", 1)
    monkeypatch.setattr(logprob, "MIN_CHUNK_ROWS", rows)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    hidden = torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(50, (20,))
    upstream = torch.randn(20)
    ours, entropies = logprob.token_logprobs(hidden, head, targets, temperature)
    (our_grad,) = torch.autograd.grad((ours * upstream).sum(), hidden)
    expected, expected_entropies = logprob.logprobs_of_logits(head(hidden), targets, temperature)
    (grad,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(entropies, expected_entropies, atol=1e-5, rtol=0)
    torch.testing.assert_close(our_grad, grad, atol=1e-6, rtol=0)
    trainable = torch.nn.Linear(8, 50)
    trainable.load_state_dict(head.state_dict())
    through_weights, _ = logprob.token_logprobs(hidden, trainable, targets, temperature)
    assert torch.autograd.grad(through_weights.sum(), trainable.weight)[0].abs().sum() > 0


def test_the_logprob_of_a_token_whose_probability_is_no_float32():
    head = torch.nn.Linear(1, 2, bias=False).requires_grad_(False)
    head.weight.data.copy_(torch.tensor([[0.0], [-150.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    logprobs, entropies = logprob.token_logprobs(hidden, head, torch.tensor([1]), 1.0)
    assert (logprobs.item(), entropies.item()) == (-150.0, 0.0)
    assert float(torch.autograd.grad(logprobs.sum(), hidden)[0]) == -150.0


def test_old_logprobs_stay_those_of_the_first_pass(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2), num_iterations=3, learning_rate=0.05, max_grad_norm=100)
    batch = make_batch([4, 5], [[3, 6], [2, 7]])
    first = learner.update(batch)
    second = learner.update(batch.after(first))
    assert second.old_logprobs_PGT == first.old_logprobs_PGT


def test_the_reference_runs_once_for_all_updates_of_a_batch_and_a_resume_gives_the_same(
    tiny_qwen2, tmp_path, monkeypatch
):
    num_passes = 0
    real = Policy.reference

    def counted(policy):
        nonlocal num_passes
        num_passes += 1
        return real(policy)

    monkeypatch.setattr(Policy, "reference", counted)
    straight = make_learner(make_policy(tiny_qwen2), num_iterations=3, beta=0.1)
    batch = make_batch([4, 5], [[3, 6], [2, 7]])
    for update in range(3):
        if update == 1:
            straight.save(tmp_path)
            resumed, again = make_learner(make_policy(tiny_qwen2, seed=9), num_iterations=3, beta=0.1), batch
            resumed.restore(tmp_path)
        batch = batch.after(straight.update(batch))
    assert num_passes == 1
    for _ in range(2):
        again = again.after(resumed.update(again))
    assert num_passes == 2
    assert resumed.state_hash() == straight.state_hash()
    straight.update(make_batch([4, 5], [[3, 6], [2, 7]]))
    assert num_passes == 3


def test_dropout_masks_differ_between_completions_and_steps(tiny_qwen2):
    """Equal tokens get other logprobs where other inputs are dropped."""

    def logprobs(policy_version):
        learner = make_learner(make_policy(tiny_qwen2, dropout=0.3), num_iterations=2)
        group = make_batch([4], [[6, 6]], advantages_PG=[[1.0, -1.0]]).groups[0]
        same = [
            replace(c, token_ids=group.completions[0].token_ids, policy_version=policy_version)
            for c in group.completions
        ]
        batch = Batch((replace(group, completions=tuple(same)),), ((1.0, -1.0),))
        return learner.update(batch).old_logprobs_PGT[0]

    one, two = logprobs(policy_version=0)
    assert one != two
    assert logprobs(policy_version=0) == (one, two)
    assert logprobs(policy_version=1)[0] != one


def test_gradients_are_clipped_to_their_norm(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2), max_grad_norm=1e-3)
    clipped = gradients(learner, make_batch([4, 5], [[3, 6], [2, 7]]))
    norm = torch.sqrt(sum(g.square().sum() for g in clipped.values()))
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_qwen2):
    learner = make_learner(make_policy(tiny_qwen2))
    before = learner.state_hash()
    with pytest.raises(ReinforgeError, match="gradient of step 1 is not finite"):
        learner.update(make_batch([4], [[3, 6]], advantages_PG=[[1e39, -1e39]]))
    assert learner.state_hash() == before
