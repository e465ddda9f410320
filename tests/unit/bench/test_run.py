"""The whole bench on graphs of 8×8 pixels: what is judged, and on which input, is checked against ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from alexdeploy.bench import baseline, limits, measure, run
from alexdeploy.bench.candidates import for_batches
from alexdeploy.bench.limits import Machine
from alexdeploy.bench.report.page import write_html, write_markdown
from alexdeploy.bench.results import BenchReport
from alexdeploy.cli.bench import show_bench
from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import DeviceLostError, GateError, InputError, UnavailableError, UsageError
from alexdeploy.runners.artifact import OnnxArtifact
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.runners.onnxruntime_gpu import CudaRunner
from alexdeploy.specs import Profile
from tests.helpers.graphs import Array, conv_lrn_gemm, make_model, of_pixels
from tests.helpers.graphs import run as answers_of

NAMES = ("daisy", "oak", "rose", "tulip")
CONTRACT = Contract(color="rgb", crop=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), labels=NAMES)
PIXELS = msgspec.structs.replace(CONTRACT, mean=(), std=(), layout="nhwc", input_type="uint8")
NOISE = np.random.default_rng(7).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are not measured, and a turn is one call."""
    monkeypatch.setattr(measure, "_TURN_SECONDS", 1e-6)
    monkeypatch.setattr(run, "machine_rates", lambda: Machine(100, 200))
    monkeypatch.setattr(limits, "read_rate", lambda size: 10.0)


def save(model: onnx.ModelProto, path: Path, contract: Contract = CONTRACT) -> Path:
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(conv_lrn_gemm(), tmp_path_factory.mktemp("bench") / "floats.onnx")


@pytest.fixture(scope="module")
def pixels(floats: Path) -> Path:
    model = of_pixels(conv_lrn_gemm(), CONTRACT.scale, CONTRACT.mean, CONTRACT.std)
    return save(model, floats.with_name("pixels.onnx"), PIXELS)


def images(classes: Sequence[str] = (), labels: Sequence[int] = (), skip_bad: bool = False) -> ImageDataset:
    known = np.array(labels or [-1] * len(NOISE), np.int64)
    names = [f"{index}.png" for index in range(len(known))]
    return ImageDataset("noise", tuple(classes), names, known, lambda i: Image.fromarray(NOISE[i]), skip_bad)


def preprocessed() -> Array:
    """All images as the float graph takes them, by NumPy."""
    values = (NOISE / 255 - np.array(CONTRACT.mean)) / np.array(CONTRACT.std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def by_hand() -> Array:
    """Logits of all images."""
    return answers_of(conv_lrn_gemm(), preprocessed())[0]


def bench(*paths: Path, on: ImageDataset, max_drop: float | None = None) -> BenchReport:
    return run.run_bench(paths, on, batches=[1], seconds=0.01, max_drop=max_drop)


def shown(report: BenchReport, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The terminal's tables and notes, the page and the Markdown."""
    show_bench(report)
    show_bench(report, wide=True)
    write_html(report, folder / "x.html")
    write_markdown(report, folder / "x.md")
    return ["".join(capsys.readouterr()), (folder / "x.html").read_text(), (folder / "x.md").read_text()]


def test_without_labels_accuracy_is_a_dash_and_agreement_is_the_gate(
    floats: Path, pixels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = bench(floats, pixels, on=images(), max_drop=2.0)
    assert [(row.top1, row.top5, row.agreement) for row in report.rows] == [(None, None, 1.0)] * 2
    assert (report.accuracy, report.classes, report.unlabelled) == ([], [], "noise has no labels")
    assert all("(agreement >= 98.00%, as there are no labels), of 2 measured" in c.reason for c in report.choices)
    for text in shown(report, tmp_path, capsys):
        assert "No accuracy: noise has no labels." in text
        assert "100.00%" in text, "agreement"
        for word in (" 0.00%", "nan", "None", "By class", "Confusion", "McNemar", "held-out"):
            assert word not in text.replace("governor: None", "").replace("gpu: None", ""), word
    (header, _, first, *_) = [line for line in (tmp_path / "x.md").read_text().splitlines() if line.startswith("|")]
    cells = dict(zip(header.split(" | "), first.split(" | "), strict=True))
    assert (cells["top-1"], cells["agreement"]) == ("-", "100.00%")
    assert msgspec.json.decode(msgspec.json.encode(report))["rows"][0]["top1"] is None


@pytest.mark.parametrize(
    ("classes", "asked"),
    [
        (("tulip", "rose", "oak", "daisy"), [0, 1, 2, 3]),
        (("ROSE", "Daisy"), [0, 1]),
        (("oak",), [0]),
    ],
    ids=["other-order", "other-case-and-a-part", "one-class"],
)
def test_classes_are_judged_by_their_names(
    classes: tuple[str, ...], asked: list[int], floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [asked[index % len(asked)] for index in range(len(NOISE))]
    answered = [NAMES[best] for best in by_hand().argmax(axis=1)]
    true = [classes[label].lower() for label in labels]
    report = bench(floats, on=images(classes, labels))
    assert report.rows[0].top1 == np.mean([a == t for a, t in zip(answered, true, strict=True)])
    assert report.unlabelled == ""
    (judged,) = report.accuracy
    for place, name in enumerate(NAMES):
        right = sum(a == t == name for a, t in zip(answered, true, strict=True))
        recall, precision = judged.recall[place], judged.precision[place]
        assert recall == (right / true.count(name) if name in true else None)
        assert precision == (right / max(answered.count(name), 1) if name in true else None)
    if len(asked) == 2:
        terminal, page, _ = shown(report, tmp_path, capsys)
        assert f"{report.rows[0].top1:.2%}" in terminal
        table = page[page.index("By class") :]
        assert [name for name in NAMES if f">{name}<" in table] == sorted({*true})


@pytest.mark.parametrize(
    ("classes", "labels", "reason"),
    [(("rose", "elm"), NAMES, "noise has class 'elm'; "), (("a", "b"), (), "has 2 classes but {} has 4 outputs")],
)
def test_classes_that_are_not_the_models_leave_accuracy_open(
    classes: tuple[str, ...], labels: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    path = save(conv_lrn_gemm(), tmp_path / "a.onnx", msgspec.structs.replace(CONTRACT, labels=labels))
    report = bench(path, on=images(classes, [0, 1, 1, 0]))
    assert reason.format(path) in report.unlabelled
    assert (report.rows[0].top1, report.rows[0].agreement) == (None, 1.0)


def test_a_graph_of_pixels_runs_beside_its_float_graph_on_its_own_input(floats: Path, pixels: Path) -> None:
    report = bench(floats, pixels, on=images(NAMES, [index % 4 for index in range(70)]))
    ours, theirs = report.rows
    assert (ours.top1, ours.agreement) == (theirs.top1, theirs.agreement)
    assert ours.top1 == np.mean(by_hand().argmax(axis=1) == np.arange(70) % 4)
    assert (ours.input_bytes, theirs.input_bytes) == (8 * 8 * 3 * 4, 8 * 8 * 3)
    weights = 4 * (8 * 3 * 9 + 8 + 4 * 128 + 4)
    read = [row.limit.bytes - weights for row in (ours, theirs) if row.limit is not None]
    assert read == [8 * 8 * 3 * 4, 8 * 8 * 3]
    assert {*theirs.samples_ms} >= {"host", "end_to_end"}


def test_files_that_are_no_versions_of_one_network_are_refused(floats: Path, pixels: Path, tmp_path: Path) -> None:
    """The graph of pixels fits each of the two, which do not fit together."""
    other = msgspec.structs.replace(CONTRACT, mean=(0.0, 0.0, 0.0))
    path = save(conv_lrn_gemm(), tmp_path / "other.onnx", other)
    with pytest.raises(InputError, match=r"floats.onnx and .*other.onnx have different contracts \(mean\)"):
        bench(pixels, floats, path, on=images())
    nodes = [helper.make_node("GlobalAveragePool", ["input"], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    three = save(make_model(nodes, {}, rank=2), tmp_path / "three.onnx")
    with pytest.raises(InputError, match=r"three.onnx on onnxruntime-cpu has 3 outputs and .*floats.onnx .* 4"):
        bench(floats, three, on=images())


def test_tensors_are_judged_and_are_refused_by_a_graph_of_pixels(floats: Path, pixels: Path) -> None:
    tensors = preprocessed()
    dataset = dataclasses.replace(images(NAMES, [1] * 70), name="x.npy", read=lambda i: tensors[i])
    report = bench(floats, on=dataset)
    assert report.rows[0].top1 == np.mean(by_hand().argmax(axis=1) == 1)
    assert report.rows[0].end_to_end_ms is not None
    with pytest.raises(InputError, match=r"tensor '0.png' is \(3, 8, 8\) float32; the model takes \(8, 8, 3\) uint8"):
        bench(floats, pixels, on=dataset)


def test_an_answer_that_is_no_number_is_refused_with_the_first_image(tmp_path: Path) -> None:
    """Image 67, in the second batch, is black, and its logarithm infinite; image 3 cannot be read."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Log", ["flat"], ["logits"]),
    ]
    contract = Contract(color="rgb", crop=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    path = save(make_model(nodes, {}, rank=2), tmp_path / "log.onnx", contract)

    def read(index: int) -> Image.Image:
        if index == 3:
            raise OSError("truncated")
        return Image.fromarray(NOISE[index] * (index != 67))

    with pytest.raises(GateError, match=r"log.onnx on onnxruntime-cpu: its answer to image '67.png' is NaN or inf"):
        bench(path, on=dataclasses.replace(images(skip_bad=True), read=read))


def test_how_many_of_how_many_images_were_judged_is_said(
    floats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(index: int) -> Image.Image:
        if index == 3:
            raise OSError("truncated")
        return Image.fromarray(NOISE[index])

    part = dataclasses.replace(images(skip_bad=True), read=read, total=350, part="the held-out fifth")
    report = bench(floats, on=part)
    assert report.images == 69
    show_bench(report)
    write_markdown(report, tmp_path / "x.md")
    for text in (capsys.readouterr().out, (tmp_path / "x.md").read_text()):
        assert "70 of 350 images (the held-out fifth), 1 of them unreadable" in text
    old = msgspec.to_builtins(report)
    for new in (old, "taken"), (old, "unlabelled"), (old["rows"][0], "input_bytes"):
        del new[0][new[1]]
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(old))
    show_bench(baseline.load_report(tmp_path / "old.json"))
    assert "noise: 69 images" in capsys.readouterr().out


@pytest.mark.parametrize("labelled", [(False, False), (True, False), (False, True), (True, True)])
def test_a_baseline_is_compared_with_or_without_accuracy(labelled: tuple[bool, bool], floats: Path) -> None:
    then, now = (
        bench(floats, on=images(NAMES, [0] * 4) if known else dataclasses.replace(images(NAMES, [0] * 4), classes=()))
        for known in labelled
    )
    changes = baseline.changes(now, then)
    assert [change.p_less_accurate for change in changes] == [1.0 if labelled == (True, True) else None]


def test_a_row_on_the_gpu_is_not_held_against_the_limit_of_the_cpu(
    floats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench(floats, on=images()).rows[0].limit is not None
    monkeypatch.setattr(OnnxRuntimeRunner, "on_gpu", CudaRunner.on_gpu)
    assert bench(floats, on=images()).rows[0].limit is None


class Faulty(OnnxRuntimeRunner):
    """A runner that fails while it runs: at a batch size, or at its so-manieth call, or on the device alone."""

    at_batch, at_call, on_device = 0, 0, False
    error: type[Exception] = UnavailableError
    calls = 0

    def infer(self, batch: Array) -> Array:
        self.calls += 1
        if len(batch) == self.at_batch or self.calls == self.at_call:
            raise self.error("CUDA failure 2: out of memory")
        return super().infer(batch)

    def device_call(self, batch: Array) -> Callable[[], object]:
        if self.on_device:
            raise self.error("CUDA failure 2: out of memory")
        return super().device_call(batch)

    def layer_times_ms(self, batch: Array) -> dict[str, float]:  # noqa: ARG002
        return {}


@pytest.mark.parametrize("faulty", [0, 1, 2], ids=["the reference", "between", "last"])
@pytest.mark.parametrize(
    "fault", [{"at_batch": 64}, {"at_call": 5}, {"on_device": True}], ids=["scoring", "timing", "device"]
)
def test_a_runner_that_cannot_run_is_left_out_and_the_others_go_on(
    floats: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, int | bool], faulty: int
) -> None:
    opened: list[int] = []

    def runner(artifact: OnnxArtifact, runtime: str) -> OnnxRuntimeRunner:  # noqa: ARG001
        opened.append(len(opened))
        made = (Faulty if opened[-1] == faulty else OnnxRuntimeRunner)(artifact.path)
        for name, value in fault.items():
            setattr(made, name, value)
        return made

    monkeypatch.setattr(OnnxArtifact, "runner", runner)
    report = bench(floats, floats, floats, on=images(NAMES, [index % 4 for index in range(70)]))
    assert [row.status for row in report.rows] == ["skipped" if index == faulty else "ok" for index in range(3)]
    assert report.rows[faulty].reason == "CUDA failure 2: out of memory"
    assert report.rows[faulty].top1 is None
    right = np.mean(by_hand().argmax(axis=1) == np.arange(70) % 4)
    assert [row.top1 for index, row in enumerate(report.rows) if index != faulty] == [right] * 2
    assert len(report.accuracy) == 2
    monkeypatch.setattr(Faulty, "error", DeviceLostError)
    opened.clear()
    with pytest.raises(DeviceLostError):
        bench(floats, floats, floats, on=images())


def test_a_device_that_nothing_would_run_on_is_refused(floats: Path) -> None:
    with pytest.raises(UsageError, match=r"^`device` cuda:5: onnxruntime-cpu would run on the CPU; (no CUDA|name a)"):
        run.run_bench([floats], images(), runtimes=["onnxruntime-cpu"], device="cuda:5")


def test_a_runtime_that_builds_on_loading_is_told_the_batches() -> None:
    assert for_batches("onnxruntime-tensorrt", [1, 8]) == {"batches": Profile((1,), (8,), (64,))}
    assert for_batches("onnxruntime-tensorrt", [128]) == {"batches": Profile((1,), (128,), (128,))}
    assert for_batches("onnxruntime-cuda", [1, 8]) == {}
