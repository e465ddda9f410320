"""A graph of the zoo on its way through the verbs, and what ONNX Runtime says of the original file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from PIL import Image

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.export.from_onnx import adopt_onnx
from alexdeploy.metrics import softmax, sqnr_db
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.runners.artifact import load
from alexdeploy.specs import Dialect, Profile
from tests.helpers.foreign_graphs import Foreign
from tests.helpers.graphs import Array

COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200), "white": (200, 200, 200)}
_OUTSIDE = "outside"  # the graph whose weights are
_TYPES = {"tensor(float)": np.float32, "tensor(bool)": np.bool_}


class Pictures(NamedTuple):
    learn: ImageDataset
    judge: ImageDataset


def draw_pictures(folder: Path) -> Pictures:
    """Noise around a colour per class."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(10):
            coarse = np.clip(random.normal(colour, 50, (9, 9, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((16, 16)).save(folder / name / f"{index}.png")
    return Pictures(load_dataset(str(folder), "train"), load_dataset(str(folder), "val"))


def saved(foreign: Foreign, folder: Path) -> Path:
    """The original file; of one graph the weights lie beside it."""
    path = folder / "theirs.onnx"
    outside = foreign.model.graph.name == _OUTSIDE
    onnx.save(foreign.model, path, save_as_external_data=outside, location="weights.bin", size_threshold=0)
    return path


def adopt(foreign: Foreign, theirs: Path, ours: Path) -> None:
    logits = foreign.logits if len(foreign.model.graph.output) > 1 else None
    adopt_onnx(theirs, foreign.contract, ours, logits=logits, constants=foreign.constants)


def scores(foreign: Foreign, theirs: Path, batch: Array) -> Array:
    """Of the original file, by a plain session; of log-probabilities the probabilities."""
    source: str | bytes = str(theirs) if foreign.model.graph.name == _OUTSIDE else theirs.read_bytes()
    names = [node.name for node in foreign.model.graph.node if node.name]
    if len(names) > len(set(names)):  # ONNX Runtime refuses the file
        plain = onnx.load(theirs)
        for node in plain.graph.node:
            node.ClearField("name")
        source = plain.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    feed, step = {}, len(batch)
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 1 for dim in value.shape]
        if value.name in foreign.constants:
            constant: Array = np.asarray(foreign.constants[value.name]).astype(_TYPES[value.type])
            feed[value.name] = np.broadcast_to(constant, shape)
        elif value.name == foreign.image and isinstance(value.shape[0], int):
            step = value.shape[0]
    pieces = [batch[first : first + step] for first in range(0, len(batch), step)]
    rows = [session.run([foreign.logits], {**feed, foreign.image: piece})[0] for piece in pieces]
    found = np.concatenate(rows).reshape(len(batch), -1).astype(np.float64)
    return np.exp(found) if foreign.probabilities and found.max() < 0 else found


def by_onnx(model: bytes, batch: Array) -> Array:
    """By ONNX's own reference implementation, which rounds to FP16 after each node; ONNX Runtime does not."""
    evaluator = ReferenceEvaluator(onnx.load_from_string(model))
    with np.errstate(all="ignore"):
        (found,) = evaluator.run(None, {evaluator.input_names[0]: batch})
    return np.asarray(found).reshape(len(batch), -1)


@dataclass
class Field:
    """A graph that was adopted and calibrated; ``expected`` are the scores of the original on ``batch``."""

    foreign: Foreign
    folder: Path
    batch: Array
    expected: Array

    @property
    def model(self) -> Path:
        return self.folder / "ours.onnx"

    @property
    def ranges(self) -> Path:
        return self.folder / "ranges.json"

    def quantized(self, dialect: Dialect, *, fp16: bool = False) -> Path:
        """Written once."""
        path = self.folder / f"{dialect}{'.fp16' if fp16 else ''}.onnx"
        if not path.exists():
            quantize_onnx(self.model, self.ranges, path, settings=QuantizeSettings(dialect=dialect, fp16=fp16))
        return path

    def db(self, found: Path | bytes | Array) -> float:
        """How far a file's answers, or these, are above their distance from the original."""
        if not isinstance(found, np.ndarray):
            with load(found) as runner:
                found = runner.infer(self.batch)
        return sqnr_db(softmax(found.astype(np.float64)) if self.foreign.probabilities else found, self.expected)

    @property
    def builder(self) -> BuildSettings:
        batch = onnx.load(self.model, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0].dim_value
        batches = Profile.parse(str(batch) if batch else "1:4:8")
        return BuildSettings(batches=batches, builder="tensorrt-rtx")


def field_of(foreign: Foreign, folder: Path, pictures: Pictures) -> Field:
    theirs, ours = saved(foreign, folder), folder / "ours.onnx"
    adopt(foreign, theirs, ours)
    save_ranges(folder / "ranges.json", calibrate(ours, pictures.learn, samples=16))
    batch = np.concatenate([images for images, _ in pictures.judge.batches(foreign.contract, 8)])
    return Field(foreign, folder, batch, scores(foreign, theirs, batch))
