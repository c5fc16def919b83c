"""Which device, numbers and threads are picked, and how the process is set up for them."""

import os

import pytest
import torch

from reinforge.errors import SetupError
from reinforge.policy.device import pick_device, pick_dtype, pick_threads, set_arithmetic


def test_devices_dtypes_and_threads():
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    for unknown in ("gpu", "meta", "cpu:x"):
        with pytest.raises(SetupError, match=f"'{unknown}' is unknown"):
            pick_device(unknown)
    with pytest.raises(SetupError, match=r"cpu:1, but the last of its kind is cpu:0"):
        pick_device("cpu:1")
    if not torch.backends.mps.is_available():
        with pytest.raises(SetupError, match="no Apple GPU"):
            pick_device("mps")
    if not torch.cuda.is_available():
        with pytest.raises(SetupError, match="no CUDA GPU"):
            pick_device("cuda")
    assert pick_threads(None, 10**6) == 1
    assert pick_threads(3, 10**6) == 3


@pytest.fixture
def torchs_settings():
    kept = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(kept)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("torchs_settings")
def test_deterministic_kernels_are_asked_for_on_cuda_only(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_arithmetic(torch.device("cpu"), deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    set_arithmetic(torch.device("cuda"), deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.get_float32_matmul_precision() == "highest"
    set_arithmetic(torch.device("cuda"), deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
