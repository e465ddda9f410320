"""A bench beside an earlier one: what has become slower or less accurate, as far as the samples tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from alexdeploy import files
from alexdeploy.bench.accuracy import mcnemar
from alexdeploy.bench.environment import environment
from alexdeploy.bench.intervals import unpaired_ratio
from alexdeploy.bench.load_results import LoadReport
from alexdeploy.bench.results import BenchReport, Change
from alexdeploy.errors import InputError

_T = TypeVar("_T")

_LESS_ACCURATE = 0.01
_NOTHING_IN_COMMON = "the baseline has no row in common with this bench; give the same artifacts and batch sizes"


class _Gpu(msgspec.Struct):
    name: str
    uuid: str = ""


class _Environment(msgspec.Struct):
    """What a report says of its machine, of all that it knows."""

    cpu: str
    cores: int
    cpu_flags: list[str]
    load: float | None = None
    gpu: _Gpu | None = None


def load_report(path: Path) -> BenchReport:
    """The report that ``bench --json`` printed.

    Raises:
        InputError: missing, or something else.
    """
    return _decoded(path, BenchReport)


def load_saved(path: Path) -> BenchReport | LoadReport:
    """The report that ``bench --json`` printed, of a server's load too.

    Raises:
        InputError: missing, or something else.
    """
    found = _decoded(path, dict[str, Any])
    return _decoded(path, LoadReport) if "url" in found else _decoded(path, BenchReport)


def _decoded(path: Path, kind: type[_T]) -> _T:
    files.check_input(path)
    try:
        found = msgspec.json.decode(files.utf8(path.read_bytes(), str(path)), type=kind)
        if isinstance(found, BenchReport | LoadReport):
            known = msgspec.convert(found.environment, _Environment)
            found.environment.update(load=known.load, gpu=found.environment.get("gpu"))  # older reports lack them
        return found
    except files.UNDECODABLE as error:
        raise InputError(f"{path}: expected the JSON of a bench ({error})") from error


def check_comparable(baseline: BenchReport, paths: Sequence[Path], batches: Sequence[int], ordinal: int = 0) -> None:
    """Refuse, before any work, a baseline that says nothing about a bench of these files here.

    ``ordinal``: of the CUDA device that is to run them.

    Raises:
        InputError: it was measured on another machine, or no file and batch size is in both.
    """
    here = environment(ordinal)
    for what in ("cpu", "cores", "gpu"):
        then, now = (place.get(what) for place in (baseline.environment, here))
        if what == "gpu":  # another card of that model will do
            then, now = (gpu["name"] if gpu else None for gpu in (then, now))
        if then != now:
            raise InputError(f"the baseline was measured with {what} {then}, here it is {now}; measure it anew here")
    if not {(files.printable(path), size) for path in paths for size in batches} & {
        (r.artifact, r.batch) for r in baseline.rows
    }:
        raise InputError(_NOTHING_IN_COMMON)


def changes(report: BenchReport, baseline: BenchReport) -> list[Change]:
    """Every row that ran in both. Accuracy is compared image by image, where both judged it on the same images.

    A regression is a row that is slower beyond its interval, or less accurate with p < 0.01.

    Raises:
        InputError: no row is in both.
    """
    then = {row.key: row for row in baseline.rows if row.samples_ms}
    same_images = report.dataset_fingerprint == baseline.dataset_fingerprint and report.images == baseline.images
    wrong_then = {(a.artifact, a.runtime): a.wrong for a in baseline.accuracy} if same_images else {}
    wrong_now = {(a.artifact, a.runtime): a.wrong for a in report.accuracy}
    found = []
    for row in report.rows:
        if not row.samples_ms or row.key not in then:
            continue
        ratio = unpaired_ratio(row.rounds, then[row.key].rounds)
        name = row.artifact, row.runtime
        both = name in wrong_then and name in wrong_now
        p_less = mcnemar(wrong_now[name], wrong_then[name]).p_worse if both else None
        regression = ratio.verdict == "slower" or (p_less is not None and p_less < _LESS_ACCURATE)
        found.append(Change(row.artifact, row.runtime, row.batch, ratio, p_less, regression))
    if not found:
        raise InputError(_NOTHING_IN_COMMON)
    return found
