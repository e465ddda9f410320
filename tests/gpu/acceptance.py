"""Acceptance on a machine with a GPU: the ``gpu`` tests, then one full bench, and a report of both.

``make gpu-check`` runs it. It exits with 4 where there is no CUDA device, and with 1 when a test or a step failed; the
report is written either way.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from alexdeploy.errors import UnavailableError
from alexdeploy.machine import current_gpu, why_no_cuda

NETWORK, DATA = "alexnet-mnist", "digits"
STEPS = (
    f"train {NETWORK} --data {DATA} --out .",
    f"export {NETWORK}.safetensors --data {DATA} -o model.onnx",
    f"calibrate model.onnx --data {DATA} -o ranges.json",
    "quantize model.onnx --ranges ranges.json -o int8.onnx",
    "build-engine model.onnx --builder tensorrt -o fp32.engine",
    "build-engine model.onnx --builder tensorrt --fp16 -o fp16.engine",
    "build-engine int8.onnx --builder tensorrt -o int8.engine",
    f"bench {NETWORK}.safetensors model.onnx fp32.engine fp16.engine int8.engine --data {DATA} --batch 1,8,64 "
    "--markdown bench.md --html bench.html",
)


def run(command: list[str], folder: Path | None = None) -> tuple[bool, str]:
    """Whether it went well, and what it said; shown here as well."""
    print("$", shlex.join(command), flush=True)
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(done.stdout, flush=True)
    return done.returncode == 0, done.stdout


def main(folder: Path) -> int:
    gpu, reason = current_gpu(), why_no_cuda()
    if gpu is None:
        print(f"error: {reason}; this check is for a machine with an NVIDIA GPU", file=sys.stderr)
        return UnavailableError.exit_code
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# GPU acceptance\n\n{gpu}, driver for CUDA {gpu.cuda}\n"]
    good, said = run([sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-ra"])
    parts.append(f"## Tests: {'passed' if good else 'FAILED'}\n\n```\n{said}```\n")
    for step in STEPS:
        went_well, said = run([sys.executable, "-m", "alexdeploy", *shlex.split(step)], folder)
        good = good and went_well
        if not went_well:
            parts.append(f"## FAILED: alexdeploy {step}\n\n```\n{said}```\n")
            break
    else:
        parts.append(f"## Bench\n\n{(folder / 'bench.md').read_text()}")
    (folder / "report.md").write_text("\n".join(parts))
    print(f"{'accepted' if good else 'NOT accepted'}: see {folder / 'report.md'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
