"""Which of CUDA's errors end a process, and the exceptions for them and for the others: ours, and other libraries'."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from alexdeploy.errors import AlexdeployError, DeviceLostError, UnavailableError

# CUresult of CUDA 13: cuda.h says of the first that "the process must be terminated and relaunched"; after the others
# the context is gone, or its memory cannot be relied on
RELAUNCH = frozenset({226, 700, 702, 714, 715, 716, 717, 718, 719, 721, 810, 911})
_ECC_UNCORRECTABLE, _NVLINK_UNCORRECTABLE, _CONTEXT_IS_DESTROYED, _ASSERT = 214, 220, 709, 710
LOST = RELAUNCH | {_ECC_UNCORRECTABLE, _NVLINK_UNCORRECTABLE, _CONTEXT_IS_DESTROYED, _ASSERT}
LOST_WORDS = (  # what cudaGetErrorString (CUDA 13) says of them, and PyTorch after "CUDA error: "
    "uncorrectable ECC error encountered",
    "uncorrectable NVLink error detected during the execution",
    "Invalid access of peer GPU memory over nvlink or a hardware error",
    "an illegal memory access was encountered",
    "the launch timed out and was terminated",
    "context is destroyed",
    "device-side assert triggered",
    "hardware stack error",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
    "tensor memory not completely freed",
    "the MPS client has been terminated by the server",
    "an async error has occured in external entity outside of CUDA",
)
_ADVICE = "the GPU is lost to this process: end it and start it again"


def failure(text: str, *, lost: bool) -> AlexdeployError:
    """The exception for a call of CUDA that failed; ``lost``: with one of ``LOST``."""
    if lost:
        return DeviceLostError(f"CUDA: {text}; {_ADVICE}")
    return UnavailableError(f"CUDA: {text}")


class Watch:
    """The calls of another library, whose failures become ours; once the GPU is lost, each is refused at once.

    Args:
        in_words: one line for what it raised.
        kinds: what it raises. Anything else passes, as do errors of ours.
    """

    def __init__(self, in_words: Callable[[Exception], str], kinds: type[Exception] = Exception) -> None:
        self._in_words, self._kinds = in_words, kinds
        self._lost = ""  # what was said of it

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """A block of such calls.

        Raises:
            DeviceLostError: one of them found the GPU lost, now or in an earlier block.
            UnavailableError: another failure.
        """
        if self._lost:
            raise DeviceLostError(self._lost)
        try:
            yield
        except AlexdeployError:
            raise
        except self._kinds as error:
            words = self._in_words(error)
            if not _tells_of_loss(str(error)):
                raise UnavailableError(words) from error
            self._lost = f"{words}; {_ADVICE}"
            raise DeviceLostError(self._lost) from error


def _tells_of_loss(text: str) -> bool:
    """``CUDA failure 700: ...`` is ONNX Runtime's way to say it, ``CUDA error: misaligned address`` is PyTorch's."""
    numbers = re.findall(r"CUDA failure (\d+)", text)
    return any(int(number) in LOST for number in numbers) or any(f"CUDA error: {words}" in text for words in LOST_WORDS)
