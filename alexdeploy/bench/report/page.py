"""The report as files: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alexdeploy import files
from alexdeploy.bench.report.columns import CompactTable, compact_table
from alexdeploy.bench.report.gpu import GPU_TITLE, commands, gpu_columns
from alexdeploy.bench.report.table import HEADERS, TEXT_COLUMNS, cells, notes
from alexdeploy.bench.results import BenchReport
from alexdeploy.columns import Column
from alexdeploy.errors import visible
from alexdeploy.optional import require

# what begins code, emphasis, HTML, entities, formulas, cells and links; underscores inside a word begin nothing.
# A forge also makes links of addresses alone: https://…, www.…, someone@…
_MARKS = re.compile(
    r"[\\`|<*~&$]|(?<=\])\(|(?<![^\W_])_|_(?![^\W_])|(?<=[a-z]):(?=//)|(?<=www)\.|(?<=[\w.+-])@(?=[\w-])", re.IGNORECASE
)
_PAGE, _MARKDOWN = 170, 130  # characters of a table for which a window of 1280 pixels and a forge have room


def write_markdown(report: BenchReport, path: Path) -> None:
    """The compact table, the notes, and the table of every figure."""
    compact = compact_table(report, _MARKDOWN)
    text = [True] * TEXT_COLUMNS + [False] * (len(HEADERS) - TEXT_COLUMNS)
    lines = [
        f"# {as_markdown(f'Bench on {report.dataset}: {report.judged_on}')}",
        "",
        *markdown_table(compact.columns),
        "",
        *(f"- {letter}: {as_markdown(name)}" for letter, name in compact.legend.items()),
        *_gpu(report, compact),
        *(f"- {as_markdown(text)}" for text in notes(report)),
        *(["", "```", *map(visible, commands(report)), "```"] if commands(report) else []),
        "",
        "## Every figure, a line for each batch size",
        "",
        *_table(HEADERS, text, cells(report)),
    ]
    files.write_bytes(path, ("\n".join(lines) + "\n").encode())


def _gpu(report: BenchReport, compact: CompactTable) -> Iterator[str]:
    columns = gpu_columns(report, compact.legend)
    if columns:
        yield from (f"{GPU_TITLE}:", "", *markdown_table(columns), "")


def markdown_table(columns: Sequence[Column]) -> list[str]:
    """The lines of a table."""
    rows = zip(*(column.cells for column in columns), strict=True)
    return [*_table([column.header for column in columns], [column.text for column in columns], rows)]


def _table(headers: Sequence[str], text: Sequence[bool], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield f"|{'|'.join(' --- ' if left else ' --: ' for left in text)}|"
    for row in rows:
        yield f"| {' | '.join(map(as_markdown, row))} |"


def as_markdown(text: str) -> str:
    """Text that Markdown shows as it is, whatever names are in it."""
    return _MARKS.sub(r"\\\g<0>", visible(text))


def write_html(report: BenchReport, path: Path) -> None:
    """Both tables, notes, pictures and per-class accuracy on a page without scripts, fonts or pictures from elsewhere.

    Raises:
        UnavailableError: Jinja2 or Matplotlib is not installed.
    """
    from alexdeploy.bench.report.charts import figures

    compact = compact_table(report, _PAGE)
    write_page(
        path,
        "page.html.j2",
        report=report,
        compact=compact,
        gpu=gpu_columns(report, {}),  # on a phone the legend is hidden
        gpu_title=GPU_TITLE,
        commands=commands(report),
        headers=HEADERS,
        lines=cells(report),
        text_columns=TEXT_COLUMNS,
        notes=notes(report),
        figures=figures(report),
    )


def _text_visible(value: Any) -> Any:
    """Names as a page can show them; what is HTML already is left as it is."""
    return "\n".join(map(visible, value.split("\n"))) if type(value) is str else value


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill the template of that name, a file in this folder, which also gets our ``style``.

    Raises:
        UnavailableError: Jinja2 is not installed.
    """
    environment = require("jinja2").Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_text_visible
    )
    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8")
    page = environment.from_string((here / template).read_text(encoding="utf-8")).render(style=style, **values)
    files.write_bytes(path, page.encode())
