"""The virtual environments of the peers of ``calibration_peers.py``, installed from PyPI."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path

# ModelOpt wants onnxruntime-gpu, which overwrites the files of onnxruntime. Neural Compressor 2.6 is the last release
# for ONNX; it is of the time of the versions beside it and does not name all that it imports.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "nncf", "onnx", "pillow", "numpy", "msgspec"),
    "modelopt": ("nvidia-modelopt[onnx]", "pillow", "numpy", "msgspec"),
    "quark": ("amd-quark", "onnxruntime", "torch", "pillow", "numpy", "msgspec"),
    "inc": (
        "neural-compressor==2.6",
        "onnx==1.16.2",
        "onnxruntime==1.18.1",
        "onnxruntime-extensions",
        "six",
        "pillow",
        "msgspec",
    ),
}
VENV_OF = {"reading": "onnxruntime", "nncf": "onnxruntime"}  # the others': their own names
REPORTED = (
    "onnxruntime",
    "onnxruntime-gpu",
    "nncf",
    "nvidia-modelopt",
    "amd-quark",
    "neural_compressor",
    "onnx",
    "torch",
)


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


def install_all(root: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The versions in each environment, and why others are missing."""
    versions: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions |= install(root, [name])
        except subprocess.CalledProcessError as error:
            missing[name] = f"does not install from PyPI: pip ends with {error.returncode}"
    return versions, missing


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
