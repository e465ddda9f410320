"""Why INT8 is not faster: from the kernels that ran, their share of the time, and the figures of the row. No guesses.

What is told are facts that go with slow INT8: products computed in float, conversions between types and layouts,
convolutions with groups, reading and copying. Where none of them is known, nothing is told. What a report says
elsewhere is not told again: that TensorRT splits groups, and that the host is the limit.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from alexdeploy import files
from alexdeploy.bench.candidates import Candidate
from alexdeploy.bench.intervals import paired_ratio
from alexdeploy.bench.results import NotFaster, Row
from alexdeploy.errors import GateError, InputError, few
from alexdeploy.machine import saturates_int8
from alexdeploy.runners.artifact import Artifact, CheckpointArtifact, EngineArtifact
from alexdeploy.specs import Layer

_WORTH_TELLING = 0.1  # of the time, or of the multiplications
_PRODUCT = re.compile(r"conv|gemm|matmul", re.IGNORECASE)
_INTEGER = re.compile(r"^Q[A-Z]|Integer|QuantizeMatMul")  # ONNX Runtime's QLinearConv, MatMulInteger, QGemm
_CONVERSION = re.compile(r"reformat|reorder|transpose|quantizelinear|^cast", re.IGNORECASE)
_8_BITS = ("INT8", "FP8")


def slow_int8(rows: Sequence[Row], candidates: Iterable[Candidate]) -> list[NotFaster]:
    """``not_faster``, of what ran."""
    ran = [candidate for candidate in candidates if candidate.runner is not None]
    if not any(map(_is_int8, rows)):
        return []
    facts = {(candidate.name, str(candidate.runtime)): facts_of(candidate) for candidate in ran}
    return not_faster(rows, facts, networks_of(ran))


def not_faster(
    rows: Sequence[Row], facts: Mapping[tuple[str, str], Sequence[str]], networks: Mapping[str, int]
) -> list[NotFaster]:
    """The INT8 rows that the samples do not show to be faster than the best of the wider ones, where a fact is known.

    Args:
        rows: of the report. The wider ones are those of the same network on the same runtime and at the same batch
            size; where there are none, those on the other runtimes.
        facts: of ``facts_of``, by file and runtime.
        networks: of ``networks_of``.
    """
    found = []
    for row in rows:
        if row.latency_ms is None or not _is_int8(row):
            continue
        wider = [other for other in rows if other.batch == row.batch and other.latency_ms and not _is_int8(other)]
        wider = [other for other in wider if networks[other.artifact] == networks[row.artifact]]
        wider = [other for other in wider if other.runtime == row.runtime] or wider
        if not wider:
            continue
        best = min(wider, key=lambda other: other.latency_ms.p50 if other.latency_ms else 0.0)
        verdict = paired_ratio(row.rounds, best.rounds).verdict
        known = [*facts.get((row.artifact, row.runtime), ()), *_of_row(row)]
        if verdict in ("slower", "no difference shown") and known:
            found.append(NotFaster(row.artifact, row.runtime, row.batch, best.artifact, best.runtime, verdict, known))
    return found


def _is_int8(row: Row) -> bool:
    return "int8" in row.precision


def _of_row(row: Row) -> Iterator[str]:
    """Reading and copying, at this batch size."""
    if row.limit is not None and row.limit.binds == "reading" and row.limit.share > 0.5:
        yield f"to read weights and images takes {row.limit.share:.0%} of its time"
    if row.gpu is not None:
        copies_ms = row.gpu.h2d_ms.p50 + row.gpu.d2h_ms.p50
        if copies_ms > row.gpu.compute_ms.p50:
            yield f"its copies take {copies_ms:.3g} ms, its kernels {row.gpu.compute_ms.p50:.3g} ms"


def networks_of(candidates: Iterable[Candidate]) -> dict[str, int]:
    """The number of the network that each file holds; where nothing says that two are the same, another one."""
    artifacts = {candidate.name: candidate.artifact for candidate in candidates}
    macs = {name: _macs(artifact) for name, artifact in artifacts.items()}

    def same(one: str, other: str) -> bool:
        if macs[one] and macs[other]:
            return macs[one] == macs[other]
        return not _lineage(artifacts[one]).isdisjoint(_lineage(artifacts[other]))

    groups: list[set[str]] = []
    for name in artifacts:
        alike = [group for group in groups if any(same(name, other) for other in group)]
        groups = [group for group in groups if group not in alike] + [{name}.union(*alike)]
    return {name: number for number, group in enumerate(groups) for name in group}


def _macs(artifact: Artifact) -> list[int]:
    """The multiplications of each layer, sorted; none of an engine, which does not tell them."""
    return sorted(layer.macs for layer in artifact.layers() or () if layer.macs)


def _lineage(artifact: Artifact) -> set[str]:
    """SHA-256 of the file and, by its sidecar, of those that it was made from.

    Not of a checkpoint: it may have learned from another network's weights.
    """
    with contextlib.suppress(InputError, GateError):
        sidecar = files.load_sidecar(artifact.path)
        if sidecar.sha256 == artifact.digest and not isinstance(artifact, CheckpointArtifact):
            return {artifact.digest, *(parent.sha256 for parent in sidecar.parents)}
    return {artifact.digest}


def facts_of(candidate: Candidate) -> list[str]:
    """What is known of an INT8 candidate that may make it slow, in words."""
    artifact = candidate.artifact
    if "int8" not in artifact.precision.value:
        return []
    found: list[str] = []
    if isinstance(artifact, EngineArtifact):
        record = artifact.record
        kinds = {k.name: f"{k.type} {k.precision}" if k.weighted else k.type for k in record.kernels}
        integer = {k.name for k in record.kernels if k.weighted and k.precision in (*_8_BITS, "NONE")}
        products = {k.name for k in record.kernels if k.weighted}
        told = [name for name in record.float_layers if name in record.layer_precisions]
        wide = [*told, *record.left]
        if wide:
            total = len({*record.layer_precisions, *record.left})
            found.append(f"{len(wide)} of {total} layers with weights are not computed in INT8 ({few(wide)})")
    else:
        kinds = dict(candidate.layer_types)
        products = {name for name, kind in kinds.items() if _PRODUCT.search(kind)}
        integer = {name for name in products if _INTEGER.search(kinds[name])}
        layers = artifact.layers() or []
        if wide := sorted(products - integer - {layer.name for layer in _floats(layers)}):
            found.append(f"{len(wide)} of {len(products)} products are computed in float ({few(wide)})")
        found += _of_layers(layers)
        if candidate.runner is not None and not candidate.runner.on_gpu and saturates_int8():
            found.append("this CPU has neither VNNI nor AMX, so INT8 products take several instructions")
    conversions = {name for name, kind in kinds.items() if _CONVERSION.search(kind) and name not in products}
    found += _shares(candidate.layers_ms, {"float products": products - integer, "conversions": conversions})
    return found


def _floats(layers: Iterable[Layer]) -> list[Layer]:
    """Those that are float in the graph itself."""
    return [layer for layer in layers if layer.macs and layer.precision not in _8_BITS]


def _of_layers(layers: Sequence[Layer]) -> Iterator[str]:
    """The shares of the multiplications that are float in the graph itself, and that have groups."""
    weighted = [layer for layer in layers if layer.macs]
    floats = _floats(layers)
    grouped = [layer for layer in weighted if layer.window is not None and layer.window.groups > 1]
    for what, some in (("are float in the graph", floats), ("have groups", grouped)):
        if some:
            share = sum(layer.macs for layer in some) / sum(layer.macs for layer in weighted)
            names = few([layer.name for layer in some])
            yield f"{len(some)} of {len(weighted)} layers {what} ({names}; {share:.0%} of the multiplications)"


def _shares(layers_ms: Mapping[str, float], groups: Mapping[str, set[str]]) -> Iterator[str]:
    total = sum(layers_ms.values())
    for what, names in groups.items():
        share = sum(layers_ms.get(name, 0.0) for name in names) / total if total else 0.0
        if share >= _WORTH_TELLING:
            yield f"{what} take {share:.0%} of the time of its kernels ({len(names & layers_ms.keys())} of them)"
