"""What a file declares of its tensors may be wrong: the computation counts, and no library prints a traceback."""

from __future__ import annotations

import io
import logging
import threading
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from alexdeploy.errors import InputWarning
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.infer import contained_logs, infer_shapes
from alexdeploy.graph.lint import lint
from alexdeploy.graph.lrn.lower import lower_lrn
from alexdeploy.graph.model import load_onnx
from alexdeploy.graph.table import layer_table
from tests.helpers.graphs import conv_lrn_gemm

TRUE = {"conv1": (8, 8, 8), "relu1": (8, 8, 8), "lrn1": (8, 8, 8), "pool1": (8, 4, 4), "flatten1": (128,)}


def declaring(*declared: tuple[str, int, list[int | str]]) -> onnx.ModelProto:
    model = conv_lrn_gemm()
    model.graph.value_info.extend(helper.make_tensor_value_info(*value) for value in declared)
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (
            ("relu1", TensorProto.FLOAT, ["N", 5, 3, 3]),
            r"'relu1' is declared with shape \[N,5,3,3\], inferred is .*8,8,8",
        ),
        (("pool1", TensorProto.FLOAT, ["N", 5]), r"'pool1' is declared with shape \[N,5\], inferred is .*8,4,4"),
        (("lrn1", TensorProto.INT64, ["N", 8, 8, 8]), "'lrn1' is declared as INT64, inferred is FLOAT"),
    ],
)
def test_a_wrong_declaration_is_one_warning_and_the_shapes_are_right(
    declared: tuple[str, int, list[int | str]], found: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(declaring(declared), tmp_path)
    with pytest.warns(InputWarning, match=rf"^{path}: {found}") as seen:
        model = load_onnx(path)
    assert len(seen) == 1
    shapes = {str(node.outputs[0].name): node.outputs[0].shape for node in model.graph}
    assert {name: tuple(shapes[name] or ())[1:] for name in TRUE} == TRUE
    assert {node.outputs[0].dtype for node in model.graph} == {ir.DataType.FLOAT}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for use in (lint, layer_table, to_fp16, lower_lrn):
            use(model)
    assert caplog.records == []


def test_several_are_counted_and_a_wrong_output_is_one_of_them(tmp_path: Path) -> None:
    model = declaring(("relu1", TensorProto.FLOAT, ["N", 5, 3, 3]), ("lrn1", TensorProto.FLOAT, ["N", 5, 3, 3]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    with pytest.warns(InputWarning, match=r"'relu1' .*; the inferred one is used; 2 more like it$"):
        loaded = load_onnx(saved(model, tmp_path))
    assert loaded.graph.outputs[0].shape == ["batch", 4]


def test_what_fits_is_kept_and_needs_no_warning() -> None:
    model = ir.from_proto(declaring(("relu1", TensorProto.FLOAT, ["images", 8, 8, 8])))
    assert infer_shapes(model) is None


def test_a_graph_that_cannot_be_inferred_keeps_what_can_and_says_why() -> None:
    proto = conv_lrn_gemm()
    del proto.graph.initializer[2:]
    proto.graph.initializer.extend(
        [
            onnx.helper.make_tensor("w2", TensorProto.FLOAT, [4, 7], [0.0] * 28),
            onnx.helper.make_tensor("b2", TensorProto.FLOAT, [4], [0.0] * 4),
        ]
    )
    model = ir.from_proto(proto)
    problem = infer_shapes(model)
    assert problem is not None
    assert problem.startswith("shapes cannot be inferred: ")
    assert "fc2" in problem
    assert "\n" not in problem
    assert tuple(model.graph.node("pool1").outputs[0].shape or ())[1:] == TRUE["pool1"]


def test_only_this_thread_is_quiet_and_the_applications_logging_is_left_alone() -> None:
    logger = logging.getLogger("onnx_ir.passes.common.shape_inference")
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    before = (logger.level, list(logger.filters), logger.propagate, logger.disabled)
    try:
        with contained_logs() as records:
            logger.warning("of this thread")
            other = threading.Thread(target=logger.warning, args=("of another thread",))
            other.start()
            other.join()
        logger.warning("afterwards")
    finally:
        logging.getLogger().removeHandler(handler)
    assert [record.getMessage() for record in records] == ["of this thread"]
    assert text.getvalue().splitlines() == ["of another thread", "afterwards"]
    assert (logger.level, list(logger.filters), logger.propagate, logger.disabled) == before
