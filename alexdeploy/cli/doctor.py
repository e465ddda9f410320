from __future__ import annotations

import sys

import click

from alexdeploy.cli.options import json_option
from alexdeploy.cli.output import print_columns, print_json, progress, with_options
from alexdeploy.columns import Column
from alexdeploy.errors import UnavailableError


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Try every backend and say what is missing.

    One real operation on each, its result checked; what is missing comes with the line that fixes it.

    Exit code 4 when a backend is installed but broken; a backend that is merely absent is not an error.

    \b
    Example: alexdeploy doctor
    """
    from alexdeploy.doctor import examine

    with progress("trying every backend") as bar:
        findings = examine(progress=bar)
    if as_json:
        print_json({"findings": findings})
    else:
        colours = {"ok": None, "missing": "yellow", "broken": "red"}
        columns = [
            Column("backend", [finding.backend for finding in findings], text=True),
            Column("status", [finding.status for finding in findings], text=True),
            Column("detail", [with_options(finding.detail) for finding in findings], text=True, folds=True),
        ]
        print_columns(columns, styles=[colours[finding.status] for finding in findings])
    if any(finding.status == "broken" for finding in findings):
        sys.exit(UnavailableError.exit_code)
