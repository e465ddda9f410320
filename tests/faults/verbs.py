"""Every verb that writes, on inputs so small that it takes about a second."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.forks import Call, Forks

RESULTS = "results"


@dataclass(frozen=True)
class Verb:
    """How a verb is called.

    Attributes:
        name: in the table.
        arguments: with ``{in}`` for the folder of the inputs and ``{out}`` for the name of the output.
        output: what stands for ``{out}``, in the folder of results.
        target: the file or folder that a fault is put in the place of; the output itself unless named.
        groups: names of files that are old together or new together; a folder's name stands for all in it.
        input: one of the inputs, for an output that is the input.
        quick: a fraction of a second, so that the suite tries every fault on it; others get what costs little.
        slow: too slow for the suite.
        resumes: the folder that a run which was stopped leaves for the next.
        takes_folder: its output is a folder that may be there.
        over_old: there are results of an earlier run.
    """

    name: str
    arguments: str
    output: str
    groups: tuple[tuple[str, ...], ...]
    target: str = ""
    input: str = ""
    quick: bool = False
    slow: bool = False
    resumes: str = ""
    takes_folder: bool = False
    over_old: bool = True

    def call(self, inputs: Path, results: Path, output: Path | None = None) -> tuple[str, ...]:
        """The arguments, each a word."""
        out = output if output is not None else results / self.output
        return tuple(word.replace("{in}", str(inputs)).replace("{out}", str(out)) for word in self.arguments.split())


def _artifact(name: str) -> tuple[str, str]:
    return name, f"{name}.json"


_TRAINED = (
    *(_artifact("lenet.safetensors"), ("lenet.last.pt",), ("lenet.jsonl",), ("lenet.png",)),
    ("class_indices.json",),
)
_FILES_OF_RUN = (
    *_TRAINED,
    *map(_artifact, ("lenet.onnx", "lenet-fp16.onnx")),
    *map(_artifact, ("lenet-int8.onnx", "lenet-int8-onnxruntime.onnx", "lenet-int8-openvino.onnx")),
    *map(_artifact, ("lenet-fp32.engine", "lenet-fp16.engine", "lenet-int8.engine")),
    ("ranges.json", "ranges.json.json", "ranges.json.moments.safetensors"),
)


def _in_new(groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"new/{name}" for name in group) for group in groups)


VERBS = (
    Verb(
        "train",
        "train lenet --data {in}/pictures --epochs 1 --out {out}",
        "new",
        _in_new(_TRAINED),
        target="new/lenet.safetensors",
        over_old=False,
    ),
    Verb("export", "export {in}/net.safetensors -o {out}", "x.onnx", (_artifact("x.onnx"),), input="net.safetensors"),
    Verb(
        "adopt",
        "adopt {in}/foreign.onnx --contract lenet -o {out}",
        "x.onnx",
        (_artifact("x.onnx"),),
        input="foreign.onnx",
    ),
    Verb(
        "calibrate",
        "calibrate {in}/net.onnx --data {in}/pictures --samples 8 -o {out} --cache {out}.cache",
        "x.json",
        (("x.json", "x.json.json", "x.json.moments.safetensors"), _artifact("x.json.cache")),
        input="net.onnx",
        quick=True,
    ),
    Verb(
        "quantize",
        "quantize {in}/net.onnx --ranges {in}/ranges.json -o {out}",
        "x.onnx",
        (_artifact("x.onnx"),),
        input="net.onnx",
        quick=True,
    ),
    Verb(
        "build-engine",
        "build-engine {in}/net.onnx --builder tensorrt-rtx -o {out}",
        "x.engine",
        (_artifact("x.engine"),),
        input="net.onnx",
    ),
    Verb(
        "bench",
        "bench {in}/net.onnx --data {in}/pictures --batch 1 --seconds 0.1 --html {out} --markdown {out}.md",
        "x.html",
        (("x.html",), ("x.html.md",)),
        input="net.onnx",
        slow=True,
    ),
    Verb(
        "report",
        "report {in}/bench.json --html {out} --markdown {out}.md",
        "x.html",
        (("x.html",), ("x.html.md",)),
        input="bench.json",
    ),
    Verb(
        "predict",
        "predict {in}/net.onnx {in}/pictures --labels {in}/names.txt --out {out}",
        "x.txt",
        (("x.txt",),),
        input="names.txt",
        quick=True,
    ),
    Verb(
        "workers",
        "predict {in}/net.onnx {in}/pictures --labels {in}/names.txt --out {out} --workers 1",
        "x.txt",
        (("x.txt",),),
        input="names.txt",
        slow=True,
        resumes="x.txt.shards",
    ),
    Verb(
        "publish",
        "publish {in}/net.onnx --triton {out} --name net",
        "repository",
        (("repository",),),
        takes_folder=True,
    ),
    Verb(
        "run",
        "run lenet --data {in}/pictures --epochs 1 --samples 8 --out {out}",
        "new",
        _in_new(_FILES_OF_RUN),
        target="new/lenet.onnx",
        slow=True,
        over_old=False,
    ),
)


def make_inputs(forks: Forks, folder: Path) -> dict[str, Path]:
    """Two sets of inputs, for what is published before and for the call: ``old`` and ``new``."""
    found = {}
    for seed, name in enumerate(("old", "new")):
        found[name] = folder / name
        found[name].mkdir(parents=True)
        _untrained(found[name], seed)
        _run(forks, found[name], "export net.safetensors -o net.onnx")
    new = found["new"]
    _pictures(new / "pictures")
    (new / "names.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    _run(forks, new, "calibrate net.onnx --data pictures --samples 8 -o ranges.json")
    (new / "bench.json").write_text(_run(forks, new, "bench net.onnx --data pictures --batch 1 --seconds 0.1 --json"))
    _foreign(new)
    return found


def _run(forks: Forks, folder: Path, command: str) -> str:
    said = folder / "said"
    code = forks.wait(forks.start(Call(tuple(command.split()), folder, said)))
    out, err = ((said / name).read_text() for name in ("stdout", "stderr"))
    assert code == 0, err
    shutil.rmtree(said)
    return out


def _pictures(folder: Path) -> None:
    chance = np.random.default_rng(0)
    for part in ("train", "val"):
        for digit in range(10):
            (folder / part / str(digit)).mkdir(parents=True)
            Image.fromarray(chance.integers(0, 255, (8, 8), np.uint8)).save(folder / part / str(digit) / "a.png")


def _untrained(folder: Path, seed: int) -> None:
    from alexdeploy.zoo.checkpoint import save_checkpoint, untrained

    save_checkpoint(folder / "net.safetensors", untrained("lenet", classes=10, seed=seed))


def _foreign(folder: Path) -> None:
    """The ONNX file without what alexdeploy puts into one."""
    import onnx

    model = onnx.load(folder / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "foreign.onnx")
