"""Ranges as TensorRT's calibration-cache text, so that users of TensorRT 8 and 10 can bring and take their caches.

The first line is ``TRT-<version>-<calibrator>``; then comes ``tensor: 3c010a14`` per tensor, the eight hexadecimal
digits being the float32 scale (amax/127), most significant byte first.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir

from alexdeploy import files
from alexdeploy.errors import InputError, UsageError
from alexdeploy.graph.qdq import INT8_MAX, TensorRange, symmetric_scale
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.quantize.rangefile import RangeFile, load_ranges

METHOD = "calibration-cache"  # what stands for the method where the ranges come from a cache
PROVES_NOTHING = (
    "note: a calibration cache does not say which model and images it came from; only its names are checked"
)
TENSORRT_VERSION = 10_16_00  # NV_TENSORRT_VERSION of 10.16.0
_MAGIC = b"TRT-"
_FIRST_LINE = re.compile(r"TRT-[\w.]+-\w+")
_ENTRY = re.compile(r"(?P<tensor>.+): (?P<scale>[0-9a-fA-F]{8})")  # greedy: the last ": " is the one that counts
_INFINITY = 0x7F800000  # from here on: inf, NaN and everything with the sign bit


class CalibrationCache(msgspec.Struct, frozen=True, kw_only=True):
    """A cache that was read; the counterpart of ``RangeFile`` without a model, a contract or a choice of methods.

    Attributes:
        name: of the file.
        sha256: of the file.
        calibrator: its first line.
        amax: by tensor.
    """

    name: str
    sha256: str
    calibrator: str
    amax: dict[str, float]

    @property
    def origin(self) -> dict[str, Any]:
        """The origin of the ranges, for an engine's sidecar."""
        return {"cache": self.name, "sha256": self.sha256, "calibrator": self.calibrator}

    def of(self, method: str) -> dict[str, TensorRange]:
        """The range per tensor; a cache does not tell which tensors are never negative.

        Raises:
            UsageError: a method other than ``METHOD``.
        """
        if method != METHOD:
            raise _no_choice(self.name)
        return {tensor: TensorRange(amax) for tensor, amax in self.amax.items()}

    def check_fits(self, model: ir.Model, path: Path) -> None:
        """Every tensor to be quantized must be named; nothing else can be checked.

        Raises:
            InputError: the cache lacks one.
        """
        needed = dict.fromkeys(str(node.activation.name) for node in weighted_nodes(model))
        missing = [tensor for tensor in needed if tensor not in self.amax]
        if missing:
            raise InputError(
                f"{self.name}: lacks tensor '{missing[0]}' of {path} ({len(missing)} of {len(needed)} missing); "
                "it was made from a model with other tensor names: export that one, or run alexdeploy calibrate"
            )


def write_cache(ranges: RangeFile, method: str, version: int = TENSORRT_VERSION) -> str:
    """The ranges by ``method`` as the text of a cache, tensors by name.

    The scales are bit for bit those of ``insert_qdq``. The first line names the calibrator whose subclasses take the
    cache: IInt8MinMaxCalibrator for ``minmax``, IInt8EntropyCalibrator2 for all others.

    Args:
        ranges: what calibration saw.
        method: which of its ranges.
        version: NV_TENSORRT_VERSION of the TensorRT that is to read it: major·10000 + minor·100 + patch from 10 on,
            major·1000 + minor·100 + patch before.

    Raises:
        UsageError: a method that the ranges do not hold.
        InputError: a tensor whose name does not fit on a line.
    """
    calibrator = "MinMaxCalibration" if method == "minmax" else "EntropyCalibration2"
    lines = [f"TRT-{version}-{calibrator}"]
    for tensor, seen in sorted(ranges.of(method).items()):
        if "\n" in tensor or "\r" in tensor:
            raise InputError(f"tensor {tensor!r} has a line break in its name; a cache cannot hold it: rename it")
        lines.append(f"{tensor}: {struct.pack('!f', float(symmetric_scale(seen.amax))).hex()}")
    return "\n".join(lines) + "\n"


def save_cache(path: Path, ranges: RangeFile, parents: tuple[files.Parent, ...], options: dict[str, Any]) -> None:
    """Write the entropy ranges, as TensorRT's own IInt8EntropyCalibrator2 would find them, with a sidecar."""
    data = write_cache(ranges, "entropy").encode()
    files.write_artifact(path, data, "ranges", parents=parents, options=options)


def read_cache(text: str, origin: str) -> dict[str, float]:
    """The amax by tensor (scale · 127, exact) of the text of a cache.

    Args:
        text: with any calibrator's first line; blank lines are passed over.
        origin: the file to name in messages.

    Raises:
        InputError: not a cache, no tensors, a line that is not ``tensor: 8 hex digits``, a scale that is negative,
            infinite or not a number, a tensor that comes twice.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    if not _FIRST_LINE.fullmatch(lines[0]):
        raise InputError(
            f"{origin}: line 1: found '{lines[0][:60]}', expected TRT-<version>-<calibrator> as in "
            "TRT-8601-EntropyCalibration2; name a calibration cache of TensorRT"
        )
    found: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        where = f"{origin}: line {number}"
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise InputError(
                f"{where}: found '{line[:60]}', expected 'tensor: ' and 8 hex digits with leading zeros; "
                "copy the file again, or let TensorRT write it anew"
            )
        tensor, bits = entry["tensor"], int(entry["scale"], 16)
        if bits >= _INFINITY:
            raise InputError(
                f"{where}: the scale {entry['scale']} of '{tensor}' is negative, infinite or not a number; "
                "calibrate again"
            )
        if tensor in found:
            raise InputError(f"{where}: tensor '{tensor}' comes a second time; keep the line that is right")
        (scale,) = struct.unpack("!f", bits.to_bytes(4, "big"))
        found[tensor] = scale * INT8_MAX
    if not found:
        raise InputError(f"{origin}: holds no tensors; copy the whole file, or let TensorRT write it anew")
    return found


def is_cache(path: Path) -> bool:
    """True if a file begins as a cache does; False if it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def load(path: Path) -> RangeFile | CalibrationCache:
    """Read a range file or a cache, whichever it is.

    Raises:
        InputError: neither of them.
        GateError: a range file whose receipt does not add up.
    """
    if not is_cache(path):
        return load_ranges(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not the text of a calibration cache: {error}; copy the file again") from error
    amax = read_cache(text, str(path))
    first = text.partition("\n")[0].strip()
    return CalibrationCache(name=path.name, sha256=files.sha256_file(path), calibrator=first, amax=amax)


def _no_choice(name: str) -> UsageError:
    return UsageError(f"{name} is a calibration cache, which holds one range per tensor; leave `method` out")
