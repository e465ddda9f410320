"""The first layer that is wrong is named, whatever the network, the precision and the direction of the fault."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from PIL import Image

from alexdeploy.compare import BANDS, Divergence, compare_layers
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.graph.equalize import equalizable, equalize, scale_factors
from alexdeploy.graph.fp16 import to_bf16, to_fp16
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.inspect import inspect_artifact
from alexdeploy.specs import Precision
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, untrained
from tests.helpers.graphs import Array, as_fp8, conv_lrn_gemm, make_model, of_pixels, run

CONTRACT = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclasses.dataclass(frozen=True)
class Case:
    """A float graph, images for it, and the true range of every tensor."""

    model: onnx.ModelProto
    dataset: ImageDataset
    batch: Array

    @property
    def graph(self) -> ir.Model:
        return ir.from_proto(self.model)

    def ranges(self) -> dict[str, TensorRange]:
        values = {"input": self.batch, **tapped(self.model, self.batch)}
        return {name: TensorRange(float(np.abs(x).max()), bool(x.min() >= 0)) for name, x in values.items()}

    def against(self, other: onnx.ModelProto | ir.Model, folder: Path) -> Divergence:
        paths = folder / "a.onnx", folder / "b.onnx"
        for path, model in zip(paths, (self.model, other), strict=True):
            onnx.save(ir.to_proto(model) if isinstance(model, ir.Model) else model, path)
        return compare_layers(*paths, self.dataset, samples=len(self.dataset))


def tapped(model: onnx.ModelProto | ir.Model, batch: Array) -> dict[str, Array]:
    """Every float tensor that a node makes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(model) if isinstance(model, ir.Model) else model)
    known = onnx.shape_inference.infer_shapes(proto).graph.value_info
    halves = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    proto.graph.output.extend(value for value in known if value.type.tensor_type.elem_type in halves)
    names = list(dict.fromkeys(value.name for value in proto.graph.output))
    return dict(zip(names, run(proto, batch, names), strict=True))


def dataset_of(count: int, size: int) -> ImageDataset:
    pixels = np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    names = [f"{index}" for index in range(count)]
    return ImageDataset("noise/val", ("x",), names, np.zeros(count, np.int64), lambda i: Image.fromarray(pixels[i]))


def case_of(model: onnx.ModelProto, contract: Contract = CONTRACT, count: int = 13) -> Case:
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    dataset = dataset_of(count, contract.size[0])
    return Case(model, dataset, next(iter(dataset.batches(contract, count)))[0])


def deep() -> onnx.ModelProto:
    """conv1 relu1 conv2 relu2 pool2 conv3 relu3 flatten3 fc4 relu4 fc5 (→5); names of nodes unlike their outputs."""
    random = np.random.default_rng(5)
    nodes, weights, last = [], {}, "input"

    def add(op: str, name: str, *shape: int, **attributes: Any) -> None:
        nonlocal last
        output = "logits" if name == "fc5" else f"{name}_out"
        inputs = [last]
        if shape:
            scale = math.sqrt(2 / math.prod(shape[1:]))
            weights[f"{name}.w"] = (random.standard_normal(shape) * scale).astype(np.float32)
            weights[f"{name}.b"] = (random.standard_normal(shape[0]) * 0.1).astype(np.float32)
            inputs += [f"{name}.w", f"{name}.b"]
        nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        last = output

    for number, (outputs, channels) in enumerate(((8, 3), (12, 8), (12, 12)), 1):
        add("Conv", f"conv{number}", outputs, channels, 3, 3, pads=[1, 1, 1, 1])
        add("Relu", f"relu{number}")
        if number == 2:
            add("MaxPool", "pool2", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten", "flatten3")
    add("Gemm", "fc4", 16, 12 * 16, transB=1)
    add("Relu", "relu4")
    add("Gemm", "fc5", 5, 16, transB=1)
    return make_model(nodes, weights, rank=2)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoint and export of an untrained ``alexnet-mnist``."""
    folder = tmp_path_factory.mktemp("mnist")
    fresh = untrained("alexnet-mnist", classes=10, seed=0)
    save_checkpoint(folder / "net.safetensors", fresh)
    noise = np.random.default_rng(0).random((1, *fresh.contract.input_shape), np.float32)
    export_onnx(fresh.model, fresh.contract, folder / "net.onnx", real_images=noise)
    return folder / "net.safetensors", folder / "net.onnx"


@pytest.fixture(scope="module")
def digits(mnist: tuple[Path, Path]) -> Case:
    from alexdeploy.data.sources import load_dataset

    dataset = load_dataset("digits", "val", data_root=None).subset(10)
    contract = load_checkpoint(mnist[0]).contract
    return Case(onnx.load(mnist[1]), dataset, next(iter(dataset.batches(contract, 10)))[0])


@pytest.fixture(params=["conv_lrn_gemm", "deep", "alexnet-mnist"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "alexnet-mnist":
        digits: Case = request.getfixturevalue("digits")
        return digits
    return case_of(conv_lrn_gemm() if request.param == "conv_lrn_gemm" else deep())


@pytest.mark.parametrize("factor", [100, 0.01])
def test_a_range_wrong_by_100_blames_the_first_layer_computed_from_it(
    case: Case, factor: float, tmp_path: Path
) -> None:
    ranges = case.ranges()
    blamed, weighted = {}, weighted_nodes(case.graph)
    for node in weighted:
        tensor = str(node.activation.name)
        wrong = dataclasses.replace(ranges[tensor], amax=ranges[tensor].amax * factor)
        result = case.against(insert_qdq(case.graph, {**ranges, tensor: wrong}), tmp_path)
        blamed[node.name] = result.first
    assert blamed == {node.name: node.name for node in weighted}
    assert len(blamed) >= 2


def clipping(activation: str) -> onnx.ModelProto:
    """conv1, the activation, conv2, all 1×1; conv1's last channel is far beyond what the activation lets through."""
    limits = {"low": np.float32(0), "high": np.float32(6)} if activation == "Clip" else {}
    weights = {
        "w1": 2 * np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
        "b1": np.array([1, 1, 100 if limits else -100], np.float32),
        "w2": np.ones((4, 3, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["conv1_out"], "conv1"),
        helper.make_node(activation, ["conv1_out", *limits], ["act1_out"], "act1"),
        helper.make_node("Conv", ["act1_out", "w2"], ["logits"], "conv2"),
    ]
    return make_model(nodes, weights | {name: np.asarray(value) for name, value in limits.items()})


def with_bias(model: onnx.ModelProto, added: list[float]) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (bias,) = [tensor for tensor in other.graph.initializer if tensor.name == "b1"]
    array = onnx.numpy_helper.to_array(bias) + np.array(added, np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(array, "b1"))
    return other


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("between", ["", "Cast", "Q/DQ"])
def test_an_error_that_the_activation_removes_does_not_count(activation: str, between: str, tmp_path: Path) -> None:
    case = case_of(clipping(activation))
    if between:
        case = dataclasses.replace(case, model=read_through(case.model, between))
    beyond = with_bias(case.model, [0, 0, 50 if activation == "Clip" else -50])
    result = case.against(beyond, tmp_path)
    rows = {row.layer: row for row in result.layers}
    assert rows["conv1"].relative_l2 > 0.3, "its own output is far off"
    assert (rows["conv1"].judged_l2, rows["conv1"].judged_at) == (0.0, "act1")
    assert (rows["conv2"].judged_l2, rows["conv2"].judged_at) == (0.0, "conv2")
    assert result.first is None
    result = case.against(with_bias(case.model, [3, 3, 0]), tmp_path)
    assert result.first == "conv1", "what the activation lets through is still conv1's fault"


def read_through(model: onnx.ModelProto, between: str) -> onnx.ModelProto:
    """The same with Q/DQ, or Casts, before the activation."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    conv, activation, last = other.graph.node
    scale = [("scale", np.float32(1.5)), ("zero", np.int8(0))]
    other.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in scale)
    chain = [
        helper.make_node("QuantizeLinear", ["conv1_out", "scale", "zero"], ["levels"], "q"),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["between"], "dq"),
    ]
    if between != "Q/DQ":
        chain = [
            helper.make_node("Cast", ["conv1_out"], ["double"], "to64", to=onnx.TensorProto.DOUBLE),
            helper.make_node("Cast", ["double"], ["between"], "to32", to=onnx.TensorProto.FLOAT),
        ]
    activation.input[0] = "between"
    nodes = [conv, *chain, activation, last]
    del other.graph.node[:]
    other.graph.node.extend(nodes)
    return other


def test_a_layer_that_something_else_reads_too_is_judged_by_its_own_output(tmp_path: Path) -> None:
    model = clipping("Clip")
    model.graph.node[-1].input[0] = "sum_out"
    model.graph.node.insert(2, helper.make_node("Add", ["act1_out", "conv1_out"], ["sum_out"], "sum"))
    case = case_of(model)
    result = case.against(with_bias(case.model, [0, 0, 50]), tmp_path)
    assert result.first == "conv1"
    assert result.layers[0].judged_at == "conv1"


@pytest.mark.parametrize("form", Precision)
def test_a_healthy_graph_stays_within_the_band_of_its_precision(case: Case, form: Precision, tmp_path: Path) -> None:
    graph = insert_qdq(case.graph, case.ranges()) if form.quantized else case.graph
    graph = as_fp8(graph) if "fp8" in form.value else graph
    graph = to_fp16(graph) if form.fp16 else to_bf16(graph) if form.bf16 else graph
    result = case.against(graph, tmp_path)
    assert (result.precision, result.band, result.first) == (form, BANDS[form], None)
    assert result.images == len(case.dataset)
    assert {row.type for row in result.layers} <= {"Conv", "Relu", "LRN", "MaxPool", "Gemm"}
    assert len(result.layers) == sum(node.op_type != "Flatten" for node in case.model.graph.node)


@pytest.mark.parametrize("dialect", ["onnxruntime", "openvino"])
def test_the_other_dialects_are_healthy_too(dialect: str, tmp_path: Path) -> None:
    case = case_of(deep())
    result = case.against(insert_qdq(case.graph, case.ranges(), dialect=dialect), tmp_path)  # type: ignore[arg-type]
    assert result.first is None
    assert len(result.layers) == 10


def perturbed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every weight and bias a few per cent off."""
    other, random = onnx.ModelProto(), np.random.default_rng(7)
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        noise = 0.05 * random.standard_normal(array.shape).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array * (1 + noise), tensor.name))
    return other


# ONNX Runtime sums in another order where it fuses, which moves a value at the border to the next of its 255 levels.
@pytest.mark.parametrize(
    ("form", "tolerance", "of_the_largest"), [("perturbed", 1e-5, 1e-5), ("int8", 0.2, 0.5), ("int8+fp16", 0.2, 0.5)]
)
def test_the_numbers_are_those_of_numpy_on_all_images_at_once(
    form: str, tolerance: float, of_the_largest: float, tmp_path: Path
) -> None:
    case = case_of(deep())
    graph = insert_qdq(case.graph, case.ranges())
    forms: dict[str, onnx.ModelProto | ir.Model] = {"perturbed": perturbed(case.model), "int8": graph}
    other = forms.get(form) or to_fp16(graph)
    a, b = tapped(case.model, case.batch), tapped(other, case.batch)
    nodes = [node for node in case.model.graph.node if node.op_type != "Flatten"]
    for node, row in zip(nodes, case.against(other, tmp_path).layers, strict=True):
        x, y = (tensors[node.output[0]].astype(np.float64) for tensors in (a, b))
        assert (row.layer, row.type) == (node.name, node.op_type)
        assert row.relative_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=tolerance)
        assert row.max_abs == pytest.approx(np.abs(y - x).max(), rel=of_the_largest)
        assert row.sqnr_db == pytest.approx(-20 * np.log10(row.relative_l2))


def test_two_floats_give_the_numbers_exactly_and_a_changed_bias_its_layer(tmp_path: Path) -> None:
    case = case_of(conv_lrn_gemm())
    other = onnx.ModelProto()
    other.CopyFrom(case.model)
    (bias,) = [tensor for tensor in other.graph.initializer if tensor.name == "b2"]
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.5), "b2"))
    result = case.against(other, tmp_path)
    assert [(row.relative_l2, row.max_abs, row.sqnr_db) for row in result.layers[:-1]] == [(0, 0, None)] * 4
    (logits,) = run(case.model, case.batch)
    assert result.first == result.layers[-1].layer == "fc2"
    assert result.layers[-1].relative_l2 == pytest.approx(0.5 * math.sqrt(logits.size) / np.linalg.norm(logits))
    assert result.layers[-1].max_abs == pytest.approx(0.5, rel=1e-5)


def test_equalized_channels_are_compared_at_the_size_they_had(tmp_path: Path) -> None:
    case = case_of(deep())
    values = tapped(case.model, case.batch)
    names = equalizable(case.graph)
    largest = {name: np.abs(values[name]).max(axis=(0, *range(2, values[name].ndim))) for name in names}
    equalized = equalize(case.graph, largest, {name: float(largest[name].max()) for name in names})
    assert any(factors.max() > 1 for factors in scale_factors(equalized).values())
    assert max(row.relative_l2 for row in case.against(equalized, tmp_path).layers) < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_beyond_every_band(value: float, tmp_path: Path) -> None:
    case = case_of(conv_lrn_gemm())
    other = onnx.ModelProto()
    other.CopyFrom(case.model)
    (bias,) = [tensor for tensor in other.graph.initializer if tensor.name == "b2"]
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, value, np.float32), "b2"))
    result = case.against(other, tmp_path)
    assert result.first == "fc2"
    assert (result.layers[-1].relative_l2, result.layers[-1].max_abs) == (math.inf, math.inf)


def test_two_fp16_graphs_show_each_layer_once(tmp_path: Path) -> None:
    case = case_of(conv_lrn_gemm())
    half = dataclasses.replace(case, model=ir.to_proto(to_fp16(case.graph)))
    assert [row.layer for row in half.against(half.model, tmp_path).layers] == [
        "conv1",
        "relu1",
        "lrn1",
        "pool1",
        "fc2",
    ]


def test_the_coarser_precision_gives_the_band_whichever_is_the_reference(tmp_path: Path) -> None:
    case = case_of(conv_lrn_gemm())
    int8 = dataclasses.replace(case, model=ir.to_proto(insert_qdq(case.graph, case.ranges())))
    result = int8.against(case.model, tmp_path)
    assert (result.precision, result.first) == (Precision.INT8, None)


def test_a_checkpoint_agrees_with_its_own_export_before_each_relu_too(mnist: tuple[Path, Path], digits: Case) -> None:
    for paths in (mnist, mnist[::-1]):
        result = compare_layers(*paths, digits.dataset)
        names = [node.name for node in digits.model.graph.node if node.op_type != "Flatten"]
        assert [row.layer for row in result.layers] == names
        assert result.first is None
        assert max(row.relative_l2 for row in result.layers) < 1e-5


def test_batch_normalisation_of_a_checkpoint_is_compared_where_export_folds_it(digits: Case, tmp_path: Path) -> None:
    fresh = untrained("mnist-cnn", 10, seed=0)
    for module in fresh.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.get_buffer("running_mean"), -1, 1)
            torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    save_checkpoint(tmp_path / "cnn.safetensors", fresh)
    images = next(digits.dataset.batches(fresh.contract, 3))[0]
    export_onnx(fresh.model, fresh.contract, tmp_path / "cnn.onnx", real_images=images)
    result = compare_layers(tmp_path / "cnn.safetensors", tmp_path / "cnn.onnx", digits.dataset)
    assert [row.layer for row in result.layers][:5] == ["conv1", "relu1", "conv2", "relu2", "pool2"]
    assert max(row.relative_l2 for row in result.layers) < 1e-5


@pytest.mark.parametrize(("parameter", "layer"), [("features.4.weight", "conv2"), ("classifier.6.weight", "fc8")])
def test_one_changed_weight_of_a_checkpoint_names_its_layer(
    parameter: str, layer: str, mnist: tuple[Path, Path], digits: Case, tmp_path: Path
) -> None:
    checkpoint: Checkpoint = load_checkpoint(mnist[0])
    checkpoint.model.state_dict()[parameter].view(-1)[0] += 1
    changed = tmp_path / "changed.safetensors"
    save_checkpoint(changed, checkpoint)
    assert compare_layers(mnist[1], changed, digits.dataset).first == layer
    assert compare_layers(mnist[0], changed, digits.dataset).first == layer


def test_a_checkpoint_is_compared_with_int8(mnist: tuple[Path, Path], digits: Case, tmp_path: Path) -> None:
    ranges = digits.ranges()
    onnx.save(ir.to_proto(insert_qdq(digits.graph, ranges)), tmp_path / "good.onnx")
    wrong = {**ranges, "relu3": TensorRange(ranges["relu3"].amax / 100)}
    onnx.save(ir.to_proto(insert_qdq(digits.graph, wrong)), tmp_path / "bad.onnx")
    assert compare_layers(mnist[0], tmp_path / "good.onnx", digits.dataset).first is None
    result = compare_layers(mnist[0], tmp_path / "bad.onnx", digits.dataset)
    assert result.first == "conv4"
    assert next(row for row in result.layers if row.layer == "relu3").relative_l2 < 0.05, "seen before its Q"


@pytest.mark.parametrize("reference", ["graph", "checkpoint"])
def test_a_graph_that_takes_pixels_is_compared_layer_by_layer(
    reference: str, mnist: tuple[Path, Path], digits: Case, tmp_path: Path
) -> None:
    """Each side gets the images in its own form; what the graph does to the pixels is no layer of the other."""
    contract = load_checkpoint(mnist[0]).contract
    pixels = of_pixels(digits.model, contract.scale, contract.mean, contract.std)
    taken = msgspec.structs.replace(contract, mean=(), std=(), layout="nhwc", input_type="uint8")
    helper.set_model_props(pixels, {METADATA_KEY: taken.to_json()})
    onnx.save(pixels, tmp_path / "pixels.onnx")
    result = compare_layers(mnist[reference == "graph"], tmp_path / "pixels.onnx", digits.dataset)
    assert [row.layer for row in result.layers] == [n.name for n in digits.model.graph.node if n.op_type != "Flatten"]
    assert result.first is None
    assert 0 < max(row.relative_l2 for row in result.layers) < 1e-5


def test_networks_that_do_not_belong_together_are_refused(mnist: tuple[Path, Path], tmp_path: Path) -> None:
    case = case_of(conv_lrn_gemm())
    renamed = onnx.ModelProto()
    renamed.CopyFrom(deep())
    renamed.graph.node[-1].output[0] = renamed.graph.output[0].name = "scores"
    helper.set_model_props(renamed, {METADATA_KEY: CONTRACT.to_json()})
    with pytest.raises(InputError, match="no layer in common"):
        case.against(renamed, tmp_path)
    with pytest.raises(InputError, match="layer 'fc2' has shape"):
        case.against(case_of(deep()).model, tmp_path)
    with pytest.raises(InputError, match=r"different contracts \(crop\)"):
        case.against(case_of(conv_lrn_gemm(), msgspec.structs.replace(CONTRACT, crop=9)).model, tmp_path)
    with pytest.raises(InputError, match="different contracts"):
        compare_layers(mnist[0], tmp_path / "a.onnx", case.dataset)


def test_a_checkpoint_and_a_graph_of_other_layers_are_refused(
    mnist: tuple[Path, Path], digits: Case, tmp_path: Path
) -> None:
    contract = load_checkpoint(mnist[0]).contract
    other = conv_lrn_gemm()
    helper.set_model_props(other, {METADATA_KEY: contract.to_json()})
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"layer 5 is Conv 'conv2' in .* and Gemm 'fc2'"):
        compare_layers(mnist[0], tmp_path / "other.onnx", digits.dataset)
    shorter = other.graph.node[:-2]
    del other.graph.node[:], other.graph.output[:]
    other.graph.node.extend(shorter)
    other.graph.output.append(helper.make_tensor_value_info("pool1", onnx.TensorProto.FLOAT, [None] * 4))
    onnx.save(other, tmp_path / "shorter.onnx")
    with pytest.raises(InputError, match=r"has 20 layers and .* has 4"):
        compare_layers(mnist[0], tmp_path / "shorter.onnx", digits.dataset)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (48, 48, 480):  # the first warms up
        case = case_of(deep(), count=count)
        tracemalloc.start()
        assert case.against(case.model, tmp_path).images == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1], (
        "how many batches are on their way at once varies; the images are ten times as many"
    )


def test_each_file_is_read_once(mnist: tuple[Path, Path], digits: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(load: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def counted(path: Path) -> Any:
            read.append(path)
            return load(path)

        return counted

    monkeypatch.setattr("alexdeploy.graph.model.load_onnx", counting(load_onnx))
    monkeypatch.setattr("alexdeploy.zoo.checkpoint.load_checkpoint", counting(load_checkpoint))
    compare_layers(*mnist, digits.dataset)
    assert sorted(read) == sorted(mnist)
    for path in mnist:
        read.clear()
        inspect_artifact(path)
        assert read == [path]
