from __future__ import annotations

import numpy as np
import pytest

from alexdeploy.errors import InputError, UsageError
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from tests.helpers.graphs import conv_lrn_gemm, images, run


def test_infers_what_the_graph_says_at_any_batch() -> None:
    model = conv_lrn_gemm()
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        assert (runner.input.name, runner.input.shape[1:], runner.classes) == ("input", (3, 8, 8), 4)
        for count in (1, 5, 3):
            np.testing.assert_allclose(runner.infer(images(count)), run(model, images(count))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [images(2)[:, :2], images(2).astype(np.float64), images(2)[:0], images(2)[0]])
def test_a_wrong_batch_is_refused_in_words(batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    runner = OnnxRuntimeRunner(conv_lrn_gemm().SerializeToString())
    with pytest.raises(UsageError, match=r"expected \(N, 3, 8, 8\) float32"):
        runner.infer(batch)


def test_what_onnx_runtime_refuses_comes_with_its_own_words() -> None:
    with pytest.raises(InputError, match="ONNX Runtime cannot load"):
        OnnxRuntimeRunner(b"not a model")
    with pytest.raises(InputError, match="LRN"):
        OnnxRuntimeRunner(conv_lrn_gemm(lrn_size=4).SerializeToString())
