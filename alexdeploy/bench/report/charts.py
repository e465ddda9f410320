"""The pictures of the HTML report, as SVG text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from alexdeploy.bench.accuracy import Accuracy
from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.errors import visible
from alexdeploy.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 4.6, 3.4  # inches; narrow, so that the letters stay readable on a phone
_MAX_MATRIX = 20
_MOST_LAYERS = 12
_LEGEND, _LAYER, _CLASS = 56, 28, 14  # characters of a name, so that its chart has room
_COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d")


class Figure(NamedTuple):
    """``svg`` is the element itself, without declaration, to be put into a page."""

    title: str
    svg: str


def figures(report: BenchReport) -> list[Figure]:
    """Accuracy against latency, latency distributions, time by layer, confusion; those that the report has data for.

    Raises:
        UnavailableError: Matplotlib is not installed.
    """
    require("matplotlib").use("svg")
    measured = [(_name(report, row), row) for row in report.rows if row.latency_ms is not None]
    color = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(dict.fromkeys(name for name, _ in measured))}
    found = []
    for batch in dict.fromkeys(row.batch for _, row in measured):
        rows = [(name, row) for name, row in measured if row.batch == batch]
        what = "Accuracy" if any(row.top1 is not None for _, row in rows) else "Agreement"
        found.append(_draw(f"{what} against latency, batch {batch}", partial(_scatter, rows=rows, color=color)))
        found.append(_draw(f"Latency of every call, batch {batch}", partial(_distributions, rows=rows, color=color)))
    for name, row in measured:
        if row.layers_ms:
            paint = partial(_layers, row=row, color=color[name])
            found.append(_draw(f"Time by layer, {name}, batch {row.batch}", paint))
    for accuracy in report.accuracy:
        matrix = np.array(accuracy.confusion or np.zeros((0, 0)))
        asked = np.flatnonzero(matrix.any(axis=1))
        shown = np.flatnonzero(matrix.any(axis=1) | matrix.any(axis=0))
        if 0 < len(shown) <= _MAX_MATRIX:
            names = [[report.classes[index] for index in indices] for indices in (asked, shown)]
            paint = partial(_confusion, matrix=matrix[np.ix_(asked, shown)], true=names[0], answered=names[1])
            found.append(_draw(f"Confusion, {_name(report, accuracy)}", paint))
    return found


def _name(report: BenchReport, measured: Row | Accuracy) -> str:
    name = visible(f"{report.name(measured.artifact)} on {measured.runtime}")
    return f" {name}" if name.startswith("_") else name  # Matplotlib leaves such out of its legends


def _short(name: str, most: int) -> str:
    """At most so many characters, as they can be shown: the beginning and the end."""
    name = visible(name)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - (most - most // 2 - 1) :]}"


def _draw(title: str, paint: Callable[[Axes], None]) -> Figure:
    import matplotlib.pyplot as plt

    with (
        # text stays text: the browser has the glyphs of every language, Matplotlib's font has not; $ begins no formula
        plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False}),
        plt.rc_context({"font.size": 10, "axes.spines.top": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing")
        figure, axes = plt.subplots(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes.spines["right"].set_visible(False)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        plt.close(figure)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title)  # ids of several drawings on one page must differ
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return Figure(title, svg)


def _scatter(axes: Axes, rows: list[tuple[str, Row]], color: dict[str, str]) -> None:
    labelled = any(row.top1 is not None for _, row in rows)
    shares = []
    for name, row in rows:
        share = row.top1 if labelled else row.agreement
        if row.latency_ms is None or share is None:
            continue
        shares.append(share)
        low, high = row.latency_ms.ci95
        spread = [[max(row.latency_ms.p50 - low, 0)], [max(high - row.latency_ms.p50, 0)]]
        axes.errorbar(
            [row.latency_ms.p50],
            [100 * share],
            xerr=spread,
            fmt="o",
            capsize=3,
            color=color[name],
            label=name,
        )
    axes.set(
        xlabel="ms per batch, host to host (median, 95 % interval)",
        ylabel="top-1, %" if labelled else "agreement with the reference, %",
    )
    axes.set_xlim(left=0)
    worst = min(shares, default=0.0)
    bottom = max(100 * worst - max(2.0, 100 * (1 - worst)), 0)
    axes.set_ylim(bottom, 100 + 0.05 * (100 - bottom))
    _legend(axes)


def _distributions(axes: Axes, rows: list[tuple[str, Row]], color: dict[str, str]) -> None:
    """Share of calls that were at least as fast: percentiles can be read off."""
    for name, row in rows:
        samples = np.sort(np.ravel(row.samples_ms["host"]))
        shares = np.arange(1, len(samples) + 1) / len(samples)
        chosen = np.unique(np.linspace(0, len(samples) - 1, 200).round().astype(int))
        axes.step(samples[chosen], 100 * shares[chosen], where="post", color=color[name], label=name)
    axes.set_xscale("log")
    axes.set(xlabel="ms per batch, host to host", ylabel="% of calls at least as fast")
    _plain_log_ticks(axes)
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    lines, names = axes.get_legend_handles_labels()
    long = len(names) > 1 and max(map(len, names)) > _LEGEND
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    same = len(list(alike)) if long else 0
    names = [_short(f"…{name[same:]}" if same > 1 else name, _LEGEND) for name in names]
    axes.legend(lines, names, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    axes.grid(alpha=0.25)


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _layers(axes: Axes, row: Row, color: str) -> None:
    ranked = sorted(row.layers_ms.items(), key=lambda item: item[1], reverse=True)
    shown = {name for name, _ in ranked[:_MOST_LAYERS]}
    bars = [(name, ms) for name, ms in row.layers_ms.items() if name in shown]
    rest = ranked[_MOST_LAYERS:]
    if rest:
        bars.append((f"{len(rest)} others", sum(ms for _, ms in rest)))
    axes.barh(range(len(bars)), [ms for _, ms in bars], color=color)
    axes.set_yticks(range(len(bars)), [_short(name, _LAYER) for name, _ in bars])
    axes.invert_yaxis()
    axes.set(xlabel="ms, in order of execution")


def _confusion(axes: Axes, matrix: npt.NDArray[np.int64], true: list[str], answered: list[str]) -> None:
    """A row for each class that images are of, a column for each that was also answered."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    columns = [_short(name, _CLASS) for name in answered]
    long = max(map(len, columns)) > 2
    axes.set_xticks(range(len(columns)), columns, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_yticks(range(len(true)), [_short(name, _CLASS) for name in true])
    axes.set(xlabel="answered", ylabel="true")
