from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from alexdeploy.contract import Contract
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import InputError

IMAGES = ("a.png", "b c.jpg", "sub/d,e.PNG", "plain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose gray value is their place in ``IMAGES``."""
    (tmp_path / "sub").mkdir()
    for gray, name in enumerate(IMAGES):
        Image.new("L", (4, 4), gray).save(tmp_path / name, "PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "a.png cat\nb c.jpg black dog\n"),
        ("l.txt", "# two images\n\na.png,cat\r\nb c.jpg, black dog\r\n"),
        ("l.txt", "path,label\na.png\tcat\nb c.jpg\tblack dog"),
        ("l.csv", "a.png,cat\nb c.jpg,black dog\n"),
        ("l.csv", "\ufeffimage,label\r\n# a comment, with a comma\r\na.png,cat\r\n\r\nb c.jpg,black dog\r\n"),
        ("l.csv", 'label,path,size\n"cat","a.png",3\n"black dog","b c.jpg",4\n'),
        ("l.csv", "a.png;cat\nb c.jpg;black dog\n"),
        ("l.csv", "a.png cat\nb c.jpg black dog\n"),
        ("l.tsv", "a.png\tcat\nb c.jpg\tblack dog\n"),
    ],
)
def test_every_form_of_a_list_is_the_same_data_set(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode())
    dataset = load_dataset(str(folder / name), "val")
    assert list(dataset.samples) == ["a.png", "b c.jpg"]
    assert dataset.classes == ("black dog", "cat")
    assert [dataset.classes[label] for label in dataset.labels] == ["cat", "black dog"]
    assert [image.getpixel((0, 0)) for _, image in dataset.images()] == [0, 1]
    assert (dataset.name, dataset.taken, dataset.are_indices) == (str(folder / name), "2 images", False)


@pytest.mark.parametrize(
    ("name", "text"), [("l.txt", "sub/d,e.PNG\nplain\n{}/a.png"), ("l.csv", 'image\n"sub/d,e.PNG"\nplain\n{}/a.png')]
)
def test_a_list_of_paths_alone_has_no_labels(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text.format(folder))
    dataset = load_dataset(str(folder / name), "train")
    assert [image.getpixel((0, 0)) for _, image in dataset.images()] == [2, 3, 0]
    assert (dataset.classes, dataset.is_labelled) == ((), False)
    assert dataset.unlabelled == f"{folder / name} has no label for 3 of 3 images"


def test_numbers_are_indices_and_a_lacking_label_is_counted(folder: Path) -> None:
    (folder / "l.txt").write_text("a.png 10\nb c.jpg 2\n")
    dataset = load_dataset(str(folder / "l.txt"), "all")
    assert dataset.are_indices
    assert [int(dataset.classes[label]) for label in dataset.labels] == [10, 2]
    (folder / "l.txt").write_text("a.png 10\nb c.jpg\n")
    dataset = load_dataset(str(folder / "l.txt"), "all")
    assert (dataset.labels.tolist(), dataset.is_labelled) == ([0, -1], False)
    assert dataset.unlabelled.endswith("has no label for 1 of 2 images")


def test_bytes_that_are_no_text_name_files_too(folder: Path) -> None:
    name = os.fsdecode(b"\xbb\xa8.png")
    (folder / "a.png").rename(folder / name)
    (folder / "l.txt").write_bytes(b"\xbb\xa8.png \xbb\n")
    dataset = load_dataset(str(folder / "l.txt"), "all")
    assert (list(dataset.samples), dataset.classes) == ([name], (r"\xbb",))
    assert dataset.image(0).size == (4, 4)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("l.txt", b"\n# nothing\n", "lists no images; expected lines of path, path,label or path label"),
        ("l.txt", b"a.png 1\nno.png 2\nneither.png 3\n", "2 of 3 files do not exist, first 'no.png' in line 2; paths"),
        ("l.csv", b"a.png,cat,3\n", "line 1 has 3 columns; expected path,label, or a first line"),
        ("l.csv", b"path,label\na.png,cat\nplain\n", None),
        ("l.csv", "a.png,cat".encode("utf-16"), "is not UTF-8 text; save it as UTF-8"),
        ("l.csv", b"", "the file is empty"),
        ("l.csv", b'b c.jpg,x\na.png,"cat\nb.png,dog\n', "line 2 opens a quotation mark that none closes; close it"),
        ("l.csv", b'a.png,cat\n"', "line 2 opens a quotation mark"),
        ("l.csv", b'a.png,cat\n"a.png', "line 2 opens a quotation mark"),
        ("l.csv", b'a.png,"' + b"x" * 200_000 + b'"\n', "is not CSV"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_the_place(
    folder: Path, name: str, data: bytes, complaint: str | None
) -> None:
    (folder / name).write_bytes(data)
    if complaint is None:  # a row without its label
        assert load_dataset(str(folder / name), "val").labels.tolist() == [0, -1]
        return
    with pytest.raises(InputError, match=complaint):
        load_dataset(str(folder / name), "val")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_blanks_behind_a_quotation_mark_and_marks_in_a_word_are_fine(folder: Path, end: str) -> None:
    (folder / "l.csv").write_bytes(f'path,label\n"a.png" ,"cat" \nb c.jpg,5" pipe\na.png,"end"{end}'.encode())
    dataset = load_dataset(str(folder / "l.csv"), "val")
    assert dataset.samples == ["a.png", "b c.jpg", "a.png"]
    assert [dataset.classes[label] for label in dataset.labels] == ["cat", '5" pipe', "end"]


def test_absent_files_are_skipped_as_unreadable_ones_are(folder: Path) -> None:
    (folder / "l.txt").write_text("no.png cat\na.png dog\n")
    dataset = load_dataset(str(folder / "l.txt"), "val", skip_bad=True)
    assert [index for index, _ in dataset.images()] == [1]
    assert dataset.skipped == ["no.png"]


def test_numbers_are_in_numeric_order_and_no_names(folder: Path) -> None:
    (folder / "l.csv").write_text("image,target\na.png,10\nb c.jpg,2\n")
    dataset = load_dataset(str(folder / "l.csv"), "all")
    assert (dataset.classes, dataset.names, dataset.labels.tolist()) == (("2", "10"), (), [1, 0])
    contract = Contract(color="gray", crop=4, mean=(0.0,), std=(1.0,))
    assert dataset.labelled(contract, 11, "m.onnx").labels.tolist() == [10, 2]
    (folder / "l.csv").write_text("a.png,99999999999999999999\n")
    with pytest.raises(InputError, match=r"has the label 99999999999999999999 but m\.onnx has 11 outputs"):
        load_dataset(str(folder / "l.csv"), "all").labelled(contract, 11, "m.onnx")


def test_a_file_whose_name_begins_as_a_comment_does_is_no_comment(folder: Path) -> None:
    (folder / "#1.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "l.txt").write_text("#1.png cat\n# cat\nb c.jpg dog\n")
    assert list(load_dataset(str(folder / "l.txt"), "all").samples) == ["#1.png", "b c.jpg"]
