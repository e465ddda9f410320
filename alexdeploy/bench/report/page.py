"""The report as files: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from alexdeploy import files
from alexdeploy.bench.report.table import HEADERS, TEXT_COLUMNS, cells, notes
from alexdeploy.bench.results import BenchReport


def write_markdown(report: BenchReport, path: Path) -> None:
    """Table and notes."""
    lines = [
        f"# Bench on {report.dataset}, {report.images} held-out images",
        "",
        f"| {' | '.join(HEADERS)} |",
        f"|{' --- |' * TEXT_COLUMNS}{' --: |' * (len(HEADERS) - TEXT_COLUMNS)}",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in cells(report)),
        "",
        *(f"- {text}" for text in notes(report)),
    ]
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())


def write_html(report: BenchReport, path: Path) -> None:
    """Table, notes, pictures and per-class accuracy on a page without scripts, fonts or pictures from elsewhere.

    Raises:
        UnavailableError: Jinja2 or Matplotlib is not installed.
    """
    from alexdeploy.bench.report.charts import figures
    from alexdeploy.optional import require

    environment = require("jinja2").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html.j2").read_text())
    page = template.render(
        report=report,
        headers=HEADERS,
        lines=cells(report),
        text_columns=TEXT_COLUMNS,
        notes=notes(report),
        figures=figures(report),
    )
    files.write_bytes(path, page.encode())
