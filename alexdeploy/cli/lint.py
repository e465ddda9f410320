from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import click

from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import echo, print_json, progress, terminal_width
from alexdeploy.errors import GateError, few

if TYPE_CHECKING:
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

    with progress(f"checking {model}"):
        findings = lint(load_onnx(model))
    counts = Counter(finding.severity for finding in findings)
    if as_json:
        totals = {"errors": counts["error"], "warnings": counts["warning"]}
        print_json({"model": str(model), "findings": findings, **totals})
    else:
        show(findings)
        echo(f"{model}: {counts['error']} errors, {counts['warning']} warnings")
    if counts["error"]:
        sys.exit(GateError.exit_code)


def show(findings: list[Finding]) -> None:
    """What was found and the fix, as wide as the terminal; nodes with the same fault together."""
    nodes: dict[Finding, list[str]] = {}
    for finding in findings:
        nodes.setdefault(dataclasses.replace(finding, node=""), []).append(finding.node)
    for fault, names in nodes.items():
        severity = click.style(fault.severity, fg={"error": "red", "warning": "yellow"}[fault.severity])
        click.echo(f"{severity}: ", nl=False)
        echo(f"{few(names)} ({fault.rule})")
        for name, text in (("found:", fault.found), ("fix:", fault.fix)):
            indent = f"  {name:<7}"
            echo(*wrap(text, terminal_width(), initial_indent=indent, subsequent_indent=" " * len(indent)))
