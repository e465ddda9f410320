"""Classifiers that others exported: adopted, calibrated, quantized and built by TensorRT-RTX in INT8."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from torch import nn

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.lint import lint
from alexdeploy.graph.model import class_count, image_input, load_onnx, precision_of
from alexdeploy.graph.table import layer_table
from alexdeploy.graph.weighted import is_weighted, quantized_nodes
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.runners.artifact import load
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.specs import Profile
from tests.helpers.foreign_graphs import ALL, Foreign
from tests.helpers.graphs import Array

CLASSES = ("blue", "green", "red", "white")


def block(channels: int, out: int, kernel: int = 3, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Residual(nn.Module):
    """Two sums, the second with a projection; ReLU after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16)
        self.first = nn.Sequential(block(16, 16), nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.second = nn.Sequential(block(16, 32, stride=2), nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.projection = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(self.first(x) + x)
        x = torch.relu(self.second(x) + self.projection(x))
        result: torch.Tensor = self.head(x.mean((2, 3)))
        return result


class Inception(nn.Module):
    """Four branches side by side, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, stride=2)
        self.branches = nn.ModuleList([self._branches(16), self._branches(32)])
        self.head = nn.Linear(32 * 4 * 4, 4)

    @staticmethod
    def _branches(channels: int) -> nn.ModuleList:
        pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), block(channels, 8, 1))
        deep = nn.Sequential(block(channels, 8, 1), block(8, 8), block(8, 8))
        return nn.ModuleList(
            [block(channels, 8, 1), nn.Sequential(block(channels, 8, 1), block(8, 8, 5)), deep, pooled]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branches in self.branches:
            assert isinstance(branches, nn.ModuleList)
            x = nn.functional.max_pool2d(torch.cat([branch(x) for branch in branches], 1), 2)
        result: torch.Tensor = self.head(x.flatten(1))
        return result


class Separable(nn.Sequential):
    """MobileNet: depthwise and pointwise convolutions with ReLU6, a global pool."""

    def __init__(self) -> None:
        def relu6(channels: int, out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
            convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
            return [convolution, nn.BatchNorm2d(out), nn.ReLU6()]

        layers = relu6(3, 16, 3, 2, 1)
        for channels, out, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += relu6(channels, channels, 3, stride, channels) + relu6(channels, out, 1, 1, 1)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


class MatMulHead(nn.Module):
    """Strided convolutions and two matrix products written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.w1 = nn.Parameter(torch.randn(16 * 8 * 8, 32) / 32)
        self.b1 = nn.Parameter(torch.randn(32))
        self.w2 = nn.Parameter(torch.randn(32, 4) / 6)
        self.b2 = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x).flatten(1)
        return torch.relu(x @ self.w1 + self.b1) @ self.w2 + self.b2


class Normalised(nn.Sequential):
    """An AlexNet in small, with LRN."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 16, 5, 1, 2), nn.ReLU(), nn.LocalResponseNorm(5, 1e-2, 0.75, 2.0), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(16, 32, 3, 1, 1, groups=2), nn.ReLU(), nn.LocalResponseNorm(5, 1e-2), nn.MaxPool2d(3, 2)),
            *(nn.Flatten(), nn.Dropout(), nn.Linear(32 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 4)),
        )


def squeezenet() -> nn.Module:
    from torchvision.models import squeezenet1_1

    module: nn.Module = squeezenet1_1(num_classes=4)
    return module


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    module: nn.Module = mobilenet_v3_small(num_classes=4)
    return module


class Case(NamedTuple):
    """``options`` are the exporter's."""

    make: Callable[[], nn.Module]
    dynamo: bool
    ops: dict[str, int]
    size: int = 32
    options: dict[str, Any] = {}


CASES = {
    "residual, dynamo": Case(Residual, True, {"Conv": 6, "Add": 2, "Gemm": 1}),
    "residual, BatchNorm left in it": Case(
        Residual, False, {"BatchNormalization": 6}, options={"training": torch.onnx.TrainingMode.PRESERVE}
    ),
    "residual, dynamo as it comes": Case(Residual, True, {"BatchNormalization": 6}, options={"optimize": False}),
    "inception, opset 9": Case(Inception, False, {"Concat": 2}, options={"opset_version": 9}),
    "inception, dynamo": Case(Inception, True, {"Concat": 2, "Gemm": 1}),
    "separable, dynamo": Case(Separable, True, {"Clip": 7, "Gemm": 1}),
    "separable, TorchScript": Case(Separable, False, {"Clip": 7, "Gemm": 1}),
    "matmul head, dynamo": Case(MatMulHead, True, {"Conv": 2, "MatMul": 2}),
    "matmul head, dynamo as it comes": Case(  # the batch travels as int64 through Shape, Squeeze, Concat, Reshape
        MatMulHead, True, {"MatMul": 2, "Shape": 1}, options={"optimize": False}
    ),
    "matmul head, TorchScript": Case(MatMulHead, False, {"Conv": 2, "MatMul": 2}),
    "lrn, dynamo": Case(Normalised, True, {"LRN": 2, "Gemm": 2}),
    "lrn, TorchScript": Case(Normalised, False, {"LRN": 2, "Gemm": 2}),
    "squeezenet, TorchScript": Case(squeezenet, False, {"Conv": 26, "Concat": 8}, 64),
    "mobilenet, dynamo": Case(mobilenet, True, {"HardSwish": 19, "HardSigmoid": 9}, 64),
}


def foreign(case: Case, path: Path) -> None:
    """Export as someone without alexdeploy would; BatchNorm has seen data."""
    torch.manual_seed(0)
    module = case.make()
    module.train()
    with torch.no_grad():
        for _ in range(8):
            module(torch.randn(8, 3, case.size, case.size))
    module.eval()
    example = (torch.zeros(2, 3, case.size, case.size),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(module, example, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **case.options)
        else:
            axes = {"image": {0: "batch"}}
            names: dict[str, Any] = {"input_names": ["image"], "dynamic_axes": axes}
            torch.onnx.export(module, example, str(path), dynamo=False, **names, **case.options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around a colour per class."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    colours = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "white": (200, 200, 200)}
    for name, colour in colours.items():
        (folder / name).mkdir()
        for index in range(10):
            coarse = np.clip(random.normal(colour, 50, (9, 9, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((72, 72), Image.Resampling.BICUBIC).save(folder / name / f"{index}.png")
    return folder


def logits(model: Path, dataset: ImageDataset, contract: Contract) -> npt.NDArray[np.float32]:
    with OnnxRuntimeRunner(model) as runner:
        return np.concatenate([runner.infer(images) for images, _ in dataset.batches(contract, 8)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_foreign_classifier_goes_all_the_way(case: Case, pictures: Path, tmp_path: Path) -> None:
    theirs, ours, int8 = tmp_path / "theirs.onnx", tmp_path / "ours.onnx", tmp_path / "int8.onnx"
    foreign(case, theirs)
    crop = case.size
    contract = Contract(color="rgb", resize=crop, crop=crop, mean=(0.5,) * 3, std=(0.25,) * 3, labels=CLASSES)
    result = adopt_onnx(theirs, contract, ours)
    assert result.ops.items() >= case.ops.items()
    assert len(result.fused) == result.ops.get("LRN", 0)

    ranges = calibrate(ours, load_dataset(str(pictures), "train"), samples=32)
    save_ranges(tmp_path / "ranges.json", ranges, parents=(), options={})
    quantize_onnx(ours, tmp_path / "ranges.json", int8)
    graph = load_onnx(int8)
    assert class_count(graph) == len(CLASSES)
    wanted = [str(node.name) for node in load_onnx(ours).graph if is_weighted(node)]
    assert [node.name for node in quantized_nodes(graph)] == wanted

    held_out = load_dataset(str(pictures), "val")
    reference, answer = logits(ours, held_out, contract), logits(int8, held_out, contract)
    assert np.linalg.norm(answer - reference) < 0.2 * np.linalg.norm(reference)

    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    settings = BuildSettings(batches=Profile.parse("1:4:8"), builder="tensorrt-rtx")
    report = build_engine(int8, tmp_path / "int8.engine", settings=settings)
    assert report.float_layers == ()
    assert report.precisions == {"INT8": len(wanted), "HALF": 0, "FLOAT": 0}


def theirs(foreign: Foreign, batch: Array) -> Array:
    """The original as it is, in a plain session with all its outputs; of a frozen batch piece by piece."""
    session = ort.InferenceSession(foreign.model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    feed = {
        name: np.broadcast_to(np.array(value, bool if "bool" in inputs[name].type else np.float32), inputs[name].shape)
        for name, value in foreign.constants.items()
    }
    names = [value.name for value in session.get_outputs()]
    size = inputs[foreign.image].shape[0]
    pieces = np.split(batch, len(batch) // size) if isinstance(size, int) else [batch]
    parts = [session.run(names, feed | {foreign.image: piece})[names.index(foreign.logits)] for piece in pieces]
    whole: Array = np.concatenate(parts).reshape(len(batch), -1)
    return whole


def as_theirs(foreign: Foreign, scores: Array) -> Array:
    """Of logits the probabilities, or their logarithms, where the original gives those."""
    wide = scores.astype(np.float64)
    logarithms: Array = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return {"Softmax": np.exp(logarithms), "LogSoftmax": logarithms}.get(foreign.model.graph.node[-1].op_type, scores)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_a_graph_of_any_interface_goes_all_the_way(make: Callable[[], Foreign], pictures: Path, tmp_path: Path) -> None:
    foreign, model, int8 = make(), tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnx.save(foreign.model, tmp_path / "theirs.onnx")
    contract = msgspec.structs.replace(foreign.contract, labels=CLASSES)
    adopt_onnx(tmp_path / "theirs.onnx", contract, model, constants=foreign.constants)
    held_out = load_dataset(str(pictures), "val")
    batch = next(iter(held_out.batches(contract, 8)))[0]
    expected = theirs(foreign, batch)
    loaded = load_onnx(model)
    half = precision_of(loaded).fp16
    # scores that are written as float16 may be rounded the other way where a runtime adds in another order
    half_scores = any(o.type.tensor_type.elem_type == TensorProto.FLOAT16 for o in foreign.model.graph.output)
    tolerance = 2e-3 if half or half_scores else 1e-5
    for runtime in ("onnxruntime-cpu", *(["openvino"] if find_spec("openvino") else [])):
        with load(model, runtime=runtime) as runner:
            assert (runner.input.dtype, runner.classes) == (contract.input_type, 4)
            answer = runner.infer(batch)
        assert (answer.dtype.name, answer.shape) == ("float32", (len(batch), 4))
        np.testing.assert_allclose(as_theirs(foreign, answer), expected, rtol=tolerance, atol=tolerance)
    assert all(layer.output_shape for layer in layer_table(loaded))
    if half:
        return  # there is no FP32 model to quantize

    ranges = calibrate(model, load_dataset(str(pictures), "train"), samples=16)
    save_ranges(tmp_path / "ranges.json", ranges, parents=(), options={})
    reference = logits(model, held_out, contract)
    for fp16 in (True, False):
        quantize_onnx(model, tmp_path / "ranges.json", int8, settings=QuantizeSettings(fp16=fp16))
        assert [finding for finding in lint(load_onnx(int8)) if finding.severity == "error"] == []
        assert np.linalg.norm(logits(int8, held_out, contract) - reference) < 0.1 * np.linalg.norm(reference)

    if len(foreign.constants) or len(foreign.model.graph.output) > 1:
        return  # by now a graph like any other
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    batches = Profile.parse("2" if image_input(loaded, "").shape[0] == 2 else "1:4:8")
    settings = BuildSettings(batches=batches, builder="tensorrt-rtx")
    record = build_engine(int8, tmp_path / "int8.engine", settings=settings)
    assert (record.float_layers, record.precisions["FLOAT"], record.classes) == ((), 0, 4)
    assert record.input is not None
    assert record.input.dtype == contract.input_type
    assert next(iter(record.shapes.values())) == batches.with_sizes(contract.input_shape)


class FeaturesAndProbabilities(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = block(3, 16, stride=2), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(x)
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return x, torch.softmax(self.head(pooled), 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_either_exporter_may_leave_the_size_open_and_write_several_outputs(dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, example, path = FeaturesAndProbabilities().eval(), (torch.zeros(2, 3, 32, 32),), tmp_path / "theirs.onnx"
    axes = {0: "batch", 2: "height", 3: "width"}
    if dynamo:
        shapes = ({axis: torch.export.Dim(name) for axis, name in axes.items()},)
        torch.onnx.export(module, example, path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        names: dict[str, Any] = {"input_names": ["image"], "dynamic_axes": {"image": axes}}
        torch.onnx.export(module, example, str(path), dynamo=False, **names)
    contract = Contract(color="rgb", resize=32, crop=32, mean=(0.5,) * 3, std=(0.25,) * 3)
    interface = adopt_onnx(path, contract, tmp_path / "ours.onnx").interface
    assert (len(interface.dropped), interface.softmax) == (1, "Softmax")
    larger = torch.randn(3, 3, 40, 24)
    with torch.no_grad(), load(tmp_path / "ours.onnx") as runner:
        answer = torch.softmax(torch.from_numpy(runner.infer(larger.numpy())), 1)
        np.testing.assert_allclose(answer, module(larger)[1], rtol=1e-5, atol=1e-6)
