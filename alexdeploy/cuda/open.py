"""The devices of this process: through PyCUDA when it is installed, else through cuda-python."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from alexdeploy.cuda.device import Device
from alexdeploy.cuda.wheels import why_too_old
from alexdeploy.errors import UnavailableError
from alexdeploy.machine import why_no_cuda
from alexdeploy.optional import require


@cache
def open_device(ordinal: int = 0) -> Device:
    """A device, its primary context retained until the process ends.

    Raises:
        UnavailableError: there is no such device, cuda-python is not installed, or too new for the driver, or CUDA
            cannot be initialised.
    """
    reason = why_no_cuda(ordinal)
    if reason is not None:
        raise UnavailableError(reason)
    require("cuda.bindings.driver")
    reason = why_too_old("cuda-bindings")
    if reason is not None:
        raise UnavailableError(reason)
    if find_spec("pycuda") is not None:
        require("pycuda.driver")
        from alexdeploy.cuda.with_pycuda import PyCudaDevice

        return PyCudaDevice(ordinal)
    from alexdeploy.cuda.with_cuda_python import CudaPythonDevice

    return CudaPythonDevice(ordinal)
