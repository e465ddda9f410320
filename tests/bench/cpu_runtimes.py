"""Our CPU runners beside the stock runtimes: ONNX Runtime, OpenVINO, PyTorch eager, all in one run.

Run it by hand, on a machine that does nothing else, with the Python that alexdeploy is installed in::

    python -m tests.bench.cpu_runtimes alexnet-half --out half      (in the root of the checkout)

It writes ``half.md`` (also printed) and ``half.json``. ``quantize_static`` and NNCF write their models, by default
settings, in the environment of ``calibration_peers.py``. The candidates of a batch size take turns in random order;
before each turn idle workers get time to fall asleep, and the first call of a turn is not timed. Medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.calibration_peers import ROOT, WORKER, alexdeploy, timed
from tests.bench.peers_venvs import install, python_of, say

PIXELS = {"alexnet-half": 224, "alexnet": 227}
BATCHES = (1, 8, 32)
CALLS_PER_TURN = 4
Call = Callable[[Any], Any]

# what, ours, beside, at least, at which batches
BARS = (
    ("ORT FP32: ours beside a plain session", "ort fp32", "plain ort fp32", {1: 1.6, 8: 2.0, 32: 2.0}),
    ("ORT INT8: ours beside quantize_static", "ort int8", "plain ort quantize_static", {8: 2.5, 32: 2.5}),
    ("ORT: our INT8 beside our FP32", "ort int8", "ort fp32", {8: 1.6, 32: 1.6}),
    ("OpenVINO INT8: ours beside NNCF's model", "openvino int8", "plain openvino nncf", {1: 1.0, 8: 1.0, 32: 1.0}),
)
EAGER_BARS = {1: 3.5, 32: 10.0}


def prepare(options: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Every model: float, in our dialects, and by the peers."""
    files = {name: work / f"{name}.onnx" for name in ("fp32", "onnxruntime", "openvino", "quantize_static", "nncf")}
    trained = options.checkpoint is not None and options.network == "alexnet-half"
    source = (options.checkpoint.resolve(),) if trained else ("--classes", 1000, "--seed", 0)
    alexdeploy("export", *map(str, source), "--network", options.network, "-o", files["fp32"])
    ranges, data = work / "ranges.json", ("--data", str(options.data), "--samples", str(options.samples))
    alexdeploy("calibrate", files["fp32"], *data, "-o", ranges)
    for dialect in ("onnxruntime", "openvino"):
        alexdeploy("quantize", files["fp32"], "--ranges", ranges, "--for", dialect, "-o", files[dialect])
    from alexdeploy.graph.model import contract_of, load_onnx

    contract = work / "contract.json"
    contract.write_text(contract_of(load_onnx(files["fp32"]), "fp32").to_json())
    install(options.venv, ["onnxruntime"])
    python = python_of(options.venv / "onnxruntime")
    for peer, method in (("onnxruntime", "quantize_static"), ("nncf", "default")):
        output = files["nncf" if peer == "nncf" else method]
        say(f"{peer} {method}")
        timed(python, WORKER, peer, method, files["fp32"], output, *data, "--contract", contract)
    return files


def candidates(options: argparse.Namespace, files: dict[str, Path]) -> dict[str, Call]:
    """Name → batch to logits, host to host."""
    import onnxruntime as ort
    import openvino as ov
    import torch

    from alexdeploy.recipe import NetworkSettings
    from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
    from alexdeploy.runners.openvino import OpenVinoRunner
    from alexdeploy.zoo.registry import build_network

    def plain_ort(path: Path) -> Call:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {"input": batch})[0]

    def plain_openvino(path: Path) -> Call:
        request = ov.Core().compile_model(path, "CPU").create_infer_request()
        return lambda batch: request.infer({0: batch})[0]

    classes = OnnxRuntimeRunner(files["fp32"]).classes
    assert classes is not None
    network = build_network(NetworkSettings(options.network), classes).eval()

    def eager(batch: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    return {
        "pytorch eager": eager,
        "plain ort fp32": plain_ort(files["fp32"]),
        "ort fp32": OnnxRuntimeRunner(files["fp32"]).infer,
        "plain ort quantize_static": plain_ort(files["quantize_static"]),
        "ort int8": OnnxRuntimeRunner(files["onnxruntime"]).infer,
        "openvino fp32": OpenVinoRunner(files["fp32"]).infer,
        "plain openvino nncf": plain_openvino(files["nncf"]),
        "openvino int8": OpenVinoRunner(files["openvino"]).infer,
    }


def measure(calls: dict[str, Call], pixels: int, batch: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds per call of each candidate, ``seconds`` long on average."""
    images = np.random.default_rng(0).standard_normal((batch, 3, pixels, pixels), dtype=np.float32)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(images)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name in random.sample(list(calls), len(calls)):
            time.sleep(0.02)
            calls[name](images)
            for _ in range(CALLS_PER_TURN):
                start = time.perf_counter()
                calls[name](images)
                samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def agreements(calls: dict[str, Call], files: dict[str, Path], data: Path) -> dict[str, float]:
    """Share of held-out images with the top-1 of the float model in a plain session."""
    from alexdeploy.data.sources import load_dataset
    from alexdeploy.graph.model import contract_of, load_onnx
    from alexdeploy.metrics import agreement

    contract = contract_of(load_onnx(files["fp32"]), "fp32")
    batches = [images for images, _ in load_dataset(str(data), "val").batches(contract, 32)]
    own = {name: call for name, call in calls.items() if name != "pytorch eager"}  # that one has fresh weights
    found = {name: np.concatenate([call(batch) for batch in batches]) for name, call in own.items()}
    return {name: agreement(logits, found["plain ort fp32"]) for name, logits in found.items()}


def bars(medians: dict[int, dict[str, float]], network: str) -> list[tuple[str, int, float, float]]:
    """What, batch, measured, wanted."""
    rows = [
        (what, batch, medians[batch][peer] / medians[batch][own], wanted)
        for what, own, peer, at in BARS
        for batch, wanted in at.items()
    ]
    if network == "alexnet":
        for batch, wanted in EAGER_BARS.items():
            times = dict(medians[batch])
            eager = times.pop("pytorch eager")
            best = min((name for name in times if not name.startswith("plain")), key=times.__getitem__)
            rows.append((f"{best} beside PyTorch eager", batch, eager / times[best], wanted))
    return rows


def markdown(report: dict[str, Any]) -> str:
    medians = {int(batch): found for batch, found in report["medians_ms"].items()}
    place = report["environment"]
    lines = [
        f"{report['network']}, {report['date']}: {place['cpu']}, {place['cores']} cores.",
        "",
        f"| ms, median | {' | '.join(f'batch {batch}' for batch in medians)} | same top-1 as FP32 |",
        f"| --- |{' --: |' * (len(medians) + 1)}",
    ]
    for name in medians[1]:
        agreed = f"{report['agreement'][name]:.2%}" if name in report["agreement"] else ""
        lines.append(f"| {name} | {' | '.join(f'{found[name]:.3g}' for found in medians.values())} | {agreed} |")
    lines += ["", "| bar | batch | measured | wanted | met |", "| --- | --: | --: | --: | --- |"]
    for what, batch, measured, wanted in report["bars"]:
        lines.append(f"| {what} | {batch} | {measured:.2f} | {wanted} | {'yes' if measured >= wanted else '**no**'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    shared = ROOT.parent / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PIXELS)
    parser.add_argument("--data", type=Path, default=shared / "flowers")
    checkpoint = shared / "checkpoints" / "alexnet-half-lrn-flowers.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=checkpoint if checkpoint.exists() else None)
    parser.add_argument("--samples", type=int, default=256, help="images to calibrate from")
    parser.add_argument("--seconds", type=float, default=2.0, help="per candidate and batch size")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "alexdeploy" / "peers")
    parser.add_argument("--work", type=Path, help="folder that keeps the models, and is used again where it has them")
    parser.add_argument("--prepare", action="store_true", help="write the models and stop")
    parser.add_argument("--out", type=Path, default=Path("cpu"), help="writes OUT.md and OUT.json")
    options = parser.parse_args()
    from alexdeploy.bench.environment import environment

    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        files = {path.stem: path for path in work.glob("*.onnx")}
        if not {"fp32", "onnxruntime", "openvino", "quantize_static", "nncf"} <= files.keys():
            files = prepare(options, work)
        if options.prepare:
            return
        calls = candidates(options, files)
        samples = {batch: measure(calls, PIXELS[options.network], batch, options.seconds) for batch in BATCHES}
        agreed = agreements(calls, files, options.data) if options.network == "alexnet-half" else {}
    medians = {batch: {n: statistics.median(found) for n, found in row.items()} for batch, row in samples.items()}
    report = {
        "network": options.network,
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "samples_ms": samples,
        "medians_ms": medians,
        "agreement": agreed,
        "bars": bars(medians, options.network),
    }
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1))
    options.out.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
