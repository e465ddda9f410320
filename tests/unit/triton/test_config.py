"""Configurations against hand-written ones, and what no server could run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
from onnx import helper

from alexdeploy.errors import AlexdeployError, InputError, UsageError
from alexdeploy.runners.artifact import artifact_of
from alexdeploy.specs import Profile, TensorSpec
from alexdeploy.triton.config import (
    ModelConfig,
    Settings,
    config_text,
    image_configs,
    network_config,
    read_config,
    served,
    settings_of,
)
from alexdeploy.triton.differences import difference
from tests.helpers.graphs import conv_lrn_gemm, of_pixels
from tests.unit.triton.conftest import CONTRACT, save

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
text_format = pytest.importorskip("google.protobuf.text_format")

OF_A_GRAPH = f"""
name: "ants" backend: "python" max_batch_size: 16 version_policy {{ all {{}} }}
input {{ name: "input" data_type: TYPE_FP32 dims: [3, 8, 8] }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }}
instance_group {{ count: 2 kind: KIND_CPU }}
dynamic_batching {{ max_queue_delay_microseconds: 500 }}
metric_tags {{ key: "contract" value: "{CONTRACT.fingerprint[:12]}" }}
parameters {{ key: "file" value {{ string_value: "model.onnx" }} }}
parameters {{ key: "runtime" value {{ string_value: "onnxruntime-cpu" }} }}
model_warmup {{ name: "batch 1" batch_size: 1 inputs {{ key: "input" value {{ data_type: TYPE_FP32 dims: [3, 8, 8]
  input_data_file: "image" }} }} }}
model_warmup {{ name: "batch 16" batch_size: 16 inputs {{ key: "input" value {{ data_type: TYPE_FP32 dims: [3, 8, 8]
  input_data_file: "image" }} }} }}
"""
OF_AN_ENGINE = """
name: "ants" platform: "tensorrt_plan" backend: "tensorrt" default_model_filename: "model.plan" max_batch_size: 32
version_policy { all {} }
input { name: "pixels" data_type: TYPE_FP16 dims: [3, 8, 8] }
output { name: "scores" data_type: TYPE_FP16 dims: [4] label_filename: "labels.txt" }
instance_group { count: 1 kind: KIND_GPU profile: "0" }
optimization { cuda { graphs: true } }
dynamic_batching {}
model_warmup { name: "batch 1" batch_size: 1 inputs { key: "pixels" value { data_type: TYPE_FP16 dims: [3, 8, 8]
  input_data_file: "image" } } }
model_warmup { name: "batch 32" batch_size: 32 inputs { key: "pixels" value { data_type: TYPE_FP16 dims: [3, 8, 8]
  input_data_file: "image" } } }
"""


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_graph_is_served_by_our_runner(model: Path) -> None:
    chosen = Settings(max_batch=16, instances=2, max_delay_us=500)
    config = network_config(served(artifact_of(model)), "ants", chosen)
    assert config == parsed(OF_A_GRAPH)
    assert parsed(config_text(config)) == config
    assert settings_of(config) == chosen


def test_a_tensorrt_engine_is_told_of_as_its_sidecar_says(engine: Callable[..., Path]) -> None:
    found = served(artifact_of(engine()))
    assert (found.max_batch, found.builder) == (32, "tensorrt 10.16.1.11")
    config = network_config(found, "ants", Settings())
    expected = parsed(OF_AN_ENGINE)
    expected.metric_tags["contract"] = found.contract.fingerprint[:12]
    assert config == expected


def test_a_tensorrt_rtx_engine_is_served_by_our_runner_on_a_gpu(engine: Callable[..., Path]) -> None:
    shapes = {"pixels": Profile.parse("1:4:16").with_sizes((3, 8, 8))}
    found = served(artifact_of(engine(builder="tensorrt-rtx", shapes=shapes)))
    config = network_config(found, "ants", Settings(max_batch=found.max_batch))
    assert (config.backend, config.platform, config.max_batch_size) == ("python", "", 16)
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "file": "model.engine",
        "runtime": "tensorrt-rtx",
    }
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.output[0].data_type == model_config_pb2.TYPE_FP32  # the runner's, whatever the engine's is


def test_triton_s_own_backend_gets_the_graph_s_types(tmp_path: Path) -> None:
    proto = conv_lrn_gemm()
    proto.graph.node.append(helper.make_node("Cast", ["logits"], ["halves"], "halves", to=onnx.TensorProto.FLOAT16))
    proto.graph.output[0].name, proto.graph.output[0].type.tensor_type.elem_type = "halves", onnx.TensorProto.FLOAT16
    found = served(artifact_of(save(tmp_path / "net.onnx", proto)), "onnxruntime")
    config = network_config(found, "ants", Settings())
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert (config.output[0].name, config.output[0].data_type) == ("halves", model_config_pb2.TYPE_FP16)
    label = [*image_configs(found, "ants", Settings())][1]
    assert label.input[0].data_type == model_config_pb2.TYPE_FP16


def test_the_ensemble_takes_encoded_images_through_a_graph_of_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", of_pixels(conv_lrn_gemm(), 255, [0.5] * 3, [0.25] * 3), CONTRACT.of_pixels)
    decode, label, ensemble = image_configs(served(artifact_of(path)), "ants", Settings(instances=3))
    assert [decode.name, label.name, ensemble.name] == ["ants-decode", "ants-label", "ants-image"]
    image = 'name: "image" data_type: TYPE_STRING dims: 1'
    assert decode.input[0] == ensemble.input[0] == parsed(f"input {{ {image} }}").input[0]
    assert decode.output[0] == parsed('output { name: "pixels" data_type: TYPE_UINT8 dims: [8, 8, 3] }').output[0]
    assert decode.instance_group[0].count == 3
    for config in (label, ensemble):
        assert [(one.name, one.data_type, [*one.dims]) for one in config.output] == [
            ("label", model_config_pb2.TYPE_STRING, [1]),
            ("probability", model_config_pb2.TYPE_FP32, [1]),
        ]
    assert label.parameters["ends_in_softmax"].string_value == "false"
    assert decode.parameters["contract"].string_value == CONTRACT.of_pixels.to_json()
    made: set[str] = {one.name for one in ensemble.input}
    for step, model in zip(ensemble.ensemble_scheduling.step, ("ants-decode", "ants", "ants-label"), strict=True):
        assert step.model_name == model
        assert {*step.input_map.values()} <= made  # what no step before it makes would leave the server waiting
        made |= {*step.output_map.values()}
    assert {one.name for one in ensemble.output} <= made


def frozen(path: Path) -> Path:
    proto = conv_lrn_gemm()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    return save(path, proto)


def test_a_frozen_batch_is_cut_by_our_runner_and_by_no_other(tmp_path: Path) -> None:
    path = frozen(tmp_path / "net.onnx")
    assert served(artifact_of(path)).backend == "python"
    with pytest.raises(UsageError, match=r"its batch is frozen at 4, .* leave `backend` out"):
        served(artifact_of(path), "onnxruntime")


@pytest.mark.parametrize(
    ("changed", "backend", "kind", "text"),
    [
        ({"input": TensorSpec("pixels", (1, 3, 8, 8), "float16")}, None, UsageError, "a graph of open batch"),
        ({"shapes": {"pixels": Profile.parse("2:4:8")}}, None, UsageError, "takes batches of 2:4:8; .* such as 1:8:32"),
        (
            {"shapes": {name: Profile.parse("1:4:8") for name in "ab"}},
            None,
            UsageError,
            "takes a, b; only an engine of",
        ),
        (
            {"input": TensorSpec("pixels", (-1, 3, 9, 9), "float16")},
            None,
            InputError,
            r"its contract makes .*\(3, 8, 8\)",
        ),
        ({"output": None}, None, InputError, "build it again"),
        ({"output": TensorSpec("scores", (-1, 5), "float16")}, None, InputError, "has 5 outputs, and its contract 4"),
        ({}, "onnxruntime", UsageError, "leave it out for tensorrt_plan"),
        ({"builder": "tensorrt-rtx"}, "onnxruntime", UsageError, "leave it out for python"),
    ],
)
def test_an_engine_that_no_server_can_be_told_of_is_refused(
    engine: Callable[..., Path], changed: dict[str, Any], backend: str | None, kind: type[AlexdeployError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        served(artifact_of(engine(**changed)), backend)


def test_a_map_of_scores_has_no_label(engine: Callable[..., Path]) -> None:
    found = served(artifact_of(engine(output=TensorSpec("map", (-1, 4, 2, 2), "float32"))))
    assert [*network_config(found, "ants", Settings()).output[0].dims] == [4, 2, 2]
    with pytest.raises(UsageError, match="only a row of scores"):
        list(image_configs(found, "ants", Settings()))


def test_a_contract_of_another_type_is_refused(tmp_path: Path) -> None:
    halves = msgspec.structs.replace(CONTRACT, input_type="float16")
    with pytest.raises(InputError, match="its contract makes float16 images"):
        served(artifact_of(save(tmp_path / "net.onnx", contract=halves)))


def test_a_misspelt_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('name: "ants"\nmax_batchsize: 3\n')
    with pytest.raises(InputError, match=r"config\.pbtxt: not a configuration of Triton: .*max_batchsize"):
        read_config(tmp_path / "config.pbtxt")


@pytest.mark.parametrize(
    ("change", "field", "found", "expected"),
    [
        ("input { dims: 7 }", "input", None, None),
        ('platform: "tensorrt_plan"', "platform", "tensorrt_plan", "missing"),
        ("max_batch_size: 4", "max_batch_size", "4", "16"),
        ('metric_tags { key: "contract" value: "0" }', "metric_tags.contract", "0", CONTRACT.fingerprint[:12]),
        ('parameters { key: "file" value { string_value: "m" } }', "parameters.file.string_value", "m", "model.onnx"),
    ],
)
def test_a_difference_is_named(change: str, field: str, found: str | None, expected: str | None) -> None:
    differs = difference(text_format.Merge(change, parsed(OF_A_GRAPH)), parsed(OF_A_GRAPH))
    assert differs is not None
    assert differs.field == field
    if expected is not None:
        assert (differs.found, differs.expected) == (found, expected)


def test_wrong_dims_are_told_in_full() -> None:
    wrong = parsed(OF_A_GRAPH.replace("dims: [4]", "dims: [11]"))
    assert str(difference(wrong, parsed(OF_A_GRAPH))) == "output[0].dims is [11], expected [4]"


def test_what_an_operator_tunes_is_no_difference() -> None:
    tuned = parsed(OF_A_GRAPH.replace("count: 2", "count: 7"))
    tuned.dynamic_batching.preferred_batch_size.append(8)
    tuned.response_cache.enable = True
    assert difference(tuned, parsed(OF_A_GRAPH)) is None
