"""The range file: what calibration saw, with the receipt that nothing was lost and the hashes of what it is for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import __version__, artifacts
from alexdeploy.errors import GateError, InputError, UsageError, unknown_name
from alexdeploy.quantize.methods import METHODS

SCHEMA = 1


class RangeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of ``ranges.json``. It holds no time and no path, so the same inputs give the same bytes.

    Attributes:
        model_sha256: of the float ONNX file that was calibrated.
        contract: fingerprint of the preprocessing contract.
        dataset: name of the data set and fingerprint of its sample list.
        samples: images fed.
        tensors: per tensor the amax of each method, and ``samples``, the images that its observer saw.
    """

    model_sha256: str
    contract: str
    dataset: dict[str, str]
    samples: int
    tensors: dict[str, dict[str, float]]
    tool: str = __version__
    schema: int = SCHEMA

    def amax(self, method: str) -> dict[str, float]:
        """The amax per tensor.

        Raises:
            UsageError: a method that the file does not hold.
        """
        if method not in METHODS:
            raise UsageError(unknown_name("method", method, list(METHODS)))
        return {name: values[method] for name, values in self.tensors.items()}

    def check_receipt(self) -> None:
        """Samples seen must equal samples fed for every tensor.

        Raises:
            GateError: a tensor's observer missed samples.
        """
        for name, values in self.tensors.items():
            if values["samples"] != self.samples:
                raise GateError(
                    f"calibration receipt: tensor '{name}' saw {values['samples']:g} of {self.samples} samples"
                )

    def check_model(self, model: Path) -> None:
        """The file must belong to these bytes of the model.

        Raises:
            GateError: it was made from another model.
        """
        found = artifacts.sha256_file(model)
        if found != self.model_sha256:
            raise GateError(
                f"the ranges were calibrated on another model (sha256 {self.model_sha256[:12]}…, {model} has "
                f"{found[:12]}…); run alexdeploy calibrate on this one"
            )


def save_ranges(path: Path, ranges: RangeFile, parents: tuple[artifacts.Parent, ...], options: dict[str, Any]) -> None:
    """Write the file, indented and sorted, with its sidecar."""
    artifacts.write_bytes(path, msgspec.json.format(msgspec.json.encode(ranges, order="sorted"), indent=1) + b"\n")
    artifacts.write_sidecar(path, "ranges", parents=parents, options=options)


def load_ranges(path: Path) -> RangeFile:
    """Read and check a range file; it needs no sidecar, since it carries the hashes it is judged by.

    Raises:
        InputError: not a range file.
        GateError: its receipt does not add up.
    """
    artifacts.check_input(path)
    try:
        ranges = msgspec.json.decode(path.read_bytes(), type=RangeFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a range file of alexdeploy calibrate: {error}") from error
    if ranges.schema != SCHEMA:
        raise InputError(f"{path}: range file schema {ranges.schema}, expected {SCHEMA}; calibrate again")
    needed = {*METHODS, "samples"}
    for name, values in ranges.tensors.items():
        if needed - values.keys():
            raise InputError(f"{path}: tensor '{name}' lacks {', '.join(sorted(needed - values.keys()))}")
        if not all(math.isfinite(value) and value >= 0 for value in values.values()):
            raise InputError(f"{path}: tensor '{name}' has a range that is negative or not a number; calibrate again")
    ranges.check_receipt()
    return ranges
