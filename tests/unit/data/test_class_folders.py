from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError, InputWarning
from alexdeploy.specs import Split


def _both(source: str | Path) -> tuple[ImageDataset, ImageDataset]:
    return load_dataset(str(source), "train"), load_dataset(str(source), "val")


def _fill(folder: Path, *names: str, gray: int = 0) -> None:
    """Write an image for every name, in that order."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), gray).save(folder / name, "PNG")


def _photos(*classes: str, count: int = 10) -> list[str]:
    return [f"{name}/{name}-{i}.png" for name in classes for i in range(count)]


@pytest.mark.parametrize("below", ["", "train"])
def test_without_a_val_folder_each_class_is_split_four_to_one(tmp_path: Path, below: str) -> None:
    _fill(tmp_path / below, *_photos("dog", "cat", count=20))
    train, val = _both(tmp_path)
    assert train.classes == val.classes == ("cat", "dog")
    assert sorted([*train.samples, *val.samples]) == sorted(_photos("dog", "cat", count=20))
    assert (np.bincount(train.labels).tolist(), np.bincount(val.labels).tolist()) == ([16, 16], [4, 4])


def test_with_a_val_folder_its_images_are_the_held_out_ones(tmp_path: Path) -> None:
    _fill(tmp_path, "train/dog/1.png", "train/cat/2.png", "train/cat/3.png", "val/dog/4.png", "val/cat/5.png")
    train, val = _both(tmp_path)
    assert (list(train.samples), train.labels.tolist()) == (["cat/2.png", "cat/3.png", "dog/1.png"], [0, 0, 1])
    assert (list(val.samples), val.labels.tolist()) == (["cat/5.png", "dog/4.png"], [0, 1])


def test_the_split_depends_on_the_names_alone(tmp_path: Path) -> None:
    names = _photos("cat", "dog")
    _fill(tmp_path / "a", *names)
    _fill(tmp_path / "b", *reversed(names), *_photos("ant"), gray=255)
    first = load_dataset(str(tmp_path / "a"), "val")
    second = load_dataset(str(tmp_path / "b"), "val")
    assert list(first.samples) == [name for name in second.samples if not name.startswith("ant")]


def test_every_image_is_read_from_the_file_that_it_is_named_by(tmp_path: Path) -> None:
    for gray, name in enumerate(["train/a/1.png", "train/b/2.png", "val/a/1.png", "val/b/3.png"]):
        _fill(tmp_path, name, gray=gray)
    train, val = _both(tmp_path)
    assert [image.getpixel((0, 0)) for part in (train, val) for _, image in part.images()] == [0, 1, 2, 3]


def test_files_that_are_no_images_are_passed_over_and_capital_suffixes_are_not(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.PNG", "train/b/2.JPeG", "val/a/1.png", "val/b/1.png")
    (tmp_path / "train" / "a" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "train" / "README.txt").write_text("two classes")
    assert list(load_dataset(str(tmp_path), "train").samples) == ["a/1.PNG", "b/2.JPeG"]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "train/.ipynb_checkpoints"])
def test_a_hidden_folder_is_no_class(tmp_path: Path, hidden: str) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / hidden).mkdir()
    assert load_dataset(str(tmp_path), "train").classes == ("a", "b")


@pytest.mark.parametrize(
    "system",
    [
        *("@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX"),
        *(".ipynb_checkpoints", ".@__thumb", ".Trash-1000", "$Recycle.Bin", "@RECYCLE"),
    ],
)
def test_what_a_system_puts_into_folders_is_neither_class_nor_image(tmp_path: Path, system: str) -> None:
    _fill(tmp_path, "a/1.png", "a/._1.png", "b/2.png", f"{system}/3.png", f"a/{system}/1.png/thumb.png")
    for name in (".DS_Store", "desktop.ini", "Thumbs.db"):
        (tmp_path / "a" / name).write_bytes(b"x")
    found = load_dataset(str(tmp_path), "all")
    assert (list(found.samples), found.classes) == (["a/1.png", "b/2.png"], ("a", "b"))


def test_a_link_back_up_leads_to_no_other_class(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    _fill(data, "a/1.png", "b/2.png")
    _fill(elsewhere, "3.png")
    links: dict[str, str | Path] = {
        "a/up": "..",
        "a/here": ".",
        "a/link.png": "1.png",
        "b/c": elsewhere,
        "b/top": tmp_path,
    }
    for name, target in links.items():
        (data / name).symlink_to(target)
    assert list(load_dataset(str(data), "all").samples) == ["a/1.png", "a/link.png", "b/2.png", "b/c/3.png"]


@pytest.fixture
def folder_with_a_corrupt_image(tmp_path: Path) -> str:
    _fill(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    (tmp_path / "train" / "b" / "notes.jpg").write_text("not an image at all")
    return str(tmp_path)


def test_a_text_file_that_is_called_jpg_is_named(folder_with_a_corrupt_image: str) -> None:
    with pytest.raises(InputError, match=r"cannot read image 'b/notes\.jpg'.*`skip_bad_images`"):
        list(load_dataset(folder_with_a_corrupt_image, "train").images())


def test_skipped_images_are_counted_by_name(folder_with_a_corrupt_image: str) -> None:
    dataset = load_dataset(folder_with_a_corrupt_image, "train", skip_bad=True)
    assert [index for index, _ in dataset.images()] == [0, 1]
    assert dataset.skipped == ["b/notes.jpg"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "ppm", "tif", "gif"])
def test_a_truncated_image_of_any_format_is_named(tmp_path: Path, suffix: str) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/3.png", "val/b/4.png")
    path = tmp_path / "train" / "a" / f"2.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"cannot read image 'a/2.{suffix}'"):
        list(load_dataset(str(tmp_path), "train").images())


@pytest.mark.parametrize(
    ("files", "folders", "complaint"),
    [
        (_photos("a", "b"), ["c"], r"c: the class folder holds no images"),
        ([], [], "no class folders and no images"),
        (["val/a/1.png", "val/b/1.png"], [], "has no folder for 'train', only val; use `split` val or all"),
        (["test/a/1.png", "test/b/1.png"], [], "has no folder for 'train', only test; use `split` test or all"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], [], "'val' and 'valid' are both for val; keep one"),
    ],
)
def test_a_folder_that_is_no_data_set_is_refused(
    tmp_path: Path, files: list[str], folders: list[str], complaint: str
) -> None:
    _fill(tmp_path, *files)
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=complaint):
        load_dataset(str(tmp_path), "train")


def _samples(folder: Path, split: Split) -> list[str]:
    return list(load_dataset(str(folder), split).samples)


def test_all_of_undivided_class_folders_is_every_image(tmp_path: Path) -> None:
    _fill(tmp_path, *_photos("cat", "dog"))
    every, judged = load_dataset(str(tmp_path), "all"), load_dataset(str(tmp_path), "val")
    assert list(every.samples) == sorted(_photos("cat", "dog"))
    assert every.labels.tolist() == [0] * 10 + [1] * 10
    assert (every.taken, judged.taken) == ("20 images", "4 of 20 images (the held-out fifth of each class)")
    assert judged.subset(2).taken == "2 of 20 images (the held-out fifth of each class, 2 spread over it)"
    with pytest.raises(InputError, match="has no folder 'test'; make one, or use `split` val or all"):
        load_dataset(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "VALID", "Testing"), ("training", "validation", "test")],
)
def test_split_folders_have_several_names(tmp_path: Path, train: str, val: str, test: str) -> None:
    for part, count in ((train, 3), (val, 2), (test, 1)):
        _fill(tmp_path / part, *_photos("a", "b", count=count))
    splits: tuple[Split, ...] = ("train", "val", "test")
    assert [_samples(tmp_path, split) for split in splits] == [_photos("a", "b", count=n) for n in (3, 2, 1)]
    every = load_dataset(str(tmp_path), "all")
    assert sorted(every.samples) == sorted(
        f"{part}/{name}" for part, n in ((train, 3), (val, 2), (test, 1)) for name in _photos("a", "b", count=n)
    )
    assert [every.samples[i].split("/")[1] for i in range(12)] == [every.classes[label] for label in every.labels]
    assert load_dataset(str(tmp_path), "val").taken == f"4 images (the folder {val})"
    assert every.taken == f"12 images ({train} and {val} and {test})"


def test_val_works_without_train(tmp_path: Path) -> None:
    _fill(tmp_path, "val/a/1.png", "val/b/1.png")
    assert _samples(tmp_path, "val") == ["a/1.png", "b/1.png"]
    assert _samples(tmp_path, "all") == ["val/a/1.png", "val/b/1.png"]


def test_without_val_train_is_divided_and_test_left_alone(tmp_path: Path) -> None:
    _fill(tmp_path / "train", *_photos("a", "b"))
    _fill(tmp_path / "test", *_photos("b"))
    train, val = _both(tmp_path)
    assert sorted([*train.samples, *val.samples]) == _photos("a", "b")
    assert val.taken == "4 of 20 images (the held-out fifth of each class)"
    test = load_dataset(str(tmp_path), "test")
    assert (test.classes, set(test.labels)) == (("a", "b"), {1})


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_folder_of_images_beside_other_classes_is_a_class_whatever_its_name(tmp_path: Path, name: str) -> None:
    _fill(tmp_path, *_photos("car", "plane", name))
    assert load_dataset(str(tmp_path), "val").classes == tuple(sorted(["car", "plane", name]))


def test_classes_that_train_lacks_are_named_with_its_own(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png")
    assert len(load_dataset(str(tmp_path), "train")) == 2
    with pytest.raises(InputError, match="'val' has classes c, 'train' has a, b; name the same classes alike"):
        load_dataset(str(tmp_path), "val")


def test_a_val_folder_without_images_of_a_class_is_said(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png")
    with pytest.warns(InputWarning, match="'val' holds no images of a, which 'train' does"):
        assert load_dataset(str(tmp_path), "val").labels.tolist() == [1]


def test_images_beside_split_folders_are_named_when_they_are_left_out(tmp_path: Path) -> None:
    _fill(tmp_path, "train/a/1.png", "val/a/1.png", "extra/a/1.png", "cover.png")
    (tmp_path / "notes").mkdir()
    with pytest.warns(InputWarning, match=r"images beside train and val are left out: extra, cover\.png$"):
        assert _samples(tmp_path, "all") == ["train/a/1.png", "val/a/1.png"]


def test_a_folder_of_images_is_taken_whole_without_labels(tmp_path: Path) -> None:
    _fill(tmp_path, "2.png", "1.png", "trip/3.png", "trip/day 2/4.png", "__MACOSX/5.png", "._1.png")
    for split in ("train", "val", "test", "all"):
        dataset = load_dataset(str(tmp_path), split)
        assert list(dataset.samples) == ["1.png", "2.png", "trip/3.png", "trip/day 2/4.png"]
        assert (dataset.taken, dataset.classes, set(dataset.labels)) == ("4 images", (), {-1})
        assert dataset.unlabelled == f"{tmp_path} has images that are in no class folder"
    with pytest.raises(InputError, match="is not split into train, val and test; leave `split` out"):
        load_dataset(str(tmp_path), "test", split_required=True)


def test_split_folders_of_images_have_splits_and_no_labels(tmp_path: Path) -> None:
    _fill(tmp_path, "train/1.png", "train/2.png", "val/3.png")
    assert [_samples(tmp_path, split) for split in ("train", "val")] == [["1.png", "2.png"], ["3.png"]]
    assert not load_dataset(str(tmp_path), "all").is_labelled


def test_nested_images_are_those_that_torchvision_finds(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    _fill(tmp_path, "daisy/1.png", "daisy/2023/2.png", "daisy/2023/may/3.png", "rose/a/4.png")
    _fill(tmp_path / "elsewhere", "5.png")
    (tmp_path / "elsewhere").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "tulip").symlink_to(tmp_path.parent / "elsewhere")
    ours, theirs = load_dataset(str(tmp_path), "all"), datasets.ImageFolder(tmp_path)
    found = {(str(tmp_path / name), label) for name, label in zip(ours.samples, ours.labels, strict=True)}
    assert found == {(path, label) for path, label in theirs.samples}
    assert ours.classes == tuple(theirs.classes) == ("daisy", "rose", "tulip")
    assert len(list(ours.images())) == 5


@pytest.mark.parametrize("suffix", ["jpeg", "jpe", "jfif", "avif", "jp2", "tiff", "pgm"])
def test_the_endings_of_phones_and_cameras_count(tmp_path: Path, suffix: str) -> None:
    _fill(tmp_path, "a/1.png", "b/1.png")
    Image.new("L", (16, 16), 90).convert("L" if suffix == "pgm" else "RGB").save(tmp_path / "a" / f"2.{suffix}")
    assert len(list(load_dataset(str(tmp_path), "all").images())) == 3


def test_an_iphone_photo_names_the_library_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"cannot read image 'a/2\.HEIC' \(.*pip install pillow-heif\)"):
        list(load_dataset(str(tmp_path), "all").images())


def test_a_single_image_of_a_class_is_for_training_and_that_is_said(tmp_path: Path) -> None:
    _fill(tmp_path, *_photos("a", "b"), "rare/1.png")
    with pytest.warns(InputWarning, match="one image only of rare; it is for training and none is held out"):
        train, val = _both(tmp_path)
    assert ("rare/1.png" in train.samples, "rare/1.png" in val.samples) == (True, False)
    assert val.classes == ("a", "b", "rare")


def test_single_images_of_all_classes_leave_none_to_hold_out(tmp_path: Path) -> None:
    _fill(tmp_path, "a/1.png", "b/1.png")
    assert len(load_dataset(str(tmp_path), "train")) == 2
    with pytest.raises(InputError, match="no class has a second image to hold out; add images, or use `split` all"):
        load_dataset(str(tmp_path), "val")


def test_one_class_is_enough_for_all_but_training(tmp_path: Path) -> None:
    _fill(tmp_path, *_photos("a"))
    assert load_dataset(str(tmp_path), "val").labels.tolist() == [0, 0]


def test_names_are_bytes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xc0\xf6"
    os.mkdir(folder)  # noqa: PTH102 (a name that is not UTF-8)
    os.mkdir(folder + b"/\xbb\xa8")  # noqa: PTH102
    _fill(Path(os.fsdecode(folder)), "tree/1.png")
    for number in range(2):
        name = folder + b"/\xbb\xa8/" + bytes([0xBB, 0xA8, 0x30 + number]) + b".png"
        (Path(os.fsdecode(folder)) / "tree" / "1.png").rename(os.fsdecode(name))
        _fill(Path(os.fsdecode(folder)), "tree/1.png")
    dataset = load_dataset(os.fsdecode(folder), "all")
    assert dataset.classes == ("tree", r"\xbb\xa8")
    assert len(list(dataset.images())) == 3
    assert len(dataset.fingerprint) == 64
    text = "\n".join([dataset.name, *dataset.classes, dataset.taken])
    assert text.encode().decode() == text
    assert dataset.name.endswith(r"/\xc0\xf6/all")


def test_warnings_of_a_healthy_data_set_are_none(tmp_path: Path) -> None:
    _fill(tmp_path, *_photos("a", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _both(tmp_path)
