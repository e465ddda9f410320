"""The same photographs through training, calibration, bench, prediction and serving are the same tensors, bit for bit.

The oracle is torchvision on Pillow's images, told apart by what a camera or a program stored. How far other libraries'
resizing is from it is measured as well: that is what a contract's ``resampling`` guards against.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_sample_images
from torchvision import transforms
from torchvision.transforms.v2 import functional as v2

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.preprocess import preprocess
from alexdeploy.data.sources import load_dataset
from alexdeploy.graph.uint8_input import with_uint8_input
from alexdeploy.runners.artifact import open_artifact
from alexdeploy.runners.classifier import Classifier
from alexdeploy.runners.labelling import labelled
from alexdeploy.runners.predict import find_images, predict
from alexdeploy.train.images import Pixels, normalize_batch
from alexdeploy.triton.golden import network_inputs
from tests.helpers.graphs import make_model
from tests.unit.triton.test_backend import Tensor, arguments, backend  # noqa: F401 (the last is a fixture)

Batch = npt.NDArray[Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONTRACT = Contract(
    color="rgb",
    resize=20,
    crop=8,
    mean=MEAN,
    std=STD,
    exif_orientation=True,
    labels=tuple(f"pixel {number}" for number in range(3 * 8 * 8)),
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Image.Image]]:
    """A folder of photographs as cameras and programs store them, and each as upright RGB, in order of names."""
    folder = tmp_path_factory.mktemp("photographs")
    china, flower = (Image.fromarray(array) for array in load_sample_images().images)
    china, flower = china.resize((96, 64)), flower.resize((61, 97))
    small = flower.resize((20, 40))
    gray = np.asarray(china.convert("L"))
    forms: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        **{f"{turn}-turned.jpg": (china, {"exif": _turned(turn)}) for turn in range(1, 9)},
        "cmyk.jpg": (flower.convert("CMYK"), {}),
        "gray.jpg": (flower.convert("L"), {}),
        "gray-16.png": (Image.fromarray(gray.astype(np.uint16) * 257), {}),
        "palette.png": (flower.quantize(64), {"transparency": 3}),
        "transparent.png": (Image.merge("RGBA", [*flower.split(), flower.convert("L")]), {}),
        "lossless.webp": (china, {"lossless": True}),
        "turned.tif": (flower, {"exif": _turned(6)}),
        "animated.gif": (small, {"save_all": True, "append_images": [small.rotate(90)]}),
        "UPPER.JPG": (flower, {"progressive": True}),
        "tiny.bmp": (flower.resize((5, 9)), {}),
    }
    upright = {}
    for name, (image, options) in forms.items():
        image.save(folder / name, **options)
        read = ImageOps.exif_transpose(Image.open(folder / name))
        upright[name] = Image.fromarray(gray).convert("RGB") if name == "gray-16.png" else read.convert("RGB")
    return folder, [upright[name] for name in sorted(upright)]


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.fixture(scope="module")
def expected(stored: tuple[Path, list[Image.Image]]) -> Batch:
    steps = [transforms.Resize(20), transforms.CenterCrop(8), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    tensors: Batch = torch.stack([transforms.Compose(steps)(image) for image in stored[1]]).numpy()
    return tensors


@pytest.fixture(scope="module")
def pixels_as_logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose logits are its input."""
    model = make_model([helper.make_node("Flatten", ["input"], ["logits"], "flatten")], {}, rank=2)
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(model, path)
    return path


def _trained_on(folder: Path) -> Batch:
    pixels = Pixels(load_dataset(str(folder), "all"), CONTRACT, cropped=True)
    images = pixels[torch.arange(len(pixels))]
    assert isinstance(images, torch.Tensor)
    return normalize_batch(images, CONTRACT).numpy()


def _calibrated_on(folder: Path) -> Batch:
    with ThreadPoolExecutor(2) as pool:  # photographs of sixteen times the size are decoded at a part of it
        return np.stack(
            [array for _, array in load_dataset(str(folder), "all").inputs(CONTRACT, pool=pool, reduced=True)]
        )


def _classified(folder: Path, model: Path, images: Callable[[Path], Any]) -> Batch:
    """What the runner is given."""
    seen: list[Batch] = []
    with Classifier(model) as classifier:
        infer = classifier.runner.infer

        def recorded(batch: Batch) -> Any:
            seen.append(batch)
            return infer(batch)

        classifier.runner.infer = recorded  # type: ignore[method-assign]
        classifier([images(path) for path in sorted(folder.iterdir())])
    return np.concatenate(seen)


ROUTES: dict[str, Callable[[Path, Path], Batch]] = {
    "training and held-out images": lambda folder, model: _trained_on(folder),
    "calibration": lambda folder, model: _calibrated_on(folder),
    "bench": lambda folder, model: np.concatenate(
        [b for b, _ in load_dataset(str(folder), "all").batches(CONTRACT, 4)]
    ),
    "Classifier, paths": lambda folder, model: _classified(folder, model, str),
    "Classifier, Pillow's images": lambda folder, model: _classified(folder, model, Image.open),
    "golden answers": lambda folder, model: network_inputs(
        tuple(p.read_bytes() for p in sorted(folder.iterdir())), CONTRACT
    ),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_tensors_of_torchvision(
    route: str, stored: tuple[Path, list[Image.Image]], expected: Batch, pixels_as_logits: Path
) -> None:
    np.testing.assert_array_equal(ROUTES[route](stored[0], pixels_as_logits), expected)


def test_arrays_of_pixels_are_the_same(
    stored: tuple[Path, list[Image.Image]], expected: Batch, pixels_as_logits: Path
) -> None:
    arrays = dict(zip(sorted(stored[0].iterdir()), map(np.asarray, stored[1]), strict=True))
    np.testing.assert_array_equal(_classified(stored[0], pixels_as_logits, arrays.__getitem__), expected)


def test_the_server_decodes_to_the_same(
    backend: Any,  # noqa: F811
    stored: tuple[Path, list[Image.Image]],
    expected: Batch,
) -> None:
    model = backend.Decode()
    model.initialize(arguments(contract=CONTRACT.to_json()))
    encoded = np.array([[path.read_bytes()] for path in sorted(stored[0].iterdir())], np.object_)
    (answer,) = model.execute([{"input": encoded}])
    np.testing.assert_array_equal(answer.arrays[0], expected)


def test_a_graph_that_takes_pixels_is_given_the_same_ones(
    stored: tuple[Path, list[Image.Image]], expected: Batch, pixels_as_logits: Path
) -> None:
    model, contract = with_uint8_input(ir.load(pixels_as_logits), CONTRACT)
    pixels = np.stack([array for _, array in load_dataset(str(stored[0]), "all").inputs(contract)])
    levels = expected * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))
    np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2), np.rint(levels * 255))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=1e-6)


def test_worker_processes_answer_as_one_does(
    stored: tuple[Path, list[Image.Image]], expected: Batch, pixels_as_logits: Path, tmp_path: Path
) -> None:
    images, count = find_images([stored[0]], ()), len(CONTRACT.labels)
    with labelled(open_artifact(pixels_as_logits), images, tmp_path / "p.csv", workers=1, top=count) as answers:
        by_workers = list(answers)
    assert by_workers == list(predict(pixels_as_logits, images, top=count))
    for prediction, image in zip(by_workers, expected.reshape(len(images), -1), strict=True):
        order = [CONTRACT.labels.index(label) for label, _ in prediction.top]
        shares = np.exp(image.astype(np.float64)) / np.exp(image.astype(np.float64)).sum()
        assert np.all(np.diff(image[order]) <= 0), "the pixels in order"
        np.testing.assert_allclose([share for _, share in prediction.top], shares[order], rtol=1e-5)


# --- what another library's resizing would change; docs/guide/data.md quotes these figures ---


def _bilinear_by_opencv(image: Image.Image, size: tuple[int, int]) -> Batch:
    resized: Batch = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR)
    return resized


def _bilinear_without_antialias(image: Image.Image, size: tuple[int, int]) -> Batch:
    planes = v2.pil_to_tensor(image)
    resized = v2.resize(planes, [size[1], size[0]], antialias=False)
    return np.asarray(resized.permute(1, 2, 0))


def _bilinear_on_tensors(image: Image.Image, size: tuple[int, int]) -> Batch:
    planes = v2.pil_to_tensor(image)
    return np.asarray(v2.resize(planes, [size[1], size[0]], antialias=True).permute(1, 2, 0))


@pytest.mark.parametrize(
    ("other", "resampling", "mean", "most"),
    [
        (_bilinear_on_tensors, "torchvision", 0, 1),
        (_bilinear_without_antialias, "torchvision-no-antialias", 7.5, 148),
        (_bilinear_by_opencv, "opencv", 7.5, 148),
    ],
)
def test_how_far_other_resizing_is_and_that_the_contract_can_name_it(
    other: Callable[[Image.Image, tuple[int, int]], Batch], resampling: Any, mean: float, most: int
) -> None:
    """Of scikit-learn's two photographs, 640 x 427 to 96 x 64, in levels of 255."""
    images = [Image.fromarray(array) for array in load_sample_images().images]
    pillow = np.stack([np.asarray(each.resize((96, 64), Image.Resampling.BILINEAR)) for each in images])
    theirs = np.stack([other(each, (96, 64)) for each in images])
    off = np.abs(pillow.astype(np.int16) - theirs)
    assert off.mean() == pytest.approx(mean, abs=0.1)
    assert off.max() == pytest.approx(most, abs=5 if most > 1 else 0)
    contract = Contract(color="rgb", resize=(64, 96), resampling=resampling, input_type="uint8", layout="nhwc")
    np.testing.assert_array_equal(np.stack([preprocess(each, contract) for each in images]), theirs)
