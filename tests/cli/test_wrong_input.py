"""A user's mistake is one line that names it, the right exit code, and nothing left behind."""

from __future__ import annotations

import errno
import json
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from alexdeploy.errors import InputError
from tests.cli.conftest import Result, Run

# Command line → exit code and what the message says. {names} are fixtures: files made by conftest.py.
USAGE = {
    # unknown and impossible options
    "quantise {model}": "unknown command 'quantise'; did you mean 'quantize'?",
    "train alexnet-mnist --data digits --wrong 1": "No such option",
    "export {checkpoint} -o {out}/x --wrong": "No such option",
    "calibrate {model} --data digits -o {out}/x --wrong": "No such option",
    "quantize {model} --ranges {ranges} -o {out}/x --wrong": "No such option",
    "build-engine {model} -o {out}/x --wrong": "No such option",
    "bench {model} --data digits --wrong": "No such option",
    "predict {model} {pictures} --wrong": "No such option",
    "inspect {model} --wrong": "No such option",
    "doctor --wrong": "No such option",
    "demo --wrong": "No such option",
    "train alexnet-mnist --data digits --split val": "No such option",
    "calibrate {model} --data digits --split half -o {out}/x.json": "'all'",
    # something is missing
    "export -o {out}/x.onnx": "--network NAME",
    "export --network alexnet-mnist -o {out}/x.onnx": "--classes N",
    "export {bad}/bare.safetensors -o {out}/x.onnx": "--network",
    "calibrate {model} -o {out}/x.json": "--data",
    "quantize {model} -o {out}/x.onnx": "--ranges",
    "build-engine {model}": "--output",
    "bench --data digits": "ARTIFACT",
    "predict {model}": "IMAGE",
    "inspect": "--network",
    "build-engine {model} --int8 -o {out}/x.engine": "--int8 needs either --ranges ranges.json or --data DATASET",
    # values that contradict each other
    "build-engine {model} --int8 --ranges {ranges} --data digits -o {out}/x.engine": "both name",
    "build-engine {model} --fp8 -o {out}/x.engine": "--fp8 needs either --ranges ranges.json or --data DATASET",
    "build-engine {model} --fp8 --int8 --ranges {ranges} -o {out}/x.engine": "--int8 and --fp8 are both",
    "quantize {model} --ranges {ranges} --fp16 --bf16 -o {out}/x": "--fp16 and --bf16 are both",
    "quantize {model} --ranges {ranges} --fp8 --for openvino -o {out}/x": "--fp8 is for --for tensorrt",
    "build-engine {model} --ranges {ranges} -o {out}/x.engine": "--ranges and --data are for --int8",
    "export {checkpoint} --classes 10 -o {out}/x.onnx": "--classes is for fresh weights",
    "export {checkpoint} --network alexnet -o {out}/x.onnx": "holds 'alexnet-mnist', not 'alexnet'",
    "inspect {model} --network alexnet": "either",
    "bench {checkpoint} --data digits --runtime onnxruntime-cpu": "it runs on pytorch",
    "bench {checkpoint} {model} --data digits --runtime pytorch": "it runs on onnxruntime-cpu",
    # values out of range
    "build-engine {model} --batch 8:1 -o {out}/x.engine": "'8:1': expected MIN:OPT:MAX",
    "build-engine {model} --batch 8:4:2 -o {out}/x.engine": "min <= opt <= max",
    "build-engine {model} --batch x -o {out}/x.engine": "'x': expected MIN:OPT:MAX",
    "build-engine {model} --batch 0 -o {out}/x.engine": "min <= opt <= max",
    "bench {model} --data digits --batch x": "expected whole numbers",
    "bench {model} --data digits --device gpu": "--device gpu: expected cuda or cuda:N",
    "predict {model} {pictures} --device cpu": "--device cpu: expected cuda or cuda:N",
    "build-engine {model} --device cuda:x -o {out}/x.engine": "--device cuda:x: expected cuda or cuda:N",
    "run lenet --data digits --device 1 --out {out}": "--device 1: expected cuda or cuda:N",
    "train alexnet-mnist --data digits --device cuda:": "--device cuda:: expected cuda or cuda:N",
    "bench {model} --data digits --batch 0": "expected whole numbers",
    "bench {model} --data digits --runtime tensorflow": "tensorrt-rtx",
    "bench {model} --data digits --in-flight 4": "--in-flight is of a load report; add --server",
    "bench {model} --data digits --rates 4": "--rates is of a load report; add --server",
    "bench {model} --data digits --model m": "--model is of a load report; add --server",
    "bench {model} --data digits --server h:1 --in-flight 1,x": "--in-flight '1,x': expected whole numbers >= 1",
    "bench {model} --data digits --server h:1 --in-flight 2000": "--in-flight 2000: expected at most 1024",
    "bench {model} --data digits --server h:1 --rates 0": "--rates '0': expected numbers > 0, such as 50,100",
    "bench {model} --data digits --server h:1 --rates nan": "--rates 'nan': expected numbers > 0",
    "bench {model} --data digits --server h:1 --batch 8": "--batch is not for a load report",
    "bench {model} --data digits --server h:1 --baseline {model}": "--baseline is not for a load report",
    "bench {model} {int8} --data digits --server h:1": "--server takes one ARTIFACT, the one that is served",
    "bench {model} --data digits --server h:1 --runtime auto": "at most one --runtime by name",
    "bench {model} --data digits --html {out}/none/report.html": "does not exist",
    "calibrate {model} --data digits --samples 0 -o {out}/x.json": "--samples",
    "quantize {model} --ranges {ranges} --method magic -o {out}/x.onnx": "percentile",
    "quantize {model} --ranges {ranges} --for magic -o {out}/x.onnx": "tensorrt",
    "build-engine {model} --int8 --ranges {ranges} --method magic -o {out}/x.engine": "percentile",
    "build-engine {model} --builder magic -o {out}/x.engine": "tensorrt-rtx",
    "build-engine {model} --builder {tensorrt_rtx} --target 9.0 -o {out}/x.engine": "unknown target '9.0'",
    "build-engine {model} --builder {tensorrt_rtx} --hardware ampere+ -o {out}/x.engine": "--hardware is for",
    "build-engine {model} --builder {tensorrt_rtx} --version-compatible -o {out}/x.engine": "--version-compatible is",
    "build-engine {model} --builder {tensorrt_rtx} --timing-cache {out} -o {out}/x.engine": "--timing-cache is for",
    "build-engine {model} --level 6 -o {out}/x.engine": "0<=x<=5",
    "build-engine {model} -o {model}": "it is what this reads",
    "export {checkpoint} -o {checkpoint}": "it is what this reads",
    "bench {model} --data digits --html {model}": "it is what this reads",
    "bench {model} --data digits --max-drop 0.5": "--runtime auto",
    "build-engine {model} --int8 --ranges {ranges} -o {ranges}": "it is what this reads",
    "quantize {model} --ranges {ranges} -o {ranges}": "it is what this reads",
    "calibrate {model} --data digits -o {model}": "it is what this reads",
    "build-engine {model} --workspace 9999999999999 -o {out}/x.engine": "x<=1073741824",
    "build-engine {model} --workspace 0 -o {out}/x.engine": "1<=x",
    "export --network alexnet-mnist --classes 1 -o {out}/x.onnx": "--classes",
    "train alexnet-mnist --data digits --train-layers fc6,fc9 --out {out}": "no layer 'fc9' to train",
    "train alexnet-mnist --data digits --lr -1 --out {out}": "learning_rate",
    # unknown networks
    "train alexnet-mnits --data digits --out {out}": "did you mean 'alexnet-mnist'?",
    "export --network alexnet-mnits --classes 10 -o {out}/x.onnx": "did you mean 'alexnet-mnist'?",
    "export {bad}/bare.safetensors --network alexnet-mnits -o {out}/x.onnx": "did you mean 'alexnet-mnist'?",
    "train {pictures} --data digits --out {out}": "unknown network",
    "run lenett --data digits --out {out}": "did you mean 'lenet'?",
    "inspect --network alexnet-mnits": "did you mean 'alexnet-mnist'?",
    # an output that cannot be
    "train alexnet-mnist --data digits --out {out}/missing/deeper": "cannot make folder",
    "export {checkpoint} -o {out}/missing/x.onnx": "does not exist",
    "calibrate {model} --data digits -o {out}/missing/x.json": "does not exist",
    "quantize {model} --ranges {ranges} -o {out}/missing/x.onnx": "does not exist",
    "build-engine {model} -o {out}/missing/x.engine": "does not exist",
    "predict {model} {pictures} --out {out}/missing/x.csv": "does not exist",
    "predict {model} {pictures} --out {out}/x.xlsx": "ends in .csv or .jsonl",
    "demo --out {out}/missing/demo": "cannot make folder",
    "run lenet --data digits --out {out}/missing/run": "cannot make folder",
    "export {checkpoint} -o {out}": "it is a folder",
}

INPUT = {
    # missing
    "train {out}/x.toml --data digits --out {out}": "x.toml: no such recipe",
    "run {out}/x.toml --data digits --out {out}": "x.toml: no such recipe",
    "run lenet --data {out}/x --out {out}": "no data set",
    "export {out}/x.safetensors -o {out}/x.onnx": "x.safetensors: no such file",
    "calibrate {out}/x.onnx --data digits -o {out}/x.json": "x.onnx: no such file",
    "quantize {out}/x.onnx --ranges {ranges} -o {out}/y.onnx": "x.onnx: no such file",
    "quantize {model} --ranges {out}/x.json -o {out}/y.onnx": "x.json: no such file",
    "build-engine {out}/x.onnx -o {out}/x.engine": "x.onnx: no such file",
    "build-engine {model} --int8 --ranges {out}/x.json -o {out}/x.engine": "x.json: no such file",
    "bench {model} {out}/x.onnx --data digits": "x.onnx: no such file",
    "predict {out}/x.onnx {pictures}": "x.onnx: no such file",
    "predict {model} {out}/x.png": "x.png: no such file",
    "inspect {out}/x.engine": "x.engine: no such file",
    "calibrate {model} --data {out}/x -o {out}/x.json": "no data set",
    "calibrate {model} --data mnist --data-root {out} -o {out}/x.json": "put the IDX files of mnist there",
    # a folder where a file is expected, a file where a folder is
    "export {pictures} -o {out}/x.onnx": "is a folder",
    "calibrate {pictures} --data digits -o {out}/x.json": "is a folder",
    "quantize {pictures} --ranges {ranges} -o {out}/x.onnx": "is a folder",
    "inspect {pictures}": "is a folder",
    "calibrate {model} --data {model} -o {out}/x.json": "is a file",
    # empty
    "train {bad}/empty.toml --data digits --out {out}": "empty.toml",
    "run {bad}/empty.toml --data digits --out {out}": "empty.toml",
    "export {bad}/empty.safetensors -o {out}/x.onnx": "the file is empty",
    "calibrate {bad}/empty.onnx --data digits -o {out}/x.json": "the file is empty",
    "quantize {bad}/empty.onnx --ranges {ranges} -o {out}/x.onnx": "the file is empty",
    "quantize {model} --ranges {bad}/empty.json -o {out}/x.onnx": "the file is empty",
    "build-engine {bad}/empty.onnx -o {out}/x.engine": "the file is empty",
    "bench {bad}/empty.onnx --data digits": "the file is empty",
    "predict {bad}/empty.onnx {pictures}": "the file is empty",
    "predict {model} {bad}/empty.png": "cannot read image",
    "inspect {bad}/empty.engine": "the file is empty",
    # not what the name says
    "train {bad}/garbage.toml --data digits --out {out}": "its text is not UTF-8",
    "export {bad}/garbage.safetensors -o {out}/x.onnx": "not a safetensors file",
    "calibrate {bad}/garbage.onnx --data digits -o {out}/x.json": "not an ONNX file",
    "quantize {bad}/garbage.onnx --ranges {ranges} -o {out}/x.onnx": "not an ONNX file",
    "quantize {model} --ranges {bad}/garbage.json -o {out}/x.onnx": "not a range file",
    "build-engine {bad}/garbage.onnx -o {out}/x.engine": "not an ONNX file",
    "bench {bad}/garbage.onnx --data digits": "not an ONNX file",
    "bench {model} --data digits --baseline {bad}/garbage.json": "its text is not UTF-8; save it as UTF-8",
    "bench {model} --data digits --baseline {ranges}": "expected the JSON of a bench",
    "predict {bad}/garbage.onnx {pictures}": "not an ONNX file",
    "predict {model} {pictures} --labels {bad}/garbage.json": "its text is not UTF-8; save it as UTF-8",
    "predict {model} {bad}/garbage.png": "cannot read image",
    "predict {model} {bad}/bomb.png": "cannot read image",
    "inspect {bad}/garbage.onnx": "not an ONNX file",
    "inspect {bad}/garbage.safetensors": "not a safetensors file",
    "inspect {bad}/garbage.json": "unknown kind of file",
    "inspect {bad}/renamed.engine": "expected 'engine'",
    "bench {bad}/renamed.engine --data digits": "expected 'engine'",
    "inspect {bad_engines}/sidecar.engine": "not a sidecar",
    "bench {bad_engines}/sidecar.engine --data digits": "not a sidecar",
    # models that cannot be
    "train {bad}/typo.toml --data digits --out {out}": "unknown key 'epocs' in section [train]; did you mean 'epochs'?",
    "export {bad}/bare.safetensors --network alexnet -o {out}/x.onnx": "expected (256, 48, 5, 5)",
    "calibrate {bad}/unknown-op.onnx --data digits -o {out}/x.json": "node 'node_of_mystery' has operator 'Mystery'",
    "build-engine {bad}/unknown-op.onnx -o {out}/x.engine": "node 'node_of_mystery' has operator 'Mystery'",
    "bench {bad}/unknown-op.onnx --data digits": "node 'node_of_mystery' has operator 'Mystery'",
    "predict {bad}/unknown-op.onnx {pictures}": "node 'node_of_mystery' has operator 'Mystery'",
    "inspect {bad}/unknown-op.onnx": "node 'node_of_mystery' has operator 'Mystery'",
    "calibrate {bad}/foreign-op.onnx --data digits -o {out}/x.json": "Mystery",
    "build-engine {bad}/foreign-op.onnx -o {out}/x.engine": "node 'node_of_mystery' (Mystery)",
    "bench {bad}/foreign-op.onnx --data digits": "Mystery",
    "build-engine {bad}/lrn4.onnx -o {out}/x.engine": "'lrn_odd_one_out' has an even window (4)",
    "build-engine {bad}/lrn17.onnx -o {out}/x.engine": "'lrn_odd_one_out' has a window of 17; TensorRT takes odd",
    "calibrate {bad}/no-contract.onnx --data digits -o {out}/x.json": "carries no preprocessing contract",
    "build-engine {bad}/no-contract.onnx --int8 --data digits -o {out}/x.engine": "carries no preprocessing contract",
    "bench {bad}/no-contract.onnx --data digits": "carries no preprocessing contract",
    "predict {bad}/no-contract.onnx {pictures}": "carries no preprocessing contract",
    "calibrate {int8} --data digits -o {out}/x.json": "quantized already",
    # data sets that cannot be
    "train alexnet-mnist --data {data}/empty --out {out}": "no class folders and no images",
    "calibrate {model} --data {data}/empty -o {out}/x.json": "no class folders and no images",
    "build-engine {model} --int8 --data {data}/empty -o {out}/x.engine": "no class folders and no images",
    "bench {model} --data {data}/empty": "no class folders and no images",
    "predict {model} {data}/empty": "holds no images",
    "train alexnet-mnist --data {data}/no-images": "cat: the class folder holds no images",
    "train alexnet-mnist --data {data}/no-images --out {out}": "cat: the class folder holds no images",
    "calibrate {model} --data {data}/no-images -o {out}/x.json": "cat: the class folder holds no images",
    "bench {model} --data {data}/no-images": "cat: the class folder holds no images",
    "train alexnet-mnist --data {data}/one-class --out {out}": "only one class, '0'",
    "train alexnet-mnist --data {data}/unsorted --out {out}": "in no class folder; training needs images in class",
    "calibrate {model} --data {data}/unsorted --split val -o {out}/x.json": "leave --split out",
    "calibrate {model} --data {data}/two-classes --split test -o {out}/x.json": "use --split val or all",
    "compare {model} {int8} --data {bad}/garbage.npy": "garbage.npy: NumPy cannot read it",
    "compare {model} {int8} --data {bad}/bomb.png": "cannot read image 'bomb.png'",
    "analyze {model} --ranges {ranges} --data {data}/unsorted": "this needs images of the model's classes, with labels",
    "quantize {model} --ranges {ranges} --max-drop 1 --data {data}/unsorted -o {out}/x.onnx": "with labels",
    "train alexnet-mnist --data {data}/text-jpg --out {out}": "cannot read image '0/a-",
    "export {checkpoint} --data {data}/text-jpg -o {out}/x.onnx": "0/a-val.jpg",
    "calibrate {model} --data {data}/text-jpg -o {out}/x.json": "0/a-train.jpg",
    "build-engine {model} --int8 --data {data}/text-jpg -o {out}/x.engine": "0/a-train.jpg",
    "bench {model} --data {data}/text-jpg": "0/a-val.jpg",
    "predict {model} {data}/text-jpg/val": "0/a-val.jpg",
}

GATE = {
    "quantize {model} --ranges {bad}/other-ranges.json -o {out}/x.onnx": "calibrated on another model",
    "build-engine {model} --int8 --ranges {bad}/other-ranges.json -o {out}/x.engine": "calibrated on another model",
    "quantize {model} --ranges {bad}/receipt.json -o {out}/x.onnx": "saw 32 of 31 samples",
    "inspect {bad_engines}/changed.engine": "changed since it was written",
    "bench {bad_engines}/changed.engine --data digits": "changed since it was written",
    "predict {bad_engines}/changed.engine {pictures}": "changed since it was written",
    "inspect {bad_engines}/alone.engine": "sidecar alone.engine.json is missing",
    "bench {bad_engines}/alone.engine --data digits": "sidecar alone.engine.json is missing",
    "predict {bad_engines}/alone.engine {pictures}": "sidecar alone.engine.json is missing",
}

CASES = [(line, code, said) for code, group in ((2, USAGE), (3, INPUT), (5, GATE)) for line, said in group.items()]

WRITERS = {
    "train": "train alexnet-mnist --data {pictures} --epochs 1 --out {out}",
    "export": "export {checkpoint} -o {out}/x.onnx",
    "calibrate": "calibrate {model} --data {pictures} -o {out}/x.json",
    "quantize": "quantize {model} --ranges {ranges} -o {out}/x.onnx",
    "build-engine": "build-engine {model} --builder {tensorrt_rtx} -o {out}/x.engine",
    "predict": "predict {model} {pictures} --out {out}/x.csv",
}
STAGES = {
    "train": "alexdeploy.train.train_network",
    "export": "alexdeploy.export.from_torch.export_onnx",
    "calibrate": "alexdeploy.quantize.calibrate.calibrate",
    "quantize": "alexdeploy.quantize.quantize.quantize_onnx",
    "build-engine": "alexdeploy.engine.plan.plan_engine",
    "predict": "alexdeploy.runners.predict.predict",
}

Words = Callable[[str], list[str]]


@pytest.fixture
def words(request: pytest.FixtureRequest) -> Words:
    """A command line, split, with every {fixture} in its place."""

    def fill(line: str) -> list[str]:
        names = {name for _, name, _, _ in string.Formatter().parse(line) if name}
        values = {name: request.getfixturevalue(name) for name in names}
        return [word.format(**values) for word in line.split()]

    return fill


def assert_refused(result: Result, code: int, said: str, out: Path, *, as_json: bool = False) -> None:
    """One error line, at the end of stderr; no traceback, the right code, and nothing left anywhere."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.err
    assert "Traceback" not in result.err
    assert said in lines[-1]
    assert result.code == code, result.err
    if as_json:
        assert json.loads(result.out) == {"error": lines[-1].removeprefix("error: "), "exit_code": code}
    else:
        assert result.out == ""
    assert [*out.iterdir(), *Path.cwd().iterdir()] == []


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("line", "code", "said"), CASES, ids=[line for line, _, _ in CASES])
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, code: int, said: str, as_json: bool, words: Words, run: Run, out: Path
) -> None:
    builder = "--builder {tensorrt_rtx}" if line.startswith("build-engine") and code != 2 else ""
    result = run(*words(f"{line} {builder}"), *["--json"] * as_json)
    assert_refused(result, code, said, out, as_json=as_json)


@pytest.mark.parametrize("name", ["fixed-batch", "uint8"])
@pytest.mark.parametrize(
    "line",
    [
        "calibrate {bad}/NAME.onnx --data {pictures} -o {out}/x.json",
        "bench {bad}/NAME.onnx --data {pictures} --batch 1 --seconds 0.01",
        "predict {bad}/NAME.onnx {pictures}",
    ],
    ids=["calibrate", "bench", "predict"],
)
def test_a_model_with_another_input_is_fed_it_or_refused(line: str, name: str, words: Words, run: Run) -> None:
    result = run(*words(line.replace("NAME", name)))
    assert result.code in (0, 2, 3)
    assert (result.code == 0) == ("error: " not in result.err)


def test_a_pytorch_module_with_an_even_lrn_is_not_exported(out: Path) -> None:
    import torch

    from alexdeploy.contract import Contract
    from alexdeploy.export.from_torch import export_onnx

    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.LocalResponseNorm(4), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 2)
    )
    contract = Contract(color="gray", crop=8, mean=(0.5,), std=(0.5,))
    with pytest.raises(InputError, match=r"even window \(4\).*train with size 3 or 5"):
        export_onnx(module, contract, out / "x.onnx", real_images=np.zeros((1, 1, 8, 8), np.float32))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "skipped"),
    [
        ("train alexnet-mnist --epochs 1 --out {out}", ["0/a-train.jpg", "0/a-val.jpg"]),
        ("export {checkpoint} -o {out}/x.onnx", ["0/a-val.jpg"]),
        ("calibrate {model} -o {out}/x.json", ["0/a-train.jpg"]),
        ("build-engine {model} --int8 --builder {tensorrt_rtx} -o {out}/x.engine", ["0/a-train.jpg"]),
        ("bench {model} --batch 1 --seconds 0.01", ["0/a-val.jpg"]),
    ],
    ids=["train", "export", "calibrate", "build-engine", "bench"],
)
def test_skipped_images_are_counted_and_named_in_a_warning(
    line: str, skipped: list[str], words: Words, run: Run
) -> None:
    result = run(*words(line), *words("--data {data}/text-jpg --skip-bad-images --json"))
    assert result.code == 0, result.err
    json.loads(result.out)
    warnings = [text for text in result.err.splitlines() if text.startswith("warning: ")]
    for name in skipped:
        assert any("1 unreadable images" in text and name in text for text in warnings), result.err


@pytest.mark.parametrize("line", ["build-engine {model} -o {out}/x.engine", "demo --out {out}"])
def test_without_tensorrt_rtx_the_message_is_the_pip_line(
    line: str, words: Words, run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*words(line), *["--builder", "tensorrt-rtx"] * line.startswith("build")]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert_refused(run(*arguments), 4, "pip install tensorrt-rtx", out)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    verb: str, words: Words, run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = words(WRITERS[verb])

    def full(_descriptor: int) -> NoReturn:  # where the last block did not fit; every writer comes through here
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert_refused(run(*arguments), 4, "No space left on device", out)


def test_a_failed_write_keeps_the_file_that_was_there(
    words: Words, run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "x.onnx").write_text("the earlier one")
    arguments = words(WRITERS["quantize"])

    def full(_path: Path, _data: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(*arguments).code == 4
    assert {path.name: path.read_text() for path in out.iterdir()} == {"x.onnx": "the earlier one"}


@pytest.mark.parametrize("where", ["in the stage", "while writing"])
@pytest.mark.parametrize("verb", WRITERS)
def test_ctrl_c_exits_130_and_leaves_nothing(
    verb: str, where: str, words: Words, run: Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = words(WRITERS[verb])

    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(STAGES[verb] if where == "in the stage" else "os.fsync", interrupt)
    assert_refused(run(*arguments), 130, "interrupted", out)


def test_ctrl_c_during_a_bench_exits_130(run: Run, words: Words, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = words("bench {model} --data {pictures} --json")

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("alexdeploy.runners.onnxruntime.OnnxRuntimeRunner.infer", interrupt)
    assert_refused(run(*arguments), 130, "interrupted", out, as_json=True)


def test_sigterm_exits_143_and_leaves_nothing(words: Words, out: Path) -> None:
    code = "import signal; from pathlib import Path; from alexdeploy.cli import main\n"
    code += "Path.write_bytes = lambda path, data: signal.raise_signal(signal.SIGTERM)\n"
    code += "main()"  # which owns its process; called with arguments it leaves signals alone
    command = [sys.executable, "-c", code, *map(str, words(WRITERS["quantize"]))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.splitlines()[-1], list(out.iterdir())) == (143, "error: terminated", [])
