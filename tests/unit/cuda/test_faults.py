"""Which errors of CUDA end the process: held against what CUDA itself says of each."""

from __future__ import annotations

import pytest

from alexdeploy.cuda.faults import LOST, RELAUNCH, failure
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
