"""A load report as text: its two tables, and the notes below them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from alexdeploy import files
from alexdeploy.bench.intervals import Estimate, Ratio
from alexdeploy.bench.load_results import LoadReport, LoadRow
from alexdeploy.bench.report.gpu import milliseconds
from alexdeploy.bench.report.page import as_markdown, markdown_table, write_page
from alexdeploy.bench.report.table import cpu_words, percent, ratio_text, where_line
from alexdeploy.bench.traffic import SENDERS
from alexdeploy.columns import Column

RATIO_TITLE = "Against the queued runner here (above 1 is better)"
_FOREIGN = 0.01  # of our requests


def load_columns(report: LoadReport) -> list[Column]:
    """A line for each load and target."""
    rows = report.rows
    return [
        Column("load", _loads(rows), text=True),
        Column("target", [row.target for row in rows], text=True),
        Column("images/s", [_rate(row) for row in rows]),
        Column("p50 ms", [_latency(row.p50_ms, row.status) for row in rows]),
        Column("p90 ms", [_latency(row.p90_ms) for row in rows], rank=4),
        Column("p99 ms", [_latency(row.p99_ms) for row in rows]),
        Column("batch", [_served(row, "mean_batch") for row in rows], rank=1),
        Column("queue ms", [_served(row, "queue_ms") for row in rows], rank=2),
        Column("model ms", [_served(row, "compute_ms") for row in rows], rank=3),
    ]


def ratio_columns(report: LoadReport) -> list[Column]:
    """A line for each load and target beside the queued runner; no columns where none could be compared."""
    rows = [row for row in report.rows if row.p99_ratio is not None]
    if not rows:
        return []
    return [
        Column("load", _loads(rows), text=True),
        Column("target", [row.target for row in rows], text=True),
        Column("images/s", [_ratio(row.rate_ratio) for row in rows]),
        Column("p99", [_ratio(row.p99_ratio) for row in rows]),
    ]


def load_notes(report: LoadReport) -> list[str]:
    """What the figures are, where they were measured, and what went wrong."""
    counted = any(row.served for row in report.rows)
    lines = [
        where_line(report.environment, cpu_words(report.environment), report.seconds),
        f"server: {report.url}, model '{report.model}', {report.protocol}, one image per request; what the Python "
        "client costs is part of its figures.",
        f"Here, on {report.runtime}: queued is one worker that runs what waits, up to {report.max_batch} images "
        "together; shared is the runner called by every thread.",
        f"Answers: {report.images} images were compared before, {percent(report.agreement)} agree, largest relative "
        f"error {report.relative_error:.1e}; under load every answer was.",
        f"{report.rounds} rounds in random order; 95 % intervals, ±: half of one. Arrivals per second are Poisson's, "
        f"their latency counts from when they were due; at most {SENDERS} are in flight, the others wait here.",
        "batch, queue ms and model ms: differences of the server's counters over the slices of that load."
        if counted
        else "The server has no counters: batch and queue are not known.",
    ]
    if report.same_machine:
        lines.append("Server and client share this machine: the server would have its cores for itself elsewhere.")
    return [*lines, *_warnings(report)]


def _warnings(report: LoadReport) -> Iterator[str]:
    load, cores = report.environment["load"], report.environment["cores"]
    if load is not None and load > cores:
        yield (
            f"WARNING: load {load} on {cores} cores before it began: other work takes turns with this, and a thread "
            "that often waits gets its turn sooner than one that only computes, so the targets are not treated alike."
        )
    for row in report.rows:
        if row.reason is not None:
            yield f"WARNING: {row.load}, {row.target}: {row.reason}"
    foreign = sum(max(row.served.inferences - row.requests, 0) for row in report.rows if row.served)
    if foreign > _FOREIGN * sum(row.requests for row in report.rows if row.served):
        yield f"WARNING: the server answered {foreign} images of other clients meanwhile; the figures are of both."


def write_markdown(report: LoadReport, path: Path) -> None:
    """Both tables, and the notes."""
    ratios = ratio_columns(report)
    lines = [
        f"# {as_markdown(load_title(report))}",
        "",
        *markdown_table(load_columns(report)),
        "",
        *([f"{RATIO_TITLE}:", "", *markdown_table(ratios), ""] if ratios else []),
        *(f"- {as_markdown(note)}" for note in load_notes(report)),
    ]
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_html(report: LoadReport, path: Path) -> None:
    """Both tables, the notes and the environment, on a page that needs nothing else.

    Raises:
        UnavailableError: Jinja2 is not installed.
    """
    tables = [("", load_columns(report)), (RATIO_TITLE, ratio_columns(report))]
    write_page(path, "load.html.j2", report=report, title=load_title(report), tables=tables, notes=load_notes(report))


def load_title(report: LoadReport) -> str:
    """What was asked, and with what."""
    return f"{Path(report.artifact).name} served: {report.images} images of {report.dataset}"


def _loads(rows: list[LoadRow]) -> list[str]:
    return [str(row.load) for row in rows]


def _rate(row: LoadRow) -> str:
    if row.images_per_s is None:
        return "-"
    low, high = row.images_per_s.ci95
    return f"{row.images_per_s.value:.0f} ±{(high - low) / 2:.0f}"


def _latency(estimate: Estimate | None, instead: str = "-") -> str:
    if estimate is None:
        return instead
    low, high = estimate.ci95
    return f"{milliseconds(estimate.value)} ({milliseconds(low)}–{milliseconds(high)})"


def _served(row: LoadRow, name: str) -> str:
    return "-" if row.served is None else milliseconds(getattr(row.served, name))


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio_text(ratio)} {ratio.verdict}" if ratio.is_shown else ratio.verdict
