"""What stands in a repository, that it is whole or not there, and that a check sees what was changed in it."""

from __future__ import annotations

import errno
import gc
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from alexdeploy import files, locks, publish
from alexdeploy.errors import AlexdeployError, GateError, InputError, UnavailableError, UsageError
from alexdeploy.runners.artifact import EngineArtifact
from alexdeploy.specs import Profile
from alexdeploy.triton import publish as room
from alexdeploy.triton.golden import draw_images, network_inputs, read_golden
from alexdeploy.triton.repository import check_repository, versions_of
from tests.helpers.graphs import conv_lrn_gemm, run
from tests.unit.runners.test_close import with_large_weights
from tests.unit.triton.conftest import CONTRACT, save

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*slow kernel")  # tests/cli/test_publish.py wants it

IMAGE_MODELS = ("net-decode", "net-label", "net-image")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models" / "repository"


@pytest.fixture(autouse=True)
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its inode and the time of its last change in nanoseconds."""
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items() if not name.endswith("repository")}


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_graph_with_the_models_around_it(model: Path, root: Path) -> None:
    done = publish(model, root, image=True)
    assert (done.name, done.version, done.models) == ("net", 1, ("net", *IMAGE_MODELS))
    assert files_of(root) == {
        *("net/config.pbtxt", "net/labels.txt", "net/warmup/image"),
        *("net/1/model.onnx", "net/1/model.py", "net/1/golden.safetensors", "net/1/golden.safetensors.json"),
        *("net-decode/config.pbtxt", "net-decode/1/model.py", "net-decode/warmup/image"),
        *("net-label/config.pbtxt", "net-label/1/model.py", "net-image/config.pbtxt"),
        *(f"{name}/1/__pycache__" for name in ("net", "net-decode", "net-label")),
    }
    assert (root / "net-image" / "1").is_dir()  # a model without a version is not loaded
    assert [*root.parent.iterdir()] == [root]
    assert (root / "net/1/model.onnx").read_bytes() == model.read_bytes()
    assert (root / "net/labels.txt").read_text().splitlines() == [*CONTRACT.labels]
    classes = {
        name: (root / name / "1/model.py").read_text().split()[-3] for name in ("net", "net-decode", "net-label")
    }
    assert classes == {"net": "Network", "net-decode": "Decode", "net-label": "Label"}
    encoded = draw_images()[0]
    assert (root / "net-decode/warmup/image").read_bytes() == struct.pack("<I", len(encoded)) + encoded
    warm_up = np.frombuffer((root / "net/warmup/image").read_bytes(), "<f4").reshape(3, 8, 8)
    np.testing.assert_array_equal(warm_up, network_inputs((encoded,), CONTRACT)[0])


def test_golden_answers_are_those_of_the_graph(model: Path, root: Path) -> None:
    done = publish(model, root)
    golden = read_golden(root / "net/1")
    (logits,) = run(conv_lrn_gemm(), golden.inputs)
    assert golden.logits is not None
    np.testing.assert_allclose(golden.logits, logits, rtol=1e-4, atol=1e-5)
    assert golden.about.labels == tuple(CONTRACT.labels[best] for best in logits.argmax(axis=1)) == done.answers
    assert (golden.about.runtime, golden.about.precision, golden.about.image) == ("onnxruntime-cpu", "fp32", False)
    assert golden.about.artifact_sha256 == files.sha256_file(model)
    assert files.load_sidecar(root / "net/1/golden.safetensors").parents == (files.parent(model),)


@pytest.mark.parametrize(("backend", "place"), [(None, "net/1"), ("onnxruntime", "net/1/model.onnx")])
def test_external_weights_go_along(tmp_path: Path, root: Path, backend: str | None, place: str) -> None:
    save(tmp_path / "whole.onnx")
    (tmp_path / "apart").mkdir()
    whole = onnx.load(tmp_path / "whole.onnx")
    onnx.save(whole, tmp_path / "apart/net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    publish(tmp_path / "apart/net.onnx", root, backend=backend)
    assert (root / place / "weights.bin").read_bytes() == (tmp_path / "apart/weights.bin").read_bytes()
    assert (root / place / "model.onnx").is_file()
    assert (root / "net/1/model.py").exists() == (backend is None)
    check_repository(root, "net")


def test_an_engine_goes_with_its_sidecar_and_without_answers_where_nothing_runs_it(
    engine: Callable[..., Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_here(*_: object, **__: object) -> None:
        raise UnavailableError("no GPU")

    monkeypatch.setattr(EngineArtifact, "runner", nothing_here)
    done = publish(engine(), root, image=True)
    assert (done.served.builder, done.answers, done.unanswered) == ("tensorrt 10.16.1.11", (), "no GPU")
    assert files_of(root / "net/1") == {
        *("model.plan", "model.plan.json", "golden.safetensors", "golden.safetensors.json"),
    }
    files.read_sidecar(root / "net/1/model.plan", "engine")
    golden = read_golden(root / "net/1")
    assert (golden.logits, golden.about.labels, golden.about.runtime) == (None, (), "")
    assert golden.inputs.dtype == np.float16
    assert (root / "net/warmup/image").stat().st_size == 3 * 8 * 8 * 2


def test_another_version_changes_nothing_that_is_served(model: Path, root: Path, tmp_path: Path) -> None:
    publish(model, root, image=True, instances=2, max_batch=8, max_delay_us=100)
    before = tree(root)
    other = save(tmp_path / "better.onnx", conv_lrn_gemm(seed=1))
    done = publish(other, root, name="net", image=True)
    assert (done.version, done.models) == (2, ("net",))
    assert (done.settings.instances, done.settings.max_batch, done.settings.max_delay_us) == (2, 8, 100)
    after = tree(root)
    assert {name for name in after if after[name] != before.get(name)} == {
        "net",  # the folder has one entry more
        *("net/2", "net/2/model.onnx", "net/2/model.py", "net/2/__pycache__"),
        *("net/2/golden.safetensors", "net/2/golden.safetensors.json"),
    }
    assert before.keys() < after.keys()
    assert publish(other, root, name="net", version=7).version == 7
    assert publish(other, root, name="net").version == 8
    check_repository(root, "net")


def test_a_version_that_the_ensemble_of_the_others_does_not_fit_is_refused(
    model: Path, root: Path, tmp_path: Path
) -> None:
    publish(model, root, image=True)
    proto = conv_lrn_gemm()
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"]))
    before = tree(root)
    with pytest.raises(UsageError, match=r"'net-label' is published with .*ends_in_softmax.*, there false, here true"):
        publish(save(tmp_path / "shares.onnx", proto), root, name="net")
    assert tree(root) == before


def test_what_a_killed_publish_left_is_removed_and_what_one_works_in_is_not(model: Path, root: Path) -> None:
    left, used = (root.parent / f".repository.{locks.system()}{end}.partial" for end in ("abcd0123", "efgh4567"))
    left.mkdir()
    (left / "model.onnx").touch()

    def create() -> Path:
        used.mkdir()
        return used

    with locks.held(create):
        publish(model, root)
    assert not left.exists()
    assert used.exists()


@pytest.mark.parametrize("location", ["model.onnx", "model.py", "golden.safetensors", "model.onnx.json"])
def test_weights_of_a_name_that_is_needed_are_refused(tmp_path: Path, root: Path, location: str) -> None:
    (tmp_path / "apart").mkdir()
    whole, path = onnx.load(save(tmp_path / "whole.onnx")), tmp_path / "apart/net.onnx"
    onnx.save(whole, path, save_as_external_data=True, location=location, size_threshold=0)
    with pytest.raises(UsageError, match=rf"apart/net.onnx: holds its weights in '{location}', a name that is needed"):
        publish(path, root)


def test_folders_that_triton_takes_for_no_version_are_none(tmp_path: Path) -> None:
    for name in ("2", "10", "01", "0", "-1", ".3", "warmup"):
        (tmp_path / name).mkdir()
    (tmp_path / "4").write_text("a file")
    assert versions_of(tmp_path) == [2, 10]


def other_contract(path: Path) -> Path:
    return save(path / "other.onnx", contract=msgspec.structs.replace(CONTRACT, labels=("dog", "bee", "cat", "ant")))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"version": 1}, "`version` 1: 'net' has it, and .* is not overwritten; 2 is free"),
        ({"version": 0}, "`version` 0: expected 1 to 9223372036854775807"),
        ({"version": 2**63}, "`version` 9223372036854775808: expected 1 to"),
        ({"max_batch": 8}, "`max_batch` 8: 'net' is published with 32, and its versions share"),
        ({"instances": 0}, "`instances` 0: expected 1 to 2147483647"),
        ({"max_batch": 2**31}, "`max_batch` 2147483648: expected 1 to"),
        ({"max_delay_us": -1}, "`max_delay_us` -1: expected 0 to"),
        ({"max_batch": 1_398_102}, "`max_batch` 1398102: 'net' is published with 32"),
        ({"name": "new", "max_batch": 1_398_102}, "1398102: one batch would take more than 1 GiB; .* at most 1398101"),
        ({"backend": "onnxruntime"}, "'net' is published with .*: platform, there missing, here onnxruntime_onnx"),
        ({"backend": "openvino"}, "`backend` openvino: does not run .*net.onnx; leave it out for python"),
        *(
            ({"name": f"net-{end}"}, f"`name` 'net-{end}': -{end} is the end of a model beside a network's")
            for end in ("decode", "label", "image")
        ),
        ({"name": "n" * 201}, "`name` 'n{40}…': expected at most 200 letters"),
        ({"name": "foreign"}, r"foreign: is there and has no config\.pbtxt"),
        *(
            ({"name": name}, "`name` '.*': expected at most 200 letters")
            for name in ("", ".net", "a/b", "..", "a b", "net\n", "né")
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    model: Path, root: Path, settings: dict[str, Any], text: str
) -> None:
    publish(model, root, image=True)
    (root / "foreign").mkdir()
    before = tree(root.parent)
    with pytest.raises(UsageError, match=text):
        publish(model, root, **settings)
    assert tree(root.parent) == before


def test_other_class_names_need_another_model(model: Path, root: Path, tmp_path: Path) -> None:
    publish(model, root)
    with pytest.raises(UsageError, match="its versions share: its contract or class names, there"):
        publish(other_contract(tmp_path), root, name="net")


def test_a_foreign_model_of_the_ensemble_s_name_is_left_alone(model: Path, root: Path) -> None:
    (root / "net-image").mkdir(parents=True)
    (root / "net-image/config.pbtxt").write_text('name: "net-image" backend: "dali"')
    before = tree(root.parent)
    with pytest.raises(UsageError, match="'net-image' is published with another configuration"):
        publish(model, root, image=True)
    assert tree(root.parent) == before


def test_batches_beyond_the_profile_are_refused(engine: Callable[..., Path], root: Path) -> None:
    with pytest.raises(UsageError, match="`max_batch` 65: the engine takes batches of 1:8:64; choose at most 64"):
        publish(engine(), root, max_batch=65)


def test_checkpoints_and_no_folders_are_refused(tmp_path: Path, model: Path, root: Path) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    with pytest.raises(UsageError, match="export it first"):
        publish(tmp_path / "net.pth", root)
    with pytest.raises(UsageError, match="it is a file; name a folder"):
        publish(model, model)
    with pytest.raises(UsageError, match=r"folder '.*repository/deeper' does not exist; create it first"):
        publish(model, root / "deeper" / "still")
    assert not root.exists()


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("step", ["_copy", "_write_image_model", "check_repository"])
def test_a_stop_at_any_step_leaves_nothing(
    model: Path, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, stop: BaseException
) -> None:
    real = getattr(room, step)

    def then_stop(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        raise stop

    monkeypatch.setattr(room, step, then_stop)
    with pytest.raises(type(stop)):
        publish(model, root, image=True)
    assert [*root.parent.iterdir()] == []


def test_models_appear_whole_in_the_order_in_which_a_server_can_load_them(
    model: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Path.rename, []

    def rename(source: Path, target: Path) -> Path:
        seen.append((target.name, files_of(root), files_of(source)))
        return real(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    publish(model, root, image=True)
    assert [name for name, _, _ in seen] == ["net", *IMAGE_MODELS]
    for name, before, moved in seen:
        assert not any(path.startswith(f"{name}/") for path in before)
        assert {f"{name}/{path}" for path in moved} == {p for p in files_of(root) if p.startswith(f"{name}/")}


def test_a_rename_that_fails_takes_the_others_back(model: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(source: Path, target: Path) -> Path:
        if target.name == "net-label":
            raise OSError(errno.EACCES, "Permission denied")
        return real(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UsageError, match="net-label: Permission denied; nothing was published"):
        publish(model, root, image=True)
    assert [*root.parent.rglob("*")] == [root]


def plant(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "text"),
    [
        ("net", "dims: 4", "dims: 5", r"^net: config.pbtxt: output\[0\].dims is \[5\], expected \[4\], as version 1 "),
        ("net", "dims: 8", "dims: 9", r"net: .*input\[0\].dims is \[3, 9, 8\], expected \[3, 8, 8\]"),
        ("net", 'name: "logits"', 'name: "scores"', r"net: .*output\[0\].name is scores, expected logits"),
        ("net", "TYPE_FP32", "TYPE_FP16", r"net: .*input\[0\].data_type is TYPE_FP16, expected TYPE_FP32"),
        ("net", "onnxruntime-cpu", "openvino", r"net: .*parameters.runtime.* is openvino, expected onnxruntime-cpu"),
        (
            "net-decode",
            "0.25",
            "0.5",
            r"net-decode: .*contract.std is \(0.5, 0.25, 0.25\), expected \(0.25, 0.25, 0.25\)",
        ),
        ("net-label", "false", "true", "net-label: .*ends_in_softmax.* is true, expected false"),
        ("net-image", "network_output", "lost", "net-image: .*ensemble_scheduling"),
        ("net-image", "max_batch_size: 32", "max_batch_size: 64", "net-image: .*max_batch_size is 64, expected 32"),
    ],
)
def test_a_wrong_configuration_is_named(model: Path, root: Path, file: str, old: str, new: str, text: str) -> None:
    publish(model, root, image=True)
    check_repository(root, "net")
    plant(root / file / "config.pbtxt", old, new)
    with pytest.raises(GateError, match=text):
        check_repository(root, "net")


def test_wrong_labels_versions_and_batches_are_named(
    model: Path, engine: Callable[..., Path], root: Path, tmp_path: Path
) -> None:
    publish(model, root)
    plant(root / "net/labels.txt", "ant\nbee", "bee\nant")
    with pytest.raises(GateError, match=r"net: labels.txt does not hold the class names of version 1"):
        check_repository(root, "net")
    plant(root / "net/labels.txt", "bee\nant", "ant\nbee")
    other_contract(tmp_path).replace(root / "net/1/model.onnx")
    with pytest.raises(GateError, match=r"net: .*metric_tags.contract is .*, as version 1 demands"):
        check_repository(root, "net")
    publish(engine(shapes={"pixels": Profile.parse("1:1:16").with_sizes((3, 8, 8))}), root, name="plan")
    plant(root / "plan/config.pbtxt", "max_batch_size: 16", "max_batch_size: 17")
    with pytest.raises(GateError, match="plan: max_batch_size is 17, and the engine of version 1 takes at most 16"):
        check_repository(root, "plan")


@pytest.mark.parametrize(
    ("gone", "kind", "text"),
    [
        ("net/config.pbtxt", InputError, "no such file"),
        ("net-label/config.pbtxt", InputError, "no such file"),
        ("net/1/model.onnx", GateError, "holds none of model.onnx"),
        ("net/labels.txt", GateError, "labels.txt does not hold"),
    ],
)
def test_a_missing_file_is_named(model: Path, root: Path, gone: str, kind: type[AlexdeployError], text: str) -> None:
    publish(model, root, image=True)
    (root / gone).unlink()
    with pytest.raises(kind, match=text):
        check_repository(root, "net")


def test_a_model_without_a_version_is_none(root: Path, model: Path) -> None:
    publish(model, root)
    (root / "net/1").rename(root / "net/warmup/1")
    with pytest.raises(GateError, match="has no version"):
        check_repository(root, "net")


def test_no_graph_stays_mapped(models: Path, root: Path) -> None:
    """A graph is a circle of references, so that only its release, or the garbage collector, lets go of its file."""
    path = save(models / "net.onnx", with_large_weights())
    gc.collect()
    gc.disable()
    try:
        publish(path, root)
        with pytest.raises(UsageError, match="not overwritten"):
            publish(path, root, version=1)
        check_repository(root, "net")
        assert str(models) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
