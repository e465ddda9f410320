"""Which of CUDA's errors end a process, and the exceptions for them and for the others."""

from __future__ import annotations

from alexdeploy.errors import AlexdeployError, DeviceLostError, UnavailableError

# CUresult of CUDA 13: cuda.h says of the first that "the process must be terminated and relaunched"; after the others
# the context is gone, or its memory cannot be relied on
RELAUNCH = frozenset({226, 700, 702, 714, 715, 716, 717, 718, 719, 721, 810, 911})
_ECC_UNCORRECTABLE, _NVLINK_UNCORRECTABLE, _CONTEXT_IS_DESTROYED, _ASSERT = 214, 220, 709, 710
LOST = RELAUNCH | {_ECC_UNCORRECTABLE, _NVLINK_UNCORRECTABLE, _CONTEXT_IS_DESTROYED, _ASSERT}


def failure(text: str, *, lost: bool) -> AlexdeployError:
    """The exception for a call of CUDA that failed; ``lost``: with one of ``LOST``."""
    if lost:
        return DeviceLostError(f"CUDA: {text}; the GPU is lost to this process: end it and start it again")
    return UnavailableError(f"CUDA: {text}")
