"""What arrays cost before and after, in a process where nothing else has changed the allocator."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from alexdeploy.cli.allocator import keep_freed_memory

def faults(rounds=5):  # pages faulted in by arrays of 48 MiB, which glibc always maps anew, that come and go
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.ones(12 << 20, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(2)
before = faults()
keep_freed_memory()
faults(2)
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_memory_is_kept_for_the_next_array() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
