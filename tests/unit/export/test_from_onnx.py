from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import GateError, InputError, InputWarning, UsageError
from alexdeploy.export import from_onnx
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.fold_constants import fold_constants
from alexdeploy.graph.lrn.fuse import fuse_lrn
from alexdeploy.graph.model import contract_of, load_onnx, op_counts
from alexdeploy.graph.opset import written_out
from alexdeploy.recipe import load_contract, load_recipe
from tests.field.zoo.told import local_function
from tests.helpers.graphs import conv_lrn_gemm, images, make_model, run

CONTRACT = Contract(color="rgb", resize=8, crop=8, mean=(0.5,) * 3, std=(0.5,) * 3)
NETWORK = nn.Sequential(
    *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5, 0.5, 0.75, 2.0)),
    *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.LocalResponseNorm(3, 0.1), nn.Flatten(), nn.Linear(128, 4)),
)


def exported(path: Path, *, dynamo: bool, dynamic: bool = True, **options: Any) -> Path:
    batch = (torch.zeros(3, 3, 8, 8),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
            torch.onnx.export(NETWORK, batch, path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options)
        else:
            axes = {"image": {0: "batch"}} if dynamic else None
            names: dict[str, Any] = {"input_names": ["image"], "dynamic_axes": axes}
            torch.onnx.export(NETWORK, batch, str(path), dynamo=False, **names, **options)
    return path


def written(folder: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / "theirs.onnx")
    return folder / "theirs.onnx"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return exported(tmp_path / "theirs.onnx", dynamo=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("dynamo", [True, False])
def test_lrn_that_either_exporter_took_apart_is_put_back_and_proven(
    dynamo: bool, dynamic: bool, tmp_path: Path
) -> None:
    theirs, ours = exported(tmp_path / "theirs.onnx", dynamo=dynamo, dynamic=dynamic), tmp_path / "ours.onnx"
    result = adopt_onnx(theirs, CONTRACT, ours)
    model = load_onnx(ours)
    flatten = "Reshape" if dynamo and not dynamic else "Flatten"  # to [3, 128]
    assert result.ops == op_counts(model) == {"Conv": 2, flatten: 1, "Gemm": 1, "LRN": 2, "Relu": 2}
    assert result.fused == [node.name for node in model.graph if node.op_type == "LRN"]
    assert result.parity.batches == ((1, 2, 5) if dynamic else (3,))
    assert 0 < result.parity.random_inputs <= 1e-5
    assert contract_of(model, "ours") == CONTRACT
    sidecar = files.read_sidecar(ours, "onnx")
    assert sidecar.parents == (files.parent(theirs),)
    assert sidecar.details["fused_lrn"] == result.fused


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("wrong", "kept"),
    [(["/2/Div"], ["/5/Div"]), (["/5/Div"], ["/2/Div"]), (["/2/Div", "/5/Div"], [])],
    ids=["first", "second", "both"],
)
def test_what_the_parity_gate_finds_to_be_no_lrn_is_left_as_it_is_and_only_that(
    wrong: list[str], kept: list[str], theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(model: ir.Model, leave: Collection[str] = ()) -> tuple[ir.Model, list[str]]:
        model, names = fuse_lrn(model, leave)
        for node in model.graph:
            if node.name in wrong and node.op_type == "LRN":
                node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.6)
        return model, names

    monkeypatch.setattr(from_onnx, "fuse_lrn", sabotaged)
    with pytest.warns(InputWarning, match=f"theirs.onnx: {', '.join(wrong)}: like an LRN, but none; left as it is"):
        result = adopt_onnx(theirs, CONTRACT, tmp_path / "ours.onnx")
    assert (result.fused, result.ops.get("LRN", 0)) == (kept, len(kept))
    assert result.parity.worst <= 1e-5
    expected, found = (
        ort.InferenceSession(str(path)).run(None, {"image": images(2)})[0] for path in (theirs, tmp_path / "ours.onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_lrn_is_not_blamed_for_what_another_pass_broke(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(model: ir.Model) -> ir.Model:
        model = model.clone()
        conv = next(node for node in model.graph if node.op_type == "Conv")
        weight = conv.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)
        return model

    monkeypatch.setattr(from_onnx, "restore_flatten", sabotaged)
    with pytest.raises(GateError, match=r"so nothing was written$"):
        adopt_onnx(theirs, CONTRACT, tmp_path / "ours.onnx")


def test_only_nodes_without_a_name_or_with_one_taken_get_a_new_one(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    for node, name in zip(proto.graph.node, ("", "mine", "", "mine", "fc2", ""), strict=True):
        node.name = name
    adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")
    names = [node.name for node in load_onnx(tmp_path / "ours.onnx").graph]
    assert names == ["conv1", "mine", "lrn1", "mine_2", "fc2", "fc2_2"]


def test_native_lrn_stays_and_is_not_counted_as_put_back(tmp_path: Path) -> None:
    result = adopt_onnx(written(tmp_path, conv_lrn_gemm()), CONTRACT, tmp_path / "ours.onnx")
    assert (result.ops["LRN"], result.fused, result.parity.random_inputs) == (1, [], 0.0)


@pytest.mark.parametrize(
    ("contract", "complaint"),
    [
        (load_recipe("alexnet-mnist").preprocess, r"shape \(batch, 3, 8, 8\); the contract expects \(batch, 1, 28, "),
        (msgspec.structs.replace(CONTRACT, crop=9), r"expects \(batch, 3, 9, 9\); name the contract it was trained"),
        (msgspec.structs.replace(CONTRACT, labels=("a", "b")), "has 4 outputs but 2 labels were given; name the data"),
    ],
)
def test_a_contract_of_another_network_is_refused(contract: Contract, complaint: str, tmp_path: Path) -> None:
    theirs = written(tmp_path, conv_lrn_gemm())
    with pytest.raises(InputError, match=complaint):
        adopt_onnx(theirs, contract, tmp_path / "ours.onnx")
    assert sorted(tmp_path.iterdir()) == [theirs]


def test_a_file_is_not_overwritten_by_what_it_becomes(tmp_path: Path) -> None:
    theirs = written(tmp_path, conv_lrn_gemm())
    content = theirs.read_bytes()
    with pytest.raises(UsageError, match="it is what this reads"):
        adopt_onnx(theirs, CONTRACT, theirs)
    assert theirs.read_bytes() == content


def test_feature_maps_are_not_classes(tmp_path: Path) -> None:
    relu = make_model([helper.make_node("Relu", ["input"], ["logits"])], {})
    with pytest.raises(InputError, match=r"output 'logits' has shape .*; expected \(batch, classes\)"):
        adopt_onnx(written(tmp_path, relu), CONTRACT, tmp_path / "ours.onnx")


def test_integer_images_are_refused(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    proto.graph.node[0].input[0] = "x"
    proto.graph.node.insert(0, helper.make_node("Cast", ["input"], ["x"], to=TensorProto.FLOAT))
    with pytest.raises(InputError, match=r'is uint8; .* float32; put input_type = "uint8" into the contract'):
        adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")


def test_a_batch_that_was_burnt_in_is_said_to_be(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    proto.graph.node[4].CopyFrom(helper.make_node("Reshape", ["pool1", "s"], ["flatten1"], "flatten1"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, 128]), "s"))
    with pytest.raises(InputError, match=r"at batch 2: node 'flatten1' \(Reshape\) has the batch fixed"):
        adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")


def test_a_batch_that_becomes_one_row_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime runs it, and gives the scores of all images in one row."""
    proto = conv_lrn_gemm()
    proto.graph.node[5].output[0] = "scores"
    proto.graph.node.append(helper.make_node("Reshape", ["scores", "s"], ["logits"], "row"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "s"))
    with pytest.raises(InputError, match=r"node 'row' \(Reshape\) has the batch fixed.*expected a row for each"):
        adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")


@pytest.mark.filterwarnings("ignore")
def test_an_old_opset_is_raised_to_the_first_with_per_channel_scales(tmp_path: Path) -> None:
    theirs = exported(tmp_path / "theirs.onnx", dynamo=False, opset_version=9)
    result = adopt_onnx(theirs, CONTRACT, tmp_path / "ours.onnx")
    assert len(result.fused) == 2
    assert load_onnx(tmp_path / "ours.onnx").opset_imports[""] == 13


@pytest.mark.parametrize(("graph", "function"), [(17, 18), (18, 17), (12, 11)])
def test_a_function_of_another_opset_is_written_out(graph: int, function: int, tmp_path: Path) -> None:
    """ONNX Runtime runs such files; where an operator differs, ONNX's checker refuses them."""
    foreign = local_function()
    foreign.model.opset_import[0].version = graph
    foreign.model.functions[0].opset_import[0].version = function
    onnx.save(foreign.model, tmp_path / "theirs.onnx")
    before = load_onnx(tmp_path / "theirs.onnx")
    written_out(before)
    assert [one.opset_imports[""] for one in before.functions.values()] == [function], "the model is not changed"
    adopted = adopt_onnx(tmp_path / "theirs.onnx", foreign.contract, tmp_path / "ours.onnx")
    assert adopted.parity.worst < 1e-6
    ours = onnx.load(tmp_path / "ours.onnx")
    assert not ours.functions
    assert adopted.ops["Conv"] == 2


def test_weights_that_an_old_file_lists_as_inputs_are_inputs_no_more(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    proto.ir_version = 3
    adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")
    assert [value.name for value in load_onnx(tmp_path / "ours.onnx").graph.inputs] == ["input"]


AT_FAULT: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "noise": (
        [helper.make_node("RandomNormalLike", ["m"], ["r"], "noisy"), helper.make_node("Add", ["m", "r"], ["y"])],
        r"node 'noisy' \(RandomNormalLike\) gives random numbers",
    ),
    "dropout": (
        [helper.make_node("Dropout", ["m", "half", "yes"], ["y"], "drop")],
        r"node 'drop' \(Dropout\) is in training mode",
    ),
    "batch": (
        [helper.make_node("ReduceMean", ["m"], ["r"], axes=[0]), helper.make_node("Sub", ["m", "r"], ["y"])],
        "depends on the other images of its batch",
    ),
    "logarithm": ([helper.make_node("Log", ["m"], ["y"])], "gives NaN or infinite scores for random images"),
    "constant": (
        [helper.make_node("Mul", ["m", "spoilt"], ["y"], "scaled")],
        r"'spoilt', a constant of node 'scaled', holds 1 values that are NaN or infinite \(of 4\)",
    ),
}


def at_fault(nodes: Sequence[onnx.NodeProto], batch: str | int) -> onnx.ModelProto:
    """Images times weights is ``m``; from there the nodes lead to ``y``, and may use some constants."""
    weights = np.random.default_rng(0).standard_normal((192, 4)).astype(np.float32)
    constants: dict[str, Any] = {"w": weights, "half": np.float32(0.5), "yes": np.array(True)}
    constants["spoilt"] = np.array([1, np.inf, 1, 1], np.float32)
    used = {name for node in nodes for name in node.input} | {"w"}
    begin = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["m"])]
    graph = helper.make_graph(
        [*begin, *nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", ["batch", 2])
@pytest.mark.parametrize("case", AT_FAULT)
def test_a_file_is_said_to_be_at_fault_itself(case: str, batch: str | int, tmp_path: Path) -> None:
    nodes, complaint = AT_FAULT[case]
    with pytest.raises(InputError, match=complaint):
        adopt_onnx(written(tmp_path, at_fault(nodes, batch)), CONTRACT, tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize("case", ["noise", "dropout"])
def test_what_is_random_in_a_function_is_found_too(case: str, tmp_path: Path) -> None:
    """In one that another one calls; as the graph has it that reads the function's result."""
    nodes, complaint = AT_FAULT[case]
    proto = at_fault(nodes, "batch")
    constants = sorted({name for node in nodes for name in node.input} - {"m", "r"})
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("theirs", 1)]
    call = helper.make_node("inner", ["m", *constants], ["y"], "call", domain="theirs")
    proto.functions.append(helper.make_function("theirs", "inner", ["m", *constants], ["y"], nodes, imports))
    proto.functions.append(helper.make_function("theirs", "outer", ["m", *constants], ["y"], [call], imports))
    del proto.graph.node[2:]
    proto.graph.node.append(helper.make_node("outer", ["m", *constants], ["y"], "call", domain="theirs"))
    proto.opset_import.append(imports[1])
    with pytest.raises(InputError, match=complaint):
        adopt_onnx(written(tmp_path, proto), CONTRACT, tmp_path / "ours.onnx")


def _folding(nodes: Sequence[onnx.NodeProto]) -> tuple[ir.Model, dict[str, int]]:
    proto = make_model([*nodes, helper.make_node("Conv", ["input", "w"], ["logits"])], {"stored": images(4, (3, 1, 1))})
    folded = fold_constants(ir.from_proto(proto))
    np.testing.assert_array_equal(run(folded, images())[0], run(proto, images())[0])
    return folded, op_counts(folded)


def test_weights_behind_constant_arithmetic_are_computed() -> None:
    nodes = [
        helper.make_node("Identity", ["stored"], ["copied"]),
        helper.make_node("Transpose", ["copied"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("Transpose", ["turned"], ["w"], perm=[1, 0, 2, 3]),
    ]
    folded, ops = _folding(nodes)
    assert ops == {"Conv": 1}
    assert len(folded.graph.initializers) == 1


def test_nodes_that_cannot_be_folded_stay_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    big = [
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([40_000, 4, 3, 1, 1]))),
        helper.make_node("Expand", ["stored", "shape"], ["many"]),
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("ReduceMax", ["many", "axes"], ["w"], keepdims=0),
    ]
    several = [
        helper.make_node("Split", ["stored"], ["a", "b"], num_outputs=2),
        helper.make_node("Concat", ["b", "a"], ["w"], axis=0),
    ]
    assert _folding(big)[1].keys() >= {"Expand", "ReduceMax"}  # 1.9 MB where there were 48 bytes
    assert _folding(several)[1] == {"Split": 1, "Concat": 1, "Conv": 1}
    assert capfd.readouterr() == ("", "")


def test_quantizers_of_weights_are_left_alone() -> None:
    proto = make_model(
        [
            helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"]),
            helper.make_node("Conv", ["input", "w"], ["logits"]),
        ],
        {"stored": np.ones((4, 3, 1, 1), np.int8), "scale": np.array(0.5, np.float32)},
    )
    assert op_counts(fold_constants(ir.from_proto(proto))) == {"Conv": 1, "DequantizeLinear": 1}


def contract_file(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


PREPROCESS = '[preprocess]\ncolor = "rgb"\ncrop = 8\nresize = 8\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n'
WHOLE = PREPROCESS + '[network]\nname = "alexnet"\n[train]\nepochs = 1\nbatch_size = 1\nlearning_rate = 1\n'


@pytest.mark.parametrize("text", [PREPROCESS, WHOLE], ids=["[preprocess] alone", "whole recipe"])
def test_a_contract_is_read_from_a_file(text: str, tmp_path: Path) -> None:
    assert load_contract(contract_file(tmp_path, text)) == CONTRACT


def test_a_contract_is_found_by_the_name_of_a_network() -> None:
    assert load_contract("alexnet") == load_recipe("alexnet").preprocess


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (PREPROCESS.replace("crop", "corp"), r"unknown key 'corp' in section \[preprocess\]; did you mean 'crop'\?"),
        (PREPROCESS.replace("preprocess", "preproces"), r"unknown key 'preproces' .*; did you mean 'preprocess'\?"),
        (WHOLE.replace("epochs", "epocs"), r"unknown key 'epocs' in section \[train\]; did you mean 'epochs'\?"),
        ("", "preprocess"),
        ("[preprocess", "not a TOML file"),
    ],
)
def test_a_faulty_contract_is_refused_with_the_nearest_name(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"mine\.toml: .*{complaint}"):
        load_contract(contract_file(tmp_path, text))


def test_a_misspelt_network_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'alexnet-half'"):
        load_contract("alexnet-haf")


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_adopted_with_preprocessing_inside_it_computes_the_same_of_pixels(color: Any, tmp_path: Path) -> None:
    contract = Contract(color=color, crop=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    path = tmp_path / "ours.onnx"
    adopt_onnx(written(tmp_path, conv_lrn_gemm()), contract, path, uint8_input=True)
    assert contract_of(load_onnx(path), "x") == contract.of_pixels
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    shares = (pixels[..., ::-1] if color == "bgr" else pixels) / 255
    values = ((shares - contract.mean) / contract.std).astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(onnx.load(path), pixels)[0], run(conv_lrn_gemm(), values)[0], rtol=1e-4, atol=1e-5)
    half = msgspec.structs.replace(contract, input_type="float16")
    with pytest.raises(InputError, match="input_type is float16"):
        adopt_onnx(tmp_path / "theirs.onnx", half, tmp_path / "no.onnx", uint8_input=True)
