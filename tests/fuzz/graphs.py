"""ONNX files, mutated field by field: what a broken exporter, a half-finished tool or an attacker could write.

Bytes that are flipped seldom get past protobuf's parser; a field with another value does. Every mutant goes through the
readers, and some go all the way: adopt, calibrate, quantize, FP16, load, predict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import helper
from PIL import Image

from alexdeploy.contract import METADATA_KEY
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import plan_engine
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.graph.lint import lint
from alexdeploy.graph.model import load_onnx
from alexdeploy.inspect import inspect_artifact
from alexdeploy.quantize.apply import PrecisionSettings, with_precision
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.runners.artifact import load, open_artifact
from alexdeploy.runners.classifier import Classifier
from tests.field.zoo import ZOO
from tests.fuzz.graph_mutations import MUTATIONS
from tests.fuzz.mutate import any_bytes
from tests.fuzz.target import Target
from tests.helpers import foreign_graphs
from tests.helpers.foreign_graphs import Foreign

_OF_THE_ZOO = 0.4
_MOST_VALUES = 1 << 16  # of an input that is run


@cache
def _graphs() -> tuple[bytes, ...]:
    """Small files with a contract, of every kind of graph in ``tests/field``."""
    return tuple(_with_contract(make()) for make in ZOO.values())


@cache
def _seeds() -> tuple[bytes, ...]:
    """Few, since the suite reads them; mutation begins with any of the zoo."""
    return tuple(_with_contract(make()) for make in (foreign_graphs.keras, foreign_graphs.any_size))


def _with_contract(foreign: Foreign) -> bytes:
    model = foreign.model
    helper.set_model_props(model, {METADATA_KEY: foreign.contract.to_json()})
    return bytes(model.SerializeToString())


def mutate(chance: Random, data: bytes) -> bytes:
    """Another file of the same kind; what is not ONNX any more comes back with some of its bytes changed."""
    if chance.random() < _OF_THE_ZOO:
        data = chance.choice(_graphs())
    try:
        model = onnx.ModelProto.FromString(data)
        chance.choice(MUTATIONS)(model, chance)
        return bytes(model.SerializeToString())
    except (
        DecodeError,
        EncodeError,
        IndexError,
        SystemError,
        TypeError,
        ValueError,
    ):  # or a value that a field does not take
        return any_bytes(chance, data)


# Mutations of any field


# What is done with a file


def _read(path: Path) -> None:
    """As ``lint`` and ``inspect`` do."""
    lint(load_onnx(path))
    inspect_artifact(path)


def _all_the_way(path: Path) -> None:
    """Adopt, calibrate, quantize, FP16, load, predict: each as far as it goes."""
    dataset = load_dataset(str(path.parent / "images"), "train")
    with TemporaryDirectory(dir=path.parent) as made:
        folder = Path(made)
        adopted, ranges = folder / "adopted.onnx", folder / "ranges.json"
        adopt_onnx(path, open_artifact(path).contract, adopted)
        with Classifier(path) as classifier:
            classifier([path.parent / "images" / "0.png"])
        save_ranges(ranges, calibrate(adopted, dataset, samples=2))
        for dialect in ("tensorrt", "onnxruntime", "openvino"):
            settings = QuantizeSettings(dialect=dialect)
            quantize_onnx(adopted, ranges, folder / "quantized.onnx", settings=settings)
        with_precision(adopted, ranges, settings=PrecisionSettings(fp16=True))
        with_precision(adopted, settings=PrecisionSettings(bf16=True))


def _run(path: Path) -> None:
    """On each runtime of the CPU."""
    for runtime in ("onnxruntime-cpu", "openvino"):
        with load(path, runtime=runtime) as runner:
            dims = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in runner.input.shape]
            if math.prod(dims) < _MOST_VALUES:
                runner.infer(np.zeros(dims, runner.input.dtype))


def _plan(path: Path) -> None:
    """Up to the build: TensorRT-RTX parses it."""
    plan_engine(path, settings=BuildSettings(builder="tensorrt-rtx"))


def _images(folder: Path) -> None:
    (folder / "images").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")


def _target(name: str, check: Callable[[Path], object], beside: Callable[[Path], None] | None = None) -> Target:
    return Target(name, _seeds, check, "model.onnx", (mutate,), beside=beside)


TARGETS = (
    _target("onnx", _read),
    _target("onnx-run", _run),
    _target("onnx-quantize", _all_the_way, _images),
    _target("onnx-plan", _plan),
)
