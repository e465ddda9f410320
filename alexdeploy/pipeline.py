"""The whole chain on scikit-learn's digits: train, export, calibrate, quantize, build, bench.

Each step writes one artifact. A step is kept from an earlier run when its artifact is intact, came from the same
parents and settings, and was made by these versions of the tool and its libraries; so an interrupted demonstration
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from alexdeploy import files
from alexdeploy._version import __version__
from alexdeploy.bench.results import BenchReport
from alexdeploy.bench.run import bench
from alexdeploy.data.samples import real_images
from alexdeploy.data.sources import load_dataset
from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.errors import GateError, InputError, UsageError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import load_onnx, save_onnx
from alexdeploy.quantize.apply import DEFAULT_METHOD, PrecisionSettings, with_precision
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.quantize import quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.recipe import load_recipe
from alexdeploy.train import train_network
from alexdeploy.zoo.checkpoint import load_checkpoint

NETWORK, DATASET, SAMPLES = "alexnet-mnist", "digits", 512


@dataclass(frozen=True)
class StepReport:
    """``kept`` means that an earlier run's artifact was still good."""

    name: str
    seconds: float
    status: Literal["ok", "kept"]


@dataclass(frozen=True)
class DemoReport:
    """How long each step took, the benchmark at the end, and the files by step name."""

    steps: list[StepReport]
    bench: BenchReport
    artifacts: dict[str, Path]


@dataclass(frozen=True)
class _Step:
    name: str
    output: Path
    run: Callable[[], object]
    parents: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    is_finished: Callable[[], bool] = lambda: True


def demo(out: Path, *, on_step: Callable[[str], None] = lambda name: None) -> DemoReport:
    """Run the chain in folder ``out``, which is made if its parent exists.

    Args:
        out: the folder; files of an earlier run in it are used.
        on_step: called with the name of each step before it runs.

    Raises:
        UsageError: the folder cannot be made.
        UnavailableError: a library of the chain is missing.
        GateError: a gate along the chain said no.
    """
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {out}: {error.strerror}; name another with --out") from error
    reports: list[StepReport] = []
    steps = _steps(out)
    for step in steps:
        on_step(step.name)
        started = time.perf_counter()
        kept = _is_current(step)
        if not kept:
            step.run()
        reports.append(StepReport(step.name, round(time.perf_counter() - started, 2), "kept" if kept else "ok"))
    on_step("bench")
    started = time.perf_counter()
    shown = ["checkpoint", "onnx", "onnx-fp16", "onnx-int8", "engine-fp32", "engine-fp16", "engine-int8"]
    made = {step.name: step.output for step in steps}
    report = bench([made[name] for name in shown], load_dataset(DATASET, "val"))
    reports.append(StepReport("bench", round(time.perf_counter() - started, 2), "ok"))
    return DemoReport(reports, report, made)


def _is_current(step: _Step) -> bool:
    try:
        sidecar = files.read_sidecar(step.output)
    except (InputError, GateError):
        return False
    if not step.is_finished():
        return False
    same_parents = [parent.sha256 for parent in sidecar.parents] == [files.sha256_file(p) for p in step.parents]
    options = msgspec.json.decode(msgspec.json.encode(step.options))  # as the sidecar stores them
    same_options = all(sidecar.options.get(key) == value for key, value in options.items())
    same_libraries = files.library_versions(*sidecar.libraries) == sidecar.libraries
    return same_parents and same_options and same_libraries and sidecar.tool == __version__


def _steps(out: Path) -> list[_Step]:
    checkpoint, onnx = out / f"{NETWORK}.safetensors", out / f"{NETWORK}.onnx"
    fp16, ranges, int8 = out / f"{NETWORK}-fp16.onnx", out / "ranges.json", out / f"{NETWORK}-int8.onnx"
    engines = {name: out / f"{NETWORK}-{name}.engine" for name in ("fp32", "fp16", "int8")}
    recipe, log = load_recipe(NETWORK), out / f"{NETWORK}.jsonl"

    def run_train() -> None:
        train_network(recipe, load_dataset(DATASET, "train"), load_dataset(DATASET, "val"), checkpoint)

    def run_export() -> None:
        loaded = load_checkpoint(checkpoint)
        images = real_images(loaded.contract, load_dataset(DATASET, "val"))
        export_onnx(loaded.model, loaded.contract, onnx, real_images=images, parents=(files.parent(checkpoint),))

    def run_fp16() -> None:
        save_onnx(to_fp16(load_onnx(onnx)), fp16, parents=(files.parent(onnx),))

    def run_calibrate() -> None:
        seen = calibrate(onnx, load_dataset(DATASET, "train"), samples=SAMPLES)
        save_ranges(ranges, seen, (seen.model_parent(onnx),), {"samples": SAMPLES})

    def run_build(name: str) -> None:
        settings = BuildSettings(builder="tensorrt-rtx", strict=True)
        source = int8 if name == "int8" else with_precision(onnx, settings=PrecisionSettings(fp16=name == "fp16"))
        build_engine(source, engines[name], settings=settings, rebuild=f"alexdeploy demo --out {out}")

    return [
        _Step(
            "checkpoint",
            checkpoint,
            run_train,
            options={"recipe": msgspec.to_builtins(recipe)},
            # a run that was stopped leaves the checkpoint of its best epoch so far
            is_finished=lambda: log.exists() and len(log.read_text().splitlines()) == recipe.train.epochs,
        ),
        _Step("onnx", onnx, run_export, [checkpoint]),
        _Step("onnx-fp16", fp16, run_fp16, [onnx]),
        _Step("ranges", ranges, run_calibrate, [onnx], {"samples": SAMPLES}),
        _Step(
            "onnx-int8",
            int8,
            lambda: quantize_onnx(onnx, ranges, int8),
            [onnx, ranges],
            {"method": DEFAULT_METHOD},
        ),
        _Step("engine-fp32", engines["fp32"], lambda: run_build("fp32"), [onnx], {"precision": "fp32"}),
        _Step("engine-fp16", engines["fp16"], lambda: run_build("fp16"), [onnx], {"precision": "fp16"}),
        _Step("engine-int8", engines["int8"], lambda: run_build("int8"), [int8], {"precision": "int8"}),
    ]
