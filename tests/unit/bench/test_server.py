from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.bench.server import serve
from alexdeploy.runners.base import Runner

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
IMAGES = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)


class Sleeper(Runner):
    """Sleeps for each batch, and keeps what it was given."""

    runtime = "sleeper"

    def __init__(self, seconds: float, fail_after: int = 10**9) -> None:
        self.seconds, self.fail_after, self.given = seconds, fail_after, [0] * 0

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.given.append(len(batch))
        assert {image.item() for image in batch} <= {0, 1, 2, 3}
        if len(self.given) > self.fail_after:
            raise RuntimeError("device lost")
        time.sleep(self.seconds)
        return batch


def test_a_bound_far_above_the_work_is_kept_and_every_query_is_answered() -> None:
    runner = Sleeper(1e-4)
    server = serve(runner, IMAGES, bound_ms=1000, capacity_per_s=4000, seconds=1e-3)
    (probe,) = server.probes
    assert not server.searched, "there was no time for a second rate"
    assert (probe.valid, probe.queries) == (True, 1000)
    assert server.rate_per_s == probe.rate_per_s == 2000
    assert sum(runner.given) == 1000
    assert max(runner.given) <= len(IMAGES)


def test_a_bound_below_the_work_itself_cannot_be_kept() -> None:
    server = serve(Sleeper(2e-3), IMAGES, bound_ms=0.5, capacity_per_s=2000, seconds=1e-3)
    assert server.rate_per_s is None
    assert not server.probes[0].valid
    assert server.probes[0].p99_ms >= 2


def test_a_failing_runner_ends_the_search_with_its_error() -> None:
    with pytest.raises(RuntimeError, match="device lost"):
        serve(Sleeper(0, fail_after=3), IMAGES, bound_ms=10, capacity_per_s=20_000, seconds=1e-3)
