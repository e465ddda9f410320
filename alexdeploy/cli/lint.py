from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import print_json, print_table
from alexdeploy.errors import GateError

if TYPE_CHECKING:
    from rich.table import Table

    from alexdeploy.graph.lint import Finding


@click.command("lint")
@click.argument("model", type=FILE)
@json_option
def command(model: Path, as_json: bool) -> None:
    """Check an ONNX model against TensorRT's rules.

    Errors are what TensorRT refuses or silently misreads (exit 5); warnings are what it builds, slower or less
    exact than meant. It judges any ONNX file, also what the quantizers of onnxruntime, ModelOpt and NNCF write.

    \b
    Example: alexdeploy lint int8.onnx
    """
    from alexdeploy.graph.lint import lint
    from alexdeploy.graph.model import load_onnx

    findings = lint(load_onnx(model))
    counts = Counter(finding.severity for finding in findings)
    if as_json:
        totals = {"errors": counts["error"], "warnings": counts["warning"]}
        print_json({"model": str(model), "findings": findings, **totals})
    else:
        if findings:
            print_table(_table(findings))
        click.echo(f"{model}: {counts['error']} errors, {counts['warning']} warnings")
    if counts["error"]:
        sys.exit(GateError.exit_code)


def _table(findings: list[Finding]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in ("severity", "node", "rule", "found", "fix"):
        table.add_column(name, overflow="fold")
    colours = {"error": "red", "warning": "yellow"}
    for finding in findings:
        texts = (finding.node, finding.rule, finding.found, finding.fix)
        table.add_row(f"[{colours[finding.severity]}]{finding.severity}[/]", *map(escape, texts))
    return table
