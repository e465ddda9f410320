"""The measurements of ``calibration_peers.py`` as a Markdown table, and held against the bars.

``python -m tests.bench.peers_table peers.json`` prints the table again.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

OWN = "alexdeploy"
SPEED_BARS = (("onnxruntime", "entropy", 4.0), ("modelopt", "entropy", 8.0), ("nncf", "default", 1.5))
GROWTH_BAR_MIB = 32.0
AGREEMENT_BAR = 0.994

Report = dict[str, Any]


def own_seconds(report: Report) -> float:
    """What the peers are compared with: the slowest of alexdeploy's fixed methods."""
    rows = [row for row in report["rows"] if row["tool"] == OWN and row["method"] != "auto"]
    return float(max(statistics.median(row["seconds"]) for row in rows))


def growth_mib(report: Report) -> float:
    """Median peak at the largest number of images minus that at the smallest."""
    peaks = {int(count): statistics.median(found) for count, found in report["growth_peak_mib"].items()}
    return float(peaks[max(peaks)] - peaks[min(peaks)])


def bars(report: Report) -> list[dict[str, Any]]:
    """Each bar: what, measured, wanted, whether it is met (None where a peer gave no number)."""
    found: list[dict[str, Any]] = []
    for tool, method, wanted in SPEED_BARS:
        times = [row["seconds"] for row in report["rows"] if (row["tool"], row["method"]) == (tool, method)]
        ratio = statistics.median(times[0]) / own_seconds(report) if times and times[0] else None
        met = None if ratio is None else ratio >= wanted
        found.append({"bar": f"faster than {tool} {method}, times", "measured": ratio, "wanted": wanted, "met": met})
    grown = growth_mib(report)
    counts = sorted(map(int, report["growth_peak_mib"]))
    bar = f"growth of peak memory, {counts[0]} to {counts[-1]} images, MiB, at most"
    found.append({"bar": bar, "measured": grown, "wanted": GROWTH_BAR_MIB, "met": grown <= GROWTH_BAR_MIB})
    own = [row for row in report["rows"] if row["tool"] == OWN and "agreement" in row]
    peers = [row for row in report["rows"] if row["tool"] != OWN and "agreement" in row]
    agreed = max(row["agreement"] for row in own)
    wanted = max([AGREEMENT_BAR, *(row["agreement"] for row in peers)])
    found.append({"bar": "best top-1 agreement", "measured": agreed, "wanted": wanted, "met": agreed >= wanted})
    error = min(row["logit_error"] for row in own)
    best = min((row["logit_error"] for row in peers), default=float("inf"))
    found.append({"bar": "least logit error, at most", "measured": error, "wanted": best, "met": error <= best})
    return found


def markdown(report: Report) -> str:
    """The page: where it was measured, the table, the bars."""
    return "\n".join([*_head(report), "", *_table(report), "", *_growth(report), "", *_bars(report)]) + "\n"


def _head(report: Report) -> list[str]:
    settings, machine = report["settings"], report["environment"]
    versions = [f"{name} {number}" for name, number in _versions(report).items()]
    load = report["load_before_runs"]
    return [
        f"Measured on {report['date']} by `tests/bench/calibration_peers.py`: `{settings['network']}`, "
        f"{settings['samples']} photographs to calibrate from, {report['held_out_images']} others to judge on "
        f"(FP32 top-1 {report['fp32_top1']:.2%}); medians of {settings['repeats']}, fresh processes, from start to "
        "file written.",
        f"{machine['cpu']}, {machine['cores']} cores, {report['memory_gib']} GiB, no GPU used; load average before "
        f"the runs {load['lowest']:.1f} to {load['highest']:.1f}; alexdeploy {report['commit']}.",
        f"{', '.join(versions)}.",
    ]


def _versions(report: Report) -> dict[str, str]:
    peers = report["peers"]
    names = {"onnxruntime": "ONNX Runtime", "nncf": "NNCF"}
    found = {label: peers["onnxruntime"][name] for name, label in names.items()}
    found["ModelOpt"] = peers["modelopt"]["nvidia-modelopt"]
    found["its onnxruntime-gpu"] = peers["modelopt"]["onnxruntime-gpu"]
    found["ONNX Runtime of alexdeploy and of the judging"] = report["environment"]["libraries"]["onnxruntime"]
    return found


def _table(report: Report) -> list[str]:
    own, reading = own_seconds(report), statistics.median(report["reading_seconds"])
    lines = [
        "| tool, method | seconds (lowest to highest) | times alexdeploy's | of it reading images | peak MiB | "
        "top-1 agreement with FP32 | logit error, L2 | logit error, max |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in report["rows"]:
        name = f"{row['tool']} {row['method']}"
        if not row["seconds"]:
            lines.append(f"| {name} | failed: {_cell(row['problem'])} | | | | | | |")
            continue
        middle = statistics.median(row["seconds"])
        spread = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
        cells = [name, f"{middle:.2f} ({spread})", f"{middle / own:.2f}", f"{reading / middle:.0%}"]
        cells.append(f"{statistics.median(row['peak_mib']):.0f}")
        if "agreement" in row:
            cells += [f"{row['agreement']:.2%}", f"{row['logit_error']:.3%}", f"{row['logit_error_max']:.3%}"]
        else:
            cells += [_cell(row["problem"]), "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    pairs = zip(*report["commands"], strict=True)
    calibrate, quantize = (statistics.median(sample["seconds"] for sample in found) for found in pairs)
    lines += [
        "",
        f"alexdeploy's seconds are for the ranges of every method in one pass, and the model written by the one named. "
        f"As two commands: `calibrate` {calibrate:.2f} s, `quantize` {quantize:.2f} s. Reading and preprocessing the "
        f"images alone takes {reading:.2f} s, the same code for all; alexdeploy does it in another thread.",
    ]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:160]


def _growth(report: Report) -> list[str]:
    peaks = [f"{count} images {statistics.median(found):.0f} MiB" for count, found in report["growth_peak_mib"].items()]
    return [f"Peak memory of alexdeploy calibrate: {', '.join(peaks)}."]


def _bars(report: Report) -> list[str]:
    lines = ["| bar | measured | wanted | met |", "| --- | --: | --: | --- |"]
    for bar in report["bars"]:
        measured = "not measured" if bar["measured"] is None else f"{bar['measured']:.4g}"
        met = {True: "yes", False: "**no**", None: "?"}[bar["met"]]
        lines.append(f"| {bar['bar']} | {measured} | {bar['wanted']:.4g} | {met} |")
    return lines


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
