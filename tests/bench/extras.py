"""What a registry gives for the extras with CUDA, without installing it: ``python -m tests.bench.extras``.

uv resolves, because it does so for other Pythons and processors too. (It is installed into ``.venv-uv`` at the first
call.) NVIDIA's registry, https://pypi.nvidia.com, is not needed: of ``tensorrt-cu1x-libs`` PyPI has a stub that asks
there for its metadata, and ``LIBRARIES`` stands in for them. The bar is one CUDA major in each row, with the TensorRT
that its runtimes load, or a refusal.
"""

from __future__ import annotations

import re
import subprocess
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = (
    "gpu",
    "train,gpu",
    "gpu-trt10",
    "train,gpu-trt10",
    "gpu-cu12",
    "train,gpu-cu12",
    "jetson",
    "cpu,jetson",
    "rtx",
)
TARGETS = (
    ("3.10", "x86_64"),
    ("3.11", "x86_64"),
    ("3.12", "x86_64"),
    ("3.13", "x86_64"),
    ("3.10", "aarch64"),
    ("3.12", "aarch64"),
)
LIBRARIES = """
[[dependency-metadata]]
name = "tensorrt-cu13-libs"
requires-dist = ["nvidia-cuda-runtime"]
[[dependency-metadata]]
name = "tensorrt-cu12-libs"
requires-dist = ["nvidia-cuda-runtime-cu12"]
"""
_SHOWN = ("onnxruntime-gpu", "onnxruntime", "tensorrt", "torch", "cuda-bindings")
_FOLDER = ROOT / ".venv-uv"


def install_uv() -> Path:
    """The program, in a virtual environment of its own."""
    uv = _FOLDER / "bin" / "uv"
    if not uv.exists():
        venv.create(_FOLDER, with_pip=True)
        subprocess.run([_FOLDER / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "uv"], check=True)
    (_FOLDER / "uv.toml").write_text(LIBRARIES)
    return uv


def resolve(uv: Path, extras: str, python: str, machine: str) -> dict[str, str] | str:
    """Distribution → version for a Linux with glibc 2.35 (Ubuntu 22.04, JetPack 6), or why there is no answer."""
    options = ["--quiet", "--no-header", "--no-annotate", f"--config-file={_FOLDER / 'uv.toml'}"]
    target = [f"--python-version={python}", f"--python-platform={machine}-manylinux_2_35"]
    wanted = [f"--extra={extra}" for extra in extras.split(",")]
    done = subprocess.run(
        [uv, "pip", "compile", *options, *target, *wanted, ROOT / "pyproject.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return " ".join(done.stderr.split())
    return dict(re.findall(r"^([\w.-]+)(?:\[.*?\])?==(\S+)", done.stdout, re.MULTILINE))


def cuda_majors(found: dict[str, str]) -> set[str]:
    """Of all that is built for one: the suffix of the name, or the version where the name has none."""
    named = {match[1] for name in found if (match := re.search(r"-cu(\d\d)(?:-|$)", name))}
    by_version = ("nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "cuda-toolkit", "cuda-bindings")
    return named | {found[name].partition(".")[0] for name in by_version if name in found}


def tensorrt_of(found: dict[str, str]) -> str | None:
    """Version of TensorRT (not of TensorRT-RTX), or None."""
    return next((found[name] for name in sorted(found) if re.fullmatch(r"tensorrt-cu\d\d", name)), None)


def row(uv: Path, extras: str, python: str, machine: str) -> str:
    """A line of the table."""
    found = resolve(uv, extras, python, machine)
    if isinstance(found, str):
        reason = re.search(r"Because (.*?) (?:\(e\.g\.|and only|we can|and you)", found)
        cells = [f"refused: {reason[1] if reason else found[:150]}", *[""] * len(_SHOWN)]
    else:
        shown = {**found, "tensorrt": tensorrt_of(found) or ""}
        cells = ["/".join(sorted(cuda_majors(found))), *(shown.get(name, "") for name in _SHOWN)]
    return "| " + " | ".join((extras, python, machine, *cells)) + " |"


def main() -> None:
    uv = install_uv()
    columns = ("extra", "Python", "machine", "CUDA", *_SHOWN)
    print("| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), sep="\n")
    with ThreadPoolExecutor(3) as pool:  # mostly waiting for the registry
        for line in pool.map(lambda case: row(uv, case[0], *case[1]), [(e, t) for e in EXTRAS for t in TARGETS]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
