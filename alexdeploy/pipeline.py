"""The whole chain, from a recipe to files that are compared: train, export, calibrate, quantize, build, bench.

Each step writes one artifact. A step is kept from an earlier run when its artifact is intact, came from the same
parents, images and settings, and was made by these versions of the tool and its libraries; so an interrupted run goes
on where it was, and training goes on within an epoch. What was trained is kept whatever the versions, and never
replaced: with other training settings or images another folder is asked for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from alexdeploy import files, locks
from alexdeploy._version import __version__
from alexdeploy.bench.intervals import Ratio, paired_ratio
from alexdeploy.bench.results import BenchReport, NotFaster, Row
from alexdeploy.bench.run import run_bench
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.data.samples import real_images
from alexdeploy.engine.options import BuilderOptions, BuildSettings
from alexdeploy.engine.plan import build_engine, precision_verdict
from alexdeploy.engine.record import EngineRecord
from alexdeploy.engine.versions import load_library
from alexdeploy.errors import GateError, InputError, UnavailableError
from alexdeploy.export.from_torch import export_onnx
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import contract_of, load_onnx, save_onnx
from alexdeploy.machine import current_gpu
from alexdeploy.optional import require
from alexdeploy.quantize.calibrate import calibrate
from alexdeploy.quantize.gate import check_answers
from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.recipe import Recipe
from alexdeploy.runners.onnxruntime_libraries import cuda_is_here
from alexdeploy.specs import DEFAULT_METHOD, Builder, Dialect, Progress, cuda_ordinal
from alexdeploy.train import Step as TrainStep
from alexdeploy.train import train_network
from alexdeploy.train.folder import log_path, state_path
from alexdeploy.train.progress import epochs_logged
from alexdeploy.zoo.checkpoint import load_checkpoint

SAMPLES = 512
BENCH_SECONDS = 20.0
BATCHES = (1, 8)
_TENSORRT_GRAPH = "onnx-int8"


@dataclass(frozen=True)
class StepReport:
    """``kept``: an earlier run's artifact was still good. ``skipped``: a library is missing; ``reason`` names it.

    ``reason`` also names layers that the builder of an INT8 engine left in float.
    """

    name: str
    seconds: float
    status: Literal["ok", "kept", "skipped"]
    reason: str | None = None


@dataclass(frozen=True)
class Gain:
    """The speed-up of INT8 over FP32 on one runtime, and the share of images with the reference's top-1."""

    runtime: str
    batch: int
    ratio: Ratio
    agreement: float


@dataclass(frozen=True)
class PipelineReport:
    """Time of each step, the benchmark at the end, and the files by step name (without skipped steps)."""

    steps: list[StepReport]
    bench: BenchReport
    artifacts: dict[str, Path]

    @property
    def comparison(self) -> BenchReport:
        """The benchmark without TensorRT's INT8 graph: its time on another runtime is not that of its engine."""
        rows = [row for row in self.bench.rows if not self._is_tensorrt_graph(row)]
        slow = [told for told in self.bench.not_faster if not self._is_tensorrt_graph(told)]
        return replace(self.bench, rows=rows, not_faster=slow)

    @property
    def tensorrt_graph(self) -> Row:
        """TensorRT's INT8 graph on the runtime that its answers were judged on."""
        return next(row for row in self.bench.rows if self._is_tensorrt_graph(row))

    def _is_tensorrt_graph(self, row: Row | NotFaster) -> bool:
        return row.artifact == files.printable(self.artifacts[_TENSORRT_GRAPH])

    @property
    def gains(self) -> list[Gain]:
        """Of the fastest INT8 row of each runtime that ran FP32 too, at the largest batch size; the fastest first."""
        rows = [row for row in self.comparison.rows if row.batch == BATCHES[-1] and row.status == "ok"]
        floats = {row.runtime: row for row in rows if row.precision == "fp32"}
        candidates = [row for row in rows if row.precision == "int8" and row.runtime in floats]
        best: dict[str, Row] = {}
        for row in sorted(candidates, key=lambda row: row.images_per_s or 0.0, reverse=True):
            best.setdefault(row.runtime, row)
        return [_gain(row, floats[row.runtime]) for row in best.values()]


def _gain(int8: Row, fp32: Row) -> Gain:
    assert int8.agreement is not None  # of every row that ran
    return Gain(int8.runtime, int8.batch, paired_ratio(int8.rounds, fp32.rounds), int8.agreement)


@dataclass(frozen=True)
class _Step:
    """``run`` writes ``output`` and may return a remark; ``is_finished`` is for what the sidecar does not know.

    A library that an ``optional`` step lacks does not end the run. What is of ``any_version`` stands when the tool or
    a library has changed.
    """

    name: str
    doing: str
    output: Path
    run: Callable[[Progress], str | None]
    parents: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    is_finished: Callable[[], bool] = lambda: True
    optional: bool = False
    any_version: bool = False


def run_pipeline(
    recipe: Recipe,
    learn: ImageDataset,
    judge: ImageDataset,
    out: Path,
    *,
    samples: int = SAMPLES,
    builder: Builder = "auto",
    device: str | None = None,
    rebuild: str = "",
    progress: Progress = lambda what, share: None,
) -> PipelineReport:
    """Make everything that ``recipe`` leads to in folder ``out``, and compare what can run here.

    The files are named after the network. TensorRT's INT8 graph is judged for its answers; the time of INT8 is taken
    from the graphs that ONNX Runtime and OpenVINO are meant to run, and from the engines where there is a GPU.

    Args:
        recipe: network, preprocessing and training settings.
        learn: images to train and calibrate on.
        judge: held-out images, for the choice of the best epoch and for the benchmark.
        out: the folder, made if its parent exists; files of an earlier run in it are used.
        samples: how many images of ``learn`` to calibrate on.
        builder: what builds the engines; where it is missing these steps are skipped.
        device: the GPU for every step that uses one, ``cuda:1`` for the second; None for the first, if there is one.
        rebuild: the command that does the same, kept with the engines.
        progress: called with "STEP: what it is doing" and the share of that which is done.

    Raises:
        UsageError: the folder cannot be made, another run writes there, or it holds a training with other settings or
            images.
        InputError: images that cannot be read, or splits that name different classes.
        UnavailableError: a library that every run needs is missing.
        GateError: PyTorch and ONNX Runtime do not agree on the exported graph, or the checkpoint was changed.
        TrainingDivergedError: NaN or infinite loss.
    """
    for module in ("matplotlib", "scipy", "sklearn"):  # needed late: better missed now than after the training
        require(module)
    files.make_folder(out)
    with locks.claimed(out):
        chain = _Chain(recipe, learn, judge, out, samples, builder, device, rebuild)
        return _run(chain, judge, device, progress)


def _run(chain: _Chain, judge: ImageDataset, device: str | None, progress: Progress) -> PipelineReport:
    """Every step, and the benchmark."""
    reports = [chain.report(step, progress) for step in chain.steps()]
    skipped = {report.name for report in reports if report.status == "skipped"}
    made = {step.name: step.output for step in chain.steps() if step.name not in skipped}
    started = time.perf_counter()
    progress("bench", 0.0)
    compared = run_bench(
        [path for name, path in made.items() if name != "ranges"],
        judge,
        batches=BATCHES,
        runtimes=_runtimes(made),
        seconds=BENCH_SECONDS,
        device=device,
        progress=lambda what, share: progress(f"bench: {what}", share),
    )
    reports.append(StepReport("bench", round(time.perf_counter() - started, 2), "ok"))
    return PipelineReport(reports, compared, made)


def _runtimes(made: Mapping[str, Path]) -> dict[Path, tuple[str, ...]]:
    """The runtimes of files that are not timed on their usual runtime alone: FP32 on each that a gain is told for."""
    found: dict[Path, tuple[str, ...]] = {}
    usual: tuple[str, ...] = ("onnxruntime-cuda", "onnxruntime-cpu") if cuda_is_here() else ("onnxruntime-cpu",)
    if "onnx-int8-openvino" in made:
        usual += ("openvino",)
        found[made["onnx-int8-openvino"]] = ("openvino",)
    return {made["onnx"]: usual, **found}


def _is_of_now(sidecar: files.Sidecar) -> bool:
    """Made by these versions of the tool and its libraries."""
    return sidecar.tool == __version__ and files.library_versions(*sidecar.libraries) == sidecar.libraries


class _Digests:
    """SHA-256 by file; each is computed once for as long as the file stays as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int, int], str] = {}

    def of(self, path: Path) -> str:
        key = self._key(path)
        if key not in self._known:
            self._known[key] = files.sha256_file(path)
        return self._known[key]

    def written(self, path: Path) -> None:
        """Take over what the writer of ``path`` has just computed."""
        self._known[self._key(path)] = files.load_sidecar(path).sha256

    @staticmethod
    def _key(path: Path) -> tuple[Path, int, int, int]:
        stat = path.stat()
        return path, stat.st_ino, stat.st_size, stat.st_mtime_ns


class _Chain:
    """The files of one run and the work that makes them."""

    def __init__(
        self,
        recipe: Recipe,
        learn: ImageDataset,
        judge: ImageDataset,
        out: Path,
        samples: int,
        builder: Builder,
        device: str | None,
        rebuild: str,
    ) -> None:
        self._recipe, self._learn, self._judge = recipe, learn, judge
        self._samples, self._builder, self._device, self._rebuild = samples, builder, device, rebuild
        self._prefix = out / recipe.network.name
        self._checkpoint = self._file(".safetensors")
        self._onnx = self._file(".onnx")
        self._ranges = out / "ranges.json"
        self._images = {"train": learn.fingerprint, "val": judge.fingerprint}
        self._digests = _Digests()

    def _file(self, ending: str) -> Path:
        return self._prefix.with_name(self._prefix.name + ending)

    def steps(self) -> list[_Step]:
        """In the order in which they are run."""
        calibration = {"samples": self._samples, "images": self._images["train"]}
        return [
            self._training(),
            _Step("onnx", "exporting, comparing with PyTorch", self._onnx, self._export, [self._checkpoint]),
            _Step("onnx-fp16", "writing FP16", self._file("-fp16.onnx"), self._to_fp16, [self._onnx]),
            _Step("ranges", "calibrating", self._ranges, self._calibrate, [self._onnx], calibration),
            self._quantization("tensorrt", _TENSORRT_GRAPH),
            self._quantization("onnxruntime", "onnx-int8-onnxruntime"),
            self._quantization("openvino", "onnx-int8-openvino"),
            *(self._engine(precision) for precision in ("fp32", "fp16", "int8")),
        ]

    def report(self, step: _Step, progress: Progress) -> StepReport:
        """Run a step, or find that its artifact can be kept."""
        started = time.perf_counter()
        status: Literal["ok", "kept", "skipped"] = "ok"
        reason = None
        progress(f"{step.name}: {step.doing}", 0.0)
        if self._is_current(step):
            status = "kept"
        else:
            try:
                reason = step.run(lambda what, share: progress(f"{step.name}: {what}", share))
                self._digests.written(step.output)
            except UnavailableError as error:
                if not step.optional:
                    raise
                status, reason = "skipped", str(error)
        return StepReport(step.name, round(time.perf_counter() - started, 2), status, reason)

    def _is_current(self, step: _Step) -> bool:
        try:
            sidecar = files.load_sidecar(step.output)
        except (InputError, GateError):
            return False
        options = msgspec.json.decode(msgspec.json.encode(step.options))  # as the sidecar stores them
        return (
            step.is_finished()
            and self._digests.of(step.output) == sidecar.sha256
            and [parent.sha256 for parent in sidecar.parents] == [self._digests.of(path) for path in step.parents]
            and all(sidecar.options.get(key) == value for key, value in options.items())
            and (step.any_version or _is_of_now(sidecar))
        )

    def _origin(self, path: Path) -> tuple[files.Parent]:
        return (files.Parent(path.name, self._digests.of(path)),)

    def _training(self) -> _Step:
        return _Step(
            "checkpoint",
            "training",
            self._checkpoint,
            self._train,
            options={"recipe": msgspec.to_builtins(self._recipe), "images": self._images},
            # a run that was stopped leaves the checkpoint of its best epoch so far
            is_finished=lambda: epochs_logged(log_path(self._checkpoint)) == self._recipe.train.epochs,
            any_version=True,
        )

    def _train(self, progress: Progress) -> None:
        def tick(step: TrainStep) -> None:
            what = f"epoch {step.epoch}/{self._recipe.train.epochs}, {step.images_per_s:.0f} images/s"
            progress(what, step.done / step.total)

        train_network(
            self._recipe,
            self._learn,
            self._judge,
            self._checkpoint,
            device=self._device or "auto",
            resume=state_path(self._checkpoint).exists(),
            on_step=tick,
        )
        files.read_sidecar(self._checkpoint, "checkpoint")  # a run that had ended writes none

    def _export(self, progress: Progress) -> None:
        loaded = load_checkpoint(self._checkpoint)
        images = real_images(loaded.contract, self._judge)
        origin = self._origin(self._checkpoint)
        export_onnx(loaded.model, loaded.contract, self._onnx, real_images=images, parents=origin, progress=progress)

    def _to_fp16(self, progress: Progress) -> None:  # noqa: ARG002
        model = load_onnx(self._onnx)
        half = to_fp16(model)
        check_answers(half, model, contract_of(model, str(self._onnx)), self._onnx)
        save_onnx(half, self._file("-fp16.onnx"), parents=self._origin(self._onnx))

    def _calibrate(self, progress: Progress) -> None:
        seen = calibrate(self._onnx, self._learn, samples=self._samples, progress=progress)
        options = {"samples": self._samples, "images": self._images["train"]}
        save_ranges(self._ranges, seen, (seen.model_parent(self._onnx),), options)

    def _quantization(self, dialect: Dialect, name: str) -> _Step:
        output = self._file(name.removeprefix("onnx") + ".onnx")

        def run(progress: Progress) -> None:  # noqa: ARG001
            if dialect == "openvino":
                require("openvino")
            quantize_onnx(self._onnx, self._ranges, output, settings=QuantizeSettings(dialect=dialect))

        options = {"method": DEFAULT_METHOD, "for": dialect}
        parents = [self._onnx, self._ranges]
        return _Step(name, f"quantizing for {dialect}", output, run, parents, options, optional=dialect == "openvino")

    def _engine(self, precision: Literal["fp32", "fp16", "int8"]) -> _Step:
        source = self._onnx if precision == "fp32" else self._file(f"-{precision}.onnx")
        output = self._file(f"-{precision}.engine")

        def run(progress: Progress) -> str | None:
            settings = BuildSettings(builder=self._builder, options=BuilderOptions(device=self._device))
            record = build_engine(source, output, settings=settings, rebuild=self._rebuild, progress=progress)
            return precision_verdict(record) if record.float_layers or record.left else None

        def is_for_here() -> bool:
            """Of this builder, and for the GPU that was chosen."""
            sidecar, gpu = files.load_sidecar(output), current_gpu(cuda_ordinal(self._device))
            with contextlib.suppress(UnavailableError, msgspec.ValidationError):
                record = msgspec.convert(sidecar.details, EngineRecord)
                fits = gpu is None or record.compatibility.takes_gpu(record.builder, record.gpu, gpu)
                return fits and load_library(self._builder).name in sidecar.libraries
            return False

        return _Step(
            f"engine-{precision}",
            "building",
            output,
            run,
            [source],
            {"precision": precision},
            is_finished=is_for_here,
            optional=True,
        )
