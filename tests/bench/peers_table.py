"""The measurements of ``calibration_peers.py`` as a Markdown page, and held against the bars.

``python -m tests.bench.peers_table peers.json`` prints the page again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN = "alexdeploy"
HELD_OUT = "held out"
ROUNDED, NEAREST = "with rounding", "without rounding"
# Peer, method, times faster with rounding, without.
SPEED_BARS = (
    ("onnxruntime", "entropy", 3.0, 4.0),
    ("modelopt", "entropy", 5.0, 6.0),
    ("nncf", "default", 2.0, 5.0),
)
AUTO_SECONDS = 60.0
AUTO_BEHIND_POINTS = 0.2
GROWTH_MIB = 32.0
ALEXNET_SECONDS, ALEXNET_MIB = 60.0, 3072.0
NAMES = {"onnxruntime": "ONNX Runtime", "modelopt": "ModelOpt", "nncf": "NNCF", "quark": "Quark", "inc": "INC"}

Report = dict[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """What a network has to reach on held-out photographs; ``points`` above the best peer with all layers in INT8."""

    agreement: float
    logit_error: float
    points: float


# By a part of the network's name; of another network nothing is known beforehand but that no peer may be better.
ACCURACY = {"alexnet-half": Accuracy(0.996, 0.0145, 0.0), "lite0": Accuracy(0.95, 0.08, 4.0)}


@dataclass(frozen=True)
class Bar:
    """``measured`` is None where a number is missing. ``at_least`` tells on which side of ``wanted`` it must lie."""

    what: str
    measured: float | None
    wanted: float | None
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None or self.wanted is None:
            return None
        beyond = self.measured - self.wanted if self.at_least else self.wanted - self.measured
        return beyond >= -1e-9  # of the float arithmetic


def bars(network: Report) -> list[Bar]:
    """The bars of one network."""
    return [*_accuracy_bars(network), *_speed_bars(network), *_auto_bars(network), _growth_bar(network)]


def alexnet_bars(alexnet: Report) -> list[Bar]:
    """Time and peak memory of ``quantize --rounding gptq`` on all of ``alexnet``."""
    row = _find(alexnet["commands"], "command", "quantize --rounding gptq")
    return [
        Bar("rounding of all of alexnet", _median(row, "seconds"), ALEXNET_SECONDS, False, "s"),
        Bar("· its peak memory", _median(row, "peak_mib"), ALEXNET_MIB, False, "MiB"),
    ]


def _accuracy_bars(network: Report) -> Iterator[Bar]:
    wanted = next((bar for name, bar in ACCURACY.items() if name in network["network"]), None)
    own = _scored(network, own=True)
    peers = [row for row in _scored(network, own=False) if _whole(row)]
    best_peer = max((_score(row, "agreement") for row in peers), default=None)
    least_error = min((_score(row, "logit_error") for row in peers), default=None)
    singles = [row for row in own if row["method"] != "auto"]
    best = max(singles, key=lambda row: _score(row, "agreement"), default=None)
    single = f"{best['method']} (best single)" if best else "best single"
    for name, row in (("auto", _find(own, OWN, "auto")), (single, best)):
        agreement, error = (_score(row, what) if row else None for what in ("agreement", "logit_error"))
        at_least, at_most = (wanted.agreement, wanted.logit_error) if wanted else (best_peer, least_error)
        yield Bar(f"{name}: same top-1 as FP32", _percent(agreement), _percent(at_least), True, "%")
        yield Bar(f"{name}: logit error (L2)", _percent(error), _percent(at_most), False, "%")
        above = None if agreement is None or best_peer is None else 100 * (agreement - best_peer)
        points = wanted.points if wanted else 0.0
        yield Bar(f"{name}: above the best peer with all layers in INT8", above, points, True, "points")
        floats = row["int8_layers"][1] - row["int8_layers"][0] if row else None
        yield Bar(f"{name}: layers left in float", floats, 0, False)


def _speed_bars(network: Report) -> Iterator[Bar]:
    for kind, own in ((ROUNDED, own_seconds(network, True)), (NEAREST, own_seconds(network, False))):
        for tool, method, rounded, nearest in SPEED_BARS:
            peer = _median(_find(network["rows"], tool, method), "seconds")
            ratio = peer / own if peer and own else None
            wanted = rounded if kind == ROUNDED else nearest
            yield Bar(f"{kind}: faster than {NAMES[tool]} {method}", ratio, wanted, True, "times")


def _auto_bars(network: Report) -> Iterator[Bar]:
    row = _find(network["commands"], "command", "quantize --method auto")
    yield Bar("auto, the command alone", _median(row, "seconds"), AUTO_SECONDS, False, "s")
    own = _scored(network, own=True)
    auto = _find(own, OWN, "auto")
    best = max((_score(row, "agreement") for row in own if row["method"] != "auto"), default=None)
    behind = None if auto is None or best is None else 100 * (best - _score(auto, "agreement"))
    yield Bar("auto behind the best single method", behind, AUTO_BEHIND_POINTS, False, "points")


def _growth_bar(network: Report) -> Bar:
    peaks = {int(count): statistics.median(found) for count, found in network["growth_peak_mib"].items()}
    counts = f", {min(peaks)} to {max(peaks)} images" if peaks else ""
    grown = float(peaks[max(peaks)] - peaks[min(peaks)]) if peaks else None
    return Bar(f"growth of the peak memory of calibrate{counts}", grown, GROWTH_MIB, False, "MiB")


def own_seconds(network: Report, rounded: bool) -> float | None:
    """What the peers are compared with: the slowest of alexdeploy's fixed methods, with rounding or without."""
    rows = [row for row in network["rows"] if row["tool"] == OWN and row["method"] != "auto" and row["seconds"]]
    return max(
        (statistics.median(r["seconds"]) for r in rows if r["method"].endswith("+gptq") == rounded), default=None
    )


def _scored(network: Report, *, own: bool) -> list[Report]:
    return [row for row in network["rows"] if (row["tool"] == OWN) == own and row["scores"]]


def _score(row: Report, what: str) -> float:
    return float(row["scores"][HELD_OUT][what])


def _whole(row: Report) -> bool:
    """Whether every layer of its file is in INT8."""
    return bool(row["int8_layers"]) and row["int8_layers"][0] == row["int8_layers"][1] > 0


def _find(rows: list[Report], tool: str, method: str) -> Report | None:
    return next((row for row in rows if (row["tool"], row["method"]) == (tool, method)), None)


def _median(row: Report | None, what: str) -> float | None:
    return float(statistics.median(row[what])) if row and row[what] else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def markdown(report: Report) -> str:
    """The page: where it was measured, then for each network the table and the bars."""
    lines = _head(report)
    for network in report["networks"]:
        lines += ["", f"## {network['network']}", "", *_judged(network), "", *_table(network)]
        lines += ["", *_commands(network["commands"]), "", *_bars(bars(network))]
    lines += ["", "## alexnet, rounded", "", *_commands(report["alexnet"]["commands"])]
    lines += ["", *_bars(alexnet_bars(report["alexnet"]))]
    return "\n".join(lines) + "\n"


def _head(report: Report) -> list[str]:
    settings, machine = report["settings"], report["environment"]
    rows = [row for network in report["networks"] for row in network["rows"]] + report["alexnet"]["commands"]
    loads = [load for row in rows for load in row["load"]] or [0.0]
    lines = [
        f"Measured on {report['date']} by `tests/bench/calibration_peers.py`: {settings['samples']} photographs to "
        f"calibrate from; medians of {settings['repeats']}, fresh processes, from start to file written.",
        f"{machine['cpu']}, {machine['cores']} cores, {report['memory_gib']} GiB, no GPU used; load average before the "
        f"runs {min(loads):.1f} to {max(loads):.1f}; alexdeploy {report['commit']}, ONNX Runtime of alexdeploy and of "
        f"the judging {machine['libraries']['onnxruntime']}.",
    ]
    for name, found in report["peers"].items():
        lines.append(f"Environment `{name}`: {', '.join(f'{package} {number}' for package, number in found.items())}.")
    return lines + [f"Environment `{name}`: {reason}." for name, reason in report["missing"].items()]


def _judged(network: Report) -> list[str]:
    photographs = ", ".join(f"{count} ({name})" for name, count in network["judged_on"].items())
    return [f"Judged on photographs not calibrated on: {photographs}."]


def _table(network: Report) -> list[str]:
    sets = list(network["judged_on"])
    heads = [
        f"{what}{'' if name == HELD_OUT else f', {name}'}" for name in sets for what in ("same top-1", "L2", "max")
    ]
    reading = statistics.median(network["reading_seconds"]) if network["reading_seconds"] else None
    lines = [
        f"| tool, method | INT8 layers | seconds (lowest to highest) | peak MiB | {' | '.join(heads)} |",
        "|".join(["", " --- ", *[" --: "] * (3 + len(heads)), ""]),
    ]
    for row in network["rows"]:
        name = f"{NAMES.get(row['tool'], row['tool'])} {row['method']}"
        if not row["seconds"]:
            lines.append(f"| {name} | | failed: {_cell(row['problem'])} |{' |' * (1 + len(heads))}")
            continue
        layers = "{} of {}".format(*row["int8_layers"]) if row["int8_layers"] else ""
        spread = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
        cells = [name, layers, f"{_median(row, 'seconds'):.2f} ({spread})", f"{_median(row, 'peak_mib'):.0f}"]
        if row["scores"]:
            for found in (row["scores"][known] for known in sets):
                cells += [f"{found['agreement']:.2%}", f"{found['logit_error']:.2%}", f"{found['logit_error_max']:.2%}"]
        else:
            cells += [_cell(row["problem"]), *[""] * (len(heads) - 1)]
        lines.append(f"| {' | '.join(cells)} |")
    if reading is not None:
        lines += ["", f"Reading and preprocessing the images alone takes {reading:.2f} s, by the same code for all."]
    return lines


def _commands(commands: list[Report]) -> list[str]:
    lines = ["| command | seconds | peak MiB |", "| --- | --: | --: |"]
    for row in commands:
        seconds, peak = _median(row, "seconds"), _median(row, "peak_mib")
        found = f"failed: {_cell(row['problem'])} | |" if seconds is None else f"{seconds:.2f} | {peak:.0f} |"
        lines.append(f"| `{row['method']}` | {found}")
    return lines


def _cell(text: str) -> str:
    """The end of what a process printed is what it died of."""
    return " ".join(text.split()).replace("|", "/")[-160:]


def _bars(found: list[Bar]) -> list[str]:
    lines = ["| bar | measured | wanted | met |", "| --- | --: | --: | --- |"]
    for bar in found:
        measured, wanted = (
            "not measured" if number is None else f"{number:.4g} {bar.unit}".strip()
            for number in (bar.measured, bar.wanted)
        )
        met = {True: "yes", False: "**no**", None: "?"}[bar.met]
        lines.append(f"| {bar.what} | {measured} | {'≥' if bar.at_least else '≤'} {wanted} | {met} |")
    return lines


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
