from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from alexdeploy import machine
from alexdeploy.errors import InputError, InputWarning
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.machine import saturates_int8
from tests.helpers.graphs import conv_lrn_gemm, conv_lrn_gemm_in_torch, images, run

pytest.importorskip("openvino", reason="openvino is not installed")
from alexdeploy.runners.openvino import OpenVinoRunner

MODEL = conv_lrn_gemm()


def test_infers_what_the_graph_says_at_any_batch_whole_and_in_pieces(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "model.onnx")
    with OpenVinoRunner(tmp_path / "model.onnx", whole=4) as runner:
        assert (runner.input.name, runner.input.shape[1:], runner.classes) == ("input", (3, 8, 8), 4)
        for count in (1, 4, 3, 5, 17):
            expected = conv_lrn_gemm_in_torch(images(count))
            np.testing.assert_allclose(runner.infer(images(count)), expected, rtol=1e-5, atol=1e-5)
            call = runner.device_call(images(count))
            call()
            again: Any = call()
            np.testing.assert_allclose(again[0] if count <= 4 else again, expected, rtol=1e-5, atol=1e-5)


CALLS_BESIDE_CALLS = """
import sys, threading
from pathlib import Path
import numpy as np
from alexdeploy.runners.openvino import OpenVinoRunner

runner = OpenVinoRunner(Path(sys.argv[1]))
batch, done = np.ones((2, 3, 8, 8), np.float32), threading.Event()

def ask():
    while not done.is_set():
        runner.infer(batch)

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(600):
    runner.device_call(batch)()
done.set()
for thread in threads:
    thread.join()
"""


def test_device_calls_beside_calls_of_other_threads_do_not_end_the_process(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "model.onnx")
    program = [sys.executable, "-c", CALLS_BESIDE_CALLS, str(tmp_path / "model.onnx")]
    assert subprocess.run(program, check=False).returncode == 0


def test_a_device_call_keeps_its_batch_when_the_caller_changes_theirs() -> None:
    batch = images(2)
    expected = conv_lrn_gemm_in_torch(batch)
    with OpenVinoRunner(MODEL.SerializeToString()) as runner:
        call = runner.device_call(batch)
        batch[:] = 0
        found: Any = call()
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


def test_float_layers_compute_in_fp32_unless_told_otherwise() -> None:
    model = MODEL.SerializeToString()
    precisions = [str(r._compiled.get_property("INFERENCE_PRECISION_HINT")) for r in map(OpenVinoRunner, (model,))]
    assert precisions == ["<Type: 'float32'>"]


def int8() -> ir.Model:
    ranges = {"input": TensorRange(4.0), "flatten1": TensorRange(2.0, True)}
    return insert_qdq(ir.from_proto(MODEL), ranges, dialect="openvino")


def test_an_int8_graph_is_close_to_its_definition_or_said_not_to_be() -> None:
    (expected,) = run(int8(), images(16))
    told = pytest.warns(InputWarning, match="saturate on this CPU") if saturates_int8() else contextlib.nullcontext()
    with told, OpenVinoRunner(model_bytes(int8())) as runner:
        actual = runner.infer(images(16))
    assert saturates_int8() or np.abs(actual - expected).max() <= np.abs(expected).max() / 127


@pytest.mark.parametrize(
    ("flags", "warns"), [("avx2", True), ("avx2 avx512f", True), ("avx2 avx_vnni", False), ("avx512_vnni", False)]
)
def test_sums_that_saturate_are_told(flags: str, warns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags.split()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        OpenVinoRunner(model_bytes(int8()))
        OpenVinoRunner(MODEL.SerializeToString())
    assert [warning.category for warning in seen] == [InputWarning] * warns
    assert all("saturate on this CPU" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_model_with_a_frozen_batch_takes_any_batch(count: int) -> None:
    frozen = onnx.ModelProto()
    frozen.CopyFrom(MODEL)
    frozen.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    frozen.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    runner = OpenVinoRunner(frozen.SerializeToString())
    (expected,) = run(MODEL, images(count))
    np.testing.assert_allclose(runner.infer(images(count)), expected, rtol=1e-4, atol=1e-5)
    runner.device_call(images(count))()


def test_an_unreadable_model_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="OpenVINO cannot load"):
        OpenVinoRunner(b"not a model")


def test_signals_reach_python_after_models_were_closed_in_the_order_they_were_opened(tmp_path: Path) -> None:
    onnx.save(MODEL, tmp_path / "model.onnx")
    script = (
        "import signal, sys; from pathlib import Path\n"
        "from alexdeploy.runners.openvino import OpenVinoRunner\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('handled'))\n"
        "first, second = OpenVinoRunner(Path(sys.argv[1])), OpenVinoRunner(Path(sys.argv[1]))\n"
        "del first\ndel second\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr
