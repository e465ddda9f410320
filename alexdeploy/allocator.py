"""How glibc's allocator treats the large arrays that come and go with every batch."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from threading import Lock

_users, _lock = 0, Lock()


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc keep freed blocks for the next batch instead of returning them to the system.

    By default each large tensor is mapped and unmapped anew, and faulting its pages in costs nearly as much as the
    arithmetic on them. It is so for the whole process until the last user leaves, who sets glibc's defaults. Elsewhere
    than on Linux with glibc this does nothing.
    """
    global _users
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is None:
        yield
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with _lock:
        _users += 1
        for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 1 << 28)):
            mallopt(option, value)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for option, value in ((mmap_max, 65536), (trim_threshold, 128 << 10), (top_pad, 128 << 10)):
                    mallopt(option, value)
                ctypes.CDLL(None).malloc_trim(0)
