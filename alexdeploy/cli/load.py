"""``bench --server``: a running server under load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import click
from click.core import ParameterSource

from alexdeploy.cli.options import DataChoice, ReportFiles, option_group
from alexdeploy.cli.output import (
    note,
    note_data,
    note_skipped,
    print_columns,
    print_json,
    progress,
    terminal_width,
)
from alexdeploy.errors import GateError, UsageError

if TYPE_CHECKING:
    from alexdeploy.bench.load_results import LoadReport
    from alexdeploy.specs import Runtime

_IN_FLIGHT = "1,4,16"


@dataclass(frozen=True)
class Serving:
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
    Serving,
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


_Number = TypeVar("_Number", int, float)


def numbers(kind: Callable[[str], _Number], option: str, text: str) -> list[_Number]:
    """``1,8`` → [1, 8], each once."""
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(number > 0 and isfinite(number) for number in found):
        expected = "whole numbers >= 1, such as 1,8" if kind is int else "numbers > 0, such as 50,100"
        raise UsageError(f"--{option} '{text}': expected {expected}")
    return list(dict.fromkeys(found))


def put_under_load(
    serving: Serving,
    artifacts: tuple[Path, ...],
    data: DataChoice,
    runtimes: tuple[str, ...],
    device: str | None,
    seconds: float,
    shown: ReportFiles,
    *,
    as_json: bool,
) -> None:
    """``bench --server``: exit 5 where a request failed."""
    context = click.get_current_context()
    for name in ("batch", "max_drop", "server_ms", "baseline"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"`{name}` is not for a load report; leave it out, or `server`")
    if len(artifacts) != 1 or len(runtimes) > 1 or "auto" in runtimes:
        raise UsageError("`server` takes one ARTIFACT, the one that is served, and at most one `runtime` by name")
    runtime = cast("Runtime | None", next(iter(runtimes), None))  # one of the choices
    rates = numbers(float, "rates", serving.rates) if serving.rates is not None else []
    in_flight = _IN_FLIGHT if serving.in_flight is None else serving.in_flight
    closed = numbers(int, "in-flight", in_flight) if serving.in_flight is not None or not rates else []
    shown.check(*artifacts)
    from alexdeploy.bench.load import IMAGES, loads_for, run_load
    from alexdeploy.bench.load_rounds import least_seconds
    from alexdeploy.optional import require

    with progress("loading SciPy and the client"):
        for module in ("scipy", "tritonclient", *(("jinja2",) if shown.html else ())):
            require(module)
    least_s = least_seconds(loads_for(serving.server or "", closed, rates))
    if least_s > seconds:
        note(f"note: at these `rates` ten rounds take {least_s / 60:.1f} minutes at least, more than `seconds`")
    dataset = data.open("val")
    note_data(dataset, IMAGES)
    with progress(f"opening {artifacts[0].name}") as bar:
        report = run_load(
            artifacts[0],
            dataset,
            serving.server or "",
            model=serving.model,
            in_flight=closed,
            rates=rates,
            runtime=runtime,
            device=device,
            seconds=seconds,
            progress=bar,
        )
    note_skipped(dataset)
    show_load(report, shown, as_json=as_json)
    failed = [row for row in report.rows if row.status == "failed"]
    if failed:
        who = dict.fromkeys(row.target for row in failed)
        mend = "; mend the server" if "server" in who else ""
        note(f"error: {len(failed)} of {len(report.rows)} rows had failed requests ({', '.join(who)}), see above{mend}")
        sys.exit(GateError.exit_code)


def show_load(report: LoadReport, files: ReportFiles, *, as_json: bool) -> None:
    """Write the files asked for and print the tables, or all of it as JSON."""
    from textwrap import wrap

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
    columns = load_columns(report)
    print_columns([replace(column, rank=0) for column in columns] if files.wide else columns, title=load_title(report))
    ratios = ratio_columns(report)
    if ratios:
        print_columns(ratios, title=RATIO_TITLE)
    for line in load_notes(report):
        note(*wrap(line, terminal_width(), subsequent_indent="  "))
