"""Golden answers: images, what the network takes of them, and what the runner gave when the model was published.

A server that answers otherwise has other weights, dims, labels or preprocessing; being ready proves none of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from alexdeploy import files
from alexdeploy.arrays import Batch, Logits
from alexdeploy.contract import Contract
from alexdeploy.data.decode import image_from_bytes
from alexdeploy.data.preprocess import preprocess
from alexdeploy.errors import InputError, words_of
from alexdeploy.optional import require
from alexdeploy.runners import classifier

FILE = "golden.safetensors"
_KIND = "golden"
_ORIENTATION, _ROTATED = 0x0112, 6  # EXIF: turn by 90° to see it upright
_SHAPES = (  # (width, height), format, rotated: they make every contract resize, crop, pad or turn
    ((401, 302), "PNG", False),
    ((300, 420), "JPEG", False),
    ((352, 264), "JPEG", True),
    ((97, 61), "PNG", False),
)


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The ``details`` of its sidecar.

    Attributes:
        name, version: of the model.
        contract: as JSON.
        labels: of the images, as the runner gave them; empty where nothing here could run it.
        runtime: of that runner; empty as well.
        precision: of the network.
        image: whether the models that take encoded images were published.
        artifact_sha256: of the file that is served.
    """

    name: str
    version: int
    contract: str
    labels: tuple[str, ...]
    runtime: str
    precision: str
    image: bool
    artifact_sha256: str


@dataclass(frozen=True)
class Golden:
    """Images, and the answers to them.

    Attributes:
        about: whose answers.
        images: encoded.
        inputs: (K, *input_shape), of the contract's type.
        logits: (K, classes) float32; None where nothing could run it when it was published.
        probabilities: (K,) float32 of ``about.labels``; None as well.
    """

    about: About
    images: tuple[bytes, ...]
    inputs: Batch
    logits: Logits | None = None
    probabilities: npt.NDArray[np.float32] | None = None


@cache
def draw_images() -> tuple[bytes, ...]:
    """Encoded images, the same every time: coloured, textured, of several shapes and formats."""
    return tuple(_encoded(_drawn(*size), kind, rotated) for size, kind, rotated in _SHAPES)


def _drawn(width: int, height: int) -> Image.Image:
    size = (width, height)
    texture = Image.effect_mandelbrot(size, (-2.0, -1.2, 0.6, 1.2), 60)
    rings, slope = Image.radial_gradient("L").resize(size), Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (rings, texture, slope))
    pen = ImageDraw.Draw(image)
    for number, colour in enumerate(("white", "navy", "orange", "green")):
        left, top = width * (number + 1) // 7, height * (2 * number + 1) // 12
        pen.ellipse((left, top, left + width // 3, top + height // 5), fill=colour, outline="black")
    return image


def _encoded(image: Image.Image, kind: str, rotated: bool) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if rotated:
        exif[_ORIENTATION] = _ROTATED
    image.save(file, kind, exif=exif)
    return file.getvalue()


def network_inputs(images: tuple[bytes, ...], contract: Contract) -> Batch:
    """(K, *input_shape) of encoded images."""
    return np.stack([preprocess(image_from_bytes(image), contract) for image in images])


def likeliest(
    scores: Logits, contract: Contract, *, ends_in_softmax: bool, origin: str = "the network"
) -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
    """Label and probability (K,) of each row of (K, classes), as the model ``NAME-label`` gives them.

    Args:
        scores: one row or more.
        contract: with the class names.
        ends_in_softmax: the scores are probabilities.
        origin: what a message calls the network; it calls an image by its place.

    Raises:
        GateError: scores that are not finite.
    """
    answers = []
    for number, row in enumerate(scores):
        (shares,) = classifier.probabilities(row[None], ends_in_softmax, origin, str(number))
        answers += classifier.likeliest(shares, contract.labels, 1)
    labels, found = zip(*answers, strict=True)
    return labels, np.array(found, np.float32)


def write_golden(folder: Path, golden: Golden, parent: files.Parent) -> None:
    """Write it into a version's folder, with its sidecar."""
    tensors = {"inputs": np.ascontiguousarray(golden.inputs)}
    tensors |= {f"image_{index}": np.frombuffer(image, np.uint8) for index, image in enumerate(golden.images)}
    if golden.logits is not None and golden.probabilities is not None:
        tensors |= {"logits": np.ascontiguousarray(golden.logits), "probabilities": golden.probabilities}
    data = require("safetensors.numpy").save(tensors)
    details = msgspec.to_builtins(golden.about)
    files.write_artifact(folder / FILE, data, _KIND, parents=(parent,), details=details)


def read_golden(folder: Path) -> Golden:
    """Those of a version's folder.

    Raises:
        InputError: missing, or not what ``write_golden`` writes.
        GateError: no sidecar, or changed since it was written.
    """
    path = folder / FILE
    sidecar = files.read_sidecar(path, _KIND)
    try:
        tensors = require("safetensors.numpy").load(path.read_bytes())
        about = msgspec.convert(sidecar.details, About)
        images = tuple(tensors[f"image_{index}"].tobytes() for index in range(len(tensors["inputs"])))
        return Golden(about, images, tensors["inputs"], tensors.get("logits"), tensors.get("probabilities"))
    except (msgspec.ValidationError, KeyError, require("safetensors").SafetensorError) as error:
        raise InputError(
            f"{path}: not golden answers of alexdeploy ({words_of(error)}); publish the model again"
        ) from error
