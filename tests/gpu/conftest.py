"""Every test here runs on a CPU in the suite and, marked `gpu`, on CUDA where there is a card: `pytest -m gpu`."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the test computes."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture
def accelerator(device):
    """The trainer's name of the device."""
    return "gpu" if device == "cuda" else device


@pytest.fixture(autouse=True)
def _exact_products():
    """TF32 would be further from float32 than these tests allow."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
