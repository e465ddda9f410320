"""Calibration and INT8 quantization beside its peers, on several networks: time, memory and accuracy in one run.

Run it by hand, on a machine that does nothing else, with the Python that alexdeploy is installed in::

    python -m tests.bench.calibration_peers --model efficientnet-lite0.onnx --out peers   (in the root of the checkout)

It judges ``alexnet-half``, from its checkpoint, and every ``--model``, an ONNX file with a contract. It writes
``peers.md`` (also printed) and ``peers.json`` (every raw number). The peers are ONNX Runtime, ModelOpt, NNCF, AMD Quark
and Intel Neural Compressor, installed from PyPI into virtual environments of their own below ``--venv`` on first use
(ModelOpt and Quark bring torch and CUDA: about 7 GB each). One that does not install is a row with the reason.

What is measured:

* Time and peak resident memory of fresh processes, from start to the file written, repeats interleaved, medians
  reported. Every tool runs in one process (``peer_worker.py``), and all decode and preprocess the same list of JPEG
  files with alexdeploy's code. alexdeploy's commands are measured one by one besides.
* Growth of alexdeploy's peak memory with the number of images, which are links under other names where they run out.
* Layers in INT8, top-1 agreement with FP32 and logit error of every file, on photographs not calibrated on
  (``peers_judge.py``).
* Rounding of all of ``alexnet`` (62 M weights), with fresh weights; ``--rounding-only`` measures only that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.peers_table import markdown
from tests.bench.peers_venvs import VENV_OF, install_all, python_of, say

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("peer_worker.py")
OWN_METHODS = ("minmax", "entropy", "percentile", "mse")
OWN = (*OWN_METHODS, *(f"{method}+gptq" for method in OWN_METHODS), "auto")
PEER_METHODS = {
    "onnxruntime": ("minmax", "entropy", "percentile"),
    "modelopt": ("max", "entropy"),
    "nncf": ("default",),
    "quark": ("minmax", "percentile", "mse"),
    "inc": ("minmax",),
}
SLOW_PEER = ("quark", "mse+adaround")  # EfficientNet-Lite0: 17 of 50 layers in 148 s of one core
# A process between this one and the measured one: Linux hands the peak of the parent's memory down to its child.
LAUNCHER = """import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "wb"), stderr=subprocess.STDOUT)
status, usage = os.wait4(process.pid, 0)[1:]
print(time.perf_counter() - start, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status))"""


@dataclass(frozen=True)
class Sample:
    """One process: wall seconds, peak MiB, the load average before it, what it printed."""

    seconds: float
    peak_mib: float
    load: float
    printed: str


@dataclass
class Row:
    """A line of the table: ``model`` is what it writes, ``samples`` are the repeats."""

    tool: str
    method: str
    model: Path
    samples: list[Sample] = field(default_factory=list)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # by the name of the photographs
    int8_layers: tuple[int, int] | None = None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "method": self.method,
            "seconds": [sample.seconds for sample in self.samples],
            "peak_mib": [sample.peak_mib for sample in self.samples],
            "load": [sample.load for sample in self.samples],
            "size_bytes": self.model.stat().st_size if self.model.is_file() else None,
            "int8_layers": self.int8_layers,
            "scores": self.scores,
            "problem": self.problem,
        }


def timed(*command: str | Path, folder: Path | None = None) -> Sample:
    """Run a command in a process of its own, in ``folder`` or here.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    load = os.getloadavg()[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile() as log:
        launcher = [sys.executable, "-S", "-c", LAUNCHER, log.name, *map(str, command)]
        result = subprocess.run(launcher, env=environment, cwd=folder, check=True, capture_output=True, text=True)
        printed = Path(log.name).read_text(errors="replace")
    seconds, peak, code = result.stdout.split()
    if code != "0":
        raise RuntimeError(f"{' '.join(map(str, command[:6]))} …: exit {code}: {printed[-2000:]}")
    return Sample(float(seconds), float(peak), load, printed)


def alexdeploy(*arguments: str | Path) -> Sample:
    return timed(sys.executable, "-m", "alexdeploy", *arguments)


class Bench:
    """The measurement of one network: the model, its data, and the rows that fill up round by round."""

    def __init__(self, name: str, model: Path, options: argparse.Namespace, work: Path) -> None:
        from alexdeploy.graph.model import contract_of, load_onnx

        self.name, self.model, self.work = name, model, work
        self.data = str(Path(options.data).resolve())
        self.count = ("--samples", str(options.samples))
        self.venvs: Path = options.venv
        graph = load_onnx(model)
        self.contract = contract_of(graph, str(model))
        (work / "contract.json").write_text(self.contract.to_json())
        self.input = str(graph.graph.inputs[0].name)
        self.reading = Row("reading", "-", model)
        self.rows = [Row("alexdeploy", m, work / f"alexdeploy-{m}.onnx") for m in OWN]
        peers = [(tool, method) for tool, found in PEER_METHODS.items() for method in found]
        peers += [SLOW_PEER] if options.slow_peer else []
        self.rows += [Row(tool, method, work / f"{tool}-{method}.onnx") for tool, method in peers]
        self.commands = [Row("command", command, work) for command in self._commands()]

    def _commands(self) -> dict[str, tuple[str | Path, ...]]:
        """The commands of alexdeploy, in this order: what the table calls each, and its arguments."""
        images, ranges = ("--data", self.data), self.work / "ranges.json"
        calibrate = ("calibrate", self.model, *images, *self.count, "-o")
        quantize = ("quantize", self.model, "--ranges", ranges, "-o", self.work / "by-command.onnx")
        return {
            "calibrate --ranges-only": (*calibrate, self.work / "only.json", "--ranges-only"),
            "calibrate": (*calibrate, ranges),
            "quantize --method mse --rounding nearest": (*quantize, "--method", "mse", "--rounding", "nearest"),
            "quantize --method mse --rounding gptq": (*quantize, "--method", "mse", "--rounding", "gptq"),
            "quantize --method auto": (*quantize, "--method", "auto", *images),
        }

    def round(self, number: int, missing: dict[str, str]) -> None:
        """Everything once; ``missing`` tells why an environment is not there."""
        commands = self._commands()
        for row in (self.reading, *self.commands, *self.rows):
            row.problem = missing.get(VENV_OF.get(row.tool, row.tool), row.problem)
            if row.problem or (number and (row.tool, row.method) == SLOW_PEER):
                continue
            try:
                is_command = row.tool == "command"
                row.samples.append(alexdeploy(*commands[row.method]) if is_command else self._worker(row))
                say(f"{self.name}, round {number}: {row.tool} {row.method}: {row.samples[-1].seconds:.2f} s")
            except RuntimeError as error:
                row.problem = str(error)
                say(f"{self.name}: {row.tool} {row.method}: {row.problem[-600:]}")

    def _worker(self, row: Row) -> Sample:
        own = row.tool == "alexdeploy"
        python = Path(sys.executable) if own else python_of(self.venvs / VENV_OF.get(row.tool, row.tool))
        settings = ("--data", self.data, *self.count, "--contract", self.work / "contract.json", "--input", self.input)
        return timed(python, WORKER, row.tool, row.method, self.model, row.model, *settings, folder=self.work)

    def growth(self, counts: list[int], repeats: int, images: Path) -> dict[int, list[Sample]]:
        """Samples of alexdeploy calibrate by number of images, which are all in ``images``."""
        found: dict[int, list[Sample]] = {count: [] for count in counts}
        for number in range(repeats):
            for count in counts:
                out = self.work / f"growth-{count}-{number}.json"
                sample = alexdeploy("calibrate", self.model, "--data", images, "--samples", str(count), "-o", out)
                fed = json.loads(out.read_text())["samples"]
                if fed != count:
                    raise RuntimeError(f"asked for {count} images, {fed} were fed")
                found[count].append(sample)
                say(f"{self.name}, round {number}: {count} images: {sample.peak_mib:.0f} MiB, {sample.seconds:.1f} s")
        return found

    def score(self, held_out: int | None, folder: Path | None) -> dict[str, int]:
        """Judge every file on the held-out photographs, and on those of ``folder``; returns how many those are."""
        from tests.bench.peers_judge import Judge, int8_layers

        judges = {"held out": Judge(self.model, self.contract, self.data, "val", held_out)}
        if folder is not None:
            judges[folder.name] = Judge(self.model, self.contract, str(folder), "all", held_out)
        for row in (row for row in self.rows if row.samples and row.model.exists()):
            row.int8_layers = int8_layers(row.model)
            try:
                row.scores = {name: judge.scores(row.model) for name, judge in judges.items()}
            except RuntimeError as error:
                row.problem = str(error)
        return {name: judge.images for name, judge in judges.items()}

    def to_json(self, growth: dict[int, list[Sample]], judged: dict[str, int]) -> dict[str, Any]:
        """Everything measured of this network, as plain JSON values."""
        return {
            "network": self.name,
            "judged_on": judged,
            "reading_seconds": [sample.seconds for sample in self.reading.samples],
            "commands": [row.to_json() for row in self.commands],
            "rows": [row.to_json() for row in self.rows],
            "growth_peak_mib": {str(count): [sample.peak_mib for sample in found] for count, found in growth.items()},
            "growth_seconds": {str(count): [sample.seconds for sample in found] for count, found in growth.items()},
        }


def round_alexnet(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All of ``alexnet`` (62 M weights, fresh ones) by the commands: calibrated, and rounded both ways."""
    model, ranges = work / "alexnet.onnx", work / "alexnet.ranges.json"
    images = ("--data", options.data.resolve(), "--samples", str(options.samples))
    quantize = (
        "quantize",
        model,
        "--ranges",
        ranges,
        "--method",
        "mse",
        "-o",
        work / "alexnet-int8.onnx",
        "--rounding",
    )
    alexdeploy("export", "--network", "alexnet", "--classes", "1000", "--seed", "0", "-o", model)
    commands = {
        "calibrate": ("calibrate", model, *images, "-o", ranges),
        "quantize --rounding nearest": (*quantize, "nearest"),
        "quantize --rounding gptq": (*quantize, "gptq"),
    }
    rows = [Row("command", name, work) for name in commands]
    for row in rows:
        try:
            for _ in range(options.repeats):
                row.samples.append(alexdeploy(*commands[row.method]))
                say(f"alexnet: {row.method}: {row.samples[-1].seconds:.1f} s, {row.samples[-1].peak_mib:.0f} MiB")
        except RuntimeError as error:
            row.problem = str(error)
            say(f"alexnet: {row.method}: {row.problem[-600:]}")
    return {"samples": options.samples, "commands": [row.to_json() for row in rows]}


def link_images(data: Path, folder: Path, count: int) -> None:
    """``folder``/train: at least ``count`` links under new names to the images of ``data``; val: one per class."""
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run in the same --work
    data = data.resolve()
    source = data / "train" if (data / "train").is_dir() else data
    files = sorted(path for path in source.glob("*/*") if path.is_file())
    for number in range(-(-count // len(files))):
        for path in files:
            link = folder / "train" / path.parent.name / f"{number}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    for kind in (folder / "train").iterdir():
        (folder / "val" / kind.name).mkdir(parents=True)
        first = min(kind.iterdir())
        (folder / "val" / kind.name / first.name).symlink_to(first.resolve())


def surroundings() -> dict[str, Any]:
    """When, where and of what."""
    from alexdeploy.bench.environment import environment

    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "commit": git("describe", "--always", "--dirty"),
    }


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=False).stdout.strip()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=shared / "flowers", help="folder of class folders")
    parser.add_argument(
        "--checkpoint", type=Path, default=shared / "checkpoints" / "alexnet-half-lrn-flowers.safetensors"
    )
    parser.add_argument(
        "--model", type=Path, action="append", default=[], help="ONNX file with a contract, besides; repeatable"
    )
    parser.add_argument("--judge", type=Path, help="a second folder of photographs to judge on, all of them")
    parser.add_argument("--slow-peer", action="store_true", help="AMD Quark's AdaRound too, once: many minutes")
    parser.add_argument("--rounding-only", action="store_true", help="measure the rounding of alexnet only")
    parser.add_argument("--samples", type=int, default=512, help="images to calibrate from")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="+", default=[128, 4096], help="numbers of images for the memory")
    parser.add_argument("--held-out", type=int, help="images to judge on at most; default: the whole val split")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "alexdeploy" / "peers")
    parser.add_argument("--work", type=Path, help="folder that keeps every file made; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("peers"), help="writes OUT.md and OUT.json")
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    result = {**surroundings(), "settings": {"samples": options.samples, "repeats": options.repeats}}
    if options.rounding_only:
        return {**result, "peers": {}, "missing": {}, "networks": [], "alexnet": round_alexnet(options, work)}
    versions, missing = install_all(options.venv.resolve())
    benches = prepare(options, work)
    for number in range(options.repeats):
        for bench in benches:
            bench.round(number, missing)
    images = work / "links"
    link_images(options.data, images, max(options.growth))
    networks = []
    for bench in benches:
        try:
            growth = bench.growth(options.growth, options.repeats, images)
        except RuntimeError as error:
            growth = {}
            say(f"{bench.name}: growth of memory: {error}")
        networks.append(bench.to_json(growth, bench.score(options.held_out, options.judge)))
    alexnet = round_alexnet(options, work)
    return {**result, "peers": versions, "missing": missing, "networks": networks, "alexnet": alexnet}


def prepare(options: argparse.Namespace, work: Path) -> list[Bench]:
    """A folder and a model for each network."""
    half = work / "alexnet-half.onnx"
    alexdeploy("export", options.checkpoint.resolve(), "--network", "alexnet-half", "-o", half)
    benches = []
    for model in (half, *(path.resolve() for path in options.model)):
        folder = work / model.stem
        folder.mkdir(exist_ok=True)
        benches.append(Bench(model.stem, model, options, folder))
    return benches


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        result = measure(options, work)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    options.out.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
