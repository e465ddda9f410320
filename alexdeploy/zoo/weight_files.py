"""Files of weights as others write them: safetensors, PyTorch's pickles, and the ``.npy`` that TensorFlow texts use.

The kind is told by the first bytes, not by the name. Nothing in a file is executed: pickles are read with
``weights_only`` and with inert stand-ins for what is no tensor, ``.npy`` by an unpickler that knows arrays only.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from alexdeploy import files
from alexdeploy.errors import InputError, InputWarning, few, words_of
from alexdeploy.pickled import load_arrays

# keys of a training checkpoint that lead to its weights, the preferred one first
_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema")
_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number that torch.save's older format begins with
# first bytes → what it is and what to do
_OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes; export the network there (tf2onnx), and adopt the .onnx file",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"GGUF": "a GGUF file of a language model; expected the weights of a CNN",
    b"<": "a page of HTML or XML, so the download failed; download it again",
    b"{": "JSON text, so the download may have failed; download it again",
}
_COUNTS = ("total_ops", "total_params")  # of the profiler thop, which YOLO's tools leave in
_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        tensors: by name, in float32 (integers as they are); empty where there are ``layers``.
        ordered: the tensors are in the order in which the layers were made; a safetensors file sorts them.
        metadata: of a safetensors file.
        layers: of a ``.npy`` file: layer → [weights, biases], in TensorFlow's layouts.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    ordered: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, list[np.ndarray[Any, Any]]] = field(default_factory=dict)


def read_weight_file(path: Path) -> WeightFile:
    """Read a file of weights, whatever its name.

    A state dict is also found inside a training checkpoint; of averaged (EMA) and plain weights the averaged ones are
    taken, as timm and Ultralytics do, and an ``InputWarning`` says so.

    Raises:
        InputError: missing, empty, damaged, or a file that holds something else than weights.
    """
    files.check_input(path)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"\x93NUMPY"):
        return WeightFile(layers=_read_npy(path))
    zipped = head.startswith(b"PK\x03\x04")
    if zipped:
        _check_archive(path)
    elif head[8:9] == b"{":
        return _read_safetensors(path)
    elif head[:1] != b"\x80":
        raise InputError(
            f"{path}: not a safetensors file, and none of PyTorch or NumPy; it begins with {head[:12]!r}: {_kind(head)}"
        )
    elif _MAGIC not in head[:32]:
        raise InputError(
            f"{path}: not PyTorch weights: a Python pickle that torch.save did not write, whose code is not run here; "
            "if it holds arrays or tensors by name, save them, in Python: torch.save({name: torch.as_tensor(array) for "
            'name, array in content.items()}, "weights.pth")'
        )
    return WeightFile(_in_float32(_state_dict(_unpickled(path, zipped=zipped), path), path), ordered=True)


def _kind(head: bytes) -> str:
    """What begins so, and what to do with it."""
    text = head.lstrip()
    for begin, kind in _OTHERS.items():
        if head.startswith(begin) or text.startswith(begin):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[:1] == b"\x08" and head[2:3] in b"\x12\x1a":
        return "an ONNX file, it seems; it needs no network: name it .onnx and adopt it"
    return "copy or download it again"


def _in_float32(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    plain = {str(name): tensor.detach() for name, tensor in tensors.items()}
    if all(name == "n_averaged" or name.startswith("module.") for name in plain):
        plain.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel counts its updates in it
    plain = {name: tensor for name, tensor in plain.items() if not name.endswith(_COUNTS)}
    for name, tensor in plain.items():
        kind = "quantized" if tensor.is_quantized else "without values (meta)" if tensor.is_meta else ""
        kind = kind or ("complex" if tensor.is_complex() else "sparse" if tensor.layout != torch.strided else "")
        if kind:
            raise InputError(f"{path}: '{name}' is {kind}; save the network's weights as dense floats")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}


def _read_safetensors(path: Path) -> WeightFile:
    try:
        if not files.is_text(path):
            return _parse_safetensors(path)
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return WeightFile(_in_float32(tensors, path), metadata=dict(file.metadata() or {}))
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file: {words_of(error)}") from error


def _parse_safetensors(path: Path) -> WeightFile:
    data = path.read_bytes()
    tensors = safetensors.torch.load(data)  # checks the header as well
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return WeightFile(_in_float32(tensors, path), metadata=header.get("__metadata__", {}))


def _check_archive(path: Path) -> None:
    """PyTorch's zip files hold a ``data.pkl``, those of TorchScript also a ``constants.pkl``."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # what a damaged archive raises has no common base
        raise InputError(f"{path}: not PyTorch weights: {words_of(error)}; copy or download it again") from error
    parts = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in parts:
        raise InputError(f"{path}: a TorchScript program; {_in_python('torch.jit.load', path)}")
    if "data.pkl" not in parts:
        raise InputError(f"{path}: {_zip_kind(parts)}; it holds {few(names)}")


def _zip_kind(parts: set[str]) -> str:
    if "model.weights.h5" in parts:
        return "a zip file of Keras; export the network there (tf2onnx), and adopt the .onnx file"
    if "archive_format" in parts or "model.json" in parts:
        return (
            "a program of torch.export; save the weights of its module, in Python: torch.save(module.state_dict(), …)"
        )
    endings = {Path(part).suffix for part in parts}
    if endings == {".npy"}:
        return "an archive of NumPy (.npz); save {name: torch.as_tensor(array)} with torch.save"
    if endings & {".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".npy", ".onnx"}:
        return "a zip file, which is to be unpacked first"
    return "a zip file without PyTorch weights"


def _in_python(load: str, path: Path, more: str = "", key: str = "") -> str:
    """The two lines that turn what holds a module into a state dict, as one that can be copied."""
    name, item = str(path).replace('"', '\\"'), f'["{key}"]' if key else ""
    return (
        f'save its weights, in Python: model = {load}("{name}"{more}){item}; '
        f'torch.save(model.state_dict(), "weights.pth")'
    )


class _StandIn(list[Any]):
    """For any class or function that a pickle names: what it is called, built or filled with has no effect."""

    def __new__(cls, *_: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key


class _ArrayStandIn(_StandIn):
    """For an array or a number of NumPy."""


class _StandInDict:
    """For those that are filled as a dict is, which ``weights_only`` allows to Python's own alone."""

    def __new__(cls, *_: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _stand_in(name: str) -> tuple[Any, str]:
    if name.startswith("numpy."):
        return _ArrayStandIn, name
    return (_StandInDict if name.lower().endswith("dict") else _StandIn), name


def _unpickled(path: Path, *, zipped: bool) -> Any:
    """The content, with stand-ins for what is neither a tensor nor a container of Python's own."""
    try:
        with path.open("rb") as file:  # given a path, torch.load goes by its ending
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipped else []
            file.seek(0)
            with torch.serialization.safe_globals([*map(_stand_in, foreign)]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the pickle's protocol, and of typed storages
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = str(error).partition("GLOBAL ")[2].split()
        what = f" ({found[0]})" if found else ""
        raise InputError(
            f"{path}: holds Python objects besides weights{what}, whose code is not run here; "
            f"if it is a whole module, {_in_python('torch.load', path, ', weights_only=False')}"
        ) from error
    except Exception as error:  # torch.load raises what its zip reader and its unpickler raise
        raise InputError(f"{path}: not PyTorch weights: {words_of(error)}") from error


def _state_dict(content: Any, path: Path) -> Mapping[Any, Tensor]:
    found = _find(content, path)
    if found:
        return found
    if _is_module(content):
        lines = _in_python("torch.load", path, ", weights_only=False")
        raise InputError(f"{path}: a whole pickled module, whose code is not run here; {lines}")
    expected = "expected a state dict (layer name → tensor)"
    if not isinstance(content, dict):
        raise InputError(f"{path}: {expected}, found a {type(content).__name__}; save model.state_dict()")
    module = next((key for key in (*_AVERAGED, *_PLAIN, *content) if _is_module(content.get(key))), None)
    if module is not None:
        lines = _in_python("torch.load", path, ", weights_only=False", str(module))
        raise InputError(f"{path}: '{module}' in it is a whole pickled module, whose code is not run here; {lines}")
    _refuse_arrays(content, path)
    keys = few((f"'{key}'" for key in content), most=10) or "nothing"
    what = " that hold no tensors" if any("." in str(key) for key in content) else ""
    raise InputError(f"{path}: {expected}, found {keys}{what}; save model.state_dict()")


def _refuse_arrays(content: Mapping[Any, Any], path: Path) -> None:
    arrays = [f"'{key}'" for key, value in content.items() if isinstance(value, _ArrayStandIn)]
    if arrays:
        name = str(path).replace('"', '\\"')
        raise InputError(
            f"{path}: {few(arrays)} of it are NumPy's arrays or numbers, whose code is not run here; save tensors, in "
            f'Python: arrays = torch.load("{name}", weights_only=False); torch.save({{name: torch.as_tensor(array) for '
            'name, array in arrays.items()}, "weights.pth")'
        )


def _find(content: Any, path: Path) -> Mapping[Any, Tensor] | None:
    """The state dict that this is, or that is somewhere in this training checkpoint, near the top before deep inside.

    Raises:
        InputError: several, and nothing says which.
    """
    near = _find_near(content, path)
    if near:
        return near
    found = _all_below(content)
    _refuse_several(found, path)
    return next(iter(found.values()), None)


def _all_below(content: Any) -> dict[str, Mapping[Any, Tensor]]:
    """Dotted path → state dict, at any depth; an optimizer's numbers are no weights, and some files go in circles."""
    found: dict[str, Mapping[Any, Tensor]] = {}
    seen: set[int] = set()
    below = [("", content)]
    while below:
        path, value = below.pop(0)
        if not isinstance(value, dict) or not value or "param_groups" in value or id(value) in seen:
            continue
        seen.add(id(value))
        if all(isinstance(each, Tensor) for each in value.values()):
            found[path] = value
        else:
            below += [(f"{path}.{key}".lstrip("."), each) for key, each in value.items() if isinstance(key, str)]
    return found


def _refuse_several(found: Iterable[str], path: Path) -> None:
    names = [*found]
    if len(names) > 1:
        raise InputError(
            f"{path}: holds several state dicts ({few(names, most=10)}); save the one that is meant; where they are "
            'the parts of one network, join them to one dict of {"part.name": tensor}, and save that'
        )


def _find_near(content: Any, path: Path, deep: int = 4) -> Mapping[Any, Tensor] | None:
    """The same where its key is known, or it is at the top."""
    if not isinstance(content, dict) or not content or not deep:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return content
    found = {str(key): inner for key, value in content.items() if (inner := _find_below(key, value, path, deep))}
    averaged = [key for key in _AVERAGED if key in found]
    plain = [key for key in _PLAIN if key in found]
    if averaged and plain:
        warnings.warn(
            f"{path}: holds '{plain[0]}' and '{averaged[0]}'; took the averaged weights, '{averaged[0]}'",
            InputWarning,
            stacklevel=2,
        )
    if not averaged and not plain:
        _refuse_several(found, path)
    chosen = next(iter([*averaged, *plain, *found]), None)
    return found[chosen] if chosen is not None else _beside_scalars(content)


def _beside_scalars(content: Mapping[Any, Any]) -> Mapping[Any, Tensor] | None:
    """The tensors of layers where only numbers and texts are beside them: an epoch, a score."""
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    others = [value for value in content.values() if not isinstance(value, Tensor)]
    is_plain = all(isinstance(value, int | float | str | None) for value in others)
    return tensors if is_plain and any("." in str(key) for key in tensors) else None


def _find_below(key: Any, value: Any, path: Path, deep: int) -> Mapping[Any, Tensor] | None:
    """Under keys that are not known only a state dict itself counts, not one deep inside an optimizer's state."""
    if isinstance(value, dict) and (key in (*_AVERAGED, *_PLAIN) or all(isinstance(v, Tensor) for v in value.values())):
        return _find_near(value, path, deep - 1)
    return None


def _is_module(value: Any) -> bool:
    return isinstance(value, _StandIn) and "_modules" in vars(value)


def _read_npy(path: Path) -> dict[str, list[np.ndarray[Any, Any]]]:
    """The dict in a file that ``np.save`` wrote, by Python 2 or 3: layer → [weights, biases]."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a header that Python 2 wrote
            content = _array_of_objects(file)
    except Exception as error:  # what a damaged pickle raises has no common base
        raise InputError(
            f"{path}: not a NumPy file of layers ({words_of(error)}); expected the form of bvlc_alexnet.npy"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, np.ndarray) for part in pair)
        for pair in content.values()
    ):
        raise InputError(f"{path}: expected a dict of layer → [weights, biases], as in bvlc_alexnet.npy")
    return {name.decode() if isinstance(name, bytes) else str(name): list(pair) for name, pair in content.items()}


def _array_of_objects(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or dtype.kind != "O":
        raise ValueError(f"an array of shape {shape} and type {dtype}")
    return load_arrays(file).item()
