"""glibc's allocator and large arrays: a setting for the whole process, so only commands make it."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next batch; to map them again costs nearly as much as the arithmetic on them.

    Elsewhere than on Linux with glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    # one arena: what one thread frees, the next one takes
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 1 << 28), (arena_max, 1)):
        ctypes.CDLL(None).mallopt(option, value)
