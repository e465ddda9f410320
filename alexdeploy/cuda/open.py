"""The device of this process: through PyCUDA when it is installed, else through cuda-python."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from alexdeploy.cuda.device import Device, has_cuda_python
from alexdeploy.errors import UnavailableError
from alexdeploy.optional import require


@cache
def open_device() -> Device:
    """The device of this process, its primary context retained for good.

    Raises:
        UnavailableError: neither PyCUDA nor cuda-python is installed, or CUDA cannot be initialised.
    """
    if find_spec("pycuda") is not None:
        require("pycuda.driver")
        from alexdeploy.cuda.with_pycuda import PyCudaDevice

        return PyCudaDevice()
    if has_cuda_python():
        from alexdeploy.cuda.with_cuda_python import CudaPythonDevice

        return CudaPythonDevice()
    raise UnavailableError(
        "running an engine needs cuda-python or PyCUDA; install one with: pip install cuda-bindings, or "
        "pip install pycuda"
    )
