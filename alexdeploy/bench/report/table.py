"""The table of a bench as text, the same in the terminal, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alexdeploy.bench.intervals import Latency, Ratio
from alexdeploy.bench.report.gpu import described, gpu_notes, milliseconds
from alexdeploy.bench.results import BenchReport, NotFaster, Row
from alexdeploy.bench.server import Server
from alexdeploy.graph.weighted import grouped_hint

HEADERS = (
    *("artifact", "runtime", "precision", "MB", "top-1", "top-5", "agreement", "p(worse)"),
    *("batch", "device ms", "ms", "p99 ms", "end-to-end ms", "images/s", "speed-up", "% of roofline"),
)
TEXT_COLUMNS = 3


def cells(report: BenchReport) -> list[list[str]]:
    """A line of text cells per row, as ``HEADERS``; a skipped row shows no figure at all."""
    p_worse = {(a.artifact, a.runtime): a.mcnemar.p_worse for a in report.accuracy if a.mcnemar is not None}
    return [_cells(report.name(row.artifact), row, p_worse.get((row.artifact, row.runtime))) for row in report.rows]


def _cells(name: str, row: Row, p_worse: float | None) -> list[str]:
    start = [name, row.runtime, row.precision, f"{row.size_bytes / 1e6:.1f}"]
    if row.latency_ms is None or row.device_ms is None or row.end_to_end_ms is None:
        return [*start, *["-"] * 4, str(row.batch), "skipped", *["-"] * 6]
    return [
        *start,
        *(percent(share) for share in (row.top1, row.top5, row.agreement)),
        "-" if row.top1 is None else f"{p_worse:.2g}" if p_worse is not None else "reference",
        str(row.batch),
        *(_median(latency) for latency in (row.device_ms, row.latency_ms)),
        milliseconds(row.latency_ms.p99),
        _median(row.end_to_end_ms),
        f"{row.images_per_s:.0f}",
        ratio_text(row.ratio) if row.ratio else "1.00 × (ref)",
        f"{row.limit.share:.0%} {row.limit.binds}" if row.limit else "-",
    ]


def percent(share: float | None) -> str:
    """``87.56%``, or ``-`` where it is not known."""
    return "-" if share is None else f"{share:.2%}"


def _median(latency: Latency) -> str:
    half_width = (latency.ci95[1] - latency.ci95[0]) / 2
    return f"{milliseconds(latency.p50)} ±{milliseconds(half_width)}"


def ratio_text(ratio: Ratio) -> str:
    """The ratio with its interval where it is one, else what can be said instead."""
    if ratio.is_shown:
        return f"{ratio.value:.2f} ({ratio.ci99[0]:.2f}–{ratio.ci99[1]:.2f})"
    return ratio.verdict


def _server_note(name: str, row: Row, server: Server) -> str:
    tried = f"best of {len(server.probes)} tried, random arrivals, up to {server.max_batch} images together"
    tried += "" if server.searched else "; the search was cut off: give it more seconds"
    rate = f"{server.rate_per_s:.0f} images/s" if server.rate_per_s else "no rate tried stays"
    rate = rate if server.searched or not server.rate_per_s else f"at least {rate}"
    return f"server, {name} on {row.runtime}: {rate} within {server.bound_ms:g} ms at p99 ({tried})"


def _not_faster_notes(report: BenchReport) -> list[str]:
    """A line for each INT8 file and runtime that is slower, or not shown to be faster."""
    groups: dict[tuple[str, str], list[NotFaster]] = {}
    for found in report.not_faster:
        groups.setdefault((found.artifact, found.runtime), []).append(found)
    lines = []
    for (artifact, runtime), each in groups.items():
        batches: dict[str, list[str]] = {}
        for found in each:
            words = "slower" if found.verdict == "slower" else "not shown to be faster"
            batches.setdefault(f"{words} than {report.name(found.than)} on {found.than_runtime}", []).append(
                str(found.batch)
            )
        said = ", and ".join(f"is {words} at batch {', '.join(sizes)}" for words, sizes in batches.items())
        facts = "; ".join(dict.fromkeys(fact for found in each for fact in found.facts))
        lines.append(f"INT8: {report.name(artifact)} on {runtime} {said}. What is known: {facts}.")
    return lines


def cpu_words(place: Mapping[str, Any]) -> list[str]:
    """The CPU of a report's environment: its name, its cores, and the instructions that count."""
    return [place["cpu"], f"{place['cores']} cores", *place["cpu_flags"]]


def where_line(place: Mapping[str, Any], words: Sequence[str], seconds: float) -> str:
    """Where something was measured, ``words`` being of the CPU, and how long it took."""
    gpu = [described(place["gpu"])] if place["gpu"] else []
    load = f"load {place['load']}; " if place["load"] is not None else ""
    return f"{', '.join([*words, *gpu])}; {load}{seconds:.0f} s in all."


def notes(report: BenchReport) -> list[str]:
    """What the figures are, where they were measured, why rows are missing, what is chosen and what has changed."""
    machine, where = report.machine, cpu_words(report.environment)
    if machine is not None:
        where.append(f"{machine.fp32_gflop_per_s:.0f} GFLOP/s FP32")
        where += [f"{machine.int8_gop_per_s:.0f} GOP/s INT8"] if machine.int8_gop_per_s else []
    lines = [
        where_line(report.environment, where, report.seconds),
        "Latency: median per batch with its 95 % interval. device: without host copies; ms and p99: host to host; "
        "end-to-end: with decoding and preprocessing.",
        "Speed: against the first row that ran, round by round; an interval is its 99 % interval. % of roofline: best "
        "time this machine allows over ms.",
        f"No accuracy: {report.unlabelled}. Agreement is with the first row that ran."
        if report.unlabelled
        else "p(worse): small, such as below 0.05, when it is probably less accurate (McNemar).",
    ]
    sizes = {report.name(row.artifact): row.input_bytes for row in report.rows if row.input_bytes is not None}
    if len({*sizes.values()}) > 1:
        each = ", ".join(f"{size:,} for {name}" for name, size in sizes.items())
        lines.append(f"Bytes of one image as the model takes it: {each}.")
    lines += gpu_notes(report)
    lines += [_server_note(report.name(row.artifact), row, row.server) for row in report.rows if row.server is not None]
    ran = {row.precision for row in report.rows if row.runtime == "onnxruntime-cpu" and row.status != "skipped"}
    emulated = [name for name in ("BF16", "FP8") if any(name.lower() in precision for precision in ran)]
    if emulated:
        lines.append(
            f"{' and '.join(emulated)} on onnxruntime-cpu: emulated, FP32 arithmetic on rounded values. Accuracy is "
            "that of the type; times and roofline say nothing of its kernels."
        )
    if grouped := next((row.grouped for row in report.rows if row.runtime == "tensorrt" and row.grouped), None):
        lines.append(f"{grouped_hint(grouped)}.")
    lines += _not_faster_notes(report)
    reasons = dict.fromkeys((row.runtime, row.reason) for row in report.rows if row.status == "skipped")
    lines += [f"skipped on {runtime}: {reason}" for runtime, reason in reasons]
    lines += [
        f"chosen for batch {choice.batch}: {report.name(choice.artifact)} on {choice.runtime}: {choice.reason}"
        for choice in report.choices
    ]
    for change in report.changes:
        name = f"{report.name(change.artifact)} on {change.runtime}, batch {change.batch}"
        accuracy = f", p less accurate {change.p_less_accurate:.2g}" if change.p_less_accurate is not None else ""
        mark = "REGRESSION: " if change.regression else ""
        lines.append(f"{mark}{name} against the baseline: {ratio_text(change.ratio)}{accuracy}")
    return lines
