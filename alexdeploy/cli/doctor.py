from __future__ import annotations

import sys

import click

from alexdeploy.cli.options import json_option
from alexdeploy.cli.output import print_json, print_table
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
    from rich.table import Table

    from alexdeploy.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": findings})
    else:
        table = Table()
        for name in ("backend", "status", "detail"):
            table.add_column(name, overflow="fold")
        colours = {"ok": "green", "missing": "yellow", "broken": "red"}
        for finding in findings:
            colour = colours[finding.status]
            table.add_row(finding.backend, f"[{colour}]{finding.status}[/]", finding.detail.replace("[", "\\["))
        print_table(table)
    if any(finding.status == "broken" for finding in findings):
        sys.exit(UnavailableError.exit_code)
