"""The example on Ray Data, with two workers on this machine, against what ``Classifier`` says of each file."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from alexdeploy import Classifier
from alexdeploy.contract import METADATA_KEY, Contract
from tests.helpers.graphs import conv_lrn_gemm
from tests.serving.install import PACKAGES, PYTHON, ROOT

CONTRACT = Contract(
    color="rgb", resize=10, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=("ant", "bee", "cat", "dog")
)
READ = "import json, sys, pyarrow.parquet as p; print(json.dumps(p.read_table(sys.argv[1]).to_pylist()))"

pytestmark = pytest.mark.skipif(
    not (PACKAGES / "pyarrow").is_dir(), reason=f"no Ray Data in {PACKAGES}; python -m tests.serving.install"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: Ray makes sockets below it, whose paths have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        yield Path(name)


def run_example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ray's files stay in the folder; it also writes ``~/.ray/auth_token``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(folder), "RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    command = [str(PYTHON), str(ROOT / "examples" / "07_ray_labels.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_every_image_has_one_row_with_the_answer_of_predict(folder: Path) -> None:
    model = conv_lrn_gemm()
    helper.set_model_props(model, {METADATA_KEY: CONTRACT.to_json()})
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    photos = [folder / "photos" / f"{number % 3}" / f"{number}.png" for number in range(70)]
    for number, photo in enumerate(photos):
        photo.parent.mkdir(parents=True, exist_ok=True)
        patches = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(patches).resize((50, 40), Image.Resampling.NEAREST).save(photo)
    bad = [folder / "photos" / "empty.jpg", folder / "photos" / "1" / "text.png"]
    for path in bad:
        path.write_bytes(b"text" if path.suffix == ".png" else b"")

    done = run_example(folder, "model.onnx", "photos", "labels", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "labels: 72 images, 2 of them unreadable"
    read = subprocess.run([PYTHON, "-c", READ, folder / "labels"], capture_output=True, text=True, check=True)
    rows = json.loads(read.stdout)
    assert sorted(row["image"] for row in rows) == sorted(map(str, [*photos, *bad]))
    by_name = {row["image"]: row for row in rows}
    with Classifier(folder / "model.onnx", runtime="onnxruntime-cpu") as classifier:
        for photo, (label, probability) in zip(photos, classifier(photos), strict=True):
            row = by_name[str(photo)]
            assert (row["label"], row["error"]) == (label, None)
            assert row["probability"] == pytest.approx(probability, rel=1e-5)
    for path in bad:
        row = by_name[str(path)]
        assert (row["label"], row["probability"]) == (None, None)
        assert row["error"].startswith(f"cannot read image '{path}': ")

    again = run_example(folder, "model.onnx", "photos", "labels", "2")
    assert (again.returncode, again.stderr) == (2, "error: labels exists; name a new folder\n")


def test_a_missing_model_is_one_line(folder: Path) -> None:
    done = run_example(folder, "model.onnx", "photos", "labels", "2")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert "model.onnx" in done.stderr


def test_without_arguments_it_prints_its_usage(folder: Path) -> None:
    done = run_example(folder)
    assert done.returncode == 1
    assert "07_ray_labels.py model.onnx photos labels 2" in done.stderr
