"""The device of this process: through PyCUDA when it is installed, else through cuda-python."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from alexdeploy.cuda.device import Device
from alexdeploy.optional import require


@cache
def open_device() -> Device:
    """The device of this process, its primary context retained for good.

    Raises:
        UnavailableError: cuda-python is not installed, or CUDA cannot be initialised.
    """
    require("cuda.bindings.driver")
    if find_spec("pycuda") is not None:
        require("pycuda.driver")
        from alexdeploy.cuda.with_pycuda import PyCudaDevice

        return PyCudaDevice()
    from alexdeploy.cuda.with_cuda_python import CudaPythonDevice

    return CudaPythonDevice()
