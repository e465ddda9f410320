from __future__ import annotations

from pathlib import Path

import click

from alexdeploy.cli.bench import show_report
from alexdeploy.cli.load import show_load
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
    from alexdeploy.bench.baseline import load_saved
    from alexdeploy.bench.load_results import LoadReport
    from alexdeploy.optional import require

    for module in ("jinja2", "matplotlib") if shown.html else ():
        require(module)
    report = load_saved(saved)
    if isinstance(report, LoadReport):
        show_load(report, shown, as_json=as_json)
    else:
        show_report(report, shown, as_json=as_json)
