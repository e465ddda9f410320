from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

import click
from click.core import ParameterSource

from alexdeploy.cli.options import FILE, DataChoice, data_options, device_option, json_option, option_group
from alexdeploy.cli.output import (
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
from alexdeploy.files import check_output
from alexdeploy.machine import forbid_tf32
from alexdeploy.specs import Runtime, cuda_ordinal

if TYPE_CHECKING:
    from alexdeploy.bench.load_results import LoadReport
    from alexdeploy.bench.results import BenchReport

_MAX_DROP = 1.0


@dataclass(frozen=True)
class ReportFiles:
    """Files to write beside the terminal, and the width of the table."""

    html: Path | None
    markdown: Path | None
    wide: bool

    def check(self, *inputs: Path) -> None:
        """Fail early where a file could not be written, or would overwrite one of ``inputs``."""
        for path in filter(None, (self.html, self.markdown)):
            check_output(path, *inputs)


report_options = option_group(
    "shown",
    ReportFiles,
    click.option("--html", type=FILE, metavar="report.html", help="Also write a page with pictures, in one file."),
    click.option("--markdown", type=FILE, metavar="report.md", help="Also write the table as Markdown."),
    click.option("--wide", is_flag=True, help="Show every column, however wide the terminal is."),
)


@dataclass(frozen=True)
class _Where:
    """The values of ``--runtime`` and ``--device``."""

    runtimes: tuple[str, ...]
    device: str | None


@dataclass(frozen=True)
class _Serving:
    """What is asked of servers: a bound for LoadGen, or a running one and its loads."""

    server_ms: float | None
    server: str | None
    model: str | None
    in_flight: str | None
    rates: str | None

    def check(self) -> None:
        """Loads need a server.

        Raises:
            UsageError: they have none.
        """
        for name in ("model", "in_flight", "rates"):
            if self.server is None and getattr(self, name) is not None:
                raise UsageError(f"`{name}` is of a load report; add `server` with the URL, or leave it out")


serving_options = option_group(
    "serving",
    _Serving,
    click.option(
        "--server-ms",
        type=click.FloatRange(min=0, min_open=True),
        metavar="BOUND",
        help="Also find the rate of single images, arriving at random, whose p99 stays within BOUND (MLPerf's "
        "LoadGen).",
    ),
    click.option(
        "--server",
        metavar="URL",
        help="Instead put a running server (KServe v2, such as Triton) under load, beside ARTIFACT in this process: "
        "http://host:8000 or grpc://host:8001.",
    ),
    click.option("--model", metavar="NAME", help="With --server: its name there.  [default: ARTIFACT without suffix]"),
    click.option(
        "--in-flight",
        metavar="N[,N...]",
        help="With --server: requests kept in flight.  [default: 1,4,16, or none with --rates]",
    ),
    click.option("--rates", metavar="R[,R...]", help="With --server: images per second, arriving at random (Poisson)."),
)


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
    serving: _Serving,
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

    \b
    Example: alexdeploy bench alexnet-mnist.safetensors model.onnx int8.onnx --data digits --html report.html
             alexdeploy bench model.onnx int8.onnx --data digits --runtime auto --max-drop 0.5
             alexdeploy bench model.onnx --data digits --baseline last-week.json
             alexdeploy bench model.onnx --data digits --server http://127.0.0.1:8000 --in-flight 1,16 --rates 100
    """
    if serving.server is not None:
        _put_under_load(serving, artifacts, data, where, seconds, shown, as_json=as_json)
        return
    serving.check()
    from alexdeploy.bench.baseline import changes, check_comparable, load_report
    from alexdeploy.bench.run import run_bench
    from alexdeploy.optional import require

    sizes = _batches(batch)
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


def _put_under_load(
    serving: _Serving,
    artifacts: tuple[Path, ...],
    data: DataChoice,
    where: _Where,
    seconds: float,
    shown: ReportFiles,
    *,
    as_json: bool,
) -> None:
    """``bench --server``: exit 5 where a request failed."""
    context = click.get_current_context()
    for name in ("batch", "max_drop", "server_ms", "baseline", "wide"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"`{name}` is not for a load report; leave it out, or `server`")
    if len(artifacts) != 1 or len(where.runtimes) > 1 or "auto" in where.runtimes:
        raise UsageError("`server` takes one ARTIFACT, the one that is served, and at most one `runtime` by name")
    in_flight = _numbers(int, "in-flight", serving.in_flight or ("" if serving.rates else "1,4,16"))
    rates = _numbers(float, "rates", serving.rates or "")
    shown.check(*artifacts)
    from alexdeploy.bench.load import run_load
    from alexdeploy.optional import require

    with progress("loading SciPy and the client"):
        for module in ("scipy", "tritonclient", *(("jinja2",) if shown.html else ())):
            require(module)
    dataset = data.open("val")
    note_data(dataset)
    with progress(f"opening {artifacts[0].name}") as bar:
        report = run_load(
            artifacts[0],
            dataset,
            serving.server or "",
            model=serving.model,
            in_flight=in_flight,
            rates=rates,
            runtime=next(iter(where.runtimes), None),
            device=where.device,
            seconds=seconds,
            progress=bar,
        )
    note_skipped(dataset)
    _show_load(report, shown, as_json=as_json)
    failed = [row for row in report.rows if row.status == "failed"]
    if failed:
        note(f"error: {len(failed)} of {len(report.rows)} loads had failed requests, see above; mend the server")
        sys.exit(GateError.exit_code)


def _show_load(report: LoadReport, files: ReportFiles, *, as_json: bool) -> None:
    from textwrap import fill

    from alexdeploy.bench.report.load import (
        RATIO_TITLE,
        load_columns,
        load_notes,
        load_title,
        ratio_columns,
        write_html,
        write_markdown,
    )

    if files.html is not None:
        write_html(report, files.html)
    if files.markdown is not None:
        write_markdown(report, files.markdown)
    if as_json:
        print_json(report)
        return
    print_columns(load_columns(report), title=load_title(report))
    ratios = ratio_columns(report)
    if ratios:
        print_columns(ratios, title=RATIO_TITLE)
    for line in load_notes(report):
        note(fill(line, terminal_width(), subsequent_indent="  "))


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


def _batches(text: str) -> list[int]:
    return _numbers(int, "batch", text)


_Number = TypeVar("_Number", int, float)


def _numbers(kind: Callable[[str], _Number], option: str, text: str) -> list[_Number]:
    """``1,8`` → [1, 8], each once; none of an empty text."""
    try:
        numbers = [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [kind("0")]
    if not all(number > 0 and isfinite(number) for number in numbers):
        expected = "whole numbers >= 1, such as 1,8" if kind is int else "numbers > 0, such as 50,100"
        raise UsageError(f"--{option} '{text}': expected {expected}")
    return list(dict.fromkeys(numbers))


def show_bench(report: BenchReport, *, wide: bool = False) -> None:
    """The table as wide as the terminal, then its legend and notes; ``wide`` shows every column."""
    from textwrap import fill, wrap

    from alexdeploy.bench.report.gpu import commands
    from alexdeploy.bench.report.table import notes

    title = f"{report.dataset}: {report.judged_on}"
    if wide:
        _show_wide(report, title)
    else:
        _show_compact(report, title)
    for line in notes(report):
        note(fill(line, terminal_width(), subsequent_indent="  "))
    for command in commands(report):  # as a shell takes it, on more than one line too
        lines = wrap(command, terminal_width() - 4, break_long_words=False, break_on_hyphens=False)
        note(" \\\n  ".join(lines))


def _show_compact(report: BenchReport, title: str) -> None:
    """A line per artifact and runtime."""
    from alexdeploy.bench.report.columns import compact_table

    width = terminal_width()
    compact = compact_table(report, width)
    styles = ["dim" if skipped else None for skipped in compact.skipped]
    print_columns(compact.columns, title=title, styles=styles, width=width)
    for letter, name in compact.legend.items():
        click.echo(f"{letter}  {name}")
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
