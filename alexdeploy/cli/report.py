from __future__ import annotations

from pathlib import Path

import click

from alexdeploy.cli.bench import show_report
from alexdeploy.cli.options import FILE, ReportFiles, json_option, report_options


@click.command("report")
@click.argument("saved", type=FILE, metavar="first.json")
@report_options
@json_option
def command(saved: Path, shown: ReportFiles, as_json: bool) -> None:
    """Show a saved bench again, without measuring.

    Takes what bench --json printed, and prints its table or writes its page.

    \b
    Example: alexdeploy report first.json --html page.html
    """
    shown.check(saved)
    from alexdeploy.bench.baseline import load_report
    from alexdeploy.optional import require

    for module in ("jinja2", "matplotlib") if shown.html else ():
        require(module)
    show_report(load_report(saved), shown, as_json=as_json)
