"""Version-compatible builds find the lean runtime, which TensorRT's wheels leave out, or say what to install."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alexdeploy.engine.versions import Compatibility, Library
from alexdeploy.errors import UnavailableError
from tests.unit.cuda.test_wheels import install

COMPATIBLE = Compatibility(newer_versions=True)
# A process keeps what it has loaded, so each test has a major version of its own, and none is TensorRT's.
IMPORT = "import ctypes, pathlib\nctypes.CDLL(str(pathlib.Path(__file__).with_name('libnvinfer_lean.so.{}')))\n"


class Config:
    """Like TensorRT's builder it opens the lean runtime by its name alone."""

    def __init__(self, major: int) -> None:
        self.major, self.flags = major, [""]

    def set_flag(self, flag: str) -> None:
        ctypes.CDLL(f"libnvinfer_lean.so.{self.major}")
        self.flags.append(flag)


def tensorrt(version: str) -> Library:
    module = SimpleNamespace(BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="VERSION_COMPATIBLE"))
    return Library("tensorrt", version, module)


def test_the_lean_runtime_is_loaded_before_the_builder_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) for a library of that name")
    package = tmp_path / "tensorrt_lean_libs"
    package.mkdir()
    (package / "__init__.py").write_text(IMPORT.format(97))
    name = "libnvinfer_lean.so.97"
    options = ["-shared", "-xc", "/dev/null", f"-Wl,-soname,{name}", "-o", str(package / name)]
    subprocess.run([compiler, *options], check=True)
    install(monkeypatch, tmp_path, "tensorrt_lean_cu13_libs", "97.1.0.5.post1")
    monkeypatch.delitem(sys.modules, "tensorrt_lean_libs", raising=False)
    config = Config(97)
    tensorrt("97.1.0.5").apply(COMPATIBLE, config)
    assert config.flags[-1] == "VERSION_COMPATIBLE"


@pytest.mark.parametrize(
    ("libraries", "fix"),
    [
        ("tensorrt_cu12_libs", "pip install tensorrt-lean-cu12-libs==98.1.0.5"),
        (None, "install libnvinfer-lean of TensorRT 98.1.0.5"),  # TensorRT is the system's
    ],
)
def test_a_missing_lean_runtime_is_named_with_what_brings_it(
    libraries: str | None, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if libraries is not None:
        install(monkeypatch, tmp_path, libraries, "98.1.0.5")
    monkeypatch.setitem(sys.modules, "tensorrt_lean_libs", None)
    with pytest.raises(UnavailableError, match=r"`newer_versions`.*libnvinfer_lean\.so\.98") as raised:
        tensorrt("98.1.0.5").apply(COMPATIBLE, Config(98))
    assert str(raised.value).endswith(fix)


def test_a_lean_runtime_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path, "tensorrt_cu13_libs", "96.4.0")
    install(monkeypatch, tmp_path, "tensorrt_lean_cu13_libs", "96.3.0")
    with pytest.raises(UnavailableError, match=r"found tensorrt-lean-cu13-libs 96\.3\.0; pip install .*==96\.4\.0"):
        tensorrt("96.4.0").apply(COMPATIBLE, Config(96))
