"""NVIDIA's own bench, with the options of each version that make it measure what ours measures."""

from __future__ import annotations

import pytest

from alexdeploy.engine.timing import is_enqueue_bound
from alexdeploy.engine.versions import Library
from alexdeploy.specs import BuilderName


@pytest.mark.parametrize(
    ("builder", "version", "graph", "program", "options"),
    [
        # samples/common/sampleOptions.cpp of 10.16: transfers on, waiting asleep and no graph unless asked
        ("tensorrt", "10.16.1.11", True, "trtexec", {"--useSpinWait", "--useCudaGraph"}),
        ("tensorrt", "10.3.0", False, "trtexec", {"--useSpinWait"}),
        # of 11.1: all three the other way round
        ("tensorrt", "11.4.0.106", True, "trtexec", {"--includeDataTransfers"}),
        ("tensorrt", "11.4.0.106", False, "trtexec", {"--includeDataTransfers", "--noCudaGraph"}),
        # TensorRT-RTX's page "Performance Benchmarking": as 11, and a graph of its own
        ("tensorrt-rtx", "1.7.1.116", False, "tensorrt_rtx", {"--includeDataTransfers"}),
    ],
)
def test_the_same_measurement_by_nvidias_own_program(
    builder: BuilderName, version: str, graph: bool, program: str, options: set[str]
) -> None:
    library = Library(builder, version, None)
    command = library.benchmark("my models/a.engine", "input", (8, 3, 224, 224), graph=graph, host_code=False)
    start = f"{program} '--loadEngine=my models/a.engine' --shapes=input:8x3x224x224 --infStreams=1 --exposeDMA"
    assert command.startswith(start)
    assert {*command.removeprefix(start).split()} == options


def test_an_engine_with_its_own_runtime_needs_leave_to_load() -> None:
    command = Library("tensorrt", "11.4.0", None).benchmark("a", "x", (1, 3), graph=True, host_code=True)
    assert command.endswith(" --versionCompatible")


def test_the_host_is_the_limit_by_trtexecs_rule() -> None:
    assert is_enqueue_bound(0.81, 1.0)
    assert not is_enqueue_bound(0.8, 1.0)
