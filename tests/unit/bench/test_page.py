"""The HTML page and the Markdown of a bench: wide tables in their own box, and no page that scrolls sideways."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import subprocess
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from markdown_it import MarkdownIt

from alexdeploy.bench.accuracy import Accuracy
from alexdeploy.bench.baseline import load_report
from alexdeploy.bench.report.page import as_markdown, write_html, write_markdown
from alexdeploy.bench.report.table import notes
from alexdeploy.bench.results import BenchReport
from alexdeploy.errors import visible
from tests.unit.bench.test_columns import report as rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLASSES = ["a", "a-class-with-a-very-long-name"]
LAYERS = {f"/blocks.{number}/0/conv_dw_expansion/Conv": 0.1 * number for number in range(1, 9)}


@pytest.fixture(scope="module")
def report() -> BenchReport:
    """Long names of files, classes and layers, four batch sizes, every third artifact skipped."""
    found = rows_of(5, (1, 8, 32, 64))
    for row in found.rows:
        row.samples_ms["host"] = [[123.4, 125.6], [122.2, 124.1]]
        if row.batch == 1 and row.status == "ok":
            row.layers_ms.update(LAYERS)
    first = found.rows[0]
    shares: list[float | None] = [0.9, 0.9]
    found.accuracy.append(Accuracy(first.artifact, first.runtime, shares, shares, [[9, 1], [1, 9]], [0], None))
    found.classes[:] = CLASSES
    return found


@pytest.fixture(scope="module")
def page(report: BenchReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(report, path)
    return path


class Tables(HTMLParser):
    """For each table the classes of the elements around it."""

    def __init__(self) -> None:
        super().__init__()
        self.around: list[list[str]] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.around.append([*self._open])
        if tag in ("div", "details", "table", "figure"):
            self._open.append(dict(attrs).get("class") or tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "details", "table", "figure"):
            self._open.pop()


def test_every_table_scrolls_in_its_own_box_and_pictures_have_no_fixed_width(page: Path) -> None:
    text = page.read_text()
    tables = Tables()
    tables.feed(text)
    assert len(tables.around) == 3  # compact, every figure, by class
    assert all(around[-1] == "wide" for around in tables.around)
    assert tables.around[1] == ["details", "wide"], "the wide table is folded in"
    style = text[text.index("<style>") : text.index("</style>")]
    assert re.search(r"\.wide \{[^}]*overflow-x: auto", style)
    assert re.search(r"figure svg \{[^}]*width: 100%", style)
    assert not re.search(r"[{;]\s*(min-)?width: *\d+px", style)


def test_class_names_in_pictures_are_text_of_any_language(report: BenchReport, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that Matplotlib's font lacks a glyph
        write_html(dataclasses.replace(report, classes=["玫瑰", "<b>&"]), path)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
    assert {"玫瑰", "&lt;b&gt;&amp;"} <= set(labels)


def test_the_markdown_has_a_compact_table_and_every_figure(report: BenchReport, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_markdown(report, path)
    compact, every = (
        [line for line in part.splitlines() if line.startswith("|")]
        for part in path.read_text().split("## Every figure")
    )
    assert len(compact) == 2 + 5, "a line per artifact"
    assert len(every) == 2 + 5 * 4, "a line per batch size"
    for table in (compact, every):
        assert len({line.count("|") for line in table}) == 1
        assert "…" not in "".join(table)
    assert all(f"ms b{batch} " in compact[0] for batch in (1, 8, 32, 64))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to lay the page out")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_does_not_scroll_sideways(page: Path, width: int, tmp_path: Path) -> None:
    """The page in a frame of the width (a window of Chromium is never below 500 pixels), every fold open."""
    frame = tmp_path / "frame.html"
    script = (
        "const page = document.querySelector('iframe').contentDocument;"
        "page.querySelectorAll('details').forEach(fold => fold.open = true);"
        "document.body.dataset.found = page.documentElement.scrollWidth;"
    )
    inner = tmp_path / "page.html"
    shutil.copy(page, inner)
    frame.write_text(f'<iframe src="page.html" width={width} height=900 style="border:0" onload="{script}"></iframe>')
    assert CHROMIUM is not None
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", *quiet, "--allow-file-access-from-files"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'data-found="(\d+)"', done.stdout)
    assert found is not None, done.stdout[-500:]
    assert int(found[1]) <= width


def test_long_names_leave_room_for_the_charts(report: BenchReport) -> None:
    """Matplotlib warns where labels leave an axis no room; the ends of names, which differ, are still there."""
    pytest.importorskip("matplotlib")
    from alexdeploy.bench.report import charts

    long = "efficientnet-lite4-quantized-" * 3
    rows = [dataclasses.replace(row, artifact=f"{long}{row.artifact[-20:]}") for row in report.rows]
    drawn: dict[str, list[str]] = {}

    add_legend = charts._legend

    def keep(axes: Axes) -> None:
        add_legend(axes)
        legend = axes.get_legend()
        drawn["legend"] = [text.get_text() for text in legend.get_texts()] if legend is not None else []

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(charts, "_legend", keep)
            found = charts.figures(dataclasses.replace(report, rows=rows))
    assert len(found) == 2 * 4 + 4 + 1  # two a batch size, layers of each row that ran at batch 1, confusion
    assert len(set(drawn["legend"])) == 4, "a name for each artifact that ran"


ODD = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</pre></svg></style>",
    "$a_$b^ \\frac",
    "_private__x_ *bold* ~~gone~~",
    "[x](javascript:alert(1)) ![y](http://z)",
    "a|b`c`\\n &lt; <http://x.example>",
    "\x1b[31mred\x07\nline\ttab\u202e\x9b",
    "{{ 7 * 7 }}{% raw %}",
    "玫瑰 ```",
)


class Content(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.texts += [value or "" for name, value in attrs if name == "data-name"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def odd(report: BenchReport) -> BenchReport:
    """Files, classes, layers, the data set and the machine with names that a page could take for its own."""
    ran = [row for row in report.rows if row.status == "ok" and row.batch == 1]
    rows = [
        dataclasses.replace(
            row,
            artifact=f"models/{ODD[(1, 3, 4, 7)[number]]}",
            layers_ms=dict.fromkeys(ODD, 0.5) if number == 0 else {},
        )
        for number, row in enumerate(ran)
    ]
    matrix = (np.eye(len(ODD), dtype=int) * 3 + 1).tolist()
    shares: list[float | None] = [0.5] * len(ODD)
    return dataclasses.replace(
        report,
        dataset=ODD[0],
        taken=f"20 images of {ODD[5]}",
        unlabelled="",
        classes=[*ODD],
        rows=rows,
        accuracy=[Accuracy(rows[0].artifact, rows[0].runtime, shares, shares, matrix, [0], None)],
        environment={**report.environment, "cpu": ODD[1], "note": [ODD[3]]},
    )


def test_a_page_is_told_no_tag_by_any_name(odd: BenchReport, page: Path, tmp_path: Path) -> None:
    write_html(odd, tmp_path / "odd.html")
    text = (tmp_path / "odd.html").read_text(encoding="utf-8")
    found, usual = Content(), Content()
    found.feed(text)
    usual.feed(page.read_text(encoding="utf-8"))
    assert found.tags == usual.tags
    assert found.attributes == usual.attributes
    assert [c for c in text if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"] == []
    said = "\n".join(found.texts)
    for name in ODD:
        assert visible(name) in said
    labels = [html.unescape(label) for label in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    assert {visible(name) for name in ODD if len(visible(name)) <= 14} <= set(labels), "no formula, no glyph"


def test_a_report_without_load_and_gpu_is_read_and_shown(report: BenchReport, tmp_path: Path) -> None:
    older = {name: value for name, value in report.environment.items() if name not in ("load", "gpu")}
    path = tmp_path / "older.json"
    path.write_bytes(msgspec.json.encode(dataclasses.replace(report, environment=older)))
    found = load_report(path)
    write_markdown(found, tmp_path / "older.md")
    write_html(found, tmp_path / "older.html")
    assert f"{older['cores']} cores" in notes(found)[0]
    assert "load" not in notes(found)[0]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("https://a.b/c", r"https\://a.b/c"),
        ("see HTTP://a.b", r"see HTTP\://a.b"),
        ("www.example.org", r"www\.example.org"),
        ("me.too@example.org", r"me.too\@example.org"),
        ("batch 8: 5 ms, a.onnx @ 3", "batch 8: 5 ms, a.onnx @ 3"),
    ],
)
def test_an_address_is_no_link(text: str, escaped: str) -> None:
    assert as_markdown(text) == escaped
    assert MarkdownIt("commonmark").renderInline(escaped) == text


def test_markdown_is_told_no_mark_by_any_name(odd: BenchReport, tmp_path: Path) -> None:
    write_markdown(odd, tmp_path / "odd.md")
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse((tmp_path / "odd.md").read_text(encoding="utf-8"))
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} == {"text"}
    assert {token.type for token in tokens if token.type.startswith("html")} == set()
    said = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    for row in odd.rows:
        assert visible(odd.name(row.artifact)) in said
    assert f"Bench on {ODD[0]}: 20 images of {ODD[5]}" in said
