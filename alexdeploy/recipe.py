"""Recipes: one TOML file per network with every knob, validated when it is read.

The recipes of the project are ``models/<name>/recipe.toml`` in a checkout and ``alexdeploy/recipes/<name>.toml`` in an
installed wheel. ``RECIPE`` on the command line is either such a name or the path of a file of the same form.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from alexdeploy import files
from alexdeploy.contract import Contract
from alexdeploy.errors import InputError, UsageError, unknown_name
from alexdeploy.preprocessor_config import parse_preprocessor_config

_CHECKOUT = Path(__file__).resolve().parent.parent / "models"
_INSTALLED = Path(__file__).resolve().parent / "recipes"
_Decoded = TypeVar("_Decoded")


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which network of the zoo, and the switches it has; ``lrn`` None is with LRN where the network has one."""

    name: str
    lrn: bool | None = None
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UsageError("dropout must be at least 0 and below 1")


class TrainSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Knobs of the training loop; the defaults leave out everything that is a matter of taste.

    Attributes:
        batch_size: images per step, over all processes together.
        learning_rate: the peak of ``one-cycle``, the start of ``step``.
        optimizer: ``adam`` decouples the weight decay (AdamW). Biases and normalisation are never decayed.
        schedule: ``one-cycle`` rises over 30 % of the steps and falls to almost nothing along cosines; ``step`` divides
            by ten after each quarter of the steps (the paper did so three times).
        label_smoothing: share of the target spread over all classes.
        augment: ``crop-mirror`` is the paper's (a window of the crop's size anywhere in the image, mirrored half the
            time); ``scale-mirror`` also takes 35 to 100 % of the area, stretched by up to 4/3 (Szegedy et al. 2014).
        rotate: degrees; each image is first turned about its centre by an angle drawn evenly from ±rotate, bilinear,
            its corners filled with black (torchvision's ``RandomRotation``).
        fancy_pca: standard deviation of the paper's colour shifts along the principal components of the training
            set's pixels; 0 for none, 0.1 in the paper.
        initialisation: ``pytorch``; ``paper`` (normal, 0.01, biases of conv2, 4, 5 and of hidden layers 1); or ``he``
            (He et al. 2015: normal, sqrt(2/inputs)), with which a network without batch normalisation starts faster.
        precision: ``auto`` is bfloat16 autocast where the hardware is faster in it (a CPU is measured), else float32.
        train_layers: only these learn (``fc7``), or all of a kind (``fc``); empty for all layers.
        head_learning_rate: of the last layer, when it is to differ.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["one-cycle", "step"] = "one-cycle"
    label_smoothing: float = 0.0
    augment: Literal["none", "crop-mirror", "scale-mirror"] = "none"
    rotate: float = 0.0
    fancy_pca: float = 0.0
    initialisation: Literal["pytorch", "paper", "he"] = "pytorch"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_layers: tuple[str, ...] = ()
    head_learning_rate: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError("epochs and batch_size must be >= 1")
        rates = [self.learning_rate, *([] if self.head_learning_rate is None else [self.head_learning_rate])]
        if not all(0 < rate < math.inf for rate in rates):
            raise UsageError("learning_rate and head_learning_rate must be > 0 and finite")
        if not 0 <= self.momentum < 1 or not 0 <= self.weight_decay < math.inf:
            raise UsageError("momentum must be at least 0 and below 1, weight_decay at least 0 and finite")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.fancy_pca < math.inf:
            raise UsageError("label_smoothing must be at least 0 and below 1, fancy_pca at least 0")
        if not 0 <= self.rotate <= 180:
            raise UsageError("rotate must be 0 to 180 degrees")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole recipe. ``preprocess`` is the contract without labels; the data set brings those."""

    network: NetworkSettings
    preprocess: Contract
    train: TrainSettings

    def __post_init__(self) -> None:
        if (self.preprocess.layout, self.preprocess.input_type) != ("nchw", "float32"):
            raise UsageError("the networks of the zoo take float32 in nchw; leave layout and input_type out")


class _PreprocessOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    preprocess: Contract


def _bundled() -> dict[str, Path]:
    if _INSTALLED.is_dir():
        return {path.stem: path for path in _INSTALLED.glob("*.toml")}
    return {path.parent.name: path for path in _CHECKOUT.glob("*/recipe.toml")}


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe by network name or from a TOML file.

    Raises:
        UsageError: neither a known network nor a file that looks like a recipe.
        InputError: the file is missing, not TOML, has an unknown key or a value of the wrong kind.
    """
    path = _recipe_file(name_or_path)
    return parse_recipe(path.read_bytes(), str(path))


def load_contract(name_or_path: str) -> Contract:
    """The preprocessing of a network's recipe, or of a file.

    Args:
        name_or_path: a network of the zoo; a recipe, or a TOML file with nothing but [preprocess]; or a JSON file: what
            ``Contract.to_json`` gives, preprocessor_config.json of Transformers, or config.json of timm.

    Raises:
        UsageError, InputError: see ``load_recipe``; a JSON file with a key that a contract cannot express (named).

    Example:
        >>> from alexdeploy import load_contract
        >>> load_contract("alexnet").input_shape
        (3, 227, 227)
    """
    path = _recipe_file(name_or_path)
    text = path.read_bytes()
    if path.suffix.lower() == ".json":
        return _from_json(files.utf8(text, str(path)), str(path))
    content = _decode(text, str(path), dict[str, Any])
    if content.keys() and content.keys() <= set(Contract.__struct_fields__):
        raise InputError(f"{path}: put the line [preprocess] above its keys")
    if content.keys() & {"network", "train"}:
        return parse_recipe(text, str(path)).preprocess
    return _decode(text, str(path), _PreprocessOnly).preprocess


def _from_json(text: str, origin: str) -> Contract:
    """A contract as ``Contract.to_json`` writes it, or another tool's configuration."""
    try:
        return msgspec.json.decode(text, type=Contract)
    except files.UNDECODABLE:
        return parse_preprocessor_config(text, origin)


def _recipe_file(name_or_path: str) -> Path:
    bundled = _bundled()
    if name_or_path in bundled:
        return bundled[name_or_path]
    path = Path(name_or_path)
    if path.suffix not in (".toml", ".json") and not (files.exists(path) and path.is_file()):
        raise UsageError(unknown_name("network", name_or_path, list(bundled)))
    if not files.exists(path) or not path.is_file():
        raise InputError(f"{path}: no such recipe file; check the path, or name one of: {', '.join(sorted(bundled))}")
    return path


def parse_recipe(text: bytes, origin: str) -> Recipe:
    """Decode TOML bytes; ``origin`` is named in the message when that fails.

    Raises:
        InputError: see ``load_recipe``.
    """
    recipe = _decode(text, origin, Recipe)
    if recipe.network.name not in _bundled():
        raise InputError(f"{origin}: {unknown_name('network', recipe.network.name, list(_bundled()))}")
    return recipe


def _decode(text: bytes, origin: str, kind: type[_Decoded]) -> _Decoded:
    try:
        return msgspec.toml.decode(files.utf8(text, origin), type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{origin}: {_explain(str(error))}") from error
    except files.UNDECODABLE as error:
        raise InputError(f"{origin}: not a TOML file: {error}") from error


def with_train_options(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with those ``[train]`` keys replaced that are not None.

    Raises:
        UsageError: a value out of range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        train = msgspec.convert({**msgspec.structs.asdict(recipe.train), **given}, TrainSettings)
    except msgspec.ValidationError as error:
        raise UsageError(f"training options: {error}") from error
    return msgspec.structs.replace(recipe, train=train)


def for_tuning(recipe: Recipe) -> Recipe:
    """A tenth of the epochs at a hundredth of the learning rates, for tuning trained weights for INT8.

    Source: Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 5.2.
    """
    train = recipe.train
    return with_train_options(
        recipe,
        epochs=max(1, round(train.epochs / 10)),
        learning_rate=train.learning_rate / 100,
        head_learning_rate=train.head_learning_rate and train.head_learning_rate / 100,
    )


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "": Recipe,
    "network": NetworkSettings,
    "preprocess": Contract,
    "train": TrainSettings,
}


def _explain(message: str) -> str:
    """Turn msgspec's message into one with the valid names of the section, or values of the key, it points at."""
    match = re.search(r"unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<section>[^`]*)`)?", message)
    if match is None:
        plain = re.sub(r" - at `\$\.?([^`]*)`", r" (\1)", message).replace("`", "'")
        choice = re.search(r"enum value .* - at `\$\.(?P<section>\w+)\.(?P<key>\w+)`", message)
        return f"{plain}; valid: {', '.join(_choices(**choice.groupdict()))}" if choice else plain
    section = match["section"] or ""
    valid = [field.name for field in msgspec.structs.fields(_SECTIONS.get(section, Recipe))]
    near = difflib.get_close_matches(match["key"], valid, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    where = f"section [{section}]" if section else "the recipe"
    return f"unknown key '{match['key']}' in {where}; {hint}valid: {', '.join(valid)}"


def _choices(section: str, key: str) -> list[str]:
    def within(kind: Any) -> list[Any]:
        parts = get_args(kind)
        return [*parts] if get_origin(kind) is Literal else [each for part in parts for each in within(part)]

    return [json.dumps(value) for value in within(get_type_hints(_SECTIONS[section])[key])]
