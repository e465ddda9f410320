"""The compact table: a line per artifact and runtime, batch sizes side by side, as many columns as fit a width."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alexdeploy.bench.intervals import Latency, Ratio
from alexdeploy.bench.report.gpu import milliseconds
from alexdeploy.bench.report.table import percent, ratio_text
from alexdeploy.bench.results import BenchReport, Row
from alexdeploy.columns import Column, table_width

_WIDE_INTERVAL = 1.25  # its ends, one over the other
_BESIDE_NAMES, _BESIDE_INTERVALS = 3, 2  # of the extra columns: top-1, speed, agreement
_SHORT = {"1.00 × (ref)": "ref", "no difference shown": "no diff."}  # where there is no room


@dataclass(frozen=True)
class CompactTable:
    """Columns of equal height that fit a width, and the file behind each letter where names had no room.

    ``left_out`` are the headers of those that did not fit.
    """

    columns: list[Column]
    legend: dict[str, str]
    skipped: list[bool]
    left_out: list[str]


def compact_table(report: BenchReport, width: int) -> CompactTable:
    """The most telling columns that fit into ``width`` characters; artifact, runtime, type and ms are always there."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in report.rows:
        groups.setdefault((row.artifact, row.runtime, row.precision), []).append(row)
    lines = [*groups.values()]
    names = [report.name(rows[0].artifact) for rows in lines]
    letters = dict(zip(dict.fromkeys(names), _letters(), strict=False))
    skipped = [rows[0].status == "skipped" for rows in lines]
    columns: list[Column] = []
    extra = _extra_columns(lines)
    short = [_shortened(column) for column in extra]
    for lettered, spread in ((False, True), (True, True), (True, False)):
        shown = [letters[name] for name in names] if lettered else names
        columns = _columns(shown, lines, spread=spread)
        # a name, and then an interval, is worth less than these
        beside = short[:_BESIDE_INTERVALS] if lettered else extra[:_BESIDE_NAMES]
        if table_width(column.width for column in [*columns, *beside]) <= width:
            break
    legend = {letter: name for name, letter in letters.items()} if lettered else {}
    chosen: list[Column] = []
    for either in zip(extra, short, strict=True):
        fits = (c for c in either if table_width(each.width for each in [*columns, *chosen, c]) <= width)
        chosen += [column for column in [next(fits, None)] if column is not None]
    before = [column for column in chosen if column.header in ("top-1", "agreement")]
    shown_columns = [*columns[:3], *before, *columns[3:], *(column for column in chosen if column not in before)]
    left_out = {column.header for column in extra} - {column.header for column in chosen}
    return CompactTable(shown_columns, legend, skipped, [c.header for c in extra if c.header in left_out])


def _columns(names: Sequence[str], lines: list[list[Row]], *, spread: bool) -> list[Column]:
    first = [rows[0] for rows in lines]
    return [
        Column("artifact" if len(max(names, key=len)) > 2 else "", tuple(names), text=True),
        Column("runtime", tuple(row.runtime for row in first), text=True),
        Column("type", tuple(row.precision for row in first), text=True),
        *(
            Column(
                f"ms b{batch}",
                tuple(_ms(rows, batch, spread=spread, first=batch == _batches(lines)[0]) for rows in lines),
            )
            for batch in _batches(lines)
        ),
    ]


def _batches(lines: list[list[Row]]) -> list[int]:
    return list(dict.fromkeys(row.batch for rows in lines for row in rows))


def _ms(rows: list[Row], batch: int, *, spread: bool, first: bool) -> str:
    row = next((row for row in rows if row.batch == batch), None)
    if row is None or row.latency_ms is None:
        return "skipped" if first else ""
    return _median(row.latency_ms) if spread else milliseconds(row.latency_ms.p50)


def _median(latency: Latency) -> str:
    return f"{milliseconds(latency.p50)} ±{milliseconds((latency.ci95[1] - latency.ci95[0]) / 2)}"


def _extra_columns(lines: list[list[Row]]) -> list[Column]:
    """What a wider terminal shows too, the most telling first, and last what is not known of any row."""
    batches = _batches(lines)
    first = [rows[0] for rows in lines]

    def of_batch(header: str, cell: str, batch: int) -> Column:
        found = [next((row for row in rows if row.batch == batch), None) for rows in lines]
        return Column(header, tuple(_cell(row, cell) if row is not None else "" for row in found))

    last = batches[-1]
    found = [
        Column("top-1", tuple(_share(row, row.top1) for row in first)),
        of_batch(f"speed b{last}", "speed", last),
        Column("agreement", tuple(_share(row, row.agreement) for row in first)),
        Column("MB", tuple(f"{row.size_bytes / 1e6:.1f}" for row in first)),
        of_batch(f"images/s b{last}", "rate", last),
        *(of_batch(f"p99 b{batch}", "p99", batch) for batch in batches),
        Column("top-5", tuple(_share(row, row.top5) for row in first)),
    ]
    return sorted(found, key=lambda column: {*column.cells} <= {"", "-"})


def _shortened(column: Column) -> Column:
    return replace(column, cells=tuple(_SHORT.get(cell, cell) for cell in column.cells))


def _cell(row: Row, cell: str) -> str:
    if row.latency_ms is None:
        return ""
    if cell == "speed":
        if row.ratio is None:
            return "1.00 × (ref)"
        return _speed(row.ratio)
    return milliseconds(row.latency_ms.p99) if cell == "p99" else f"{row.images_per_s:.0f}"


def _speed(ratio: Ratio) -> str:
    """The ratio; where its interval is wide, the interval in its place."""
    if not ratio.is_shown:
        return ratio_text(ratio)
    low, high = ratio.ci99
    return f"{ratio.value:.2f} ×" if high < _WIDE_INTERVAL * low else f"{low:.1f}–{high:.1f} ×"


def _share(row: Row, share: float | None) -> str:
    return percent(share) if row.status == "ok" else ""


def _letters() -> list[str]:
    return [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
