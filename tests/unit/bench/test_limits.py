from __future__ import annotations

import pytest

from alexdeploy.bench import limits
from alexdeploy.bench.limits import Limit, Machine, limit, machine_rates, read_rate
from alexdeploy.specs import Layer

LAYERS = [
    Layer("conv", "Conv", "INT8", (4, 8, 8), parameters=1_000, macs=8_000_000),
    Layer("relu", "Relu", "FLOAT", (4, 8, 8)),
    Layer("fc", "Gemm", "FLOAT", (10,), parameters=500_000, macs=500_000),
]


@pytest.fixture
def reads_10_gb_per_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "read_rate", lambda size: 10.0)


@pytest.mark.usefixtures("reads_10_gb_per_s")
@pytest.mark.parametrize(
    ("batch", "binds", "ideal_ms"),
    [
        (1, "reading", (1_000 + 2_000_000 + 256) / 10e6),
        (4, "arithmetic", 4 * (16e6 / 200e6 + 1e6 / 100e6)),
    ],
)
def test_the_limit_is_the_slower_of_reading_once_and_computing(batch: int, binds: str, ideal_ms: float) -> None:
    found = limit(LAYERS, 256, batch, 2.0, Machine(fp32_gflop_per_s=100, int8_gop_per_s=200))
    assert found is not None
    assert found.binds == binds
    assert found.ideal_ms == pytest.approx(ideal_ms)
    assert found.share == pytest.approx(ideal_ms / 2.0)
    assert found.macs == batch * 8_500_000


@pytest.mark.usefixtures("reads_10_gb_per_s")
def test_without_a_rate_for_int8_there_is_no_limit() -> None:
    assert limit(LAYERS, 256, 1, 2.0, Machine(100, None)) is None
    assert isinstance(limit(LAYERS[1:], 256, 1, 2.0, Machine(100, None)), Limit)


def test_this_machine_has_rates() -> None:
    machine = machine_rates()
    assert machine.fp32_gflop_per_s > 0.1
    assert machine.int8_gop_per_s is None or machine.int8_gop_per_s > 0.1
    assert read_rate(1 << 20) > 0.01
