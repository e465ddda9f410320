"""What predict shows and writes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from alexdeploy import files
from tests.cli.conftest import Run


@pytest.fixture
def photos(pictures: Path, tmp_path: Path) -> Path:
    """Three digits in class folders, one in a folder that is none, one whose names are no UTF-8, one unreadable."""
    folder = tmp_path / "photos"
    names = [b"0/old/a.png", b"1/b,c.png", b"1/d.png", b"ones/e.png", b"\xbb\xa8/\xc3.png"]
    for digit, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(pictures / "train" / str(digit) / "digit-0.png").save(path)
    (folder / "1" / "broken.png").write_bytes(b"\x89PNG")
    return folder


def test_a_folder_with_everything_in_it_is_predicted_and_what_is_left_out_is_said(
    run: Run, model: Path, photos: Path
) -> None:
    stopped = run("predict", model, photos)
    assert (stopped.code, stopped.out) == (3, "")
    assert "1/broken.png': " in stopped.err
    assert stopped.err.endswith("remove it, or use --skip-bad-images\n")
    shown = run("predict", model, photos, "--skip-bad-images", "--top", 2)
    assert shown.code == 0
    assert [line.count("%)") for line in shown.out.splitlines()] == [2] * 5
    assert f"{photos}/\\xbb\\xa8/\\xc3.png: " in shown.out
    assert (
        "of 3 images in their class folder are right; 2 images in folders that are no class of the model " in shown.err
    )
    assert "(\\xbb\\xa8, ones)" in shown.err
    assert "1 unreadable images left out: " in shown.err
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown.err.splitlines() if "│" in line]
    assert rows == [["0", "1"], ["1", "2"]]


def test_every_format_has_the_same_answers_with_their_truth(run: Run, model: Path, photos: Path, out: Path) -> None:
    command = ["predict", model, photos, "--skip-bad-images", "--top", 2]
    result = json.loads(run(*command, "--json", "--out", out / "p.jsonl").out)
    lines = [json.loads(line) for line in (out / "p.jsonl").read_text().splitlines()]
    assert lines == result["predictions"]
    assert [line["truth"] for line in lines] == ["0", "1", "1", None, None]
    assert all(line["top"][0] == {name: line[name] for name in ("label", "probability")} for line in lines)
    assert result["skipped"] == [str(photos / "1" / "broken.png")]
    assert result["other_folders"] == {"ones": 1, "\\xbb\\xa8": 1}
    right = [line["label"] == line["truth"] for line in lines[:3]]
    assert (result["accuracy"]["right"], result["accuracy"]["images"]) == (sum(right), 3)
    assert [(row["label"], row["right"], row["images"]) for row in result["accuracy"]["classes"]] == [
        ("0", right[0], 1),
        ("1", sum(right[1:]), 2),
    ]
    assert run(*command, "--out", out / "p.csv").code == 0
    table = list(csv.DictReader((out / "p.csv").read_text(encoding="utf-8").splitlines()))
    assert [*table[0]] == ["image", "label", "probability", "truth", "label_2", "probability_2"]
    assert [(row["image"], row["label"], row["truth"], row["label_2"]) for row in table] == [
        (line["image"], line["label"], line["truth"] or "", line["top"][1]["label"]) for line in lines
    ]
    assert run(*command, "--out", out / "record.txt").code == 0
    record = (out / "record.txt").read_text()
    assert record.startswith(f"model: {model} (sha256 {files.sha256_file(model)})\nimages: {photos}\n")
    for line in lines[:3]:
        assert f"{line['image']}: {line['label']} ({line['probability']:.1%}), " in record
        assert f"; truth: {line['truth']}\n" in record
    assert f"broken.png: cannot be read\n\ntop-1 {sum(right) / 3:.2%}" in record
    assert record.endswith(f"1: {sum(right[1:])} of 2 right ({sum(right[1:]) / 2:.2%})\n")


def test_folders_that_are_no_class_are_named_where_there_is_no_accuracy(run: Run, model: Path, data: Path) -> None:
    result = run("predict", model, data / "other-labels")
    assert result.code == 0
    assert (
        "no accuracy: 20 images in folders that are no class of the model (a, b, c and 7 more); it has 0, "
        in result.err
    )


def test_workers_write_the_same_bytes_in_every_format(run: Run, model: Path, photos: Path, out: Path) -> None:
    command = ["predict", model, photos, photos / "1" / "d.png", "--skip-bad-images", "--top", 2]
    for suffix in ("csv", "jsonl", "txt"):
        plain, labelled = out / f"plain.{suffix}", out / f"labelled.{suffix}"
        one = run(*command, "--out", plain)
        many = run(*command, "--out", labelled, "--workers", 2)
        assert (one.code, many.code) == (0, 0)
        assert labelled.read_bytes() == plain.read_bytes()
        assert many.err == one.err
        assert many.out == one.out.replace(str(plain), str(labelled)) == f"{labelled}: 6 predictions\n"
    result = json.loads(run(*command, "--out", out / "p.csv", "--workers", 1, "--json").out)
    expected = json.loads(run(*command, "--json").out)
    del expected["predictions"]
    assert result == {**expected, "out": str(out / "p.csv")}
    assert sorted(path.suffix for path in out.iterdir()) == [".csv"] * 3 + [".jsonl"] * 2 + [".txt"] * 2
    refused = run(*command, "--workers", 2)
    assert refused.code == 2
    assert "--workers goes with --out" in refused.err
    (out / "stopped.csv.shards").mkdir()
    refused = run(*command, "--out", out / "stopped.csv")
    assert refused.code == 2
    assert "stopped.csv.shards: keeps shards of --out" in refused.err
    assert not (out / "stopped.csv").exists()
