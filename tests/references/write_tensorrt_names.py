"""Writes ``tensorrt_names.json``: the classes of TensorRT's Python bindings and their members, by version.

    pip download --no-deps tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu12-bindings==11.4.0.106   (unzip each)
    python tests/references/write_tensorrt_names.py 10.16.1.11/tensorrt_bindings/tensorrt.so ...

The extension module of the wheel is imported over empty libraries in place of TensorRT's own, so names are exact and
nothing can be run. TensorRT-RTX is read from its installed bindings by the test itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).with_name("tensorrt_names.json")


def names_of(extension: Path) -> dict[str, list[str]]:
    """Members by class; module functions are under the empty name."""
    folder = Path(tempfile.mkdtemp())
    symbols = subprocess.run(["nm", "-D", "-u", str(extension)], capture_output=True, text=True, check=True).stdout
    missing = re.findall(r"U ((?:createInfer|createNvOnnx|get|initLibNv)\w+)$", symbols, re.MULTILINE)
    (folder / "empty.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in missing))
    dynamic = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"\[(libnv\S+)\]", dynamic):
        command = [
            "cc",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            str(folder / "empty.c"),
            "-o",
            str(folder / library),
        ]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL)
    spec = importlib.util.spec_from_file_location("tensorrt", extension)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    found = {name: [m for m in dir(value) if not m.startswith("_")] for name, value in classes.items()}
    functions = re.findall(r"(?m)^def (\w+)", extension.with_name("__init__.py").read_text())
    return {
        "": sorted({*vars(module), *functions} - {*classes} - {name for name in vars(module) if name[0] == "_"}),
        **found,
    }


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--one":
        print(json.dumps(names_of(Path(sys.argv[2]))))
    else:  # one process each: two versions do not load together
        known = {}
        for path in map(Path, sys.argv[1:]):
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(path)], capture_output=True, text=True, check=True
            )
            known[path.parents[1].name] = json.loads(done.stdout)
        OUTPUT.write_text(json.dumps(known, indent=None, separators=(",", ":"), sort_keys=True) + "\n")
