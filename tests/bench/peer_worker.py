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

import numpy as np
import numpy.typing as npt

from alexdeploy.contract import Contract
from alexdeploy.data.sources import load_dataset

# The faster of 1 and 32 for each peer, except NNCF: its documentation asks for batches of one.
BATCH = {"reading": 32, "onnxruntime": 1, "modelopt": 1, "nncf": 1, "quark": 1, "inc": 1}

Feed = dict[str, npt.NDArray[np.float32]]


class Reader:
    """The calibration batches, one at a time; the interface is that of ONNX Runtime's ``CalibrationDataReader``."""

    def __init__(self, data: str, samples: int, contract: Contract, batch: int, name: str) -> None:
        self._dataset = load_dataset(data, "train").subset(samples)
        self.images = len(self._dataset)
        self.batch_size = batch
        self._contract, self._name = contract, name
        self.rewind()

    def rewind(self) -> None:
        """Begin again: the images are read once more."""
        feeds = self._dataset.batches(self._contract, self.batch_size)
        self._feeds: Iterator[Feed] = ({self._name: images} for images, _ in feeds)
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


def quark(method: str, model: Path, output: Path, reader: Reader) -> None:
    """AMD Quark: symmetric int8 with float scales on Conv and Gemm, weights per channel.

    ``method``: ``minmax``, ``percentile`` (Quark's default) or ``mse``, with ``+adaround`` after Quark's AdaRound. Not
    here: its GPTQ, which left the activations in float, and its bias correction, which with these settings gave logits
    wrong by several times their size on both networks.
    """
    import quark.onnx as peer  # type: ignore[import-not-found]

    ranges, _, algorithm = method.partition("+")
    calibration = {
        "minmax": peer.CalibMethod.MinMax,
        "percentile": peer.CalibMethod.Percentile,
        "mse": peer.CalibMethod.MinMSE,
    }[ranges]
    activation = peer.Int8Spec(symmetric=True, calibration_method=calibration)
    weight = peer.Int8Spec(
        symmetric=True, calibration_method=peer.CalibMethod.MinMax, quant_granularity=peer.QuantGranularity.Channel
    )
    algorithms = {"": [], "adaround": [peer.AdaRoundConfig]}[algorithm]
    config = peer.QConfig(
        global_config=peer.QLayerConfig(activation=activation, weight=weight),
        algo_config=[make() for make in algorithms],
        OpTypesToQuantize=["Conv", "Gemm"],
    )
    peer.ModelQuantizer(config).quantize_model(str(model), str(output), reader)


def inc(method: str, model: Path, output: Path, reader: Reader) -> None:
    """Intel Neural Compressor 2.6, the last release on PyPI that takes ONNX: symmetric int8 Q/DQ on Conv and Gemm."""
    import onnx
    from neural_compressor import PostTrainingQuantConfig, quantization, set_workspace  # type: ignore[import-not-found]

    set_workspace(str(output.with_suffix(".workspace")))
    loaded = onnx.load(model)
    del loaded.graph.value_info[:]  # it transposes the weights of Gemm and stumbles over the shapes noted for them
    layer = {
        "weight": {"dtype": ["int8"], "scheme": ["sym"], "granularity": ["per_channel"]},
        "activation": {"dtype": ["int8"], "scheme": ["sym"], "algorithm": [method]},
    }
    config = PostTrainingQuantConfig(
        quant_format="QDQ",
        calibration_sampling_size=[reader.images],
        op_type_dict={"Conv": layer, "Gemm": layer, "MatMul": layer},
        recipes={"graph_optimization_level": "ENABLE_BASIC"},
        quant_level=1,
    )
    quantized = quantization.fit(loaded, config, calib_dataloader=_Loader(reader))
    if quantized is None:
        raise SystemExit("Neural Compressor gave no model")
    quantized.save(str(output))


class _Loader:
    """What Neural Compressor calls a data loader: pairs of images and labels, from the start at every turn."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.batch_size = reader.batch_size

    def __iter__(self) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        self._reader.rewind()
        for feed in self._reader:
            (images,) = feed.values()
            yield images, 0


def alexdeploy(method: str, model: Path, output: Path, options: argparse.Namespace) -> None:
    """The commands ``calibrate`` and ``quantize`` in this one process.

    ``method`` is one of the range file's, with ``+gptq`` where the weights are rounded by GPTQ, or ``auto``. Ranges
    alone are calibrated where the weights are rounded to nearest.
    """
    from alexdeploy.cli.calibrate import command as calibrate
    from alexdeploy.cli.quantize import command as quantize

    ranges, _, rounding = method.partition("+")
    file, images = str(output.with_suffix(".ranges.json")), ["--data", options.data]
    calibration = [str(model), *images, "--samples", str(options.samples), "-o", file]
    if ranges == "auto":
        chosen = images
    else:
        chosen = ["--rounding", rounding or "nearest"]
        calibration += [] if rounding else ["--ranges-only"]
    calibrate.main(calibration, standalone_mode=False)
    quantize.main([str(model), "--ranges", file, "--method", ranges, *chosen, "-o", str(output)], standalone_mode=False)


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
    parser.add_argument("--input", default="input", help="name of the model's input")
    parser.add_argument("--batch", type=int)
    options = parser.parse_args()
    if options.peer == "alexdeploy":
        alexdeploy(options.method, options.model, options.output, options)
        return
    contract = Contract.from_json(options.contract.read_text(), str(options.contract))
    batch = options.batch or BATCH[options.peer]
    reader = Reader(options.data, options.samples, contract, batch, options.input)
    if options.peer == "reading":
        images = sum(len(feed[options.input]) for feed in reader)
        print(f"{images} images in {time.perf_counter() - start:.3f} s")
    else:
        peers = {"onnxruntime": onnxruntime, "modelopt": modelopt, "nncf": nncf, "quark": quark, "inc": inc}
        peers[options.peer](options.method, options.model, options.output, reader)


if __name__ == "__main__":
    main()
