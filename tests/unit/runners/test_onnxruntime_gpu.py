"""ONNX Runtime's GPU providers without a GPU: the real wheel on a simulated driver, and what is ours on the CPU."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from alexdeploy.errors import DeviceLostError, InputError, UnavailableError, UsageError
from alexdeploy.graph.model import load_onnx
from alexdeploy.machine import forbid_tf32
from alexdeploy.runners import artifact, onnxruntime_gpu
from alexdeploy.runners.artifact import OnnxArtifact
from alexdeploy.runners.onnxruntime_cache import engine_cache
from alexdeploy.runners.onnxruntime_gpu import CudaRunner, TensorRtProviderRunner, check_placement
from alexdeploy.runners.onnxruntime_graphs import BoundCall
from alexdeploy.runners.onnxruntime_libraries import needed_libraries
from alexdeploy.runners.runtimes import RUNTIMES
from alexdeploy.specs import Precision, Profile
from tests.helpers.graphs import Array, conv_lrn_gemm, images
from tests.simulated_cuda.install_onnxruntime_gpu import FOLDER
from tests.simulated_cuda.library import ROOT, build

MODEL = conv_lrn_gemm().SerializeToString()


def renamed(dims: list[Any], name: str = "input") -> onnx.ModelProto:
    """The small network with other input dimensions, or another name of the input."""
    model = conv_lrn_gemm()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        dim.Clear()
        setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    return model


def test_the_real_wheel_says_what_is_missing(tmp_path: Path) -> None:
    if not (FOLDER / "onnxruntime").is_dir():
        pytest.skip(f"no onnxruntime-gpu in {FOLDER} (python -m tests.simulated_cuda.install_onnxruntime_gpu)")
    site, links = Path(sysconfig.get_paths()["purelib"]), tmp_path / "packages"
    links.mkdir()
    for entry in site.iterdir():
        if not entry.name.startswith(("nvidia", "torch", "onnxruntime", "tensorrt")):
            (links / entry.name).symlink_to(entry)
    (tmp_path / "wheels").mkdir()
    if (site / "nvidia").is_dir():
        (tmp_path / "wheels" / "nvidia").symlink_to(site / "nvidia")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(build(tmp_path)),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, FOLDER, links))),
        "WITH_NVIDIA": str(tmp_path / "wheels"),
    }
    command = [sys.executable, "-S", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x"]
    done = subprocess.run(
        [*command, "tests/simulated_cuda/inside_onnxruntime_gpu.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_needed_libraries_are_those_that_readelf_lists() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf to compare with")
    path = Path(ort.__file__).parent / "capi" / f"onnxruntime_pybind11_state{sysconfig.get_config_var('EXT_SUFFIX')}"
    said = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    listed = [line.split("[")[1].rstrip("]") for line in said.splitlines() if "(NEEDED)" in line]
    assert needed_libraries(path) == listed != []
    assert needed_libraries(Path(__file__)) == []


def test_they_are_on_the_gpu() -> None:
    assert CudaRunner.on_gpu
    assert TensorRtProviderRunner.on_gpu


def nodes(provider: str, **of_type: str) -> Any:
    found = [SimpleNamespace(name=name, op_type=op_type) for name, op_type in of_type.items()]
    return SimpleNamespace(ep_name=provider, get_nodes=lambda: found)


def test_shapes_may_be_computed_on_the_cpu_and_nothing_else() -> None:
    gpu = nodes("CUDAExecutionProvider", conv1="Conv", resize="Resize", fc="Gemm")
    shapes = nodes("CPUExecutionProvider", shape="Shape", pick="Gather", join="Concat", whole="Cast")
    check_placement([gpu, shapes], "onnxruntime-cuda")
    for op_type in ("Conv", "Gemm", "MatMul", "LRN", "MaxPool", "Relu", "FusedConv"):
        with pytest.raises(UnavailableError, match=f"cuda does not take {op_type} 'stray'.* run on the CPU"):
            check_placement([gpu, shapes, nodes("CPUExecutionProvider", stray=op_type)], "onnxruntime-cuda")


def test_onnx_runtime_itself_tells_where_it_put_the_nodes() -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    placed = session.get_provider_graph_assignment_info()
    with pytest.raises(UnavailableError, match=r"Conv 'conv1', Relu 'relu1', LRN 'lrn1' and 3 more"):
        check_placement(placed, "onnxruntime-cuda")


class OnTheCpu(CudaRunner):
    """The CUDA runner with the CPU's session in place of CUDA's."""

    _provider, _device = "CPUExecutionProvider", "cpu"

    def _check_available(self) -> None:
        pass

    def _check_placement(self) -> None:
        pass


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[int, ...]]]:
    """By graph, the buffers of its calls."""
    seen: dict[str, set[tuple[int, ...]]] = {}
    launch = BoundCall._launch

    def watched(call: Any) -> None:
        buffers = (call._images.data_ptr(), *(output.data_ptr() for output in call._outputs))
        seen.setdefault(call._options.get_run_config_entry("gpu_graph_id"), set()).add(buffers)
        launch(call)

    monkeypatch.setattr(BoundCall, "_launch", watched)
    return seen


def test_a_graph_has_one_batch_size_and_keeps_its_buffers(addresses: dict[str, set[tuple[int, ...]]]) -> None:
    plain = OnTheCpu(MODEL, Precision.FP32)
    runner = OnTheCpu(MODEL, Precision.FP32, {"enable_cuda_graph": "1"})
    for size in [*range(1, 19), 18, *range(17, 0, -1)]:
        batch = images(size, seed=size + len(addresses))
        np.testing.assert_array_equal(runner.infer(batch), plain.infer(batch))
        assert runner.run(batch).keys() == {"logits"}
    captured = {number: buffers for number, buffers in addresses.items() if number != "-1"}
    assert len(captured) == 16
    assert all(len(buffers) == 1 for buffers in captured.values())
    own: Any = runner.device_call(images(5))
    np.testing.assert_allclose(own()[0].numpy(), plain.infer(images(5)), rtol=1e-6)
    runner.infer(images(5, seed=3))
    np.testing.assert_allclose(own()[0].numpy(), plain.infer(images(5)), rtol=1e-6)
    assert len(addresses) == 17  # 16 graphs and one of the call's own


def test_a_batch_size_without_a_graph_runs_once() -> None:
    runner = OnTheCpu(MODEL, Precision.FP32, {"enable_cuda_graph": "1"})
    for size in range(1, 17):
        runner.infer(images(size))
    assert runner._graphs is not None
    session: Any = runner._graphs._session
    ran: list[str] = []

    class Counting:
        get_inputs = session.get_inputs

        def run(self, names: list[str], feed: Any, options: ort.RunOptions) -> Any:
            ran.append(options.get_run_config_entry("gpu_graph_id"))
            return session.run(names, feed, options)

    runner._graphs._session = Counting()
    plain = OnTheCpu(MODEL, Precision.FP32)
    for _ in range(2):
        np.testing.assert_array_equal(runner.infer(images(17)), plain.infer(images(17)))
    assert ran == ["-1", "-1"]


def test_the_device_is_the_one_that_was_chosen_and_is_chosen_in_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="`options`: device_id is chosen by `device`"):
        CudaRunner(MODEL, Precision.FP32, {"device_id": "1"})
    monkeypatch.setattr(CudaRunner, "_provider", "CPUExecutionProvider")  # which every onnxruntime has
    monkeypatch.setattr(onnxruntime_gpu, "why_no_cuda", lambda ordinal=0: f"no CUDA device {ordinal}")
    with pytest.raises(UnavailableError, match="no CUDA device 3"):
        CudaRunner(MODEL, Precision.FP32, ordinal=3)


def test_nvidias_variable_is_stronger_than_the_providers_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # so that it is restored
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    tf32 = {"use_tf32": "1"}
    assert [OnTheCpu(MODEL, Precision.FP32, options).tf32 for options in (None, tf32)] == [False, True]
    forbid_tf32()
    assert [OnTheCpu(MODEL, Precision.FP32, options).tf32 for options in (None, tf32)] == [False, False]


def test_weights_are_hashed_beside_the_file_only_where_they_lie_elsewhere(tmp_path: Path) -> None:
    onnx.save(conv_lrn_gemm(), tmp_path / "one.onnx")
    onnx.save(conv_lrn_gemm(), tmp_path / "two.onnx", save_as_external_data=True, location="w", size_threshold=0)
    empty = hashlib.sha256().hexdigest()
    for name, alone in (("one.onnx", True), ("two.onnx", False)):
        path = tmp_path / name
        assert (onnxruntime_gpu._key(path, load_onnx(path), {})["weights"] == empty) == alone


def test_threads_take_turns_at_a_graph() -> None:
    plain = OnTheCpu(MODEL, Precision.FP32)
    runner = OnTheCpu(MODEL, Precision.FP32, {"enable_cuda_graph": "1"})
    expected = [plain.infer(images(3, seed=seed)) for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not np.array_equal(runner.infer(images(3, seed=seed)), expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_fails_while_running_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = OnTheCpu(MODEL, Precision.FP32)
    text = "x.cc:154 T=void] CUDA failure 2: out of memory ; GPU=0 ; hostname=vm ; file=x.cc ; line=1"
    monkeypatch.setattr(runner, "_opened", SimpleNamespace(run=lambda *_: (_ for _ in ()).throw(RuntimeError(text))))
    with pytest.raises(UnavailableError, match=r"^CPUExecutionProvider: CUDA failure 2: out of memory$"):
        runner.infer(images(2))


@pytest.mark.parametrize("options", [{}, {"enable_cuda_graph": "1"}], ids=["plain", "graphs"])
def test_a_closed_runner_refuses_every_call(options: dict[str, str]) -> None:
    runner = OnTheCpu(MODEL, Precision.FP32, options)
    call = runner.device_call(images(2))
    call()
    runner.close()
    for late in (call, lambda: runner.infer(images(2)), lambda: runner.device_call(images(2))):
        with pytest.raises(UsageError, match="the runner is closed; load the file again"):
            late()


class ClosedMeanwhile(OnTheCpu):
    """Another thread closes it as soon as its graphs were looked at."""

    looked_at = 0
    armed = False

    @property
    def _graphs(self) -> Any:
        self.looked_at += self.armed
        return None if self.looked_at > 1 else self._kept

    @_graphs.setter
    def _graphs(self, graphs: Any) -> None:
        self._kept = graphs


@pytest.mark.parametrize("ask", ["infer", "device_call"])
def test_closing_it_between_two_looks_at_the_graphs_is_no_failure(ask: str) -> None:
    runner = ClosedMeanwhile(MODEL, Precision.FP32, {"enable_cuda_graph": "1"})
    runner.armed = True
    getattr(runner, ask)(images(2))
    assert runner.looked_at == 1


class Failing:
    """In place of a session, from the moment that a fault is set on."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.fault, self.calls = "", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        self.calls += 1
        if self.fault:
            raise RuntimeError(self.fault)
        self._session.run_with_iobinding(*arguments)


@pytest.mark.parametrize("options", [{}, {"enable_cuda_graph": "1"}], ids=["plain", "graphs"])
def test_a_call_on_the_device_tells_of_a_fault_and_the_next_one_is_refused_at_once(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = OnTheCpu(MODEL, Precision.FP32, options)
    session: Any = Failing(runner._session)
    monkeypatch.setattr(runner, "_opened", session)
    if runner._graphs:
        monkeypatch.setattr(runner._graphs, "_session", session)
    call = runner.device_call(images(2))
    call()
    session.fault = "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR"
    with pytest.raises(UnavailableError, match="CUDNN_STATUS_INTERNAL_ERROR"):
        call()
    session.fault = "x.cc:154 CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=vm"
    with pytest.raises(DeviceLostError, match=r"CUDA failure 700: .*encountered; the GPU is lost.*start it again"):
        call()
    calls = session.calls
    for later in (call, lambda: runner.infer(images(2)), lambda: runner.device_call(images(2))):
        with pytest.raises(DeviceLostError, match="CUDA failure 700"):
            later()
    assert session.calls == calls, "CUDA is not asked any more"


class TensorRtOnTheCpu(TensorRtProviderRunner):
    _provider, _device = "CPUExecutionProvider", "cpu"

    def _check_available(self) -> None:
        pass

    def _check_placement(self) -> None:
        pass

    def _session_options(self) -> ort.SessionOptions:
        return ort.SessionOptions()


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TensorRtProviderRunner]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnxruntime_gpu, "tensorrt_version", lambda: "101601")

    def opened(model: onnx.ModelProto | bytes, **more: Any) -> TensorRtProviderRunner:
        return TensorRtOnTheCpu(
            model if isinstance(model, bytes) else model.SerializeToString(), Precision.FP32, **more
        )

    return opened


def test_the_profile_is_the_models_at_the_batches_asked_for(opened: Callable[..., TensorRtProviderRunner]) -> None:
    runner = opened(MODEL, ordinal=1, batches=Profile((2,), (8,), (12,)))
    options = runner._provider_options
    assert options["device_id"] == "1"
    assert [options[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")] == [
        "input:1x3x8x8",
        "input:8x3x8x8",
        "input:12x3x8x8",
    ]
    sizes: list[int] = []
    run = runner._run_piece

    def counted(piece: Array, names: list[str]) -> Any:
        sizes.append(len(piece))
        return run(piece, names)

    runner._run_piece = counted  # type: ignore[method-assign]
    np.testing.assert_allclose(runner.infer(images(30)), opened(MODEL).infer(images(30)), rtol=1e-5, atol=1e-6)
    assert sizes == [12, 12, 6]


@pytest.mark.parametrize(
    ("model", "options", "kept"),
    [
        (renamed([4, 3, 8, 8]), {}, True),  # nothing is open
        (renamed(["batch", 3, "height", 8]), {}, False),  # without a contract that tells the height
        (renamed(["batch", 3, 8, 8], "input:0"), {}, False),  # a name that the provider would misread
        (conv_lrn_gemm(), {"trt_engine_cache_enable": "0"}, False),
    ],
)
def test_where_there_is_no_profile_to_tell(
    opened: Callable[..., TensorRtProviderRunner], model: onnx.ModelProto, options: dict[str, str], kept: bool
) -> None:
    found = opened(model, options=options)._provider_options
    assert ("trt_profile_max_shapes" in found) == bool(options)
    assert (found.get("trt_engine_cache_enable") == "1") == kept


def test_a_profile_of_ones_own_is_left_alone(opened: Callable[..., TensorRtProviderRunner]) -> None:
    own = {f"trt_profile_{bound}_shapes": "input:3x3x8x8" for bound in ("min", "opt", "max")}
    assert own.items() <= opened(MODEL, options=own)._provider_options.items()


def test_a_graph_that_the_provider_would_repeat_for_every_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="trt_cuda_graph_enable the provider captures the first batch"):
        TensorRtProviderRunner(MODEL, Precision.FP32, {"trt_cuda_graph_enable": "1"})


def test_a_compiled_engine_in_an_onnx_file_is_not_run(opened: Callable[..., TensorRtProviderRunner]) -> None:
    model = conv_lrn_gemm()
    del model.graph.node[:]
    model.graph.node.append(onnx.helper.make_node("EPContext", ["input"], ["logits"], "all", domain="com.microsoft"))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(InputError, match=r"holds a compiled engine \(EPContext\)"):
        opened(model)


def engines(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.engine") if "partial" not in str(path))


def write(options: dict[str, str], content: bytes = b"an engine") -> None:
    """What the provider does on building."""
    Path(options["trt_engine_cache_path"], "graph_1_sm89.engine").write_bytes(content)
    Path(options["trt_timing_cache_path"], "cache_sm89.timing").write_bytes(content)


def write_and_fail(options: dict[str, str]) -> None:
    write(options)
    raise RuntimeError


def test_an_engine_is_kept_whole_and_used_only_as_it_was(tmp_path: Path) -> None:
    with engine_cache(tmp_path, {"weights": "a"}, "L4") as options:
        assert engines(tmp_path) == []
        write(options)
    (kept,) = engines(tmp_path)
    with engine_cache(tmp_path, {"weights": "a"}, "L4") as options:
        assert Path(options["trt_engine_cache_path"]) == kept.parent
    with engine_cache(tmp_path, {"weights": "b"}, "L4") as options:
        assert not list(Path(options["trt_engine_cache_path"]).glob("*.engine"))
        assert Path(options["trt_timing_cache_path"], "cache_sm89.timing").read_bytes() == b"an engine"
    with engine_cache(tmp_path, {"weights": "b"}, "A100") as options:
        assert not list(Path(options["trt_timing_cache_path"]).iterdir())
    kept.write_bytes(b"half an en")
    with engine_cache(tmp_path, {"weights": "a"}, "L4") as options:
        assert Path(options["trt_engine_cache_path"]) != kept.parent
        write(options, b"another")
    assert [path.read_bytes() for path in engines(tmp_path)] == [b"another"]
    with pytest.raises(RuntimeError), engine_cache(tmp_path, {"weights": "c"}, "L4") as options:
        write_and_fail(options)
    assert len(engines(tmp_path)) == 1
    assert not list(tmp_path.glob(".partial*"))
    for name, days in (("old", 2), ("new", 0.5)):  # of processes that were killed, or still build
        (tmp_path / f".partial-{name}").mkdir()
        write({f"trt_{kind}_cache_path": str(tmp_path / f".partial-{name}") for kind in ("engine", "timing")})
        os.utime(tmp_path / f".partial-{name}", (time.time() - days * 86400,) * 2)
    with engine_cache(tmp_path, {"weights": "d"}, "L4"):
        assert not (tmp_path / ".partial-old").exists()
    assert (tmp_path / ".partial-new").exists()


def test_other_weights_under_the_same_names_get_another_engine(
    opened: Callable[..., TensorRtProviderRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider itself would take the old one: it looks at names alone."""
    start = TensorRtProviderRunner._start

    def building(runner: TensorRtProviderRunner, options: ort.SessionOptions) -> ort.InferenceSession:
        if not list(Path(runner._provider_options["trt_engine_cache_path"]).glob("*.engine")):
            write(runner._provider_options)
        return start(runner, options)

    monkeypatch.setattr(TensorRtProviderRunner, "_start", building)
    for model in (conv_lrn_gemm(0), conv_lrn_gemm(1), conv_lrn_gemm(0)):
        opened(model)
    assert len(engines(tmp_path)) == 2
    path = tmp_path / "model.onnx"
    onnx.save(conv_lrn_gemm(0), path, save_as_external_data=True, location="weights", size_threshold=0)
    TensorRtOnTheCpu(path, Precision.FP32)
    assert len(engines(tmp_path)) == 3
    (tmp_path / "weights").write_bytes(bytes((tmp_path / "weights").stat().st_size))
    TensorRtOnTheCpu(path, Precision.FP32)
    assert len(engines(tmp_path)) == 4


def test_an_onnx_file_runs_on_cuda_where_that_is_installed_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    file = OnnxArtifact(MODEL)
    first: list[str] = [file.runtimes[0]]
    monkeypatch.setattr(artifact, "cuda_is_here", lambda: True)
    first.append(file.runtimes[0])
    assert sorted(file.runtimes) == sorted(name for name, entry in RUNTIMES.items() if entry.kind == "onnx")
    monkeypatch.setattr(OnnxArtifact, "precision", Precision.INT8)
    assert [*first, file.runtimes[0]] == ["onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-cpu"]
