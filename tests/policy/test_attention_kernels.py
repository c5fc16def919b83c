"""The plain form of attention with its log of sums gives what torch's kernel for the CPU gives, gradients too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reinforge.policy import attention_kernels, plain_attention, two_part_attention
from reinforge.policy.attention_kernels import CpuFlash, CudaFlash, flash_gap

CPU = torch.device("cpu")


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_forms(inputs, is_causal, extra=0.7):
    """Values, sums and gradients of both, the gradients of a part of the keys: others hold `extra` of the sums."""
    grad, query, key, value = inputs
    found = []
    out, sums = CpuFlash.forward(query, key, value, is_causal, None)
    for form in (CpuFlash, plain_attention):
        values = form.forward(query, key, value, is_causal, None)
        found.append((*values, *form.backward(grad, query, key, value, out, sums + extra, is_causal)))
    return found


@settings(max_examples=25, deadline=None)
@given(
    X=st.integers(1, 3),
    H=st.integers(1, 4),
    Q=st.integers(1, 9),
    S=st.integers(1, 9),
    shared=st.booleans(),
    is_causal=st.booleans(),
    room=st.sampled_from([1, 20, 1 << 24]),
)
def test_the_plain_form_is_the_kernel_whatever_fits_at_once(X, H, Q, S, shared, is_causal, room):
    S = Q if is_causal else S
    shapes = [(X, H, Q, 8), (X, H, Q, 8), (X, 1 if shared else H, S, 8), (X, 1 if shared else H, S, 8)]
    inputs = [drawn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    before, plain_attention.MAX_SCORES = plain_attention.MAX_SCORES, room
    try:
        kernel, plain = both_forms(inputs, is_causal)
    finally:
        plain_attention.MAX_SCORES = before
    for expected, found in zip(kernel, plain, strict=True):
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())


@pytest.mark.parametrize("is_causal", [True, False])
def test_bfloat16_is_as_close_as_its_rounding(is_causal):
    shapes = [(2, 3, 33, 16), (2, 3, 33, 16), (2, 1, 33, 16), (2, 1, 33, 16)]
    inputs = [drawn(*shape, seed=seed, dtype=torch.bfloat16) for seed, shape in enumerate(shapes)]
    exact, _ = both_forms([given.float() for given in inputs], is_causal)
    for forms in both_forms(inputs, is_causal):
        assert forms[0].dtype == torch.bfloat16
        assert forms[1].dtype == torch.float32
        for expected, found in zip(exact, forms, strict=True):
            assert (found.float() - expected).abs().max() <= 2**-7 * expected.abs().max()


@pytest.mark.parametrize("num_rows", [1, 4])
def test_a_mask_hides_keys(num_rows, monkeypatch):
    monkeypatch.setattr(plain_attention, "MAX_SCORES", 60)  # two queries at a time
    query, key, value = (drawn(3, 2, n, 8, seed=n) for n in (4, 5, 5))
    last_seen = torch.tensor([0, 2, 4])[:, None, None, None] + torch.arange(num_rows)[:, None]
    mask = torch.zeros(3, 1, num_rows, 5).masked_fill_(torch.arange(5) > last_seen, -torch.inf)
    for expected, found in zip(
        CpuFlash.forward(query, key, value, False, mask),
        plain_attention.forward(query, key, value, False, mask),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_two_parts_from_the_plain_form_pass_gradcheck(monkeypatch):
    monkeypatch.setattr(attention_kernels, "_kernel", lambda *_: plain_attention)
    shapes = [(2, 5, 4, 3, 4), (2, 5, 4, 4), (2, 5, 4, 4), (3, 2, 7, 4), (3, 2, 7, 4)]
    inputs = tuple(drawn(*shape, seed=seed).double().requires_grad_() for seed, shape in enumerate(shapes))
    runs = two_part_attention.runs_of([0, 0, 2, 1, 2], [7, 0, 3])
    torch.autograd.gradcheck(
        lambda q, k, v, pk, pv: two_part_attention.attend(q, k, v, [two_part_attention.Behind(pk, pv, runs)]), inputs
    )


def test_the_check_before_a_kernel_is_used_sees_a_wrong_one():
    assert flash_gap(CpuFlash, CPU) < attention_kernels.MAX_FLASH_GAP / 2

    class OwnSums(CpuFlash):
        """A kernel that computes its sums again instead of taking those of all parts."""

        @staticmethod
        def backward(grad, query, key, value, out, sums, is_causal):
            return CpuFlash.backward(grad, query, key, value, out, sums - 0.5, is_causal)

    assert flash_gap(OwnSums, CPU) > 2 * attention_kernels.MAX_FLASH_GAP


def test_a_kernel_that_is_not_there_is_told_and_not_used():
    with pytest.warns(RuntimeWarning, match=r"plain form, which is slower: .* fails: Could not run"):
        assert not attention_kernels.cuda_flash_agrees(CPU)


def test_the_cuda_kernel_is_called_as_torch_declares_it():
    """On the meta device, where torch's own description of the kernel runs: arguments, shapes and dtypes."""
    names = [
        argument.name
        for argument in torch.ops.aten._scaled_dot_product_flash_attention_backward.default._schema.arguments
    ]
    assert names[:12] == [
        *("grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k"),
        *("max_q", "max_k", "dropout_p", "is_causal"),
    ]
    grad, query = (torch.empty(6, 40, 3, 64, device="meta", dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
    key, value = (torch.empty(6, 1, 40, 64, device="meta", dtype=torch.bfloat16) for _ in range(2))
    out, sums = CudaFlash.forward(query, key, value, True, None)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (sums.shape, sums.dtype) == (query.shape[:3], torch.float32)
    grads = CudaFlash.backward(grad, query, key, value, out, sums, True)
    assert [given.shape for given in grads] == [query.shape, key.shape, value.shape]
