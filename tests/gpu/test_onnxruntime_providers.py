"""ONNX Runtime's GPU providers on a real GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alexdeploy.errors import UnavailableError
from alexdeploy.specs import Precision
from tests.helpers.graphs import conv_lrn_gemm, conv_lrn_gemm_in_torch, images

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["CudaRunner", "TensorRtProviderRunner"])
def test_the_provider_gives_pytorch_s_answers_and_computes_in_its_own_memory(name: str) -> None:
    from alexdeploy.runners import onnxruntime_gpu

    try:
        runner = getattr(onnxruntime_gpu, name)(conv_lrn_gemm().SerializeToString(), Precision.FP32)
    except UnavailableError as error:
        pytest.skip(str(error))
    with runner:
        for count in (1, 5, 3):
            expected = conv_lrn_gemm_in_torch(images(count))
            np.testing.assert_allclose(runner.infer(images(count)), expected, rtol=1e-4, atol=1e-4)
            bound: Any = runner.device_call(images(count))()
            assert bound[0].device_name() == "cuda"
            np.testing.assert_allclose(bound[0].numpy(), expected, rtol=1e-4, atol=1e-4)
