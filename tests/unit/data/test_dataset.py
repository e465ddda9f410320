from __future__ import annotations

import errno
import hashlib
import io
import re
import warnings
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_contract
from PIL import ExifTags, Image

from alexdeploy.contract import Contract
from alexdeploy.data.dataset import ImageDataset, split_by_name
from alexdeploy.data.preprocess import preprocess
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError, InputWarning, UnavailableError

CONTRACT = Contract(color="gray", crop=2, mean=(0.0,), std=(1.0,))


def _dataset(count: int = 10, bad: Collection[int] = (), *, skip_bad: bool = False) -> ImageDataset:
    """``count`` images of one gray each (10, 20, …) in two classes, one after the other."""

    def read(index: int) -> Image.Image:
        if index in bad:
            raise OSError("truncated")
        return Image.new("L", (3, 4), 10 * (index + 1))

    labels = np.arange(count, dtype=np.int64) * 2 // count
    samples = [f"{label}/{index}.png" for index, label in enumerate(labels)]
    return ImageDataset("set/val", ("cat", "dog"), samples, labels, read, skip_bad)


def _grays(dataset: ImageDataset) -> list[object]:
    return [image.getpixel((0, 0)) for _, image in dataset.images()]


def test_batches_hold_every_preprocessed_image_in_order() -> None:
    dataset = _dataset(10)
    batches = list(dataset.batches(CONTRACT, 4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    expected = np.stack([preprocess(dataset.image(i), CONTRACT) for i in range(10)])
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), expected)
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 5


def test_batches_for_several_contracts_read_an_image_once_for_each_that_differs() -> None:
    plain = _dataset(5, bad=[1], skip_bad=True)
    reads: list[int] = []

    def read(index: int) -> Image.Image:
        reads.append(index)
        image = plain.read(index)
        assert isinstance(image, Image.Image)
        return image

    dataset = replace(plain, read=read)
    pixels = Contract(color="gray", crop=2, layout="nhwc", input_type="uint8")
    found = list(dataset.batches_for([CONTRACT, pixels, CONTRACT], 3))
    assert sorted(reads) == sorted([0, 1, 2, 3, 4] * 2)
    assert [(batch[CONTRACT].shape, batch[pixels].shape) for batch, _ in found] == [
        ((3, 1, 2, 2), (3, 2, 2, 1)),
        ((1, 1, 2, 2), (1, 2, 2, 1)),
    ]
    for batch, labels in found:
        np.testing.assert_array_equal(batch[CONTRACT][:, 0], batch[pixels][..., 0] / np.float32(255))
        assert len(labels) == len(batch[pixels])


def test_a_full_last_batch_is_not_followed_by_an_empty_one() -> None:
    assert [len(images) for images, _ in _dataset(8).batches(CONTRACT, 4)] == [4, 4]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_image_asked_for_by_number_that_cannot_be_read_is_named(skip_bad: bool) -> None:
    with pytest.raises(InputError, match=r"set/val: cannot read image '0/3\.png' \(truncated\)"):
        _dataset(bad={3}, skip_bad=skip_bad).image(3)


def test_an_unreadable_image_ends_the_reading() -> None:
    with pytest.raises(InputError, match=r"0/3\.png"):
        list(_dataset(bad={3}).batches(CONTRACT, 4))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_what_the_machine_lacks_is_never_an_image_to_skip(number: int) -> None:
    def read(_index: int) -> Image.Image:
        raise OSError(number, "what it lacks")

    dataset = replace(_dataset(skip_bad=True), read=read)
    with pytest.raises(OSError, match="what it lacks: 'set/val: ") as trouble:
        next(dataset.images())
    assert trouble.value.errno == number
    assert not dataset.skipped


def test_an_image_without_memory_for_it_is_named_and_not_skipped() -> None:
    def read(_index: int) -> Image.Image:
        raise MemoryError

    dataset = replace(_dataset(skip_bad=True), read=read)
    with pytest.raises(UnavailableError, match=r"no memory to read image 'set/val: .*damaged"):
        next(dataset.images())
    assert not dataset.skipped


def test_skipped_images_take_their_labels_with_them() -> None:
    batches = list(_dataset(bad={0, 1, 7}, skip_bad=True).batches(CONTRACT, 4))
    pixels = [float(image.max()) * 255 for images, _ in batches for image in images]
    assert np.round(pixels).tolist() == [30, 40, 50, 60, 70, 90, 100]
    assert np.concatenate([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_an_image_skipped_twice_is_counted_once() -> None:
    dataset = _dataset(bad={1, 7}, skip_bad=True)
    assert len(_grays(dataset)) == len(_grays(dataset)) == 8
    assert dataset.skipped == ["0/1.png", "1/7.png"]


def test_a_subset_counts_what_it_skips_with_the_whole() -> None:
    dataset = _dataset(bad={0}, skip_bad=True)
    assert len(_grays(dataset.subset(4))) == 3
    assert dataset.skipped == ["0/0.png"]


def test_a_data_set_without_one_readable_image_is_refused_even_when_bad_ones_are_skipped() -> None:
    with pytest.raises(InputError, match="none of the 3 images can be read"):
        list(_dataset(3, bad={0, 1, 2}, skip_bad=True).images())


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_subset_is_spread_over_the_whole_with_both_ends(count: int) -> None:
    subset = _dataset(100).subset(count)
    numbers = [int(sample.split("/")[1].removesuffix(".png")) for sample in subset.samples]
    assert (len(subset), numbers[0], numbers[-1]) == (count, 0, 99)
    assert np.ptp(np.diff(numbers)) <= 1
    assert subset.labels.tolist() == [number // 50 for number in numbers]


def test_a_subset_reads_the_images_that_it_names() -> None:
    subset = _dataset(10).subset(4)
    assert _grays(subset) == [10 * (int(sample[2:-4]) + 1) for sample in subset.samples]


@pytest.mark.parametrize("count", [10, 11])
def test_a_subset_of_at_least_all_images_is_the_whole(count: int) -> None:
    assert list(_dataset(10).subset(count).samples) == list(_dataset(10).samples)


def test_the_fingerprint_is_the_sha256_of_names_and_labels() -> None:
    text = "0/0.png\t0\n0/1.png\t0\n1/2.png\t1\n1/3.png\t1"
    assert _dataset(4).fingerprint == hashlib.sha256(text.encode()).hexdigest()


def _contract_with(*labels: str) -> Contract:
    return Contract(color="gray", crop=2, mean=(0.0,), std=(1.0,), labels=labels)


def test_classes_are_matched_by_name_whatever_their_order_and_case() -> None:
    assert _dataset(4).labelled(_contract_with("cat", "dog"), 2, "model.onnx").labels.tolist() == [0, 0, 1, 1]
    found = _dataset(4).labelled(_contract_with("owl", "Dog", "cat"), 3, "model.onnx")
    assert found.labels.tolist() == [2, 2, 1, 1]
    assert found.classes == ("owl", "Dog", "cat")


def test_classes_without_names_in_the_model_are_matched_by_number() -> None:
    with pytest.warns(InputWarning, match=r"model\.onnx has no class names; took cat, dog in that order"):
        assert _dataset(4).labelled(_contract_with(), 2, "model.onnx").labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "outputs", "complaint"),
    [
        ((), 3, r"set/val has 2 classes but model\.onnx has 3 outputs"),
        ((), None, r"set/val has 2 classes but model\.onnx does not say how many classes it has"),
        (("cat", "cow"), 2, r"set/val has class 'dog'; model\.onnx has cat, cow"),
        (("one", "two", "three", "four", "five"), 5, r"class 'cat', 'dog'; model\.onnx has one, two, three and 2 more"),
    ],
)
def test_classes_that_the_model_does_not_have_leave_the_images_without_labels(
    labels: tuple[str, ...], outputs: int | None, complaint: str
) -> None:
    found = _dataset().matched(_contract_with(*labels), outputs, "model.onnx")
    assert not found.is_labelled
    assert re.search(complaint, found.unlabelled)
    with pytest.raises(InputError, match=f"{complaint}; this needs images of the model's classes, with labels"):
        _dataset().labelled(_contract_with(*labels), outputs, "model.onnx")


def test_tensors_are_handed_over_as_they_are_and_must_fit() -> None:
    tensors = np.random.default_rng(0).standard_normal((3, 1, 2, 2)).astype(np.float32)
    dataset = ImageDataset("x.npy", (), ["0", "1", "2"], np.full(3, -1), lambda i: tensors[i])
    ((images, labels),) = dataset.batches(CONTRACT, 4)
    np.testing.assert_array_equal(images, tensors)
    assert labels.tolist() == [-1] * 3
    with pytest.raises(
        InputError, match=r"x\.npy: tensor '0' is \(1, 2, 2\) float32; the model takes \(1, 3, 3\) float32"
    ):
        next(dataset.batches(Contract(color="gray", crop=3, mean=(0.0,), std=(1.0,)), 1))
    with pytest.raises(InputError, match="holds preprocessed tensors; this needs images"):
        dataset.image(0)


def test_what_is_taken_is_told_with_the_reason() -> None:
    assert _dataset(10).taken == "10 images"
    assert _dataset(10).subset(4).taken == "4 of 10 images (spread over it)"
    part = replace(_dataset(10), total=50, part="the held-out fifth")
    assert part.subset(4).taken == "4 of 50 images (the held-out fifth, 4 spread over it)"


def _numbered(labels: list[int]) -> ImageDataset:
    values, places = np.unique(labels, return_inverse=True)
    return replace(_dataset(len(labels)), classes=tuple(map(str, values)), labels=places, are_indices=True)


@pytest.mark.parametrize(
    ("known", "outputs", "expected"),
    [
        (("a", "b", "c"), 3, [2, 0, 2]),
        ((), 3, [2, 0, 2]),
        (("2", "9", "0"), 3, [0, 2, 0]),  # the model's own names are numbers
    ],
)
def test_numbers_count_the_outputs_unless_the_models_classes_are_numbers(
    known: tuple[str, ...], outputs: int, expected: list[int]
) -> None:
    assert _numbered([2, 0, 2]).labelled(_contract_with(*known), outputs, "m.onnx").labels.tolist() == expected


@pytest.mark.parametrize(
    ("known", "outputs", "complaint"),
    [
        (("a", "b"), 2, "has the label 2 but m.onnx has 2 outputs"),
        ((), None, "has the label 2 but m.onnx does not say how many classes it has"),
        (("1", "2"), 2, "has class '0'; m.onnx has 1, 2"),
    ],
)
def test_numbers_that_the_model_does_not_have_leave_no_labels(
    known: tuple[str, ...], outputs: int | None, complaint: str
) -> None:
    assert complaint in _numbered([2, 0, 2]).matched(_contract_with(*known), outputs, "m.onnx").unlabelled


def _photos(size: tuple[int, int], turned: Collection[int] = ()) -> ImageDataset:
    """Six photographs as a camera stores them, some of them on their side."""

    def read(index: int) -> Image.Image:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if index in turned else 1
        stored = io.BytesIO()
        Image.new("L", size, 9).save(stored, "JPEG", exif=exif)
        return Image.open(stored)

    return replace(_dataset(6), read=read)


def _said(dataset: ImageDataset, contract: Contract) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(dataset.batches(contract, 4))
    assert {each.category for each in caught} <= {InputWarning, ResourceWarning}  # Pillow keeps animated files open
    return [str(each.message) for each in caught if each.category is InputWarning]


def test_images_far_larger_than_the_crop_are_said_once_for_each_contract() -> None:
    dataset = _photos((40, 5))
    (text,) = _said(dataset, CONTRACT)
    assert text.startswith("set/val: only the central 2 pixels of images of about 5 are seen; give the contract a resi")
    assert _said(dataset.subset(3), CONTRACT) == []
    assert len(_said(dataset, _contract_with("cat", "dog"))) == 1
    for contract in (replace_contract(CONTRACT, resize=3), replace_contract(CONTRACT, crop=3)):
        assert _said(_photos((40, 5)), contract) == []


def test_images_stored_turned_are_counted_where_the_contract_does_not_turn_them() -> None:
    (text,) = _said(_photos((4, 4), turned={1, 4}), CONTRACT)
    assert text.startswith("set/val: 2 of 6 images carry an EXIF orientation that the contract does not apply")
    assert _said(_photos((4, 4), turned={1, 4}), replace_contract(CONTRACT, exif_orientation=True)) == []


def test_images_with_further_frames_are_counted_and_the_first_is_what_is_seen(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    kinds = ("gif", "webp", "png", "tif", "avif")
    for suffix in kinds:
        frames[0].save(tmp_path / f"several.{suffix}", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / f"single.{suffix}")
    frames[0].save(tmp_path / "telephone.jpg", "MPO", save_all=True, append_images=[frames[0].resize((2, 2))])
    damaged = (tmp_path / "several.gif").read_bytes()
    (tmp_path / "damaged.gif").write_bytes(damaged[: len(damaged) // 2])
    data = load_dataset(str(tmp_path), "all")
    contract = Contract(color="rgb", crop=4, input_type="uint8", layout="nhwc")
    (text,) = _said(data, contract)
    assert text == f"{tmp_path}: 5 of 12 images are animated or have pages; only the first of each is seen"
    for _, pixels in data.inputs(contract):
        assert np.all(pixels[..., 0] > 200), "red"
        assert np.all(pixels[..., 1:] < 60)


def test_the_held_out_names_are_those_with_the_smallest_hashes() -> None:
    names = [f"photo-{i}.jpg" for i in range(50)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    held_out = {name for name, out in zip(names, split_by_name(names), strict=True) if out}
    assert held_out == set(ranked[:10])


def test_the_split_does_not_depend_on_the_order_of_the_names() -> None:
    names = [f"photo-{i}.jpg" for i in range(50)]
    assert split_by_name(names[::-1]) == split_by_name(names)[::-1]


@pytest.mark.parametrize(("count", "held_out"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 2), (1797, 359)])
def test_the_held_out_share_is_a_fifth_with_one_on_each_side(count: int, held_out: int) -> None:
    assert sum(split_by_name([str(i) for i in range(count)])) == held_out


def test_the_fingerprint_tells_selections_apart_and_not_places() -> None:
    dataset = _dataset(4)
    others = [replace(dataset, labels=1 - dataset.labels), dataset.subset(3)]
    assert len({each.fingerprint for each in (dataset, *others)}) == 3
    assert replace(dataset, name="/elsewhere/set/val").fingerprint == dataset.fingerprint


def test_a_pool_reads_the_same_inputs_in_the_same_order() -> None:
    expected = list(_dataset(80, bad={0, 40, 79}, skip_bad=True).inputs(CONTRACT))
    dataset = _dataset(80, bad={0, 40, 79}, skip_bad=True)
    with ThreadPoolExecutor(3) as pool:
        found = list(dataset.inputs(CONTRACT, pool=pool))
    assert [index for index, _ in found] == [index for index, _ in expected]
    np.testing.assert_array_equal([image for _, image in found], [image for _, image in expected])
    assert dataset.skipped == ["0/0.png", "1/40.png", "1/79.png"]
