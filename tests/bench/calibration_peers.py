"""Calibration and INT8 quantization beside ONNX Runtime, ModelOpt and NNCF: time, memory and accuracy in one run.

Run it by hand, on a machine that does nothing else, with the Python that alexdeploy is installed in::

    python -m tests.bench.calibration_peers --out peers      (in the root of the checkout)

It writes ``peers.md`` (also printed) and ``peers.json`` (every raw number). The peers are installed from PyPI into
virtual environments of their own below ``--venv`` on first use (ModelOpt brings torch and CUDA: about 7 GB).

What is measured:

* Time and peak resident memory of fresh processes, from start to the file written, repeats interleaved, medians
  reported. Every tool is a library in one process (``peer_worker.py``), and all decode and preprocess the same list of
  JPEG files with alexdeploy's code. alexdeploy computes the ranges of all methods each time, whichever it then uses.
  Its two commands, ``calibrate`` and ``quantize``, are measured besides.
* Growth of alexdeploy's peak memory with the number of images, which are links under other names where they run out.
* Top-1 agreement with FP32 and logit error of every model on the held-out photographs, on ONNX Runtime's CPU provider
  with default session options: ||a-b||2/||b||2 over all logits, and max|a-b|/max|b|.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.peers_table import bars, markdown

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("peer_worker.py")
OWN_METHODS = ("minmax", "entropy", "percentile", "mse", "auto")
PEER_METHODS = {
    "onnxruntime": ("minmax", "entropy", "percentile"),
    "modelopt": ("max", "entropy"),
    "nncf": ("default",),
}
# ModelOpt wants onnxruntime-gpu, which overwrites the files of onnxruntime: two environments.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "nncf", "onnx", "pillow", "numpy", "msgspec"),
    "modelopt": ("nvidia-modelopt[onnx]", "pillow", "numpy", "msgspec"),
}
VENV_OF = {"reading": "onnxruntime", "onnxruntime": "onnxruntime", "nncf": "onnxruntime", "modelopt": "modelopt"}
REPORTED = ("onnxruntime", "onnxruntime-gpu", "nncf", "nvidia-modelopt", "onnx", "numpy", "pillow", "torch")
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
    """A line of the table. ``samples`` are the repeats."""

    tool: str
    method: str
    model: Path
    samples: list[Sample] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def seconds(self) -> float:
        return statistics.median(s.seconds for s in self.samples)

    @property
    def peak_mib(self) -> float:
        return statistics.median(s.peak_mib for s in self.samples)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def install(root: Path, names: Iterable[str] = tuple(PACKAGES)) -> dict[str, dict[str, str]]:
    """Make the peers' environments where they are missing; returns the versions found in each."""
    versions = {}
    for name in names:
        packages = PACKAGES[name]
        python, done = python_of(root / name), root / name / "installed"
        if not done.exists():
            say(f"installing {', '.join(packages)} into {root / name}")
            if not python.exists():
                venv.create(root / name, with_pip=True, symlinks=True)
            subprocess.run([python, "-m", "pip", "install", "-qq", *packages], check=True)
            done.write_text("\n".join(packages))
        listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True)
        found = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
        versions[name] = {package: found[package] for package in REPORTED if package in found}
    return versions


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def timed(*command: str | Path) -> Sample:
    """Run a command in a process of its own.

    Raises:
        RuntimeError: it failed; the message holds the end of what it printed.
    """
    load = os.getloadavg()[0]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile() as log:
        launcher = [sys.executable, "-S", "-c", LAUNCHER, log.name, *map(str, command)]
        result = subprocess.run(launcher, env=environment, check=True, capture_output=True, text=True)
        printed = Path(log.name).read_text(errors="replace")
    seconds, peak, code = result.stdout.split()
    if code != "0":
        raise RuntimeError(f"{' '.join(map(str, command[:6]))} …: exit {code}: {printed[-2000:]}")
    return Sample(float(seconds), float(peak), load, printed)


def alexdeploy(*arguments: str | Path) -> Sample:
    return timed(sys.executable, "-m", "alexdeploy", *arguments)


class Bench:
    """One measurement: the model, its data, and the rows that fill up round by round."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.data = str(Path(options.data).resolve())
        self.samples: int = options.samples
        self.venvs: Path = options.venv
        self.work = work
        self.model = work / "fp32.onnx"
        self.contract = work / "contract.json"
        alexdeploy("export", options.checkpoint.resolve(), "--network", options.network, "-o", self.model)
        self._save_contract()
        self.commands: list[tuple[Sample, Sample]] = []  # calibrate, quantize
        self.readings: list[float] = []
        self.own = [Row("alexdeploy", m, work / f"alexdeploy-{m}.onnx") for m in OWN_METHODS]
        self.peers = [Row(t, m, work / f"{t}-{m}.onnx") for t, found in PEER_METHODS.items() for m in found]

    def _save_contract(self) -> None:
        from alexdeploy.graph.model import contract_of, load_onnx

        self.contract.write_text(contract_of(load_onnx(self.model), str(self.model)).to_json())

    def round(self, number: int) -> None:
        """Each tool once."""
        printed = self._worker("reading", "-", self.model).printed
        self.readings.append(float(printed.split()[-2]))
        ranges, count = self.work / "ranges.json", str(self.samples)
        self.commands.append(
            (
                alexdeploy("calibrate", self.model, "--data", self.data, "--samples", count, "-o", ranges),
                alexdeploy("quantize", self.model, "--ranges", ranges, "-o", self.work / "by-command.onnx"),
            )
        )
        for row in (*self.own, *self.peers):
            try:
                row.samples.append(self._worker(row.tool, row.method, row.model))
                say(f"round {number}: {row.tool} {row.method}: {row.samples[-1].seconds:.2f} s")
            except RuntimeError as error:
                row.problem = str(error)
                say(row.problem)

    def _worker(self, peer: str, method: str, output: Path) -> Sample:
        python = Path(sys.executable) if peer == "alexdeploy" else python_of(self.venvs / VENV_OF[peer])
        settings = ("--data", self.data, "--samples", str(self.samples), "--contract", self.contract)
        return timed(python, WORKER, peer, method, self.model, output, *settings)

    def growth(self, counts: list[int], repeats: int) -> dict[int, list[Sample]]:
        """Samples of alexdeploy calibrate by number of images."""
        folder = self.work / "links"
        link_images(Path(self.data), folder, max(counts))
        found: dict[int, list[Sample]] = {count: [] for count in counts}
        for number in range(repeats):
            for count in counts:
                out = self.work / f"growth-{count}-{number}.json"
                sample = alexdeploy("calibrate", self.model, "--data", folder, "--samples", str(count), "-o", out)
                fed = json.loads(out.read_text())["samples"]
                if fed != count:
                    raise RuntimeError(f"asked for {count} images, {fed} were fed")
                found[count].append(sample)
                say(f"round {number}: {count} images: {sample.peak_mib:.0f} MiB, {sample.seconds:.1f} s")
        return found

    def score(self, held_out: int | None) -> int:
        """Run every model on the held-out images; returns how many those are."""
        import numpy as np
        import onnxruntime as ort

        from alexdeploy.contract import Contract
        from alexdeploy.data.sources import load_dataset
        from alexdeploy.metrics import agreement, relative_error, topk_accuracy

        dataset = load_dataset(self.data, "val")
        dataset = dataset if held_out is None else dataset.subset(held_out)
        batches = list(dataset.batches(Contract.from_json(self.contract.read_text(), "contract"), 32))
        labels = np.concatenate([batch_labels for _, batch_labels in batches])

        def logits(path: Path) -> Any:
            session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            return np.concatenate([session.run(None, {name: images})[0] for images, _ in batches]).astype(np.float64)

        reference = logits(self.model)
        self.fp32_top1 = topk_accuracy(reference, labels, 1)
        for row in (*self.own, *self.peers):
            try:
                found = logits(row.model)
            except Exception as error:  # ONNX Runtime's exceptions have no common public base
                row.problem = row.problem or f"ONNX Runtime CPU cannot run it: {str(error)[:200]}"
                continue
            row.scores = {
                "agreement": agreement(found, reference),
                "logit_error": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
                "logit_error_max": relative_error(found, reference),
                "top1": topk_accuracy(found, labels, 1),
            }
        return len(labels)


def link_images(data: Path, folder: Path, count: int) -> None:
    """``folder``/train: at least ``count`` links under new names to the images of ``data``; val: one per class."""
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


def report(bench: Bench, growth: dict[int, list[Sample]], scored: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    from alexdeploy.bench.environment import environment

    loads = [sample.load for row in (*bench.own, *bench.peers) for sample in row.samples]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load_before_runs": {"lowest": min(loads), "highest": max(loads)},
        "commit": git("describe", "--always", "--dirty"),
        "settings": settings,
        "held_out_images": scored,
        "fp32_top1": bench.fp32_top1,
        "reading_seconds": bench.readings,
        "commands": [[asdict(sample) for sample in pair] for pair in bench.commands],
        "rows": [
            {
                "tool": row.tool,
                "method": row.method,
                "seconds": [sample.seconds for sample in row.samples],
                "peak_mib": [sample.peak_mib for sample in row.samples],
                "size_bytes": row.model.stat().st_size if row.model.exists() else None,
                **row.scores,
                "problem": row.problem,
            }
            for row in (*bench.own, *bench.peers)
        ],
        "growth_peak_mib": {str(count): [sample.peak_mib for sample in found] for count, found in growth.items()},
        "growth_seconds": {str(count): [sample.seconds for sample in found] for count, found in growth.items()},
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
    parser.add_argument("--network", default="alexnet-half")
    parser.add_argument("--samples", type=int, default=512, help="images to calibrate from")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", type=int, nargs="+", default=[128, 4096], help="numbers of images for the memory")
    parser.add_argument("--held-out", type=int, help="images to judge on; default: the whole val split")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "alexdeploy" / "peers")
    parser.add_argument("--work", type=Path, help="folder that keeps every file made; default: a temporary one")
    parser.add_argument("--out", type=Path, default=Path("peers"), help="writes OUT.md and OUT.json")
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    versions = install(options.venv.resolve())
    bench = Bench(options, work.resolve())
    for number in range(options.repeats):
        bench.round(number)
    growth = bench.growth(options.growth, options.repeats)
    scored = bench.score(options.held_out)
    settings = {name: getattr(options, name) for name in ("network", "samples", "repeats")}
    return {**report(bench, growth, scored, settings), "peers": versions}


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result = measure(options, work)
    result["bars"] = bars(result)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    options.out.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
