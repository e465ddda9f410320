"""What two users at once see of the allocator, in a process where nothing else has used it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from alexdeploy.allocator import freed_memory_kept

def faults(rounds=5):  # pages faulted in by arrays of 48 MiB, which glibc always maps anew, that come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.ones(12 << 20, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
found = [faults()]
with freed_memory_kept():
    with freed_memory_kept():
        faults(2)
        found.append(faults())
    faults(2)
    found.append(faults())
faults(2)
print(*found, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_memory_is_kept_until_the_last_user_leaves() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, inner, outer, after = map(int, done.stdout.split())
    assert max(inner, outer) < min(before, after) / 10
