"""Products through oneDNN are those of torch's own library."""

import pytest
import torch
import torch.nn.functional as F

from reinforge.policy import products


@pytest.fixture
def with_onednn(monkeypatch):
    """oneDNN for every product, on any processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 7, 64, 33), (130, 31, 200)])
def test_linear_equals_torchs(with_onednn, shape, transposed, has_bias):
    torch.manual_seed(0)
    *rows, num_in, num_out = shape
    x = torch.randn(*rows, 2 * num_in, dtype=torch.float32)[..., :num_in]
    weight = torch.randn(num_in, num_out).t() if transposed else torch.randn(num_out, num_in)
    bias = torch.randn(num_out) if has_bias else None
    assert products._suits_onednn(x, weight)
    torch.testing.assert_close(products.linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=0)


def test_what_onednn_is_not_good_at_goes_to_torch(with_onednn):
    weight = torch.randn(4, 6)
    assert not products._suits_onednn(torch.randn(6, 3).t(), weight)
    assert not products._suits_onednn(torch.randn(3, 6), torch.randn(8, 12)[::2, ::2])
    assert not products._suits_onednn(torch.randn(3, 6).double(), weight.double())
