"""Our LRN against PyTorch's, result and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import local_response_norm

from alexdeploy.zoo.lrn import LocalResponseNorm


def _ours(images: Tensor, size: int, beta: float = 0.75) -> tuple[Tensor, Tensor]:
    """Result, and gradient for a random weighting of the results."""
    leaf = images.clone().requires_grad_()
    result = LocalResponseNorm(size, 0.3, beta, 1.5)(leaf)
    result.backward(_weighting(images))
    assert leaf.grad is not None
    return result.detach(), leaf.grad


def _theirs(images: Tensor, size: int, beta: float = 0.75) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    result = local_response_norm(leaf, size, 0.3, beta, 1.5)
    result.backward(_weighting(images))  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return result.detach(), leaf.grad


def _weighting(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).to(images.dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (9, 0.75), (3, 0.5), (4, 0.75), (15, 0.75)])
def test_result_and_gradient_are_those_of_pytorch(size: int, beta: float, layout: torch.memory_format) -> None:
    images = torch.randn(3, 12, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    torch.testing.assert_close(_ours(images, size, beta), _theirs(images, size, beta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_close_and_keeps_its_type(dtype: torch.dtype, tolerance: float) -> None:
    images = torch.randn(4, 32, 9, 9).to(dtype)
    for found, expected in zip(_ours(images, 5), _theirs(images.float(), 5), strict=True):
        assert found.dtype == dtype
        assert float((found.float() - expected).abs().max() / expected.abs().max()) < tolerance


def test_in_evaluation_mode_it_is_the_function_of_pytorch() -> None:
    images = torch.randn(2, 8, 3, 3)
    assert torch.equal(LocalResponseNorm(5).eval()(images), local_response_norm(images, 5))
