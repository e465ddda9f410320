from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from alexdeploy.cli.options import json_option
from alexdeploy.cli.output import print_columns, print_json, progress, with_options
from alexdeploy.columns import Column
from alexdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from alexdeploy.doctor import Cuda


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Try every backend and say what is missing.

    One real operation on each, its result checked; what is missing comes with the line that fixes it. On a machine with
    a GPU an engine is built and run, and the CUDA of the driver is held against that of every library.

    Exit code 4 when a backend is installed but broken; a backend that is merely absent is not an error.

    \b
    Example: alexdeploy doctor
    """
    from alexdeploy.doctor import cuda_versions, examine

    with progress("trying every backend") as bar:
        findings = examine(progress=bar)
    if as_json:
        print_json({"findings": findings, "cuda": cuda_versions()})
    else:
        colours = {"ok": None, "missing": "yellow", "broken": "red"}
        columns = [
            Column("backend", [finding.backend for finding in findings], text=True),
            Column("status", [finding.status for finding in findings], text=True),
            Column("detail", [with_options(finding.detail) for finding in findings], text=True, folds=True),
        ]
        print_columns(columns, styles=[colours[finding.status] for finding in findings])
        _show(cuda_versions())
    if any(finding.status == "broken" for finding in findings):
        sys.exit(UnavailableError.exit_code)


def _show(cuda: Cuda) -> None:
    """Only where a driver is: elsewhere it says nothing of this machine."""
    if cuda.driver is None or not cuda.libraries:
        return
    runs = [cuda.runs(wheel) for wheel in cuda.libraries]
    columns = [
        Column("library", [wheel.name for wheel in cuda.libraries], text=True),
        Column("version", [wheel.version for wheel in cuda.libraries], text=True),
        Column("for CUDA", [wheel.cuda for wheel in cuda.libraries], text=True),
        Column(f"driver: CUDA {cuda.driver}", ["runs it" if good else "too old" for good in runs], text=True),
    ]
    print_columns(columns, styles=[None if good else "red" for good in runs])
