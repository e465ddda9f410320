from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from alexdeploy.cli.load import Serving, numbers, put_under_load, serving_options
from alexdeploy.cli.options import (
    FILE,
    DataChoice,
    ReportFiles,
    data_options,
    device_option,
    json_option,
    option_group,
    report_options,
)
from alexdeploy.cli.output import (
    echo,
    note,
    note_data,
    note_left_out,
    note_skipped,
    print_columns,
    print_json,
    progress,
    terminal_width,
)
from alexdeploy.columns import Column
from alexdeploy.errors import GateError, UnavailableError, UsageError
from alexdeploy.machine import forbid_tf32
from alexdeploy.specs import Runtime, cuda_ordinal

if TYPE_CHECKING:
    from alexdeploy.bench.results import BenchReport

_MAX_DROP = 1.0


@dataclass(frozen=True)
class _Where:
    """The values of ``--runtime`` and ``--device``."""

    runtimes: tuple[str, ...]
    device: str | None


@click.command("bench")
@click.argument("artifacts", type=FILE, nargs=-1, required=True, metavar="ARTIFACT...")
@data_options(required=True)
@click.option("--batch", default="1,8", show_default=True, metavar="N[,N...]", help="Batch sizes to time.")
@option_group(
    "where",
    _Where,
    click.option(
        "--runtime",
        "runtimes",
        multiple=True,
        type=click.Choice(["auto", *get_args(Runtime)]),
        help="Runtimes to measure; auto tries all that can run the files and chooses.  "
        "[default: the usual one of each]",
    ),
    device_option(),
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="With --runtime auto: how far top-1 may be below the first artifact's, or without labels agreement below "
    "100 %.  [default: 1.0]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=20.0,
    show_default=True,
    help="For the whole bench; all images are judged and 10 rounds timed even if that takes longer.",
)
@serving_options
@report_options
@click.option(
    "--baseline", type=FILE, metavar="old.json", help="Exit 5 where this is worse than what --json printed then."
)
@json_option
def command(
    artifacts: tuple[Path, ...],
    data: DataChoice,
    batch: str,
    where: _Where,
    max_drop: float | None,
    seconds: float,
    serving: Serving,
    shown: ReportFiles,
    baseline: Path | None,
    as_json: bool,
) -> None:
    """Compare accuracy and latency of artifacts.

    Checkpoints, ONNX files and engines are judged on the same images, each with its own preprocessing. The first
    artifact that runs is the reference. Rows that cannot run here say why; no figure is ever reported that was not
    measured. Classes are matched by name; without labels, or with other classes, accuracy is - and the agreement with
    the reference counts.

    The candidates take turns in random order, round by round, and a difference is named only where the samples
    support it. --json holds every raw sample.

    --server puts a running server under load instead: requests in flight, or arriving at random, beside the same file
    in this process. Exit 5 where it answers something else, or not.

    \b
    Example: alexdeploy bench alexnet-mnist.safetensors model.onnx int8.onnx --data digits --html report.html
             alexdeploy bench model.onnx int8.onnx --data digits --runtime auto --max-drop 0.5
             alexdeploy bench model.onnx --data digits --baseline last-week.json
             alexdeploy bench model.onnx --data digits --server http://127.0.0.1:8000 --in-flight 1,16 --rates 100
    """
    if serving.server is not None:
        put_under_load(serving, artifacts, data, where.runtimes, where.device, seconds, shown, as_json=as_json)
        return
    serving.check()
    from alexdeploy.bench.baseline import changes, check_comparable, load_report
    from alexdeploy.bench.run import run_bench
    from alexdeploy.optional import require

    sizes = numbers(int, "batch", batch)
    shown.check(*artifacts, *([baseline] if baseline else []))
    runtimes = where.runtimes
    auto = "auto" in runtimes
    if max_drop is not None and not auto:
        raise UsageError("--max-drop says what --runtime auto may choose; add that, or leave --max-drop out")
    if auto or "onnxruntime-tensorrt" in runtimes:  # which has no option for TF32; NVIDIA's libraries read it once
        forbid_tf32()
    with progress("loading SciPy and scikit-learn"):
        for module in ("scipy", "sklearn", *(("jinja2", "matplotlib") if shown.html else ())):
            require(module)
    earlier = load_report(baseline) if baseline else None
    if earlier is not None:
        check_comparable(earlier, artifacts, sizes, cuda_ordinal(where.device))
    dataset = data.open("val")
    note_data(dataset)
    with progress("opening the artifacts") as bar:
        report = run_bench(
            artifacts,
            dataset,
            batches=sizes,
            runtimes=[name for name in runtimes if name != "auto"] or (get_args(Runtime) if auto else ()),
            seconds=seconds,
            max_drop=(_MAX_DROP if max_drop is None else max_drop) if auto else None,
            server_ms=serving.server_ms,
            device=where.device,
            progress=bar,
        )
    if earlier is not None:
        report = dataclasses.replace(report, changes=changes(report, earlier))
    note_skipped(dataset)
    show_report(report, shown, as_json=as_json)
    if all(row.status == "skipped" for row in report.rows):
        note(f"error: nothing that was asked for runs here: {report.rows[0].reason}")
        sys.exit(UnavailableError.exit_code)
    worse = sum(change.regression for change in report.changes)
    if worse:
        note(f"error: {worse} of {len(report.changes)} rows are worse than in {baseline}, see above; mend or save anew")
        sys.exit(GateError.exit_code)


def show_report(report: BenchReport, files: ReportFiles, *, as_json: bool) -> None:
    """Write the files asked for and print the table, or all of it as JSON."""
    if files.html is not None:
        from alexdeploy.bench.report.page import write_html

        write_html(report, files.html)
    if files.markdown is not None:
        from alexdeploy.bench.report.page import write_markdown

        write_markdown(report, files.markdown)
    if as_json:
        print_json(report)
        return
    show_bench(report, wide=files.wide)


def show_bench(report: BenchReport, *, wide: bool = False) -> None:
    """The table as wide as the terminal, then its legend and notes; ``wide`` shows every column."""
    from textwrap import wrap

    from alexdeploy.bench.report.gpu import commands
    from alexdeploy.bench.report.table import notes

    title = f"{report.dataset}: {report.judged_on}"
    if wide:
        _show_wide(report, title)
    else:
        _show_compact(report, title)
    for line in notes(report):
        note(*wrap(line, terminal_width(), subsequent_indent="  "))
    for command in commands(report):  # as a shell takes it, on more than one line too
        lines = wrap(command, terminal_width() - 4, break_long_words=False, break_on_hyphens=False)
        note(*" \\\n  ".join(lines).split("\n"))


def _show_compact(report: BenchReport, title: str) -> None:
    """A line per artifact and runtime."""
    from alexdeploy.bench.report.columns import compact_table

    width = terminal_width()
    compact = compact_table(report, width)
    styles = ["dim" if skipped else None for skipped in compact.skipped]
    print_columns(compact.columns, title=title, styles=styles, width=width)
    for letter, name in compact.legend.items():
        echo(f"{letter}  {name}")
    note_left_out(compact.left_out, width)
    _show_gpu(report, compact.legend)


def _show_gpu(report: BenchReport, legend: dict[str, str]) -> None:
    """A line per engine and batch size; nothing where no row has times by CUDA events."""
    from alexdeploy.bench.report.gpu import GPU_TITLE, gpu_columns

    columns = gpu_columns(report, legend)
    if columns:
        print_columns(columns, title=GPU_TITLE, width=terminal_width())


def _show_wide(report: BenchReport, title: str) -> None:
    """One line per artifact, runtime and batch size, with every column."""
    from alexdeploy.bench.report.table import HEADERS, TEXT_COLUMNS, cells

    columns = [
        Column(header, column, text=index < TEXT_COLUMNS)
        for index, (header, column) in enumerate(zip(HEADERS, zip(*cells(report), strict=True), strict=True))
    ]
    print_columns(columns, title=title, styles=["dim" if row.status == "skipped" else None for row in report.rows])
    _show_gpu(report, {})
