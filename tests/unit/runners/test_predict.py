from __future__ import annotations

import copy
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from alexdeploy.data.preprocess import resize, to_input
from alexdeploy.errors import InputError, InputWarning
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.classifier import Classifier
from alexdeploy.runners.predict import Prediction, Tally, find_images, predict
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


def test_a_pipe_that_is_named_is_read_and_one_in_a_folder_or_list_is_refused(
    artifact: Artifact, photos: list[Path], tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    answers: list[list[tuple[str, float]]] = []
    for _ in range(2):  # by predict, and by Classifier
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: pipe.write_bytes(photos[0].read_bytes()))
            if not answers:
                answers.append(next(predict(artifact, find_images([pipe], []))).top)
            else:
                with Classifier(artifact) as classifier:
                    answers.append(classifier([pipe]))
    [expected] = predict(artifact, [photos[0]])
    assert answers == [expected.top] * 2
    (tmp_path / "list.txt").write_text("pipe.png\n")
    for found in (tmp_path, tmp_path / "list.txt"):
        with pytest.raises(InputError, match="it is a pipe, a socket or a device, and no file; remove it, or use"):
            list(predict(artifact, find_images([found], [])))


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


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)


def test_class_folders_tell_the_truth_and_other_folders_do_not(tmp_path: Path) -> None:
    write(
        tmp_path, "val/cat/1.png", "val/dog/2.png", "val/misc/old/3.png", "val/4.png", "val/cat/._1.png", "val/.x/5.png"
    )
    found = find_images([tmp_path / "val", tmp_path / "val" / "cat" / "1.png"], ("cat", "dog"))
    assert [(image.path.name, image.truth, image.folder) for image in found] == [
        ("4.png", None, "val"),
        ("1.png", "cat", None),
        ("2.png", "dog", None),
        ("3.png", None, "misc"),
        ("1.png", None, None),
    ]


def test_the_nearest_folder_that_is_named_as_a_class_counts_through_links_and_but_for_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "cat/2023/1.jfif.png", "cat/dog/2.png", "CAT/3.png", "Ant/4.png", "DOG/5.png")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dog").symlink_to(tmp_path / "cat" / "2023")
    labels = ("cat", "Dog", "ant", "ANT")

    def truths(*paths: Path | str) -> list[str | None]:
        return [image.truth for image in find_images([Path(path) for path in paths], labels)]

    assert truths(tmp_path / "cat") == ["cat", "Dog"]
    assert truths(tmp_path / "CAT", tmp_path / "DOG") == ["cat", "Dog"]
    assert truths(tmp_path / "Ant") == [None], "two classes differ in case alone"
    assert truths(tmp_path / "links") == ["Dog"]
    monkeypatch.chdir(tmp_path / "cat" / "2023")
    assert truths(".") == [None]
    monkeypatch.chdir(tmp_path / "cat")
    assert truths(".") == ["cat", "Dog"]


@pytest.mark.parametrize(
    ("names", "labels", "beside"),
    [
        (("train/cat", "val/cat"), ("cat", "dog"), "val"),
        (("Training/cat", "validation/cat", "test/cat"), ("cat", "dog"), "test and validation"),
        (("train/cat", "val/cat"), ("train", "val"), None),  # these are classes
        (("train/cat", "misc/cat"), ("cat", "dog"), None),
        (("val/cat", "test/cat"), ("cat", "dog"), None),
    ],
)
def test_training_images_beside_others_are_labelled_and_that_is_said(
    tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...], beside: str | None
) -> None:
    write(tmp_path, *(f"{name}/1.png" for name in names))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_images([tmp_path], labels)
    assert len(found) == len(names)
    said = [str(warning.message) for warning in caught]
    if beside is None:
        assert said == []
        return
    (text,) = said
    assert text.startswith(f"{tmp_path}: training images are labelled and counted as well as those in ")
    assert all(name in text for name in beside.split(" and "))
    assert str(tmp_path / beside.split(" and ")[-1]) in text


def test_names_that_are_not_utf_8_are_shown(artifact: Artifact, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xbb\xa8"))
    write(folder, os.fsdecode(b"\xc3.png"))
    (found,) = find_images([tmp_path], ("\\xbb\\xa8",))
    (prediction,) = predict(artifact, [found])
    assert prediction.truth == "\\xbb\\xa8"
    assert prediction.image == f"{tmp_path}/\\xbb\\xa8/\\xc3.png"


def test_unreadable_images_are_left_out_and_named_where_that_is_asked_for(
    artifact: Artifact, photos: list[Path], tmp_path: Path
) -> None:
    empty, text = tmp_path / "empty.png", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("no image")
    mixed = [empty, *photos[:20], text, *photos[20:]]
    skipped: list[str] = []
    assert list(predict(artifact, mixed, skipped=skipped)) == list(predict(artifact, photos))
    assert skipped == [str(empty), str(text)]
    with pytest.raises(InputError, match=rf"cannot read image '{empty}': .*; remove it, or use `skipped`"):
        list(predict(artifact, mixed))
    with pytest.raises(InputError, match="none of the 2 images can be read"):
        list(predict(artifact, [empty, text], skipped=[]))


def test_accuracy_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = tuple("abcdefgh")
    shares = random.dirichlet(np.ones(8), 200)
    truth = random.integers(0, 7, 200)  # h has no images
    shares[np.arange(200), truth] += 0.1
    order = np.argsort(-shares)[:, :5]
    predictions = [
        Prediction("x.png", [(labels[place], 0.1) for place in row], labels[true])
        for row, true in zip(order, truth, strict=True)
    ]
    tally = Tally(labels)
    unknown = Prediction("y.png", [("a", 1.0)])
    assert list(tally.count([unknown])) == [unknown]
    assert tally.accuracy is None
    assert list(tally.count(predictions)) == predictions
    assert tally.predictions == 201
    found = tally.accuracy
    assert found is not None
    assert found.images == 200
    assert found.top1 == found.right / 200 == pytest.approx(metrics.accuracy_score(truth, order[:, 0]))
    assert found.top5 == pytest.approx(metrics.top_k_accuracy_score(truth, shares, k=5, labels=range(8)))
    recall = metrics.recall_score(truth, order[:, 0], labels=range(7), average=None)
    assert [row.label for row in found.classes] == list("abcdefg")
    np.testing.assert_allclose([row.recall for row in found.classes], recall)
    assert sum(row.images for row in found.classes) == 200


def test_names_given_may_not_contradict_the_file(artifact: Artifact) -> None:
    named = artifact.with_labels(tuple("abcdefghij"))
    assert named.contract.labels == tuple("abcdefghij")
    assert named.with_labels(tuple("abcdefghij")).contract == named.contract
    assert artifact.contract.labels == ()
    with pytest.raises(InputError, match="carries other class names"):
        named.with_labels(tuple("jihgfedcba"))


def test_a_list_gives_images_with_their_truth_and_an_array_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "l.csv").write_text("a.png,Cat\nb.png,dog\nc.png,cow\nd.png\n")
    found = find_images([tmp_path / "l.csv"], ["cat", "dog"])
    assert [(image.path.name, image.truth) for image in found] == [
        ("a.png", "cat"),
        ("b.png", "dog"),
        ("c.png", None),
        ("d.png", None),
    ]
    (tmp_path / "x.npy").touch()
    with pytest.raises(InputError, match="holds an array; predict takes images, folders of them, and lists"):
        find_images([tmp_path / "x.npy"], ["cat"])


def test_large_images_that_nothing_resizes_are_told(artifact: Artifact, tmp_path: Path) -> None:
    Image.new("RGB", (900, 800)).save(tmp_path / "camera.png")
    contract = msgspec.structs.replace(artifact.contract, resize=None, crop=artifact.contract.size)
    unresized = copy.copy(artifact)
    unresized.__dict__["contract"] = contract
    with pytest.warns(InputWarning, match="only the central 28 pixels of images of about 800 are seen"):
        list(predict(unresized, [tmp_path / "camera.png"]))
