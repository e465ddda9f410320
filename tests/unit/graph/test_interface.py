from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from alexdeploy.errors import InputError, UsageError
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.interface import ends_in_softmax, image_to_logits
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.table import layer_table
from alexdeploy.runners.artifact import load
from alexdeploy.runners.classifier import Classifier
from tests.helpers.foreign_graphs import (
    CONTRACT,
    Foreign,
    Tensor,
    caffe,
    features,
    further_inputs,
    graph,
    half_input,
    head,
    keras,
    node,
    several_outputs,
)

IMAGE = ("image", 1, ["n", 3, 8, 8])


def two_heads(width: int) -> onnx.ModelProto:
    """Scores of four classes, and a row of that width."""
    nodes = [*features("image"), *head(), node("Slice", ["flat", "from", "to", "axis"], ["other"])]
    ends = {"from": np.array([0]), "to": np.array([width]), "axis": np.array([1])}
    model = graph(nodes, [IMAGE], [("other", 1, ["n", width]), ("scores", 1, ["n", 4])])
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in ends.items())
    return model


def interface(model: onnx.ModelProto, **options: Any) -> tuple[ir.Model, Any]:
    return image_to_logits(load_onnx(model.SerializeToString()), "theirs.onnx", **options)


def test_of_two_rows_of_scores_the_labels_or_the_user_choose() -> None:
    for options, logits, dropped in (
        ({"classes": 4}, "scores", ("other",)),
        ({"logits": "other"}, "other", ("scores",)),
    ):
        model, found = interface(two_heads(5), **options)
        assert (found.logits, found.dropped) == (logits, dropped)
        assert [value.name for value in model.graph.outputs] == [logits]
    assert not any(one.op_type == "Slice" for one in interface(two_heads(5), classes=4)[0].graph)
    for model, classes in ((two_heads(5), None), (two_heads(4), 4)):
        with pytest.raises(UsageError, match=r"outputs other \(float32, shape \(n, .\)\), scores .*; name .* `logits`"):
            interface(model, classes=classes)
    with pytest.raises(UsageError, match="unknown output 'score'; did you mean 'scores'"):
        interface(two_heads(5), logits="score")


@pytest.mark.parametrize(
    ("constants", "complaint"),
    [
        ({"temperature": 1}, r"no value for input training \(bool, shape \(\)\); .*`constants`, as training=VALUE"),
        ({"training": False}, r"no value for input temperature \(float32, shape \(1, 4\)\)"),
        ({"trainig": True}, "unknown input 'trainig'; did you mean 'training'"),
        ({"training": 0.5, "temperature": 1}, r"`constants` training=0.5 does not fit input training \(bool"),
        ({"training": False, "temperature": [1, 2]}, r"does not fit input temperature"),
        ({"training": False, "temperature": 1, "image": 0}, "expected one image as input of rank 4, found none"),
    ],
)
def test_a_constant_that_is_missing_or_does_not_fit_is_named(constants: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        interface(further_inputs().model, constants=constants)


def test_an_input_of_a_dropped_output_alone_needs_no_value(tmp_path: Path) -> None:
    nodes = [*features("image"), *head(), node("Add", ["flat", "noise"], ["noisy"])]
    ends: list[Tensor] = [("scores", 1, ["n", 4]), ("noisy", 1, ["n", "k"])]
    onnx.save(graph(nodes, [IMAGE, ("noise", 1, ["n", 16])], ends), tmp_path / "theirs.onnx")
    result = adopt_onnx(tmp_path / "theirs.onnx", CONTRACT, tmp_path / "ours.onnx", logits="scores")
    assert (result.interface.dropped, result.interface.constants, result.parity.worst) == (("noisy",), (), 0.0)
    assert [value.name for value in load_onnx(tmp_path / "ours.onnx").graph.inputs] == ["image"]


@pytest.mark.parametrize(
    ("shape", "axis", "opset", "softmax"),
    [
        (["n", 4], -1, 13, True),
        (["n", 4], 1, 9, True),
        (["n", 4], 0, 13, False),  # over the batch
        (["n", 4, 1, 1], 1, 13, True),
        (["n", 4, 1, 1], None, 9, True),  # 1, and all axes from there on
        (["n", 4, 1, 1], None, 13, False),  # -1, of one value each
        (["n", 4, 2, 2], 1, 13, False),  # a map
    ],
)
def test_a_softmax_is_one_over_the_classes(shape: list[Any], axis: int | None, opset: int, softmax: bool) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [node("Relu", ["image"], ["x"]), node("Softmax", ["x"], ["scores"], **attributes)]
    model = ir.from_proto(graph(nodes, [("image", 1, shape)], [("scores", 1, shape)], opset=opset))
    for value in model.graph.node(0).outputs:
        value.shape = model.graph.inputs[0].shape
    assert ends_in_softmax(model) == softmax


def test_probabilities_are_not_squashed_twice(tmp_path: Path) -> None:
    """A file with a contract from elsewhere that ends in Softmax, beside the one that is adopted."""
    foreign, picture = caffe(), np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    onnx.save(foreign.model, tmp_path / "theirs.onnx")
    adopt_onnx(tmp_path / "theirs.onnx", CONTRACT, tmp_path / "ours.onnx")
    helper.set_model_props(foreign.model, {"alexdeploy.contract": CONTRACT.to_json()})
    onnx.save(foreign.model, tmp_path / "theirs.onnx")
    answers = []
    for name in ("ours.onnx", "theirs.onnx"):
        with Classifier(tmp_path / name) as classifier:
            answers += classifier([picture])
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == pytest.approx(answers[1][1], rel=1e-5)


def test_weights_in_a_file_beside_the_graph_come_along(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    onnx.save(
        several_outputs().model,
        folder / "theirs.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert (folder / "weights.bin").stat().st_size > 10_000
    adopt_onnx(folder / "theirs.onnx", CONTRACT, tmp_path / "ours.onnx")
    (folder / "weights.bin").unlink()
    with load(tmp_path / "ours.onnx") as runner:
        assert runner.infer(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("make", "change", "fix"),
    [
        (keras, {"layout": "nchw"}, r"\(unk__1, 8, 8, 3\); .* \(batch, 3, 8, 8\); put layout = \"nhwc\" into"),
        (keras, {"input_type": "float16"}, r"float32; .* input_type is float16; put input_type = \"float32\" into"),
        (half_input, {"input_type": "float32"}, r"float16; .* input_type is float32; put input_type = \"float16\""),
    ],
)
def test_a_contract_of_another_layout_or_type_is_told_the_right_one(
    make: Any, change: dict[str, Any], fix: str, tmp_path: Path
) -> None:
    foreign: Foreign = make()
    onnx.save(foreign.model, tmp_path / "theirs.onnx")
    with pytest.raises(InputError, match=fix):
        adopt_onnx(
            tmp_path / "theirs.onnx", msgspec.structs.replace(foreign.contract, **change), tmp_path / "ours.onnx"
        )
    assert not (tmp_path / "ours.onnx").exists()


def test_the_layer_table_knows_automatic_padding() -> None:
    """8 → 4 pixels need one more at the end, 2 → 1 one more; SAME_LOWER puts it in front (ONNX operator Conv)."""
    layers = layer_table(load_onnx(keras().model.SerializeToString()))
    assert [layer.window.padding for layer in layers if layer.window] == [(0, 0, 1, 1), (0, 0, 0, 0), (1, 1, 0, 0)]
