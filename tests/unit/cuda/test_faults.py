"""Which errors of CUDA end the process: held against what CUDA itself says of each."""

from __future__ import annotations

import ctypes

import pytest

from alexdeploy.cuda.faults import LOST, LOST_WORDS, RELAUNCH, Watch, failure
from alexdeploy.errors import DeviceLostError, UnavailableError


def test_the_codes_are_those_that_cuda_calls_so() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    said = {int(code): " ".join((code.__doc__ or "").split()) for code in driver.CUresult}
    relaunch = {code for code, text in said.items() if "must be terminated and relaunched" in text}
    if not relaunch:
        pytest.skip("this cuda-python has no descriptions of the codes")
    assert relaunch == RELAUNCH & said.keys()
    others = {driver.CUresult(code).name for code in LOST - RELAUNCH}
    assert others == {
        f"CUDA_ERROR_{name}" for name in ("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTEXT_IS_DESTROYED", "ASSERT")
    }
    assert "cannot be used anymore" in said[int(driver.CUresult.CUDA_ERROR_ASSERT)]


def test_only_they_are_a_lost_device() -> None:
    assert isinstance(failure("out of memory", lost=False), UnavailableError)
    lost = failure("an illegal memory access was encountered", lost=True)
    assert isinstance(lost, DeviceLostError)
    assert "start it again" in str(lost)


def test_the_words_are_those_of_cudas_runtime() -> None:
    wheel = pytest.importorskip("nvidia.cu13", reason="no wheel of CUDA 13")
    runtime = ctypes.CDLL(f"{next(iter(wheel.__path__))}/lib/libcudart.so.13")
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    assert {runtime.cudaGetErrorString(code).decode() for code in LOST} == {*LOST_WORDS}


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=vm", True),
        ("CUDA failure 2: out of memory ; GPU=0", False),
        ("CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure' in https://docs", True),
        ("CUDA error: invalid argument\nCUDA kernel errors might be asynchronously reported", False),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", False),
    ],
)
def test_a_failure_of_another_library_is_one_of_ours_and_a_loss_is_remembered(said: str, lost: bool) -> None:
    watch = Watch(lambda error: f"X: {str(error).splitlines()[0]}", RuntimeError)
    called = []
    with pytest.raises(DeviceLostError if lost else UnavailableError, match=r"^X: CUDA"), watch.calls():
        raise RuntimeError(said)
    if lost:
        with pytest.raises(DeviceLostError, match="start it again"), watch.calls():
            called.append("reached CUDA")
        assert called == []
    else:
        with pytest.raises(KeyError), watch.calls():  # none of the library's
            raise KeyError
