from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import click

from alexdeploy import files
from alexdeploy.cli.adopt import (
    Foreign,
    Meaning,
    adopt,
    foreign_options,
    meaning_options,
    print_written,
    uint8_option,
)
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, option_group, output_option
from alexdeploy.cli.output import note, note_skipped, print_json, progress, warn
from alexdeploy.errors import InputError, UsageError, few
from alexdeploy.specs import Progress

if TYPE_CHECKING:
    from torch import nn

    from alexdeploy.contract import Contract
    from alexdeploy.data.dataset import ImageDataset
    from alexdeploy.export.from_torch import ExportResult


@dataclass(frozen=True)
class _Network:
    """What the weights are for, and those of a network of the user's own."""

    network: str | None
    classes: int | None
    seed: int
    weights: Path | None

    @property
    def is_given(self) -> bool:
        return (self.network, self.classes, self.weights) != (None, None, None)


_network_options = option_group(
    "fresh",
    _Network,
    click.option("--network", help="Network of a bare state dict, or of fresh weights when no CHECKPOINT is given."),
    click.option(
        "--classes", type=click.IntRange(min=2), help="Classes of fresh weights, or for the factory's num_classes."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of fresh weights."),
    click.option("--weights", type=FILE, metavar="FILE", help="Weights for what MODULE:FACTORY makes."),
)


@click.command("export")
@click.argument("model", required=False, metavar="[CHECKPOINT|MODULE:FACTORY]")
@_network_options
@meaning_options
@foreign_options
@click.option(
    "--fully-convolutional",
    is_flag=True,
    help="The classifier as convolutions: takes larger images too and returns a map of logits.",
)
@uint8_option
@data_options(required=False, split=False)
@output_option("model.onnx")
@json_option
def command(
    model: str | None,
    fresh: _Network,
    meaning: Meaning,
    foreign: Foreign,
    fully_convolutional: bool,
    uint8_input: bool,
    data: DataChoice | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write a checkpoint as ONNX with native LRN.

    Foreign weights need --network: a state dict in safetensors or PyTorch's format, also inside a training checkpoint,
    or bvlc_alexnet.npy. Its preprocessing is the network's unless --contract names another.

    A network that is not built in comes from MODULE:FACTORY, a function or class of your own code, which is imported
    from the current folder and run. It gets --weights and needs --contract.

    Weights without class names get those of --labels or --data, if there are as many.

    ONNX Runtime is compared with PyTorch at batch 1, 2 and 5 on noise and on real images (from --data, or
    photographs that scikit-learn brings); beyond a relative error of 1e-5 nothing is written (exit 5).

    \b
    Example: alexdeploy export alexnet-mnist.safetensors -o model.onnx
             alexdeploy export --network alexnet --classes 1000 --seed 0 -o untrained.onnx
             alexdeploy export bvlc_alexnet.npy --network alexnet-caffe -o model.onnx
             alexdeploy export alexnet-mnist.safetensors --uint8-input -o served.onnx
             alexdeploy export mynet:Net --weights best.ckpt --contract mynet.toml -o model.onnx
    """
    if model is not None and Path(model).suffix.lower() == ".onnx":
        if fresh.is_given or fully_convolutional:
            raise UsageError(
                "--network, --classes, --weights and --fully-convolutional are for PyTorch weights; an .onnx file has "
                "its own graph"
            )
        adopt(Path(model), meaning, foreign, data, output, uint8_input=uint8_input, as_json=as_json)
        return
    if foreign.given:
        raise UsageError("--logits and --constant are for a foreign .onnx file; leave them out")
    parents = [path for path in (_file(model), fresh.weights) if path is not None]
    files.check_output(output, *parents)
    dataset = data.open("val") if data else None
    with progress("loading PyTorch") as bar:
        source = _load_factory(model, fresh, meaning) if _is_factory(model) else _load(_file(model), fresh, meaning)
        source = _with_labels(source, meaning.labels, dataset)
        result = _export(
            source,
            output,
            dataset,
            parents,
            fully_convolutional=fully_convolutional,
            uint8_input=uint8_input,
            progress=bar,
        )
    if dataset is not None:
        note_skipped(dataset)
    if as_json:
        print_json({"model": str(output), "ops": result.ops, "parity": result.parity})
    else:
        print_written(output, result.ops, result.parity, "PyTorch")


@dataclass(frozen=True)
class _Source:
    """A network in evaluation mode, its contract, and how many outputs it has."""

    module: nn.Module
    contract: Contract
    classes: int


def _is_factory(model: str | None) -> TypeGuard[str]:
    return (
        model is not None
        and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", model) is not None
        and not Path(model).exists()
    )


def _file(model: str | None) -> Path | None:
    return Path(model) if model is not None and not _is_factory(model) else None


def _load(checkpoint: Path | None, fresh: _Network, meaning: Meaning) -> _Source:
    """A checkpoint, bare weights of a network of the zoo, or fresh ones."""
    from alexdeploy.recipe import load_contract
    from alexdeploy.zoo.checkpoint import load_checkpoint, untrained

    contract = load_contract(meaning.contract) if meaning.contract is not None else None
    if fresh.weights is not None:
        raise UsageError("--weights is for a network of your own, such as mynet:Net for the class Net in mynet.py")
    if checkpoint is not None:
        if fresh.classes is not None:
            raise UsageError("--classes is for fresh weights; a checkpoint has its own")
        loaded = load_checkpoint(checkpoint, fresh.network, contract)
        return _Source(loaded.model, loaded.contract, loaded.classes)
    if fresh.network is None or fresh.classes is None:
        raise UsageError("name a CHECKPOINT, or --network NAME and --classes N for fresh weights")
    loaded = untrained(fresh.network, fresh.classes, fresh.seed)
    return _Source(loaded.model, contract or loaded.contract, loaded.classes)


def _load_factory(reference: str, fresh: _Network, meaning: Meaning) -> _Source:
    """What the user's own code makes."""
    if fresh.network is not None:
        raise UsageError(f"--network is for the built-in networks; {reference} brings its own")
    if meaning.contract is None:
        raise UsageError(f"{reference} needs --contract: the preprocessing that it was trained with")
    from alexdeploy.export.factory import build_module
    from alexdeploy.export.from_torch import count_outputs
    from alexdeploy.recipe import load_contract

    contract = load_contract(meaning.contract)
    note(f"this runs the code of {reference}")
    module = build_module(reference, fresh.weights, classes=fresh.classes, seed=fresh.seed)
    return _Source(module, contract, count_outputs(module, contract))


def _with_labels(source: _Source, labels: Path | None, dataset: ImageDataset | None) -> _Source:
    """Weights without class names get those of the file, or of the data set if there are as many."""
    import msgspec

    from alexdeploy.data.labels import read_class_indices

    contract = source.contract
    if labels is not None:
        names = read_class_indices(labels)
        if len(names) != source.classes:
            raise InputError(f"{labels}: {len(names)} class names for {source.classes} outputs")
        if contract.labels not in ((), names):
            raise InputError(f"{labels}: the weights carry other class names; leave --labels out")
        contract = msgspec.structs.replace(contract, labels=names)
    if dataset is not None and dataset.names and dataset.names != contract.labels:
        if contract.labels or source.classes != len(dataset.names):
            warn(f"{dataset.name} has other classes than the network; its images serve the parity check only")
        else:
            contract = msgspec.structs.replace(contract, labels=dataset.names)
            note(f"class names, in this order, from {dataset.name}: {few(dataset.names)}")
    return replace(source, contract=contract)


def _export(
    source: _Source,
    output: Path,
    dataset: ImageDataset | None,
    parents: Sequence[Path],
    *,
    fully_convolutional: bool,
    uint8_input: bool,
    progress: Progress,
) -> ExportResult:
    from alexdeploy.data.samples import real_images
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.zoo import convnet
    from alexdeploy.zoo.fake_quantize import layer_ranges

    module = source.module
    if fully_convolutional:
        if not isinstance(module, convnet.ConvNet):
            raise UsageError("--fully-convolutional is for the built-in networks")
        if layer_ranges(module):
            raise UsageError("--fully-convolutional is for a float network; this one is tuned for INT8")
        module = convnet.fully_convolutional(module)
    return export_onnx(
        module,
        source.contract,
        output,
        real_images=real_images(source.contract.of_pixels if uint8_input else source.contract, dataset),
        any_size=fully_convolutional,
        uint8_input=uint8_input,
        parents=tuple(files.parent(path) for path in parents),
        progress=progress,
    )
