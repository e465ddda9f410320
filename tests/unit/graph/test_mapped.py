"""Files read without their weights, against what onnx reads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from alexdeploy.errors import InputError
from alexdeploy.graph.mapped import LARGE, MappedModel
from alexdeploy.graph.model import load_onnx, model_bytes

TYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64]


def model_of(*weights: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [weight.name], [f"{weight.name}.out"]) for weight in weights]
    nodes.append(helper.make_node("Relu", ["x"], ["y"], name="relu1"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], list(weights)))


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_are_those_that_onnx_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = [rng.integers(0, 100, (3, LARGE + 1)).astype(dtype) for dtype in TYPES]
    weights = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(large)]
    small = numpy_helper.from_array(np.arange(3, dtype=np.float32), "small")
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [LARGE], np.ones(LARGE, np.float32))  # float_data
    half = helper.make_tensor("half", TensorProto.BFLOAT16, [LARGE], bytes(2 * LARGE), raw=True)  # NumPy lacks it
    model = model_of(*weights, small, typed, half)
    path = written(tmp_path / "m.onnx", model)
    found = MappedModel(path).weights()
    assert sorted(found) == sorted(weight.name for weight in weights)
    for weight in weights:
        expected = numpy_helper.to_array(weight)
        assert (found[weight.name].dtype, found[weight.name].flags.writeable) == (expected.dtype, False)
        np.testing.assert_array_equal(found[weight.name], expected)
    again = onnx.load_model_from_string(model_bytes(load_onnx(path)))
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in again.graph.initializer}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(kept[tensor.name], numpy_helper.to_array(tensor))


def test_reading_takes_no_memory_for_the_weights(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((4096, 4096), np.float32), "w")
    path = written(tmp_path / "m.onnx", model_of(weight))
    load_onnx(path)  # imports
    tracemalloc.start()
    try:
        model = load_onnx(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert model.graph.initializers["w"].const_value is not None


@pytest.mark.parametrize("length", [0, 1, 4 * LARGE - 1, 4 * LARGE + 1])
def test_a_weight_of_the_wrong_size_is_refused(length: int, tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[LARGE], raw_data=bytes(length))
    with pytest.raises(InputError, match=r"not a valid ONNX model.*'?w\b"):
        load_onnx(written(tmp_path / "m.onnx", model_of(weight)))


@pytest.mark.parametrize("seed", range(200))
def test_damaged_files_are_refused_or_read_as_onnx_reads_them(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(model_of(numpy_helper.from_array(np.ones(LARGE, np.float32), "w")).SerializeToString())
    tail = len(data) - 300  # names, types and lengths; the front is the weight's node
    for position in rng.integers(0, 600, 3):
        data[position if position < 300 else tail + position - 300] = rng.integers(256)
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: len(data) - rng.integers(0, 2) * rng.integers(1, len(data))])
    try:
        model = load_onnx(path)
    except InputError:
        return
    same = onnx.load_model_from_string(path.read_bytes())
    assert [node.op_type for node in model.graph] == [node.op_type for node in same.graph.node]
    for tensor in same.graph.initializer:
        value = model.graph.initializers[tensor.name].const_value
        assert value is not None
        np.testing.assert_array_equal(value.numpy(), numpy_helper.to_array(tensor))


def test_the_external_file_wins_over_bytes_left_inside(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(LARGE, np.float32), "w")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in {"location": "w.bin", "length": str(4 * LARGE)}.items():
        weight.external_data.add(key=key, value=text)
    path = written(tmp_path / "m.onnx", model_of(weight))
    with pytest.raises(InputError, match=r"its external weights cannot be read.*w\.bin"):
        load_onnx(path)
    (tmp_path / "w.bin").write_bytes(np.full(LARGE, 7, np.float32).tobytes())
    value = load_onnx(path).graph.initializers["w"].const_value
    assert value is not None
    assert value.numpy().tolist() == [7.0] * LARGE


def test_text_that_is_not_utf8_is_told_wherever_it_is(tmp_path: Path) -> None:
    model = model_of(numpy_helper.from_array(np.ones(LARGE, np.float32), "w"))
    model.producer_name, model.graph.doc_string, model.graph.node[0].doc_string = ("caf1", "caf2", "caf3")
    helper.set_model_props(model, {"caf4": "caf5"})
    model.graph.initializer[0].doc_string = "caf6"
    data = model.SerializeToString()
    load_onnx(written(tmp_path / "m.onnx", model))
    for number in range(1, 7):
        (tmp_path / "bad.onnx").write_bytes(data.replace(f"caf{number}".encode(), b"caf\xe9"))
        with pytest.raises(InputError, match=r"caf\\xe9' is not UTF-8"):
            load_onnx(tmp_path / "bad.onnx")


def test_a_weight_keeps_its_description(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(LARGE, np.float32), "w")
    weight.doc_string = "hello"
    again = onnx.load_model_from_string(model_bytes(load_onnx(written(tmp_path / "m.onnx", model_of(weight)))))
    assert [tensor.doc_string for tensor in again.graph.initializer] == ["hello"]


def test_more_than_protobuf_holds_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TooLarge:
        def SerializeToString(self) -> bytes:  # noqa: N802 (protobuf's name)
            raise EncodeError("Failed to serialize proto")

    model = load_onnx(written(tmp_path / "m.onnx", model_of(numpy_helper.from_array(np.ones(3, np.int8), "w"))))
    monkeypatch.setattr(ir, "to_proto", lambda _: TooLarge())
    with pytest.raises(InputError, match="2 GiB"):
        model_bytes(model)
