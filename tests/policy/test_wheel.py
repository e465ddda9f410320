"""What a user gets who installs the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = sorted(path.parent.name for path in ROOT.glob("models/*/recipe.toml"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working tree, unpacked."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), *offline, "--wheel-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text())


def test_the_wheel_holds_the_package_and_nothing_else(unpacked: Path) -> None:
    assert sorted(path.name for path in unpacked.iterdir() if path.suffix != ".dist-info") == ["alexdeploy"]
    shipped = {path.relative_to(unpacked) for path in (unpacked / "alexdeploy").rglob("*") if path.is_file()}
    modules = {path.relative_to(ROOT) for path in (ROOT / "alexdeploy").rglob("*.py")}
    recipes = {Path("alexdeploy", "recipes", f"{name}.toml") for name in NETWORKS}
    assert shipped == modules | recipes | {
        *(Path("alexdeploy", "bench", "report", name) for name in ("page.html.j2", "load.html.j2", "page.css")),
        Path("alexdeploy", "py.typed"),
    }


def test_the_licence_is_in_the_wheel(unpacked: Path, metadata: Message) -> None:
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"


def test_recipes_in_the_wheel_are_those_of_the_checkout(unpacked: Path) -> None:
    assert NETWORKS
    for name in NETWORKS:
        shipped = unpacked / "alexdeploy" / "recipes" / f"{name}.toml"
        assert shipped.read_bytes() == (ROOT / "models" / name / "recipe.toml").read_bytes()


def test_no_extra_brings_two_onnxruntimes(metadata: Message) -> None:
    extras = metadata.get_all("Provides-Extra") or []
    assert set(extras) >= {"train", "cpu", "gpu", "gpu-trt10", "gpu-cu12", "jetson", "rtx", "openvino", "dev"}
    for extra in extras:
        brings = requirements(metadata, extra)
        assert brings, extra
        assert not {"onnxruntime", "onnxruntime-gpu"} <= brings, extra


def test_without_an_extra_no_framework_is_installed(metadata: Message) -> None:
    assert requirements(metadata, "") <= {"click", "msgspec", "numpy", "rich", "tomli"}


def requirements(metadata: Message, extra: str) -> set[str]:
    """Names of what the extra brings beyond the package itself; of what the package needs for ``""``."""
    parsed = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    wanted = [
        (r.name, "extra" in str(r.marker)) for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})
    ]
    return {name for name, by_extra in wanted if by_extra == bool(extra)}


def test_recipes_load_from_the_wheel_anywhere(unpacked: Path, tmp_path: Path) -> None:
    code = """
import json, sys, alexdeploy
from alexdeploy.recipe import load_recipe
print(json.dumps([alexdeploy.__file__, {name: load_recipe(name).network.name for name in sys.argv[1:]}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *NETWORKS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        str(unpacked / "alexdeploy" / "__init__.py"),
        {name: name for name in NETWORKS},
    ]


def test_the_console_script_starts_the_command_line(unpacked: Path) -> None:
    (path,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "alexdeploy = alexdeploy.__main__:main" in path.read_text().splitlines()
