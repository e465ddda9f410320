"""What ``tests.bench.serving`` measured, as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

READY_S = 5.0
QUEUED = "here, queued"


@dataclass
class Samples:
    """Of one candidate at one number in flight: milliseconds of every request, and of each round its rate."""

    ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    images: int = 0  # and calls of the network, where a server counts them
    calls: int = 0
    requests: int = 0
    failed: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.ms, share)) if self.ms else float("nan")

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


Rates = dict[str, dict[str, dict[int, Samples]]]  # by what is sent, candidate and number in flight


def markdown(name: str, report: dict[str, Any]) -> str:
    lines = [f"## {name}", "", f"Ready {report['ready_s']:.1f} s after its start (bar {READY_S:g} s)."]
    lines += [f"- {key}: {value}" for part in ("answers", "many", "huge") for key, value in report[part].items()]
    for kind, table in report["rates"].items():
        loads = [*next(iter(table.values()))]
        lines += ["", f"### {kind}, one in each request", ""]
        head = " | ".join(f"{n} in flight: images/s | p50 ms | p99 ms | batch | client ms" for n in loads)
        lines += [f"| | {head} |", f"| --- |{' --: |' * (5 * len(loads))}"]
        lines += [f"| {row} | {' | '.join(map(_cell, cells.values()))} |" for row, cells in table.items()]
        lines += ["", *(line for n in loads for line in _verdict(table, n)), *_failures(table)]
    return "\n".join(lines) + "\n"


def _cell(samples: Samples) -> str:
    rate = f"{samples.rate:.0f} ({min(samples.rates):.0f}–{max(samples.rates):.0f})"
    batch = f"{samples.images / samples.calls:.1f}" if samples.calls else ""
    client = statistics.median(samples.client_ms)
    return f"{rate} | {samples.percentile(50):.1f} | {samples.percentile(99):.1f} | {batch} | {client:.2f}"


def _verdict(table: dict[str, dict[int, Samples]], n: int) -> Iterator[str]:
    """The settings of the highest rate, of the server and of the queued runner, chosen by these same figures."""

    def best(rows: list[str]) -> str:
        return max(rows, key=lambda row: table[row][n].rate)

    here = best([row for row in table if row.startswith(QUEUED)])
    there = best([row for row in table if not row.startswith(QUEUED)])
    one, other = table[there][n], table[here][n]
    p50, p99 = (one.percentile(p) / other.percentile(p) for p in (50, 99))
    ratios = f"{one.rate / other.rate:.2f} × images/s, {p50:.2f} × p50, {p99:.2f} × p99"
    yield f"- {n} in flight, {there} over {here}: {ratios}"


def _failures(table: dict[str, dict[int, Samples]]) -> Iterator[str]:
    cells = [(row, n, samples) for row, found in table.items() for n, samples in found.items()]
    bad = [(row, n, samples) for row, n, samples in cells if samples.failed]
    asked, failed = sum(s.requests for _, _, s in cells), sum(len(s.failed) for _, _, s in bad)
    yield f"- {asked} requests, each answer compared; {failed} wrong or lost"
    for row, n, samples in bad:
        yield f"- **{row}, {n} in flight: {len(samples.failed)} of {samples.requests} failed: {samples.failed[0]}**"


def is_right(report: dict[str, Any]) -> bool:
    rates: Rates = report["rates"]
    failed = any(s.failed for table in rates.values() for cells in table.values() for s in cells.values())
    return not failed and not report["many"]["lost or wrong"]
