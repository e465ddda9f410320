"""One tool, one method, one process: started by ``calibration_peers.py`` with the Python of the tool's own venv.

Usage: ``python peer_worker.py PEER METHOD MODEL OUTPUT --data FOLDER --samples N --contract FILE``, with alexdeploy's
root on ``PYTHONPATH``: the images are listed, decoded and preprocessed by ``alexdeploy.data`` for every peer, which
needs NumPy, Pillow and msgspec only. ``PEER`` ``reading`` does that and nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from alexdeploy.contract import Contract
from alexdeploy.data.sources import load_dataset

# The faster of 1 and 32 for each peer, except NNCF: its documentation asks for batches of one.
BATCH = {"reading": 32, "onnxruntime": 1, "modelopt": 1, "nncf": 1}

Feed = dict[str, npt.NDArray[np.float32]]


class Reader:
    """The calibration batches, one at a time; the interface is that of ONNX Runtime's ``CalibrationDataReader``."""

    def __init__(self, data: str, samples: int, contract: Contract, batch: int, name: str) -> None:
        dataset = load_dataset(data, "train").subset(samples)
        self.images = len(dataset)
        self._name = name
        self._feeds: Iterator[Feed] = ({name: images} for images, _ in dataset.batches(contract, batch))
        self._first: Feed | None = None

    def get_first(self) -> Feed:
        """The first batch, not consumed (ModelOpt makes a trial run with it)."""
        if self._first is None:
            self._first = next(self._feeds)
        return self._first

    def get_next(self) -> Feed | None:
        feed, self._first = self._first, None
        return feed if feed is not None else next(self._feeds, None)

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.get_next, None)


def onnxruntime(method: str, model: Path, output: Path, reader: Reader) -> None:
    """``quantize_static`` as TensorRT wants it: symmetric int8 on the inputs of Conv and Gemm, the rest float.

    ``method`` ``quantize_static`` is without any of that: its own defaults.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    if method == "quantize_static":
        quantize_static(model, output, reader)
        return
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    quantize_static(
        model,
        output,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=methods[method],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
        },
    )


def modelopt(method: str, model: Path, output: Path, reader: Reader) -> None:
    """ModelOpt's own choice of nodes; float32 elsewhere, so that INT8 alone is compared."""
    from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found]

    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data_reader=reader,
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
        log_level="WARNING",
    )


def nncf(_method: str, model: Path, output: Path, reader: Reader) -> None:
    """``nncf.quantize`` as it comes, over all the images."""
    import nncf as peer  # type: ignore[import-not-found]
    import onnx

    quantized = peer.quantize(onnx.load(model), peer.Dataset(reader), subset_size=reader.images)
    onnx.save(quantized, output)


def alexdeploy(method: str, model: Path, output: Path, options: argparse.Namespace) -> None:
    """Ranges by every method, written to a file, and the model quantized by one of them."""
    from alexdeploy.quantize.calibrate import calibrate
    from alexdeploy.quantize.quantize import QuantizeSettings, quantize_onnx
    from alexdeploy.quantize.rangefile import save_ranges

    dataset = load_dataset(options.data, "train")
    ranges = output.with_suffix(".ranges.json")
    seen = calibrate(model, dataset, samples=options.samples)
    save_ranges(ranges, seen, (seen.model_parent(model),), {})
    choose_on = dataset.subset(256) if method == "auto" else None
    quantize_onnx(
        model, ranges, output, settings=QuantizeSettings(method=cast(Any, method)), selection_images=choose_on
    )


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=["alexdeploy", *BATCH])
    parser.add_argument("method")
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    if options.peer == "alexdeploy":
        alexdeploy(options.method, options.model, options.output, options)
        return
    contract = Contract.from_json(options.contract.read_text(), str(options.contract))
    batch = options.batch or BATCH[options.peer]
    reader = Reader(options.data, options.samples, contract, batch, "input")
    if options.peer == "reading":
        images = sum(len(feed["input"]) for feed in reader)
        print(f"{images} images in {time.perf_counter() - start:.3f} s")
    else:
        {"onnxruntime": onnxruntime, "modelopt": modelopt, "nncf": nncf}[options.peer](
            options.method, options.model, options.output, reader
        )


if __name__ == "__main__":
    main()
