"""No extra mixes major versions of CUDA or of TensorRT. What a registry makes of them is asked by the slow test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.bench import extras as registry

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"][
    "optional-dependencies"
]
CUDA = {"gpu": 13, "gpu-trt10": 13, "gpu-cu12": 12}
TENSORRT = {"gpu": 11, "gpu-trt10": 10, "gpu-cu12": 10}
# releases of onnxruntime-gpu by their CUDA, as their metadata has it; that of 1.27 cannot be installed
ONNXRUNTIME = {12: ("1.23.2", "1.26.0"), 13: ("1.28.0", "1.31.1")}


def of(extra: str) -> dict[str, Requirement]:
    return {found.name: found for found in map(Requirement, EXTRAS[extra])}


def takes(requirement: Requirement, version: str) -> bool:
    return Version(version) in requirement.specifier


@pytest.mark.parametrize("extra", CUDA)
def test_an_extra_has_one_cuda_and_one_tensorrt(extra: str) -> None:
    brings, cuda, tensorrt = of(extra), CUDA[extra], TENSORRT[extra]
    assert [name for name in brings if name.startswith("tensorrt")] == [f"tensorrt-cu{cuda}"]
    majors = [major for major in range(9, 14) if takes(brings[f"tensorrt-cu{cuda}"], f"{major}.99")]
    assert majors == [tensorrt]
    assert [major for major in (11, 12, 13, 14) if takes(brings["cuda-bindings"], f"{major}.6.9")] == [cuda]
    for major, versions in ONNXRUNTIME.items():
        assert all(takes(brings["onnxruntime-gpu"], version) == (major == cuda) for version in versions)
    assert not takes(brings["onnxruntime-gpu"], "1.27.0")


@pytest.mark.parametrize("extra", CUDA)
def test_onnxruntime_brings_the_libraries_of_its_cuda_provider(extra: str) -> None:
    assert of(extra)["onnxruntime-gpu"].extras == {"cuda", "cudnn"}, "[cuda] alone brings no cuBLAS"


def test_jetson_leaves_tensorrt_and_onnxruntime_to_jetpack() -> None:
    brings = of("jetson")
    assert not [name for name in brings if name.startswith(("tensorrt", "onnxruntime"))]
    assert not takes(brings["cuda-bindings"], "13.0.0"), "JetPack 6 has CUDA 12"


def test_the_extras_bring_the_same_for_graphs_and_images() -> None:
    shared = {"onnx", "onnx-ir", "onnxscript", "pillow", "safetensors"}
    assert {extra: shared - of(extra).keys() for extra in ("cpu", "rtx", "jetson", *CUDA)} == {
        extra: set() for extra in ("cpu", "rtx", "jetson", *CUDA)
    }


@pytest.mark.parametrize("extra", [*CUDA, "jetson"])
def test_the_install_page_tells_of_each(extra: str) -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    assert f"| `{extra}` |" in page
    assert "https://pypi.nvidia.com" in page


@pytest.fixture(scope="session")
def uv() -> Path:
    try:
        return registry.install_uv()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"uv cannot be installed ({error})")


@pytest.mark.slow
@pytest.mark.parametrize("target", registry.TARGETS, ids=" ".join)
@pytest.mark.parametrize("extras", registry.EXTRAS)
def test_what_the_registry_gives_is_of_one_cuda(uv: Path, extras: str, target: tuple[str, str]) -> None:
    found = registry.resolve(uv, extras, *target)
    extra = extras.split(",")[-1]
    refused = target[0] == "3.10" if extra in ("gpu", "gpu-trt10") else extra == "gpu-cu12" and target[1] == "aarch64"
    assert isinstance(found, str) == refused, found
    if isinstance(found, str):
        assert "onnxruntime-gpu" in found, "the refusal names what is missing"
        return
    assert registry.cuda_majors(found) == {str({**CUDA, "jetson": 12, "rtx": 13}[extra])}
    assert (registry.tensorrt_of(found) or "").split(".")[0] == str(TENSORRT.get(extra, ""))
    assert ("nvidia-cublas" in found or "nvidia-cublas-cu12" in found) == (extra in CUDA), "the provider's cuBLAS"
