"""Targets that are texts: JSON, TOML, lists, labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from alexdeploy.data.labels import read_class_indices
from alexdeploy.data.lists import load_list
from alexdeploy.data.preprocess import preprocess
from alexdeploy.quantize import tensorrt_cache
from alexdeploy.quantize.methods import METHODS
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.recipe import load_contract, load_recipe
from tests.fuzz.mutate import json_value, text_line
from tests.fuzz.target import Target

_SIDE = 2000
_RECIPES = Path(__file__).resolve().parents[2] / "models"


def _ranges() -> RangeFile:
    values = dict.fromkeys(METHODS, 1.5) | {"min": -1.0, "samples": 32.0}
    return RangeFile(
        model_sha256="0" * 64,
        contract="1" * 64,
        dataset={"name": "digits/train", "fingerprint": "2" * 64},
        samples=32,
        tensors={"input": values, "conv1: out": values | {"min": 0.0}},
        largest={"conv1: out": 2.5},
    )


def _range_files() -> Sequence[bytes]:
    return [msgspec.json.encode(_ranges())]


def _caches() -> Sequence[bytes]:
    return [tensorrt_cache.write_cache(_ranges(), method).encode() for method in ("entropy", "minmax")]


def _check_ranges(path: Path) -> None:
    found = tensorrt_cache.load(path)
    for method in METHODS if isinstance(found, RangeFile) else (tensorrt_cache.METHOD,):
        found.of(method)


def _class_indices() -> Sequence[bytes]:
    forms = (
        {"0": "daisy", "1": "玫瑰"},
        {"daisy": 0, "rose": 1},
        ["a", "b"],
        {"0": ["n01", "crane"], "1": ["n02", "crane"]},
    )
    return [
        *(json.dumps(form).encode() for form in forms),
        b"\xef\xbb\xbf" + json.dumps(forms[0]).encode(),
        b"a\r\nb\n",
    ]


def _recipes() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(_RECIPES.glob("*/recipe.toml"))]


def _check_recipe(path: Path) -> None:
    load_recipe(str(path))


def _check_list(path: Path) -> None:
    dataset = load_list(path, skip_bad=True)
    assert len(dataset.fingerprint) == 64


def _contracts() -> Sequence[bytes]:
    normal = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    clip = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3, **normal}
    vit = {"size": 224, "resample": 2, "rescale_factor": 1 / 255, **normal}
    timm = {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3}
    found = [
        {"image_processor_type": "CLIPImageProcessor", **clip},
        {"image_processor_type": "ViTImageProcessorFast", **vit},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "resample": 3, **normal},
        {"feature_extractor_type": "EfficientNetFeatureExtractor", "rescale_offset": False, **vit},
        {"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": timm},
        timm,
    ]
    return [load_recipe("alexnet").preprocess.to_json().encode(), *(json.dumps(form).encode() for form in found)]


def _check_contract(path: Path) -> None:
    contract = load_contract(str(path))
    assert len(contract.fingerprint) == 64
    height, width = contract.size
    if max(height, width, *np.atleast_1d(contract.resize or 1)) <= _SIDE:  # a large input is no fault
        assert preprocess(Image.new("RGB", (3, 2)), contract).shape == contract.input_shape


def _preprocess_only() -> Sequence[bytes]:
    return [text[text.index(b"[preprocess]") : text.index(b"[train]")] for text in _recipes()]


TARGETS = (
    Target("ranges", _range_files, _check_ranges, "ranges.json", (json_value,)),
    Target("cache", _caches, _check_ranges, "cache.txt", (text_line,), (b"TRT-", b": ", b"7f800000", b"ffffffff")),
    Target("class_indices", _class_indices, read_class_indices, "class_indices.json", (json_value,)),
    Target("label_list", _class_indices, read_class_indices, "names.txt", (text_line, json_value)),
    Target("recipe", _recipes, _check_recipe, "recipe.toml", (text_line,)),
    Target("contract_toml", _preprocess_only, _check_contract, "preprocess.toml", (text_line,)),
    Target("contract_json", _contracts, _check_contract, "preprocessor_config.json", (json_value,)),
    Target(
        "list",
        lambda: [b"a.jpg rose\nb c.png, x\n", b"a.jpg 0\n# c\nb.jpg 11\n"],
        _check_list,
        "images.txt",
        (text_line,),
    ),
)
