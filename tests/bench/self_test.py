"""Does ``bench`` say what is true? A file against itself, against a copy that is 5 % slower, and a bench repeated.

Run it by hand, on a machine that does nothing else, in slices where it is shared::

    python -m tests.bench.self_test --out self-test.json --aa 40 --planted 10 --repeated 2

Each call adds its benches to ``self-test.json`` and prints the counts of all so far. The network is
``mnist-cnn`` at batch 1, so that many benches fit.

* A/A: the same ONNX file listed twice; ``no difference shown`` is right.
* planted: the second copy stays busy for another 5 % of each call's time; ``slower`` is right.
* repeated: the whole bench twice, as two files that differ in precision; the ratios' 99 % intervals must overlap.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from alexdeploy.bench.environment import environment
from alexdeploy.bench.intervals import Ratio
from alexdeploy.bench.run import run_bench
from alexdeploy.data.sources import load_dataset
from alexdeploy.runners.artifact import Artifact
from alexdeploy.runners.base import Runner

PLANTED = 1.05
OPEN = Artifact.runner


class SlowerRunner(Runner):
    """Another runner, busy for a while after each call so that the call takes ``factor`` times as long."""

    def __init__(self, inner: Runner, factor: float) -> None:
        self.inner, self.factor = inner, factor
        self.runtime, self.input, self.classes = inner.runtime, inner.input, inner.classes

    def infer(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        started = time.perf_counter_ns()
        logits = self.inner.infer(batch)
        until = started + (time.perf_counter_ns() - started) * self.factor
        while time.perf_counter_ns() < until:
            pass
        return logits

    def close(self) -> None:
        self.inner.close()


def second_is_slower() -> Callable[..., Runner]:
    """``Artifact.runner`` that slows down every second runner it opens."""
    opened = 0

    def open_it(artifact: Artifact, runtime: str | None = None) -> Runner:
        nonlocal opened
        opened += 1
        runner = OPEN(artifact, runtime)
        return SlowerRunner(runner, PLANTED) if opened % 2 == 0 else runner

    return open_it


def make_models(folder: Path) -> tuple[Path, Path]:
    """A small network in FP32 and in INT8 for ONNX Runtime."""
    from alexdeploy.cli import cli

    model, ranges, int8 = folder / "net.onnx", folder / "ranges.json", folder / "int8.onnx"
    for command in (
        f"export --network mnist-cnn --classes 10 --seed 0 --data digits -o {model}",
        f"calibrate {model} --data digits --samples 64 -o {ranges}",
        f"quantize {model} --ranges {ranges} --for onnxruntime -o {int8}",
    ):
        cli.main(command.split(), standalone_mode=False)
    return model, int8


def ratio_of(first: Path, second: Path, seconds: float) -> Ratio:
    """Second row against the first, batch 1, host to host."""
    report = run_bench([first, second], load_dataset("digits", "val"), batches=[1], seconds=seconds)
    ratio = report.rows[1].ratio
    assert ratio is not None
    return ratio


def overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return bool(a["ci99"][0] <= b["ci99"][1] and b["ci99"][0] <= a["ci99"][1])


def show(results: dict[str, Any]) -> None:
    """Counts over everything that the file holds."""
    aa, planted, repeated = results["aa"], results["planted"], results["repeated"]
    pairs = list(zip(repeated[::2], repeated[1::2], strict=False))
    agree = sum(overlap(a, b) for a, b in pairs)
    print(f"A/A: {dict(Counter(r['verdict'] for r in aa))} of {len(aa)}")
    print(f"planted {PLANTED - 1:.0%}: {dict(Counter(r['verdict'] for r in planted))} of {len(planted)}")
    print(f"repeated: {agree} of {len(pairs)} pairs agree within their intervals")


def main() -> None:
    """Add benches to the file and show the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("self-test.json"))
    for name in ("aa", "planted", "repeated"):
        parser.add_argument(f"--{name}", type=int, default=0, help="benches to add (repeated: pairs of them)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each bench (default: 20)")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": [], "aa": [], "planted": [], "repeated": []}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    results["environment"].append({**environment(), "seconds": options.seconds})
    with tempfile.TemporaryDirectory() as folder:
        model, int8 = make_models(Path(folder))
        benches = [("aa", model)] * options.aa + [("planted", model)] * options.planted
        for kind, second in benches + [("repeated", int8)] * (2 * options.repeated):
            opener = second_is_slower() if kind == "planted" else OPEN
            with patch.object(Artifact, "runner", opener):
                ratio = ratio_of(model, second, options.seconds)
            results[kind].append({**asdict(ratio), "seconds": options.seconds})
            options.out.write_text(json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    main()
