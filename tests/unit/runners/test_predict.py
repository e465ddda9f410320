from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from alexdeploy.data.preprocess import resize, to_input
from alexdeploy.errors import InputError
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.classifier import find_images, predict
from alexdeploy.zoo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, untrained


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A checkpoint of an untrained LeNet that resizes to 36 and crops to 28."""
    path = tmp_path_factory.mktemp("predict") / "lenet.safetensors"
    fresh = untrained("lenet", 10, seed=0)
    contract = msgspec.structs.replace(fresh.contract, resize=36)
    save_checkpoint(path, Checkpoint(fresh.model, fresh.recipe, contract, fresh.classes))
    return open_artifact(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """More than one batch of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    paths = [folder / f"{i:02}.png" for i in range(35)]
    for i, path in enumerate(paths):
        Image.fromarray(random.integers(0, 256, (40 + i, 60 - i), dtype=np.uint8)).save(path)
    return paths


def test_every_image_gets_its_own_prediction_also_in_the_last_partial_batch(
    artifact: Artifact, photos: list[Path]
) -> None:
    together = list(predict(artifact, photos))
    alone = [next(predict(artifact, [photo])) for photo in photos]
    assert [p.image for p in together] == list(map(str, photos))
    assert [p.label for p in together] == [p.label for p in alone]
    np.testing.assert_allclose([p.probability for p in together], [p.probability for p in alone], rtol=1e-5)


def test_ten_crop_averages_the_probabilities_of_the_crops_of_torchvision(
    artifact: Artifact, photos: list[Path]
) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    model = load_checkpoint(artifact.path).model
    found = list(predict(artifact, photos[:7], ten_crop=True))
    for photo, prediction in zip(photos, found, strict=False):
        crops = v2.FiveCrop(28)(resize(Image.open(photo), artifact.contract))
        crops += tuple(map(v2.functional.horizontal_flip, crops))
        batch = torch.from_numpy(np.stack([to_input(crop, artifact.contract) for crop in crops]))
        with torch.inference_mode():
            mean = model(batch).softmax(1).mean(0)
        assert prediction.label == str(int(mean.argmax()))
        assert prediction.probability == pytest.approx(float(mean.max()), rel=1e-5)


def test_class_folders_tell_the_truth_and_other_folders_do_not(tmp_path: Path) -> None:
    for name in ("val/cat/1.png", "val/dog/2.png", "val/misc/3.png", "val/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    labels = ("cat", "dog", "val")
    found = find_images([tmp_path / "val", tmp_path / "val" / "cat" / "1.png"], labels)
    assert [(image.path.name, image.truth) for image in found] == [
        ("4.png", None),
        ("1.png", "cat"),
        ("2.png", "dog"),
        ("3.png", None),
        ("1.png", None),
    ]


def test_names_given_may_not_contradict_the_file(artifact: Artifact) -> None:
    named = artifact.with_labels(tuple("abcdefghij"))
    assert named.contract.labels == tuple("abcdefghij")
    assert named.with_labels(tuple("abcdefghij")).contract == named.contract
    assert artifact.contract.labels == ()
    with pytest.raises(InputError, match="carries other class names"):
        named.with_labels(tuple("jihgfedcba"))
