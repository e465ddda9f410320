from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from alexdeploy import optional
from alexdeploy.errors import UnavailableError
from alexdeploy.optional import LIBRARIES, require, unavailable


def advice(module: str) -> str:
    return str(unavailable(ModuleNotFoundError(name=module)))


def with_installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(optional, "_is_installed", lambda module: module in modules)


def test_a_missing_library_is_answered_with_its_pip_line_and_its_extra() -> None:
    expected = (
        "'tensorrt_rtx' is not installed; install it with: pip install tensorrt-rtx (in alexdeploy's extra 'rtx')"
    )
    assert advice("tensorrt_rtx.tools") == expected


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_a_bench_is_not_told_to_install_pytorch(module: str) -> None:
    assert "extra 'report'" in advice(module)


@pytest.mark.parametrize("module", ["onnx", "onnx_ir", "PIL"])
@pytest.mark.parametrize(
    ("installed", "extra"),
    [((), "cpu"), (("tensorrt",), "gpu"), (("tensorrt_rtx",), "rtx"), (("openvino",), "openvino")],
)
def test_the_extra_is_that_of_the_runtime_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, module: str, installed: tuple[str, ...], extra: str
) -> None:
    with_installed(monkeypatch, *installed)
    assert f"extra '{extra}'" in advice(module)
    assert "onnxruntime" not in advice(module)


def test_who_builds_with_tensorrt_rtx_is_not_sent_to_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch, "tensorrt_rtx")
    assert "pip install cuda-bindings (in alexdeploy's extra 'rtx')" in advice("cuda.bindings")


def test_a_missing_onnxruntime_has_two_answers_and_never_both() -> None:
    assert "onnxruntime-gpu" in advice("onnxruntime")
    assert "never both" in advice("onnxruntime")


def test_a_missing_tensorrt_is_told_where_its_libraries_are() -> None:
    assert "pip install tensorrt-cu13 (in alexdeploy's extra 'gpu'); pip fetches its libraries from" in advice(
        "tensorrt"
    )
    assert "https://pypi.nvidia.com" in advice("tensorrt")


def test_a_missing_module_that_is_no_optional_library_stays_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match="alexdeploy_has_no_such_module"):
        require("alexdeploy_has_no_such_module")


def test_a_library_that_cannot_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_broken_library.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnavailableError, match=r"a_broken_library.*cannot be imported.*libcudart\.so\.12"):
        require("a_broken_library")


@pytest.mark.parametrize("module", LIBRARIES)
def test_every_extra_that_may_be_named_brings_the_distribution(module: str) -> None:
    project = msgspec.toml.decode((Path(__file__).parents[2] / "pyproject.toml").read_bytes())["project"]
    distribution, extras = LIBRARIES[module]
    for extra in extras:
        lines = project["optional-dependencies"][extra]
        assert distribution in [re.split(r"[<>=]", line)[0] for line in lines], extra
