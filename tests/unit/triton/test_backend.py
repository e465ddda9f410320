"""What runs inside the server, with a double of the one module that exists only there."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexdeploy.contract import Contract
from alexdeploy.errors import DeviceLostError, UnavailableError, UsageError
from tests.helpers.graphs import conv_lrn_gemm, images, run
from tests.serving.pictures import encoded
from tests.unit.triton.conftest import CONTRACT, save


@dataclass
class Tensor:
    name: str
    array: Any

    def as_numpy(self) -> Any:
        return self.array


class TritonError:
    INVALID_ARG, UNAVAILABLE, INTERNAL = "INVALID_ARG", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class Response:
    tensors: list[Tensor]
    error: TritonError | None = None

    @property
    def arrays(self) -> list[Any]:
        assert self.error is None
        return [tensor.array for tensor in self.tensors]


@dataclass
class Log:
    errors: list[str] = field(default_factory=list)

    def log_error(self, message: str) -> None:
        self.errors.append(message)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    double: Any = types.ModuleType("triton_python_backend_utils")
    double.Tensor, double.TritonError, double.InferenceResponse, double.Logger = Tensor, TritonError, Response, Log()
    double.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    monkeypatch.setitem(sys.modules, double.__name__, double)
    monkeypatch.delitem(sys.modules, "alexdeploy.triton.backend", raising=False)
    yield importlib.import_module("alexdeploy.triton.backend")
    del sys.modules["alexdeploy.triton.backend"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "3").mkdir()
    save(tmp_path / "3" / "model.onnx")
    return tmp_path


def arguments(repository: Path = Path(), *, kind: str = "CPU", count: int = 1, **parameters: str) -> dict[str, str]:
    """As the server gives them; dims are as little use to the model as they are there."""
    inputs, outputs = (
        (["logits"], ["label", "probability"]) if "ends_in_softmax" in parameters else (["input"], ["logits"])
    )
    config = {
        "name": "digits",
        "input": [{"name": name} for name in inputs],
        "output": [{"name": name} for name in outputs],
        "instance_group": [{"count": count, "kind": f"KIND_{kind}"}],
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": kind,
        "model_instance_device_id": "1",
        "model_repository": str(repository),
        "model_version": "3",
    }


@pytest.fixture
def network(backend: Any, repository: Path) -> Iterator[Any]:
    model = backend.Network()
    model.initialize(arguments(repository, file="model.onnx", runtime="onnxruntime-cpu"))
    yield model
    model.finalize()


def test_a_batch_is_one_call_and_each_request_gets_its_rows(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(6)
    sizes: list[int] = []
    infer = network._runner.infer

    def counted(given: Any) -> Any:
        sizes.append(len(given))
        return infer(given)

    monkeypatch.setattr(network._runner, "infer", counted)
    answers = network.execute([{"input": batch[:1]}, {"input": batch[1:4]}, {"input": batch[4:]}])
    assert sizes == [6]
    assert [len(answer.arrays[0]) for answer in answers] == [1, 3, 2]
    found = np.concatenate([answer.arrays[0] for answer in answers])
    np.testing.assert_allclose(found, run(conv_lrn_gemm(), batch)[0], rtol=1e-5, atol=1e-6)


def test_a_request_of_another_shape_does_not_sink_the_others(network: Any) -> None:
    batch = images(2)
    good, bad, other = network.execute([{"input": batch[:1]}, {"input": batch[:, :, :5]}, {"input": batch[1:]}])
    assert (bad.error.code, bad.tensors) == ("INVALID_ARG", [])
    assert "(2, 3, 5, 8)" in bad.error.message
    found = np.concatenate([good.arrays[0], other.arrays[0]])
    np.testing.assert_allclose(found, run(conv_lrn_gemm(), batch)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [UnavailableError, DeviceLostError])
def test_a_failure_is_told_to_every_request(
    backend: Any, network: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *given: signals.append(given))

    def fail(batch: Any) -> None:
        raise kind(f"no memory for {len(batch)} images")

    monkeypatch.setattr(network._runner, "infer", fail)
    good, bad, other = network.execute([{"input": images(1)}, {"input": images(1)[0]}, {"input": images(2)}])
    assert bad.error.code == "INVALID_ARG"
    assert good.error.message == other.error.message == "no memory for 3 images"
    assert good.error is not other.error
    lost = kind is DeviceLostError
    assert good.error.code == ("INTERNAL" if lost else "UNAVAILABLE")
    assert signals == ([(os.getppid(), signal.SIGTERM)] if lost else [])
    assert len(backend.pb_utils.Logger.errors) == lost


@pytest.mark.parametrize(
    ("kind", "runtime", "count", "expected"),
    [
        ("CPU", "onnxruntime-cpu", 1, {"threads": 6}),
        ("CPU", "onnxruntime-cpu", 4, {"threads": 1}),
        ("CPU", "onnxruntime-cpu", 9, {"threads": 1}),
        ("GPU", "tensorrt-rtx", 2, {"device": "cuda:1"}),
    ],
)
def test_cores_are_shared_out_and_a_gpu_is_the_one_that_the_server_chose(
    backend: Any, monkeypatch: pytest.MonkeyPatch, kind: str, runtime: str, count: int, expected: dict[str, Any]
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(backend, "load", lambda path, **options: loaded.append((path, options)))
    monkeypatch.setattr(backend, "cores", lambda: 6)
    backend.Network().initialize(arguments(Path("/r"), kind=kind, count=count, file="f", runtime=runtime))
    assert loaded == [(Path("/r/3/f"), {"runtime": runtime, **expected})]


def test_there_is_no_other_runtime_to_fall_back_to(backend: Any, repository: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt-rtx"):
        backend.Network().initialize(arguments(repository, file="model.onnx", runtime="tensorrt-rtx"))


def test_an_unreadable_image_does_not_sink_the_others(backend: Any) -> None:
    model = backend.Decode()
    model.initialize(arguments(contract=CONTRACT.to_json()))
    one, two = np.array([[encoded(1)]], np.object_), np.array([[encoded(1)], [encoded(2)]], np.object_)
    good, bad, other = model.execute([{"input": one}, {"input": np.array([[b"?"]], np.object_)}, {"input": two}])
    assert bad.error.code == "INVALID_ARG"
    assert other.arrays[0].shape == (2, 3, 8, 8)
    np.testing.assert_array_equal(good.arrays[0][0], other.arrays[0][0])


def test_of_a_fault_that_nobody_foresaw_the_client_gets_no_traceback(
    backend: Any, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SyntaxError("SECRET")

    monkeypatch.setattr(backend, "preprocess", fail)
    decode = backend.Decode()
    decode.initialize(arguments(contract=CONTRACT.to_json()))
    (answer,) = decode.execute([{"input": np.array([[encoded(1)]], np.object_)}])
    assert (answer.error.code, answer.error.message) == ("INTERNAL", "SyntaxError in the model")
    monkeypatch.setattr(network._runner, "infer", fail)
    good, bad = network.execute([{"input": images(1)}, {"input": images(1)[0]}])
    assert (good.error.message, bad.error.code) == ("SyntaxError in the model", "INVALID_ARG")
    assert [line.split(" in ")[0] for line in backend.pb_utils.Logger.errors] == ["SyntaxError"] * 2
    assert "SECRET" not in "".join(backend.pb_utils.Logger.errors)


def test_a_label_is_a_number_where_classes_have_no_names(backend: Any) -> None:
    nameless = Contract(color="rgb", crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    model = backend.Label()
    model.initialize(arguments(contract=nameless.to_json(), ends_in_softmax="true"))
    (answer,) = model.execute([{"logits": np.array([[0.25, 0.5, 0.25], [0.75, 0.25, 0]], np.float32)}])
    labels, shares = answer.arrays
    assert labels.tolist() == [[b"1"], [b"0"]]
    assert shares.tolist() == [[0.5], [0.75]]
