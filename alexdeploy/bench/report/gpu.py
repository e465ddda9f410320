"""What a report says of a GPU: its table of times by CUDA events, its state while it was measured, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alexdeploy.bench.gpu_state import GpuState
from alexdeploy.bench.gpu_times import GpuFigures
from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.columns import Column

GPU_TITLE = "On the GPU: ms per batch by CUDA events, images/s with one or more in flight"


def gpu_columns(report: BenchReport, legend: Mapping[str, str]) -> list[Column]:
    """A line for each row with times by CUDA events; no columns where there is none.

    Args:
        report: the bench.
        legend: file by letter, where the table above names files so.
    """
    letters = {name: letter for letter, name in legend.items()}
    measured = _measured(report)
    if not measured:
        return []
    names = [report.name(row.artifact) for row, _ in measured]
    depths = dict.fromkeys(flight.batches for _, gpu in measured for flight in gpu.in_flight)

    def rate(gpu: GpuFigures, depth: int) -> str:
        return next((f"{flight.images_per_s:.0f}" for flight in gpu.in_flight if flight.batches == depth), "-")

    return [
        Column("" if letters else "artifact", [letters.get(name, name) for name in names], text=True, folds=True),
        Column("runtime", [row.runtime for row, _ in measured], text=True, rank=1),
        Column("batch", [str(row.batch) for row, _ in measured]),
        Column("H2D", [milliseconds(gpu.h2d_ms.p50) for _, gpu in measured]),
        Column("compute", [milliseconds(gpu.compute_ms.p50) for _, gpu in measured]),
        Column("D2H", [milliseconds(gpu.d2h_ms.p50) for _, gpu in measured]),
        Column("enqueue", [milliseconds(gpu.enqueue_ms.p50) for _, gpu in measured]),
        *(
            Column("images/s" if depth == 1 else f"×{depth}", [rate(gpu, depth) for _, gpu in measured])
            for depth in depths
        ),
    ]


def commands(report: BenchReport) -> list[str]:
    """What measures the same with NVIDIA's own program: of each engine, the largest batch size."""
    return [*{(row.artifact, row.runtime): gpu.command for row, gpu in _measured(report)}.values()]


def gpu_notes(report: BenchReport) -> list[str]:
    """TF32, what the figures are, the card's state, and warnings; nothing where no row ran on a GPU."""
    on_gpu = [row for row in report.rows if row.tf32 is not None]
    if not on_gpu:
        return []
    lines = [_tf32_note(report, on_gpu)]
    if _measured(report):
        lines.append(
            "On the GPU: medians of one batch at a time. H2D and D2H: the copies; enqueue: the host's time to submit "
            "the engine; images/s ×N: with N batches in flight; copies count, host memory was filled before."
        )
    lines += [
        f"{report.name(row.artifact)} on {row.runtime}, batch {row.batch}: {row.reason}"
        for row in on_gpu
        if row.status == "ok" and row.reason
    ]
    lines += _state_notes(report.gpu_states)
    bound = [
        f"{report.name(row.artifact)} on {row.runtime}, batch {row.batch} ({milliseconds(gpu.enqueue_ms.p50)} ms to "
        f"submit the engine, {milliseconds(gpu.compute_ms.p50)} ms to compute)"
        for row, gpu in _measured(report)
        if gpu.enqueue_bound
    ]
    if bound:
        lines.append(
            f"WARNING: bound by the host: {'; '.join(bound)}. Larger batches or several in flight keep the GPU busy."
        )
    return lines


def described(gpu: Mapping[str, str]) -> str:
    """The card in one line, as ``environment`` has it: name, the beginning of its UUID, and what nvidia-smi told."""
    words = {"uuid": "", "driver_version": "driver ", "clocks.max.sm": "at most ", "power.limit": ""}
    known = [f"{word}{gpu[key][:12] if key == 'uuid' else gpu[key]}" for key, word in words.items() if key in gpu]
    return ", ".join([gpu["name"], *known])


def milliseconds(value: float) -> str:
    """Three significant digits, without an exponent, to a microsecond."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.1 else f"{value:.3f}"


def _measured(report: BenchReport) -> list[tuple[Row, GpuFigures]]:
    return [(row, row.gpu) for row in report.rows if row.gpu is not None]


def _tf32_note(report: BenchReport, on_gpu: Sequence[Row]) -> str:
    kinds = {kind: [row for row in on_gpu if row.tf32 == kind] for kind in ("on", "not known")}
    others = [
        f"{kind} of {', '.join(dict.fromkeys(f'{report.name(row.artifact)} on {row.runtime}' for row in rows))}"
        for kind, rows in kinds.items()
        if rows
    ]
    if not others:
        return "FP32 on the GPU: without TF32 in every row."
    return f"WARNING: FP32 on the GPU is not alike in all rows. TF32: {'; '.join(others)}; off in the others."


def _state_notes(states: Sequence[GpuState]) -> list[str]:
    taken = [state for state in states if state.samples]
    if not taken:
        return ["The GPU's clocks while it was measured are not known: nvidia-smi gave no sample."]
    facts = [
        *(
            f"{what} {_span(spans)} MHz"
            for what, spans in (
                ("SM", [state.sm_mhz for state in taken]),
                ("memory", [state.memory_mhz for state in taken]),
            )
            if any(spans)
        ),
        *(
            f"at most {most:.0f} {unit}"
            for unit, most in (
                ("W", max(state.power_w or 0 for state in taken)),
                ("°C", max(state.temperature_c or 0 for state in taken)),
            )
            if most
        ),
    ]
    count = sum(state.samples for state in taken)
    lines = [f"The GPU while it was measured ({count} samples by nvidia-smi): {', '.join(facts) or 'nothing told'}."]
    slowed = [f"{_group(state)} ({', '.join(state.slowed_by)})" for state in taken if state.slowed_by]
    if slowed:
        lines.append(f"WARNING: the GPU was slowed down during {', '.join(slowed)}.")
    varied = [f"{_group(state)} ({_span([state.sm_mhz])} MHz)" for state in taken if state.varied]
    if varied:
        lines.append(
            f"WARNING: the SM clock varied during {', '.join(varied)}; nvidia-smi -lgc MHZ (as root) locks it."
        )
    return lines


def _group(state: GpuState) -> str:
    return f"{state.boundary.replace('_', ' ')} batch {state.batch}"


def _span(ranges: Sequence[tuple[float, float] | None]) -> str:
    """``1410–1755``, or one figure where they are the same."""
    known = [found for found in ranges if found is not None]
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"
