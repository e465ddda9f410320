"""Files of weights as training scripts leave them: where the state dict is, and what is refused instead of run."""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import os
import pathlib
import pickle
import shutil
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from alexdeploy.errors import InputError, InputWarning, UsageError
from alexdeploy.zoo.checkpoint import load_checkpoint, save_checkpoint, untrained

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return dict(untrained("lenet", 10, seed=0).model.state_dict())


def assert_loads(path: Path, expected: Weights) -> None:
    found = load_checkpoint(path, "lenet").model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


WRAPPED: dict[str, Callable[[Weights], dict[str, Tensor]]] = {
    "DataParallel": prefixed("module."),
    "compile": prefixed("_orig_mod."),
    "Lightning": prefixed("model."),
    "several": prefixed("_orig_mod.model.module.net._orig_mod."),
    "a part": lambda weights: {name.replace("features.", "features.module."): t for name, t in weights.items()},
    "AveragedModel": lambda weights: {"n_averaged": torch.tensor(7), **prefixed("module.")(weights)},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("save", [torch.save, safetensors.torch.save_file], ids=["torch", "safetensors"])
def test_what_is_wrapped_around_the_network_is_left_out_of_its_names(
    save: Callable[[Weights, Path], None], wrap: Callable[[Weights], Weights], weights: Weights, tmp_path: Path
) -> None:
    save(wrap(weights), tmp_path / "net.pth")
    assert_loads(tmp_path / "net.pth", weights)


KEYS = ["state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "ema", "model_ema", "netG"]


@pytest.mark.parametrize("key", [*KEYS, "model.state_dict"])
def test_a_state_dict_is_found_where_training_scripts_put_it(key: str, weights: Weights, tmp_path: Path) -> None:
    content: Any = weights
    for part in reversed(key.split(".")):
        content = {"epoch": 3, "loss": torch.tensor(0.5), part: content, "optimizer": {"state": {0: {"step": 1}}}}
    torch.save(content, tmp_path / "last.tar")
    assert_loads(tmp_path / "last.tar", weights)


def test_the_only_state_dict_is_found_at_any_depth_beside_an_optimizer_s(weights: Weights, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    adam = {"state": {0: {"exp_avg": torch.zeros(2)}}}
    torch.save({"trainer": {"engine": {"cnn": weights, "adam": adam}, "optimizer": optimizer}}, tmp_path / "a.pth")
    assert_loads(tmp_path / "a.pth", weights)


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("state_dict_ema", "state_dict")])
def test_averaged_weights_are_taken_before_plain_ones_and_named(
    keys: tuple[str, str], weights: Weights, tmp_path: Path
) -> None:
    averaged = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({key: averaged if "ema" in key else weights for key in keys}, tmp_path / "last.pth")
    with pytest.warns(InputWarning, match="took the averaged weights, '.*ema'"):
        assert_loads(tmp_path / "last.pth", averaged)


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_a_lightning_checkpoint_loads_and_nothing_of_its_objects_is_run(weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    torch.save(
        {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("net.")(weights),
            "hyper_parameters": {
                "optimizer": functools.partial(torch.optim.Adam, lr=0.1),
                "folder": pathlib.Path("runs"),
                "options": argparse.Namespace(width=8),
                "steps": defaultdict(list, {"a": [1]}),
                "harmful": Runs(shutil.copyfile, str(tmp_path / "source"), str(tmp_path / "trace")),
            },
        },
        tmp_path / "epoch=3.ckpt",
    )
    assert_loads(tmp_path / "epoch=3.ckpt", weights)
    assert not (tmp_path / "trace").exists()


def test_a_call_into_the_system_is_refused(weights: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "x": Runs(os.mkdir, str(tmp_path / "trace"))}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: holds Python objects besides weights"):
        load_checkpoint(tmp_path / "a.pth", "lenet")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, weights: Weights, tmp_path: Path) -> None:
    other = {name: nn.Parameter(tensor.to(dtype)) for name, tensor in weights.items()}
    torch.save(other, tmp_path / "half")
    assert_loads(tmp_path / "half", {name: tensor.detach().float() for name, tensor in other.items()})


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth.tar", "a.pkl", "a", "a.safetensors", "a.npy"])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_the_kind_of_a_file_is_told_by_its_content(name: str, kind: str, weights: Weights, tmp_path: Path) -> None:
    if kind == "safetensors":
        safetensors.torch.save_file(weights, tmp_path / name)
    else:
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=kind == "zip")
    assert_loads(tmp_path / name, weights)


def save_program(model: nn.Module, path: Path) -> None:
    torch.jit.trace(model, torch.zeros(1, 1, 28, 28)).save(str(path))  # type: ignore[no-untyped-call]


WHOLE: dict[str, Callable[[nn.Module, Path], None]] = {
    "module": torch.save,
    "old format": lambda model, path: torch.save(model, path, _use_new_zipfile_serialization=False),
    "inside a checkpoint": lambda model, path: torch.save({"epoch": 3, "model": model, "ema": None}, path),
    "TorchScript": save_program,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("save", WHOLE.values(), ids=WHOLE)
def test_the_lines_that_the_refusal_of_a_whole_module_gives_make_a_state_dict(
    save: Callable[[nn.Module, Path], None], weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(untrained("lenet", 10, seed=0).model, Path("whole.pkl"))
    with pytest.raises(InputError, match=r"whole\.pkl: ") as refused:
        load_checkpoint(Path("whole.pkl"), "lenet")
    exec(str(refused.value).partition("in Python: ")[2], {"torch": torch})
    assert_loads(Path("weights.pth"), weights)


CIRCLE: dict[str, Any] = {}
CIRCLE.update({"model": CIRCLE, "net": CIRCLE})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"epoch": 3, "optimizer": {"state": {}}}, "expected a state dict .*, found 'epoch', 'optimizer'; save"),
        ({"netG": {"w": torch.zeros(1)}, "netD": {"w": torch.zeros(1)}}, r"several state dicts \(netG, netD\)"),
        ({}, "found nothing"),
        ({"fc.weight": "?"}, "found 'fc.weight' that hold no tensors"),
        (
            {"a": {"backbone": {"w": torch.zeros(1)}, "head": {"b": torch.zeros(1)}}, "epoch": 3},
            r"several state dicts \(a\.backbone, a\.head\); .*parts of one network, join them",
        ),
        (CIRCLE, "expected a state dict .*, found 'model', 'net'"),
        ([torch.zeros(3)], "expected a state dict .*, found a list"),
    ],
)
def test_what_holds_no_state_dict_is_named_by_its_keys(content: Any, complaint: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth: .*{complaint}"):
        load_checkpoint(tmp_path / "a.pth", "lenet")


def test_the_lines_that_the_refusal_of_numpy_s_arrays_gives_make_a_state_dict(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({name: tensor.numpy() for name, tensor in weights.items()}, Path("arrays.pth"))
    with pytest.raises(InputError, match=r"arrays\.pth: 'features.0.weight', .* are NumPy's arrays") as refused:
        load_checkpoint(Path("arrays.pth"), "lenet")
    exec(str(refused.value).partition("in Python: ")[2], {"torch": torch})
    assert_loads(Path("weights.pth"), weights)


BESIDE: dict[str, tuple[Callable[[Weights], dict[str, Any]], str]] = {
    "numbers": (lambda weights: {**weights, "epoch": 3, "arch": "lenet", "note": None}, ""),
    "thop": (lambda weights: {**weights, "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)}, ""),
    "loss": (
        lambda weights: {"state_dict": {**prefixed("net.")(weights), "criterion.weight": torch.ones(10)}},
        "left out what is beside the network: criterion.weight",
    ),
    "metric": (
        lambda weights: {**prefixed("module.net.")(weights), "module.top1.total": torch.tensor(3)},
        "left out what is beside the network: module.top1.total",
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_training_leaves_beside_the_weights_is_no_part_of_them(
    case: str, weights: Weights, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    make, told = BESIDE[case]
    torch.save(make(weights), tmp_path / "net.pth")
    assert_loads(tmp_path / "net.pth", weights)
    assert told in " ".join(str(warning.message) for warning in recwarn) if told else not recwarn


@pytest.mark.parametrize(
    "more",
    [
        lambda weights: {**weights, "attention.weight": torch.ones(3)},
        lambda weights: {**prefixed("net.")(weights), "net.attention.weight": torch.ones(3)},
        lambda weights: {**prefixed("student.")(weights), **prefixed("teacher.")(weights)},
    ],
    ids=["beside its layers", "inside", "two networks"],
)
def test_layers_that_the_network_lacks_are_never_left_out(
    more: Callable[[Weights], Weights], weights: Weights, tmp_path: Path
) -> None:
    torch.save(more(weights), tmp_path / "net.pth")
    with pytest.raises(InputError, match="not part of the network: "):
        load_checkpoint(tmp_path / "net.pth", "lenet")


def spoilt(weights: Weights) -> Weights:
    features = weights["features.3.weight"].clone()
    features[3, :2, 0, 0] = torch.nan
    return {**weights, "features.3.weight": features}


ODD: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "NaN": (spoilt, r"lenet': features\.3\.weight holds 2 values that are NaN or infinite \(of 2400\)"),
    "overflow": (
        lambda weights: {name: (1e6 * tensor).half() for name, tensor in weights.items()},
        "features.0.weight holds .* NaN or infinite",
    ),
    "whole numbers": (
        lambda weights: {name: (100 * tensor).char() for name, tensor in weights.items()},
        "features.0.weight has type int8, expected floating point",
    ),
    "complex": (lambda weights: {name: tensor + 0j for name, tensor in weights.items()}, "is complex"),
    "sparse": (lambda weights: {name: tensor.to_sparse() for name, tensor in weights.items()}, "is sparse"),
    "meta": (lambda weights: {name: tensor.to("meta") for name, tensor in weights.items()}, r"without values \(meta\)"),
    "TensorFlow's layout": (
        lambda weights: {
            name: tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.t() for name, tensor in weights.items()
        },
        "and 3 more; they are in TensorFlow's layout",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_weights_that_cannot_be_used_are_named_with_the_reason(case: str, weights: Weights, tmp_path: Path) -> None:
    make, complaint = ODD[case]
    torch.save(make(weights), tmp_path / "net.pth")
    with pytest.raises(InputError, match=complaint):
        load_checkpoint(tmp_path / "net.pth", "lenet")


def test_the_nearest_network_is_named_with_its_distance(weights: Weights, tmp_path: Path) -> None:
    torch.save({**weights, "features.0.bias": torch.zeros(7)}, tmp_path / "net.pth")
    nearest = "; nearest: lenet, 4 of whose 4 weights before the last layer fit one in the file"
    with pytest.raises(InputError, match=f"features.1.weight is missing .*{nearest}"):
        load_checkpoint(tmp_path / "net.pth", "mnist-cnn")
    with pytest.raises(InputError, match=r"features\.0\.bias has shape \(7,\), expected \(6,\)$"):
        load_checkpoint(tmp_path / "net.pth", "lenet")
    with pytest.raises(UsageError, match=f"does not say which network it is.*{nearest}"):
        load_checkpoint(tmp_path / "net.pth")


def test_no_network_is_called_near_that_has_little_in_common(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3), nn.Conv2d(128, 256, 5), nn.Linear(256, 10))
    torch.save(other.state_dict(), tmp_path / "net.pth")  # two of its weights are as those of vgg16
    none = "; no network of the zoo is near it; a network of your own is exported as MODULE:FACTORY$"
    with pytest.raises(InputError, match=f"lenet': .*{none}"):
        load_checkpoint(tmp_path / "net.pth", "lenet")
    with pytest.raises(UsageError, match=none):
        load_checkpoint(tmp_path / "net.pth")


def zip_of(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def tar_of(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file, as Keras writes; .* adopt"),
        (gzip.compress(b"x"), "compressed by gzip; unpack"),
        (tar_of("net.pth"), "a tar archive; unpack"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "pointer of Git LFS; .*git lfs pull"),
        (b"\n\n<!doctype html>", "page of HTML"),
        (b'{"message": "Not Found"}', "JSON text"),
        (onnx.ModelProto(ir_version=9, producer_name="pytorch").SerializeToString(), "an ONNX file, it seems"),
        (zip_of("model.weights.h5", "config.json"), "a zip file of Keras"),
        (zip_of("a.npy", "b.npy"), "an archive of NumPy"),
        (zip_of("runs/best.pth"), "unpacked first; it holds runs/best.pth"),
        (pickle.dumps({"a": np.zeros(3)}), "pickle that torch.save did not write, whose code is not run"),
        (bytes(600), "begins with .*copy or download it again"),
    ],
    ids=["hdf5", "gzip", "tar", "lfs", "html", "json", "onnx", "keras", "npz", "zip", "pickle", "zeros"],
)
def test_a_file_of_another_kind_is_called_by_its_name(data: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "net.pth").write_bytes(data)
    with pytest.raises(InputError, match=rf"net\.pth: .*{complaint}"):
        load_checkpoint(tmp_path / "net.pth", "lenet")


def test_a_folder_whose_name_is_no_utf_8_holds_weights_too(weights: Weights, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xbb\xa8"))
    folder.mkdir()
    save_checkpoint(folder / "net.safetensors", untrained("lenet", 10, seed=0))
    found = load_checkpoint(folder / "net.safetensors")
    assert (found.recipe.network.name, found.classes) == ("lenet", 10)
    assert_loads(folder / "net.safetensors", weights)
    (folder / "cut.safetensors").write_bytes((folder / "net.safetensors").read_bytes()[:99])
    with pytest.raises(InputError, match=r"cut\.safetensors: not a safetensors file"):
        load_checkpoint(folder / "cut.safetensors", "lenet")
