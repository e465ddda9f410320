"""Time of ``build_engine`` over the bare TensorRT-RTX calls, for networks of the zoo in every precision.

``python -m tests.bench.build_overhead FOLDER NETWORK...``: the first run writes the ONNX files to FOLDER and stops, so
that the second measures builds alone. Both sides read an ONNX file and write an engine file, each in a process of its
own; the fastest of nine after one to warm up, since what slows a build down, such as memory that the machine has to
find first, only ever adds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import tensorrt_rtx as trt

from alexdeploy.engine.options import BuildSettings
from alexdeploy.engine.plan import build_engine
from alexdeploy.export.from_torch import trace
from alexdeploy.graph.fp16 import to_fp16
from alexdeploy.graph.model import save_onnx
from alexdeploy.graph.qdq import TensorRange, calibration_tensors, insert_qdq
from alexdeploy.recipe import load_recipe
from alexdeploy.zoo.checkpoint import untrained

PRECISIONS = ("fp32", "fp16", "int8", "int8+fp16")
ROUNDS = 9


def write_models(folder: Path, network: str) -> None:
    """The network with fresh weights in every precision; the ranges' values do not matter here."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = untrained(network, 1000, seed=0)
    fp32 = trace(fresh.model, fresh.contract)
    int8 = insert_qdq(fp32, dict.fromkeys(calibration_tensors(fp32), TensorRange(1.0)))
    for precision, model in zip(PRECISIONS, (fp32, to_fp16(fp32), int8, to_fp16(int8)), strict=True):
        save_onnx(model, folder / f"{network}-{precision}.onnx")


def bare(model: Path, output: Path, shape: tuple[int, int, int], logger: trt.Logger) -> None:
    """What the same takes with TensorRT alone."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(model))
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, *shape), (8, *shape), (64, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    with output.open("wb") as file:
        file.write(plan)


def measure(side: str, model: Path) -> list[float]:
    """Seconds of each round after one to warm up, in this process; TensorRT keeps the first logger it is given."""
    output, settings, logger = model.with_name("x.engine"), BuildSettings(builder="tensorrt-rtx"), None
    shape = load_recipe(model.stem.rpartition("-")[0]).preprocess.input_shape
    times = []
    for _ in range(1 + ROUNDS):
        output.unlink(missing_ok=True)  # its pages are the next file's; a page that was never used costs more
        started = time.perf_counter()
        if side == "bare":
            logger = logger or trt.Logger(trt.Logger.WARNING)
            bare(model, output, shape, logger)
        else:
            build_engine(model, output, settings=settings)
        times.append(time.perf_counter() - started)
    return times[1:]


def main(folder: Path, networks: list[str]) -> None:
    missing = [name for name in networks if not (folder / f"{name}-{PRECISIONS[-1]}.onnx").exists()]
    for network in missing:
        write_models(folder, network)
    if missing:
        sys.exit(f"wrote {', '.join(missing)} to {folder}; run again to measure")
    for network in networks:
        for precision in PRECISIONS:
            model = folder / f"{network}-{precision}.onnx"
            fastest = []
            for side in ("bare", "ours"):
                command = [sys.executable, "-m", "tests.bench.build_overhead", side, str(model)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                fastest.append(min(map(float, done.stdout.split())))
            theirs, ours = fastest
            print(f"| {network} | {precision} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] in ("bare", "ours"):
        print(*measure(sys.argv[1], Path(sys.argv[2])))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
