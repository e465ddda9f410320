"""Opening a large ONNX file with LRN, beside a stock session of ONNX Runtime: ``python -m tests.bench.load_time``.

Each measurement is a fresh process; the two take turns. Time is from the imported library to the first answer at batch
1, memory the peak of the process. The file (``alexnet`` with 4,096 classes, 295 MB) is in the page cache. The bars are
0.8 times the time and 1.6 times the memory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

_PROCESSES = 7
_CHILD = """
import resource, sys, time
import numpy, onnxruntime, alexdeploy.runners.artifact, alexdeploy.runners.onnxruntime
path, how = sys.argv[1:]
image = numpy.random.default_rng(0).standard_normal((1, 3, 227, 227), numpy.float32)
began = time.perf_counter()
if how == "stock":
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: image})
else:
    logits = alexdeploy.runners.artifact.load(path, runtime="onnxruntime-cpu").infer(image)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, float(logits.sum()))
"""


def main() -> None:
    """Print a row for each; exit with 1 when a bar is missed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "alexnet.onnx"
        export = ["export", "--network", "alexnet", "--classes", "4096", "--seed", "0", "-o", str(path)]
        subprocess.run([sys.executable, "-m", "alexdeploy", *export], check=True, capture_output=True)
        found: dict[str, list[list[float]]] = {"stock": [], "alexdeploy": []}
        for _ in range(_PROCESSES):
            for how, rows in found.items():
                child = [sys.executable, "-c", _CHILD, str(path), how]
                answer = subprocess.run(child, check=True, capture_output=True, text=True).stdout
                rows.append([float(word) for word in answer.split()])
        print(f"{path.stat().st_size / 1e6:.0f} MB, medians of {_PROCESSES} processes")
    seconds, mib = ({how: median(row[i] for row in rows) for how, rows in found.items()} for i in range(2))
    for how, rows in found.items():
        print(f"{how:12}{seconds[how]:8.2f} s{mib[how]:8.0f} MiB   sum of the logits {rows[0][2]:.6f}")
    ratios = seconds["alexdeploy"] / seconds["stock"], mib["alexdeploy"] / mib["stock"]
    print(f"ratio       {ratios[0]:8.2f}  {ratios[1]:8.2f}")
    sys.exit(ratios[0] > 0.8 or ratios[1] > 1.6)


if __name__ == "__main__":
    main()
