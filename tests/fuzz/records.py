"""Targets that are records of this tool and of Triton: sidecars, shards, benches, configurations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import files
from alexdeploy.bench.baseline import changes, load_saved
from alexdeploy.bench.environment import environment
from alexdeploy.bench.results import BenchReport
from alexdeploy.cli.bench import show_report
from alexdeploy.cli.load import show_load
from alexdeploy.cli.options import ReportFiles
from alexdeploy.runners import labelling
from alexdeploy.runners.onnxruntime_cache import engine_cache
from alexdeploy.runners.predict import FoundImage, Prediction
from alexdeploy.triton.config import Settings, config_text, read_config, settings_of
from tests.fuzz.mutate import json_value, text_line
from tests.fuzz.target import Target

_LATENCY = {"p50": 1.5, "p90": 2.0, "p99": 2.5, "mean": 1.6, "ci95": [1.4, 1.6], "calls": 6}
_RATIO = {"value": 1.2, "ci99": [1.1, 1.3], "verdict": "faster"}
_SHOWN = ReportFiles(html=None, markdown=Path("report.md"), wide=False)


def _sidecars() -> Sequence[bytes]:
    parents = (files.Parent("net.onnx", "0" * 64),)
    found = files.Sidecar(kind="onnx", sha256="1" * 64, parents=parents, options={"data": "digits", "samples": 3})
    return [msgspec.json.encode(found)]


def _check_sidecar(path: Path) -> None:
    found = files.load_sidecar(path.with_suffix(""), "onnx")
    found.check("1" * 64, path)


def _benches() -> Sequence[bytes]:
    row = {
        "artifact": "a/net.onnx",
        "runtime": "onnxruntime-cpu",
        "precision": "int8+fp16",
        "batch": 1,
        "size_bytes": 59_500_000,
        "status": "ok",
        "latency_ms": _LATENCY,
        "device_ms": _LATENCY,
        "end_to_end_ms": _LATENCY,
        "images_per_s": 600.0,
        "ratio": _RATIO,
        "top1": 0.875,
        "top5": 0.99,
        "agreement": 0.99,
        "layers_ms": {"conv1": 0.5},
        "samples_ms": {"host": [[1.0, 1.1, 1.3], [1.2, 1.4, 1.5]]},
    }
    skipped = {**row, "artifact": "b/net.engine", "runtime": "tensorrt", "status": "skipped", "reason": "no GPU"}
    bench: dict[str, Any] = {
        "environment": environment(0),
        "dataset": "digits/val",
        "dataset_fingerprint": "0",
        "classes": ["a", "b"],
    }
    bench |= {"images": 20, "seconds": 3.0, "machine": None, "rows": [row, skipped], "accuracy": []}
    return [json.dumps(bench).encode()]


def _loads() -> Sequence[bytes]:
    figure = {"value": 1.5, "ci95": [1.4, 1.6]}
    served = {"inferences": 12, "executions": 5, "mean_batch": 2.4, "queue_ms": 0.1, "compute_ms": 1.0}
    row = {"target": "server", "load": {"kind": "arrivals", "rate_per_s": 50.0}, "status": "ok", "requests": 9}
    row |= {"images_per_s": figure, "p50_ms": figure, "p90_ms": figure, "p99_ms": figure, "p99_ratio": _RATIO}
    row |= {"served": served, "samples_ms": [[1.0, 2.0]], "rates_per_s": [3.0]}
    load: dict[str, Any] = {
        "environment": environment(0),
        "dataset": "digits/val",
        "dataset_fingerprint": "0",
        "taken": "20 images",
    }
    load |= {"artifact": "a.onnx", "precision": "int8", "runtime": "onnxruntime-cpu", "url": "http://h:8000"}
    load |= {"model": "digits", "protocol": "kserve-http", "same_machine": True, "max_batch": 4, "images": 20}
    load |= {"agreement": 1.0, "relative_error": 1e-6, "rounds": 3, "seconds": 9.0, "rows": [row]}
    return [json.dumps(load).encode()]


def _check_bench(path: Path) -> None:
    """As ``report`` and ``bench --baseline`` do."""
    report = load_saved(path)
    try:
        if isinstance(report, BenchReport):
            show_report(report, _SHOWN, as_json=False)
            changes(report, report)
        else:
            show_load(report, _SHOWN, as_json=False)
    finally:
        Path("report.md").unlink(missing_ok=True)


_FOUND = [FoundImage("a.jpg", "a"), FoundImage("b.jpg", None)]
_MANIFEST = labelling.Manifest(
    model="0" * 64, labels=("a", "b"), top=1, ten_crop=False, count=2, images="1" * 64, shard=labelling.SHARD
)


def _shards() -> Sequence[bytes]:
    rows = [Prediction("a.jpg", [("a", 0.75)], "a"), Prediction("b.jpg", [("b", 0.5)])]
    return [b"".join(msgspec.json.encode(row) + b"\n" for row in rows)]


def _check_shard(path: Path) -> None:
    list(labelling._joined({path: _FOUND}, []))


def _check_manifest(path: Path) -> None:
    labelling._prepare(path.parent, _MANIFEST)


def _configs() -> Sequence[bytes]:
    return [_network_config().encode()]


def _network_config() -> str:
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig(name="ants", backend="python", max_batch_size=16)
    config.input.add(name="input", data_type="TYPE_FP32", dims=[3, 8, 8])
    config.output.add(name="logits", data_type="TYPE_FP32", dims=[4], label_filename="labels.txt")
    config.instance_group.add(count=2, kind="KIND_CPU")
    config.dynamic_batching.max_queue_delay_microseconds = Settings().max_delay_us
    config.parameters["runtime"].string_value = "onnxruntime-cpu"
    return config_text(config)


def _check_config(path: Path) -> None:
    settings_of(read_config(path))


_KEY = {"model": "0" * 64}


def _cache_beside(folder: Path) -> None:
    entry = folder / sha256(msgspec.json.encode(sorted(_KEY.items()))).hexdigest()[:32]
    entry.mkdir()
    (entry / "net.engine").write_bytes(b"an engine")


def _cache_lists() -> Sequence[bytes]:
    return [json.dumps({"net.engine": sha256(b"an engine").hexdigest()}).encode()]


def _check_cache(path: Path) -> None:
    """What a damaged entry holds is not used, and the entry is not touched where no engine was built."""
    entry = next(entry for entry in path.parent.iterdir() if entry.is_dir())
    listed = path.replace(entry / path.name)
    try:
        with engine_cache(path.parent, _KEY, "a GPU"):
            pass
    finally:
        listed.unlink()


TARGETS = (
    Target(
        "sidecar",
        _sidecars,
        _check_sidecar,
        "net.onnx.json",
        (json_value,),
        beside=lambda folder: _touch(folder, "net.onnx"),
    ),
    Target("bench", _benches, _check_bench, "bench.json", (json_value,)),
    Target("load", _loads, _check_bench, "load.json", (json_value,)),
    Target("shard", _shards, _check_shard, "000000.jsonl", (text_line,)),
    Target("manifest", lambda: [msgspec.json.encode(_MANIFEST)], _check_manifest, "manifest.json", (json_value,)),
    Target("pbtxt", _configs, _check_config, "config.pbtxt", (text_line,), (b"{", b"}", b"name:", b'"')),
    Target("engine_cache", _cache_lists, _check_cache, "files.json", (json_value,), beside=_cache_beside),
)


def _touch(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"a graph")
