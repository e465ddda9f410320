"""Every network of the zoo through the chain: export, calibration, FP16 and INT8 engines by NVIDIA's own builder.

With an eighth of the channels, where that is faster; at full size in the slow lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from alexdeploy.data.samples import real_images
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.export.from_torch import ExportResult, export_onnx
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.quantize.apply import PrecisionSettings, with_precision
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.recipe import load_recipe
from alexdeploy.zoo.checkpoint import untrained
from alexdeploy.zoo.registry import NETWORKS, NETWORKS_WITH_LRN
from tests.helpers.slim import slim

SMALL = {"lenet", "mnist-cnn"}
# (convolutions, fully connected layers, max poolings)
LAYERS = {
    "alexnet-half-plain": (5, 4, 3),
    "lenet": (2, 3, 2),
    "mnist-cnn": (4, 3, 2),
    "vgg16": (13, 3, 5),
}


@dataclass
class Exported:
    network: str
    path: Path
    result: ExportResult
    ranges: RangeFile


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, False), id=name) for name in sorted(NETWORKS)),
        *(pytest.param((name, True), id=f"{name}-full", marks=pytest.mark.slow) for name in sorted(NETWORKS)),
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    name, full = request.param
    path = tmp_path_factory.mktemp(name) / "model.onnx"
    contract = load_recipe(name).preprocess
    model = untrained(name, 1000, seed=0).model if full else slim(name, 10, 1 if name in SMALL else 8)
    result = export_onnx(model, contract, path, real_images=real_images(contract))
    return Exported(name, path, result, calibrate(path, load_dataset("digits", "train"), samples=8))


def test_it_leaves_with_native_lrn_readable_names_and_parity(exported: Exported) -> None:
    convolutions, matrices, poolings = LAYERS.get(exported.network, (5, 3, 3))
    expected = {"Conv": convolutions, "Flatten": 1, "Gemm": matrices, "MaxPool": poolings}
    expected["Relu"] = convolutions + matrices - 1
    if exported.network in NETWORKS_WITH_LRN:
        expected["LRN"] = 2
    assert exported.result.ops == expected
    parity = exported.result.parity
    assert parity.real_inputs is not None
    assert parity.worst <= 1e-5
    names = [str(node.name) for node in load_onnx(exported.path).graph]
    assert names[:2] == ["conv1", "relu1"]
    assert names[-1] == f"fc{convolutions + matrices}"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("precision", "int8", "fp16"), [("HALF", False, True), ("INT8", True, False), ("INT8", True, True)]
)
def test_all_convolutions_and_gemms_compute_in_the_type_asked_for(
    exported: Exported, precision: str, int8: bool, fp16: bool
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    precision_settings = PrecisionSettings(int8=int8, fp16=fp16)
    graph = with_precision(exported.path, exported.ranges, settings=precision_settings)
    settings = BuildSettings(builder="tensorrt-rtx", strict=True)
    report = build_engine(graph, exported.path.with_suffix(".engine"), settings=settings)
    layers = [str(node.name) for node in weighted_nodes(load_onnx(exported.path))]
    assert report.layer_precisions == dict.fromkeys(layers, precision)
    assert report.float_layers == ()
