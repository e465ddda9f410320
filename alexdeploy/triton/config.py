"""What Triton must be told of a model: the four ``config.pbtxt``, made from the artifact and read back.

What an artifact demands of its configuration is known here alone: ``publish`` writes it, a check compares with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UsageError, words_of
from alexdeploy.files import check_input
from alexdeploy.optional import require
from alexdeploy.runners.artifact import Artifact, CheckpointArtifact, EngineArtifact, OnnxArtifact
from alexdeploy.specs import Profile, TensorSpec, find_logits

ModelConfig = Any  # a message of tritonclient, which has no types

Backend = Literal["python", "onnxruntime_onnx", "tensorrt_plan"]
"""The backend ``python``, or the platform of another backend, as Triton calls them."""
DECODE, LABEL, IMAGE = "-decode", "-label", "-image"  # names of the models beside a network's
WARM_UP = "image"  # the file in each model's folder warmup/
LABELS, CONFIG = "labels.txt", "config.pbtxt"
DEFAULT_MAX_BATCH = 32
KIND_GPU, KIND_CPU, STRING = "KIND_GPU", "KIND_CPU", "TYPE_STRING"
_BYTES, _LABEL, _PROBABILITY, _LOGITS = "image", "label", "probability", "logits"
_IN, _OUT = "network_input", "network_output"  # of the ensemble, between its steps


@dataclass(frozen=True)
class Settings:
    """What the operator chooses.

    Attributes:
        max_batch: images that Triton puts into one call at most.
        instances: copies of the model that run side by side.
        max_delay_us: microseconds that a request waits for others to fill its batch.
    """

    max_batch: int = DEFAULT_MAX_BATCH
    instances: int = 1
    max_delay_us: int = 0


@dataclass(frozen=True)
class Served:
    """A network as a server runs it.

    Attributes:
        backend: of Triton, see ``Backend``.
        file: the model's name in a version's folder.
        input, output: with the batch as first dimension.
        contract: its preprocessing and labels.
        runtime: of the runner, for the Python backend.
        on_gpu: whether each instance needs a GPU.
        ends_in_softmax: whether it gives probabilities.
        batches: that it takes; None for any.
        builder: what made the engine, and its version; empty for a graph.
    """

    backend: Backend
    file: str
    input: TensorSpec
    output: TensorSpec
    contract: Contract
    runtime: str = ""
    on_gpu: bool = False
    ends_in_softmax: bool = False
    batches: Profile | None = None
    builder: str = ""

    @property
    def max_batch(self) -> int:
        """The largest ``max_batch`` that is taken where none is asked for."""
        return min(DEFAULT_MAX_BATCH, self.batches.max[0]) if self.batches else DEFAULT_MAX_BATCH


def served(artifact: Artifact, backend: str | None = None) -> Served:
    """How an artifact is served.

    Args:
        artifact: an ONNX file or an engine.
        backend: ``onnxruntime`` for an ONNX file without our runner; None for what the file needs.

    Raises:
        UsageError: a checkpoint, or a backend that does not run the file.
        InputError: without a contract, or an interface that no server can be told of.
    """
    if isinstance(artifact, CheckpointArtifact):
        raise UsageError(f"{artifact.origin}: a checkpoint is not served; export it first (alexdeploy export)")
    found = _of_engine(artifact) if isinstance(artifact, EngineArtifact) else _of_graph(artifact, backend)
    if backend is not None and found.backend.partition("_")[0] != backend:
        raise UsageError(f"`backend` {backend}: does not run {artifact.origin}; leave it out for {found.backend}")
    _check_input(found, artifact.origin)
    return found


def _of_graph(artifact: Artifact, backend: str | None) -> Served:
    assert isinstance(artifact, OnnxArtifact)
    from alexdeploy.graph.model import image_input, tensor_spec

    outputs = [tensor_spec(value) for value in artifact.model.graph.outputs]
    logits = find_logits(outputs)
    if logits is None:
        raise InputError(
            f"{artifact.origin}: has the outputs {', '.join(map(str, outputs))}; adopt it with the one that holds the "
            "`logits` (alexdeploy adopt)"
        )
    network = image_input(artifact.model, artifact.origin)
    frozen = network.shape[0] if isinstance(network.shape[0], int) else None
    by_runner = backend != "onnxruntime"
    if frozen is not None and not by_runner:
        raise UsageError(
            f"{artifact.origin}: its batch is frozen at {frozen}, which Triton cannot batch; export it with an open "
            "batch, or leave `backend` out: our runner cuts batches into such pieces"
        )
    return Served(
        backend="python" if by_runner else "onnxruntime_onnx",
        file="model.onnx",
        input=network,
        output=_row(logits) if by_runner else logits,
        contract=artifact.contract,
        runtime="onnxruntime-cpu" if by_runner else "",
        ends_in_softmax=artifact.ends_in_softmax,
    )


def _of_engine(artifact: EngineArtifact) -> Served:
    record = artifact.record
    if record.input is None or record.output is None or record.batches is None:
        raise InputError(f"{artifact.origin}: its sidecar does not tell its inputs and outputs; build it again")
    of_triton = record.builder == "tensorrt"
    if len(record.shapes) > 1:
        raise UsageError(f"{artifact.origin}: takes {', '.join(record.shapes)}; only an engine of one input is served")
    if record.batches.min[0] > 1 or (of_triton and record.input.shape[0] != -1):
        raise UsageError(
            f"{artifact.origin}: takes batches of {record.batches}; a server sends single images too, so build it from "
            "a graph of open batch with a profile that begins at 1, such as 1:8:32"
        )
    return Served(
        backend="tensorrt_plan" if of_triton else "python",
        file="model.plan" if of_triton else "model.engine",
        input=record.input,
        output=record.output if of_triton else _row(record.output),
        contract=artifact.contract,
        runtime="" if of_triton else record.builder,
        on_gpu=True,
        ends_in_softmax=artifact.ends_in_softmax,
        batches=record.batches,
        builder=f"{record.builder} {record.version}",
    )


def _row(output: TensorSpec) -> TensorSpec:
    """As a runner gives it: (batch, classes) float32."""
    return TensorSpec(output.name, (-1, output.classes or -1), "float32")


def _check_input(found: Served, origin: str) -> None:
    """The images that the contract makes must be what the network takes."""
    contract, sizes = found.contract, found.input.shape[1:]
    fits = len(sizes) == 3 and all(
        want == have or not isinstance(have, int) or have == -1
        for want, have in zip(contract.input_shape, sizes, strict=True)
    )
    if not fits or contract.input_type != found.input.dtype:
        raise InputError(
            f"{origin}: takes {found.input}, and its contract makes {contract.input_type} images of shape "
            f"{contract.input_shape}; adopt it with the contract that fits (alexdeploy adopt)"
        )
    names = len(contract.labels)
    if found.output.classes is not None and names not in (0, found.output.classes):
        raise InputError(f"{origin}: has {found.output.classes} outputs, and its contract {names} class names")


def network_config(found: Served, name: str, settings: Settings) -> ModelConfig:
    """``config.pbtxt`` of the network."""
    config = _config(name, settings)
    if found.backend == "python":
        config.backend = found.backend
        _parameters(config, file=found.file, runtime=found.runtime)
    else:
        # a server that is told one of them fills in the other, and a check would call that a difference
        config.platform, config.backend = found.backend, found.backend.partition("_")[0]
        config.default_model_filename = found.file
    dims = found.contract.input_shape
    _tensor(config.input, found.input.name, _type(found.input.dtype), dims)
    sizes = [size if isinstance(size, int) else -1 for size in found.output.shape[1:]]
    _tensor(config.output, found.output.name, _type(found.output.dtype), sizes)
    if found.contract.labels:
        config.output[0].label_filename = LABELS
    group = config.instance_group.add(count=settings.instances)
    if found.on_gpu:
        group.kind = KIND_GPU
    elif found.backend == "python":
        group.kind = KIND_CPU
    if found.backend == "tensorrt_plan":
        group.profile.append("0")
        config.optimization.cuda.graphs = True
    config.dynamic_batching.max_queue_delay_microseconds = settings.max_delay_us
    config.metric_tags["contract"] = found.contract.fingerprint[:12]
    for batch in sorted({1, settings.max_batch}):
        _warm_up(config, batch, config.input[0])
    return config


def image_configs(found: Served, name: str, settings: Settings) -> Iterator[ModelConfig]:
    """Those of the three models that make an ensemble of it: encoded bytes → label and probability.

    Raises:
        UsageError: its result is no row of scores.
    """
    if len(found.output.shape) != 2:
        raise UsageError(f"`image`: its result is {found.output}; only a row of scores has a label")
    network = network_config(found, name, settings)
    decode = _config(name + DECODE, settings)
    decode.backend = "python"
    _parameters(decode, contract=found.contract.to_json())
    _tensor(decode.input, _BYTES, STRING, (1,))
    _tensor(decode.output, network.input[0].name, network.input[0].data_type, network.input[0].dims)
    decode.instance_group.add(count=settings.instances).kind = KIND_CPU
    _warm_up(decode, 1, decode.input[0])
    yield decode

    label = _config(name + LABEL, settings)
    label.backend = "python"
    label.instance_group.add(count=1).kind = KIND_CPU
    softmax = str(found.ends_in_softmax).lower()
    _parameters(label, contract=found.contract.to_json(), ends_in_softmax=softmax)
    _tensor(label.input, _LOGITS, network.output[0].data_type, network.output[0].dims)
    _answers(label)
    yield label

    ensemble = _config(name + IMAGE, settings)
    ensemble.platform = "ensemble"
    _tensor(ensemble.input, _BYTES, STRING, (1,))
    _answers(ensemble)
    for model, inputs, outputs in (
        (decode.name, {_BYTES: _BYTES}, {found.input.name: _IN}),
        (name, {found.input.name: _IN}, {found.output.name: _OUT}),
        (label.name, {_LOGITS: _OUT}, {_LABEL: _LABEL, _PROBABILITY: _PROBABILITY}),
    ):
        step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    yield ensemble


def expected_configs(config: ModelConfig, found: Served, *, image: bool) -> Iterator[ModelConfig]:
    """What the artifact demands of its model, and of those around it, with the operator's settings of ``config``."""
    settings = settings_of(config)
    yield network_config(found, config.name, settings)
    if image:
        yield from image_configs(found, config.name, settings)


def _messages() -> Any:
    return require("tritonclient.grpc.model_config_pb2")


def _config(name: str, settings: Settings) -> ModelConfig:
    config = _messages().ModelConfig(name=name, max_batch_size=settings.max_batch)
    config.version_policy.all.SetInParent()
    return config


def _type(dtype: str) -> str:
    """``"float32"`` → ``"TYPE_FP32"``."""
    return f"TYPE_{require('tritonclient.utils').np_to_triton_dtype(np.dtype(dtype))}"


def _tensor(tensors: Any, name: str, data_type: str | int, dims: Sequence[int]) -> None:
    tensors.add(name=name, data_type=data_type, dims=dims)


def _answers(config: ModelConfig) -> None:
    _tensor(config.output, _LABEL, STRING, (1,))
    _tensor(config.output, _PROBABILITY, _type("float32"), (1,))


def _parameters(config: ModelConfig, **values: str) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value


def _warm_up(config: ModelConfig, batch: int, tensor: Any) -> None:
    warm_up = config.model_warmup.add(name=f"batch {batch}", batch_size=batch)
    given = warm_up.inputs[tensor.name]
    given.data_type, given.input_data_file = tensor.data_type, WARM_UP
    given.dims.extend(tensor.dims)


def config_text(config: ModelConfig) -> str:
    """The message as ``config.pbtxt`` has it."""
    from google.protobuf import text_format

    return f"# written by alexdeploy publish\n{text_format.MessageToString(config, as_utf8=True)}"


def read_config(path: Path) -> ModelConfig:
    """A model's ``config.pbtxt``.

    Raises:
        InputError: missing, or with a field or value that Triton does not have.
    """
    empty = _messages().ModelConfig()
    from google.protobuf import text_format  # comes with tritonclient

    check_input(path)
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), empty)
    except (text_format.ParseError, ValueError) as error:  # a ValueError of a number out of range, and of no UTF-8
        raise InputError(f"{path}: not a configuration of Triton: {words_of(error)}") from error


def settings_of(config: ModelConfig) -> Settings:
    """What the operator chose for a network."""
    return Settings(
        max_batch=config.max_batch_size,
        instances=sum(group.count for group in config.instance_group),
        max_delay_us=config.dynamic_batching.max_queue_delay_microseconds,
    )
