"""What two users at once see of the allocator."""

from __future__ import annotations

import resource

import numpy as np

from alexdeploy.allocator import freed_memory_kept


def _faults(rounds: int = 50) -> int:
    """Pages faulted in by arrays of 4 MiB that come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.ones(1 << 20, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_kept_until_the_last_user_leaves() -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            _faults(2)
            assert _faults() < 500
        _faults(2)
        assert _faults() < 500
    assert _faults() > 5000
