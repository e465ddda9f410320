"""Labelling in worker processes: every image once, whatever stops a run."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import pytest
from PIL import Image

from alexdeploy import files
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.runners import labelling
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.labelling import labelled, shards_folder
from alexdeploy.runners.predict import JUDGED, FoundImage, find_images, predict
from alexdeploy.zoo.checkpoint import untrained

_SHARD = 32
_ODD = b"new\nline.png", b"\xbb\xa8.png", 'ünï,"code".png'.encode()
_IN_A_PROCESS = """
import sys
from alexdeploy.cli import main
from alexdeploy.runners import labelling
labelling.SHARD = int(sys.argv[1])
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("labelling")
    fresh = untrained("lenet", 10, seed=0)
    contract = msgspec.structs.replace(fresh.contract, labels=tuple("abcdefghij"))
    export_onnx(
        fresh.model, contract, folder / "net.onnx", real_images=np.zeros((2, *contract.input_shape), np.float32)
    )
    return open_artifact(folder / "net.onnx")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """603 images in class folders and another, of 20 different pictures, three with odd names."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(root / f"{i}.png")
    for i in range(600):
        folder = root / "all" / "abcx"[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03}.png").hardlink_to(root / f"{i % 20}.png")
    for i, name in enumerate(_ODD):
        (root / "all" / os.fsdecode(name)).hardlink_to(root / f"{i}.png")
    return root / "all"


@pytest.fixture
def found(photos: Path, artifact: Artifact) -> list[FoundImage]:
    return find_images([photos], artifact.contract.labels)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "SHARD", _SHARD)


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def shards_in(folder: Path) -> dict[str, int]:
    """Finished ones, with what tells them from another file of that name."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[0-9]*.jsonl")}


def test_a_run_that_is_stopped_twice_goes_on_and_has_every_image_once(
    artifact: Artifact, photos: Path, found: list[FoundImage], tmp_path: Path
) -> None:
    out = tmp_path / "p.jsonl"
    folder = shards_folder(out)
    command = [sys.executable, "-c", _IN_A_PROCESS, str(_SHARD), "predict", str(artifact.path), str(photos)]
    command += ["--workers", "2", "--out", str(out)]

    killed = subprocess.Popen(command)
    until(lambda: len(shards_in(folder)) >= 2)
    workers = children_of(killed.pid)
    killed.kill()
    killed.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)
    kept = shards_in(folder)
    assert not out.exists()

    interrupted = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(shards_in(folder)) > len(kept))
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
    _, said = interrupted.communicate(timeout=20)
    assert interrupted.returncode == 130
    assert [text for text in said.splitlines() if text] == [
        f"error: interrupted; {folder} keeps what is done, the same command goes on from there"
    ]
    assert kept.items() < shards_in(folder).items()
    kept = shards_in(folder)
    assert len(kept) < -(-len(found) // _SHARD)

    with labelled(artifact, found, out, workers=2) as predictions:
        assert kept.items() < shards_in(folder).items()
        assert list(predictions) == list(predict(artifact, found, top=JUDGED))
    assert not folder.exists()


def test_names_duplicates_and_unreadable_images_are_as_without_workers(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    images = [*found[:50], FoundImage(str(bad)), found[0], found[0], *found[-5:], FoundImage(str(bad))]
    expected_skipped: list[str] = []
    expected = list(predict(artifact, images, top=JUDGED, ten_crop=True, skipped=expected_skipped))
    out = tmp_path / "p.csv"
    with (
        pytest.raises(InputError, match=f"cannot read image '{bad}': .*; remove it, or use `skipped`"),
        labelled(artifact, images, out, workers=1, ten_crop=True),
    ):
        pass
    kept = shards_in(shards_folder(out))
    assert list(kept) == ["000000.jsonl"]
    skipped: list[str] = []
    with labelled(artifact, images, out, workers=1, ten_crop=True, skipped=skipped) as predictions:
        assert kept.items() < shards_in(shards_folder(out)).items()
        assert list(predictions) == expected
    assert skipped == expected_skipped == [str(bad)] * 2
    with (
        pytest.raises(InputError, match="none of the 2 images can be read"),
        labelled(artifact, [FoundImage(str(bad))] * 2, out, workers=3, skipped=[]) as nothing,
    ):
        list(nothing)


def test_a_worker_that_is_killed_ends_the_run_and_finished_shards_stay(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path
) -> None:
    out, kept = tmp_path / "p.csv", dict[str, int]()

    def kill(_what: str, share: float) -> None:
        if share > 0 and not kept:
            kept.update(shards_in(shards_folder(out)))
            victim = multiprocessing.active_children()[0]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)

    with (
        pytest.raises(
            UnavailableError, match="a worker process was ended by SIGKILL; it may have been short of memory"
        ),
        labelled(artifact, found, out, workers=1, on_progress=kill),
    ):
        pass
    assert multiprocessing.active_children() == []
    assert kept.items() <= shards_in(shards_folder(out)).items()


def done(artifact: Artifact, images: list[FoundImage], out: Path) -> Path:
    """The folder of a run that was stopped when all shards were done."""
    with contextlib.suppress(KeyboardInterrupt), labelled(artifact, images, out, workers=1):
        raise KeyboardInterrupt
    return shards_folder(out)


def test_shards_of_another_run_are_refused_with_what_differs(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    folder = done(artifact, found[:40], out)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = tmp_path / "other.onnx"
    other.write_bytes(artifact.path.read_bytes() + b"\n\x00")  # an empty field: the same model
    for model, images, options, differing in [
        (open_artifact(other), found[:40], {}, "another model"),
        (artifact, found[:40], {"top": 2, "ten_crop": True}, "another `top`, another `ten_crop`"),
        (artifact, found[:41], {}, "another number of images, other images"),
        (artifact, [*found[1:40], found[0]], {}, "other images"),
    ]:
        with (
            pytest.raises(UsageError) as refused,
            labelled(model, images, out, workers=1, **options),  # type: ignore[arg-type]
        ):
            pass
        assert str(refused.value) == (
            f"{folder}: holds the shards of another run ({differing}); give that command again, choose another `out`, "
            "or remove the folder to begin again"
        )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with labelled(artifact, found[:40], out, workers=1) as predictions:
        assert len(list(predictions)) == 40
    assert list(tmp_path.iterdir()) == [other]


def test_a_changed_shard_and_a_folder_that_is_none_are_refused(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    folder = done(artifact, found[:40], out)
    first = folder / "000000.jsonl"
    whole = first.read_bytes().splitlines(keepends=True)
    for rows in [whole[:-1], [*whole, whole[0]], [whole[1], whole[0], *whole[2:]], [*whole[:-1], whole[-1][:9]]]:
        first.write_bytes(b"".join(rows))
        with (
            pytest.raises(GateError, match=r"000000\.jsonl: has not one row for each of its images: .*; remove it"),
            labelled(artifact, found[:40], out, workers=1) as predictions,
        ):
            list(predictions)
    (folder / "manifest.json").write_text("{}")
    with (
        pytest.raises(InputError, match=r"not a manifest of shards: .* remove the folder to begin again"),
        labelled(artifact, found[:40], out, workers=1),
    ):
        pass
    (folder / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no folder of shards"), labelled(artifact, found[:40], out, workers=1):
        pass


def test_a_second_run_is_refused_and_what_a_kill_left_is_removed(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "_PATIENCE_S", 0.0)
    out = tmp_path / "p.csv"
    folder = done(artifact, found[:40], out)
    partial = folder / ".000001.jsonl.0123abcd.partial"
    partial.touch()
    with labelled(artifact, found[:40], out, workers=1):
        assert not partial.exists()
        with pytest.raises(UsageError, match="another run writes there"), labelled(artifact, found, out, workers=1):
            pass
    assert not folder.exists()


def test_a_file_of_somebody_else_stays_and_spoils_nothing(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    stray = shards_folder(out) / "notes.txt"
    with labelled(artifact, found[:40], out, workers=1) as predictions:
        stray.touch()
        assert len(list(predictions)) == 40
    assert [*shards_folder(out).iterdir()] == [stray]


def test_a_folder_that_a_run_removes_meanwhile_and_a_file_in_its_place_are_refused(
    artifact: Artifact, found: list[FoundImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    flock = fcntl.flock

    def locked_late(file: BinaryIO, how: int) -> None:
        shutil.rmtree(shards_folder(out))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    with pytest.raises(UsageError, match="has just ended"), labelled(artifact, found[:1], out, workers=1):
        pass
    monkeypatch.setattr(files, "make_folder", lambda folder: None)
    with pytest.raises(UsageError, match="has just ended"), labelled(artifact, found[:1], out, workers=1):
        pass
    shards_folder(out).touch()
    with pytest.raises(UsageError, match=r"a file, where .* choose another `out`"):  # noqa: SIM117
        with labelled(artifact, found[:1], out, workers=1):
            pass


def test_the_same_names_in_another_working_directory_are_other_images(
    artifact: Artifact, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = [FoundImage("a.png")], tmp_path / "p.csv"
    for place, picture in (("one", "000.png"), ("two", "001.png")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").hardlink_to(next(photos.rglob(picture)))
    monkeypatch.chdir(tmp_path / "one")
    done(artifact, images, out)
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UsageError, match=r"\(other images\)"), labelled(artifact, images, out, workers=1):
        pass
    monkeypatch.chdir(tmp_path / "one")
    with labelled(artifact, images, out, workers=1) as predictions:
        assert list(predictions) == list(predict(artifact, images, top=JUDGED))


def test_what_is_odd_about_the_images_is_told_once(artifact: Artifact, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (28, 28)).save(turned, exif=exif)
    with (
        pytest.warns(UserWarning, match="the images: 70 of 70 images carry an EXIF orientation") as told,
        labelled(artifact, [FoundImage(str(turned))] * 70, tmp_path / "p.csv", workers=2) as predictions,
    ):
        list(predictions)
    assert len(told) == 1
