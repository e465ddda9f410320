from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy.cli.options import FILE, data_options, json_option, open_data
from alexdeploy.cli.output import note, note_skipped, print_json, print_table, progress
from alexdeploy.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from alexdeploy.bench.measure import Latency
    from alexdeploy.bench.run import BenchReport, Row

RUNTIMES = ("pytorch", "onnxruntime-cpu", "tensorrt", "tensorrt-rtx")


@click.command("bench")
@click.argument("artifacts", type=FILE, nargs=-1, required=True, metavar="ARTIFACT...")
@data_options(required=True)
@click.option("--batch", default="1,8", show_default=True, metavar="N[,N...]", help="Batch sizes to time.")
@click.option(
    "--runtime", "runtimes", multiple=True, type=click.Choice(RUNTIMES), help="Only these.  [default: all that apply]"
)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Least time per row.")
@json_option
def command(
    artifacts: tuple[Path, ...],
    data: str,
    data_root: Path | None,
    skip_bad_images: bool,
    batch: str,
    runtimes: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Compare accuracy and latency of artifacts.

    Checkpoints, ONNX files and engines are judged on the same held-out images. The first artifact that runs is
    the reference for agreement. Rows that cannot run here say why; no figure is ever reported that was not
    measured. Latency is host to host, the candidates taking turns.

    \b
    Example: alexdeploy bench alexnet-mnist.safetensors model.onnx int8.onnx --data digits
    """
    sizes = _batches(batch)
    dataset = open_data(data, "val", data_root, skip_bad_images)
    from alexdeploy.bench.run import bench

    with progress() as bar:
        report = bench(artifacts, dataset, batches=sizes, runtimes=runtimes, seconds=seconds, progress=bar)
    note_skipped(dataset)
    if as_json:
        print_json(report)
    else:
        print_table(bench_table(report))
        note(bench_caption(report))


def _batches(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--batch '{text}': expected whole numbers >= 1, such as 1,8")
    return sizes


def bench_table(report: BenchReport) -> Table:
    """One line per artifact and runtime; the batch sizes are columns. A skipped row shows no figure at all."""
    from rich.table import Table

    batches = list(dict.fromkeys(row.batch for row in report.rows))
    table = Table(title=f"{report.dataset}: {report.images} held-out images")
    for name in ("artifact", "runtime", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("MB", "top-1", "top-5", "agreement", *(f"ms, batch {batch}" for batch in batches), "images/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for rows in _by_artifact(report.rows):
        first, last = rows[0], rows[-1]
        start = [Path(first.artifact).name, first.runtime, first.precision, f"{first.size_bytes / 1e6:.1f}"]
        if first.status == "skipped":
            table.add_row(*start, *["-"] * 3, *["skipped"] * len(batches), "-", style="dim")
            continue
        accuracy = [f"{share:.2%}" for share in (first.top1, first.top5, first.agreement) if share is not None]
        times = [f"{row.latency_ms.p50:.3g} ±{_half_width(row.latency_ms):.1g}" for row in rows if row.latency_ms]
        table.add_row(*start, *accuracy, *times, f"{last.images_per_s:.0f}")
    return table


def bench_caption(report: BenchReport) -> str:
    """What the figures are, where they were measured, and why rows are missing."""
    place = report.environment
    lines = [
        f"{place['cpu']}, {place['cores']} cores. Latency: median per batch, host to host, with its 95 % interval; "
        "images/s at the last batch size."
    ]
    reasons = dict.fromkeys((row.runtime, row.reason) for row in report.rows if row.status == "skipped")
    lines += [f"skipped on {runtime}: {reason}" for runtime, reason in reasons]
    return "\n".join(lines)


def _by_artifact(rows: list[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.artifact, row.runtime), []).append(row)
    return list(groups.values())


def _half_width(latency: Latency) -> float:
    return (latency.ci95[1] - latency.ci95[0]) / 2
