from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.errors import GateError, InputError
from alexdeploy.export import from_torch
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.graph.uint8_input import with_uint8_input
from tests.helpers.graphs import run

TINY = Contract(color="rgb", crop=16, mean=(0.5,) * 3, std=(0.5,) * 3)


def tiny(lrn: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), lrn, nn.Flatten(), nn.Linear(8 * 14 * 14, 4)).eval()


@pytest.fixture
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 3, 5, 15, 17])
def test_any_module_keeps_its_lrn_for_every_odd_window_and_batch(
    size: int, images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    module = tiny(nn.LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5))
    path = tmp_path / "model.onnx"
    export_onnx(module, TINY, path, real_images=images)
    proto = onnx.load(path)
    (node,) = [node for node in proto.graph.node if node.op_type == "LRN"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == pytest.approx({"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5})
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert proto.opset_import[0].version == 20
    assert Contract.from_json({p.key: p.value for p in proto.metadata_props}[METADATA_KEY], "x") == TINY
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(proto, images)[0], expected, rtol=1e-4, atol=1e-5)


def test_lrn_called_as_a_function_is_native_too(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.local_response_norm(x, 5, alpha=1.0)

    result = export_onnx(tiny(Functional()), TINY, tmp_path / "model.onnx", real_images=images)
    assert result.ops["LRN"] == 1
    assert not result.ops.keys() & {"Pad", "AveragePool", "Pow", "Div"}


def test_other_threads_notice_nothing_of_an_export(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    def what_another_thread_sees() -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: [nn.functional.local_response_norm, sys.stdout]).result()

    class Looking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(what_another_thread_sees())
            return x

    seen: list[list[Any]] = []
    before = what_another_thread_sees()
    export_onnx(tiny(Looking()), TINY, tmp_path / "model.onnx", real_images=images)
    assert all(found == before for found in seen)
    assert seen


def test_an_export_prints_nothing(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export_onnx(tiny(nn.LocalResponseNorm(5)), TINY, tmp_path / "model.onnx", real_images=images)
    with pytest.raises(InputError):
        export_onnx(tiny(nn.LocalResponseNorm(4)), TINY, tmp_path / "even.onnx", real_images=images)
    assert capfd.readouterr() == ("", "")


def test_an_even_window_is_refused_with_the_reason_and_nothing_is_written(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"even window \(4\).*size 3 or 5"):
        export_onnx(tiny(nn.LocalResponseNorm(4)), TINY, tmp_path / "model.onnx", real_images=images)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_fails_the_parity_gate_and_is_not_written(
    images: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    class Unfaithful(nn.Module):
        """Computes something else while it is exported."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1.001 if torch.onnx.is_in_onnx_export() else x

    with pytest.raises(GateError, match="parity"):
        export_onnx(tiny(Unfaithful()), TINY, tmp_path / "model.onnx", real_images=images)
    assert not list(tmp_path.iterdir())


def test_a_graph_of_pixels_computes_what_torchvision_and_the_module_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LocalResponseNorm(5), nn.Conv2d(8, 4, 14)).eval()
    contract = msgspec.structs.replace(TINY, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), labels=tuple("abcd"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / "model.onnx"
    export_onnx(module, contract, path, real_images=pixels, any_size=True, uint8_input=True)
    proto = onnx.load(path)
    stored = Contract.from_json({p.key: p.value for p in proto.metadata_props}[METADATA_KEY], "x")
    assert (stored.input_type, stored.input_shape, stored.labels) == ("uint8", (16, 16, 3), ("a", "b", "c", "d"))
    assert stored.differs_from(contract) is None
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(contract.mean, contract.std)])
    with torch.inference_mode():
        expected = module(to_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(run(proto, pixels)[0], expected, rtol=1e-4, atol=1e-5)


def test_arithmetic_that_differs_fails_the_parity_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = msgspec.structs.replace(TINY, mean=(0.5, 0.5, 0.501))
    monkeypatch.setattr(from_torch, "with_uint8_input", lambda model, _: with_uint8_input(model, other))
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(GateError, match=r"parity.*random inputs"):
        export_onnx(tiny(nn.ReLU()), TINY, tmp_path / "model.onnx", real_images=pixels, uint8_input=True)
    assert not list(tmp_path.iterdir())
