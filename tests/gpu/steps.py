"""What ``make gpu-check`` asks of a machine: the commands, and which of them this extra and this GPU can answer."""

from __future__ import annotations

from dataclasses import dataclass

from alexdeploy.engine.versions import Compatibility
from alexdeploy.machine import Gpu

NETWORK, DATA = "alexnet-mnist", "digits"
BATCHES = (1, 8, 64)
# what an extra of pyproject.toml has beside TensorRT: ONNX Runtime's GPU providers (that of TensorRT takes version 10),
# and a TensorRT that still calibrates
FEATURES = {
    "gpu": frozenset({"onnxruntime-cuda", "rtx"}),
    "gpu-trt10": frozenset({"onnxruntime-cuda", "onnxruntime-tensorrt", "implicit", "rtx"}),
    "gpu-cu12": frozenset({"onnxruntime-cuda", "onnxruntime-tensorrt", "implicit"}),
    "jetson": frozenset({"implicit"}),
}
# tests/gpu by the feature that they need
TESTS_OF = {
    "onnxruntime-cuda": "test_onnxruntime_providers.py::{test}[CudaRunner]",
    "onnxruntime-tensorrt": "test_onnxruntime_providers.py::{test}[TensorRtProviderRunner]",
}


@dataclass(frozen=True)
class Step:
    """A command of alexdeploy, and the files that it makes in the folder of the check."""

    name: str
    command: str
    makes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """One bench: every one of ``artifacts`` on its runtime of ``runtimes`` must be measured at every batch size.

    ``agreement`` is the least share of images with the same answer as the first of them; None asks for none, of a
    network that was not trained.
    """

    name: str
    artifacts: tuple[tuple[str, str], ...]
    options: str = ""
    agreement: float | None = 0.95

    def command(self, present: frozenset[str]) -> str:
        """Of the artifacts that are there; those that are not were told of before."""
        files = dict.fromkeys(name for name, _ in self.artifacts if name in present)
        runtimes = dict.fromkeys(runtime for _, runtime in self.artifacts)
        asked = " ".join(f"--runtime {runtime}" for runtime in runtimes)
        batches = ",".join(map(str, BATCHES))
        return f"bench {' '.join(files)} {asked} --data {DATA} --batch {batches} {self.options} --json".replace(
            "  ", " "
        )


@dataclass(frozen=True)
class Plan:
    """What is asked, in order, and what is not, with the reason: name → reason."""

    steps: tuple[Step, ...]
    benches: tuple[Bench, ...]
    left_out: dict[str, str]


def plan(extra: str, gpu: Gpu) -> Plan:
    """For the extra that is installed in this venv and the GPU of this machine."""
    features, left_out = FEATURES[extra], {}
    for feature in sorted(set().union(*FEATURES.values()) - features):
        left_out[feature] = f"not in the extra '{extra}'"
    capability = tuple(int(part) for part in gpu.compute_capability.split("."))
    engines = [
        ("fp32", "model.onnx"),
        ("fp16", "model.onnx --fp16"),
        ("int8", "int8.onnx"),
        ("int8-fp16", "model.onnx --int8 --fp16 --ranges ranges.json"),
        ("version-compatible", "model.onnx --version-compatible"),
        ("same-compute-capability", "model.onnx --hardware same-compute-capability"),
    ]
    for name, options, least in (
        ("bf16", "model.onnx --bf16", (8, 0)),
        ("ampere", "model.onnx --hardware ampere+", (8, 0)),
        ("fp8-fp16", "model.onnx --fp8 --fp16 --ranges ranges.json", (8, 9)),
    ):
        if capability >= least:
            engines.append((name, options))
        else:
            left_out[name] = f"for compute capability {least[0]}.{least[1]} on, and {gpu} is older"
    if "implicit" in features:
        engines.append(("implicit", f"model.onnx --int8 --fp16 --implicit --data {DATA}"))
    steps = [
        Step("train", f"train {NETWORK} --data {DATA} --out .", (f"{NETWORK}.safetensors",)),
        Step("export", f"export {NETWORK}.safetensors --data {DATA} -o model.onnx", ("model.onnx",)),
        Step("calibrate", f"calibrate model.onnx --data {DATA} -o ranges.json", ("ranges.json",)),
        Step("quantize", "quantize model.onnx --ranges ranges.json -o int8.onnx", ("int8.onnx",)),
    ]
    steps += [_build(name, options) for name, options in engines]
    steps += [
        _build("timing-cache", "model.onnx --timing-cache timing"),
        _build("timing-cache-again", "model.onnx --timing-cache timing"),
        _build("int8-strict", "int8.onnx --strict"),
        Step("export-227", "export --network alexnet --classes 10 --seed 0 -o alexnet.onnx", ("alexnet.onnx",)),
        _build("227-fp16", "alexnet.onnx --fp16"),
        _build("227-int8-fp16", f"alexnet.onnx --int8 --fp16 --data {DATA} --samples 64"),
    ]
    measured = [(f"{name}.engine", "tensorrt") for name, _ in engines]
    if "rtx" in features:
        if Compatibility().takes_gpu("tensorrt-rtx", None, gpu):
            steps += [_build("rtx", "model.onnx", "tensorrt-rtx"), _build("rtx-int8", "int8.onnx", "tensorrt-rtx")]
            measured += [("rtx.engine", "tensorrt-rtx"), ("rtx-int8.engine", "tensorrt-rtx")]
        else:
            left_out["rtx"] = f"{gpu} is no target of TensorRT-RTX"
    providers = [name for name in ("onnxruntime-cuda", "onnxruntime-tensorrt") if name in features]
    main = [(f"{NETWORK}.safetensors", "pytorch"), *(("model.onnx", name) for name in providers), *measured]
    benches = [
        Bench("bench", tuple(main), "--seconds 120 --markdown bench.md --html bench.html"),
        Bench("bench-227", (("227-fp16.engine", "tensorrt"), ("227-int8-fp16.engine", "tensorrt")), agreement=None),
        Bench("bench-server", (("fp16.engine", "tensorrt"),), "--server-ms 20"),
    ]
    if "onnxruntime-tensorrt" in features:
        on_provider = (("model.onnx", "onnxruntime-tensorrt"), ("int8.onnx", "onnxruntime-tensorrt"))
        benches.append(Bench("bench-int8-provider", on_provider))
    return Plan(tuple(steps), tuple(benches), left_out)


def _build(name: str, options: str, builder: str = "tensorrt") -> Step:
    return Step(f"build-{name}", f"build-engine {options} --builder {builder} -o {name}.engine", (f"{name}.engine",))
