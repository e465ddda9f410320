from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.adopt import Foreign, adopt, foreign_options, print_written
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, option_group, output_option
from alexdeploy.cli.output import note_skipped, print_json, progress, warn
from alexdeploy.errors import UsageError
from alexdeploy.specs import Progress

if TYPE_CHECKING:
    from alexdeploy.contract import Contract
    from alexdeploy.data.dataset import ImageDataset
    from alexdeploy.export.from_torch import ExportResult
    from alexdeploy.zoo.checkpoint import Checkpoint


@dataclass(frozen=True)
class _Network:
    """The network of bare weights, or of fresh ones."""

    network: str | None
    classes: int | None
    seed: int


_network_options = option_group(
    "fresh",
    _Network,
    click.option("--network", help="Network of a bare state dict, or of fresh weights when no CHECKPOINT is given."),
    click.option("--classes", type=click.IntRange(min=2), help="Classes of a network with fresh weights."),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of fresh weights."),
)


@click.command("export")
@click.argument("checkpoint", type=FILE, required=False)
@_network_options
@click.option(
    "--contract", metavar="RECIPE|NETWORK", help="Of a foreign .onnx file, which is adopted: see alexdeploy adopt."
)
@foreign_options
@click.option(
    "--fully-convolutional",
    is_flag=True,
    help="The classifier as convolutions: takes larger images too and returns a map of logits.",
)
@click.option(
    "--uint8-input",
    is_flag=True,
    help="The file takes pixels, uint8 (batch, H, W, C) in RGB or gray: scale, mean, std and colour order are in it.",
)
@data_options(required=False, split=False)
@output_option("model.onnx")
@json_option
def command(
    checkpoint: Path | None,
    fresh: _Network,
    contract: str | None,
    foreign: Foreign,
    fully_convolutional: bool,
    uint8_input: bool,
    data: DataChoice | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write a checkpoint as ONNX with native LRN.

    Foreign weights (a state dict in .safetensors or .pth, bvlc_alexnet.npy) need --network; weights without class
    names get those of --data, if there are as many.

    ONNX Runtime is compared with PyTorch at batch 1, 2 and 5 on noise and on real images (from --data, or
    photographs that scikit-learn brings); beyond a relative error of 1e-5 nothing is written (exit 5).

    \b
    Example: alexdeploy export alexnet-mnist.safetensors -o model.onnx
             alexdeploy export --network alexnet --classes 1000 --seed 0 -o untrained.onnx
             alexdeploy export bvlc_alexnet.npy --network alexnet-caffe -o model.onnx
             alexdeploy export alexnet-mnist.safetensors --uint8-input -o served.onnx
    """
    if checkpoint is not None and checkpoint.suffix.lower() == ".onnx":
        if fresh.network is not None or fresh.classes is not None or fully_convolutional or uint8_input:
            raise UsageError(
                "--network, --classes, --fully-convolutional and --uint8-input are for PyTorch weights; an .onnx file "
                "has its own graph"
            )
        if contract is None:
            raise UsageError(
                "an .onnx file needs --contract: a network (alexnet) or a TOML file with a [preprocess] section"
            )
        adopt(checkpoint, contract, foreign, data, output, as_json)
        return
    if contract is not None:
        raise UsageError("--contract is for a foreign .onnx file; a checkpoint and a network have their own")
    if foreign.given:
        raise UsageError("--logits and --constant are for a foreign .onnx file; leave them out")
    files.check_output(output, *([checkpoint] if checkpoint is not None else []))
    dataset = data.open("val") if data else None
    with progress("loading PyTorch") as bar:
        result = _export(
            checkpoint,
            fresh,
            dataset,
            output,
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


def _with_labels(loaded: Checkpoint, dataset: ImageDataset | None) -> Contract:
    """The contract; weights without class names get those of the data set, if there are as many."""
    import msgspec

    contract = loaded.contract
    if dataset is None or contract.labels == dataset.classes:
        return contract
    if contract.labels or loaded.classes != len(dataset.classes):
        warn(f"{dataset.name} has other classes than the network; its images serve the parity check only")
        return contract
    return msgspec.structs.replace(contract, labels=dataset.classes)


def _export(
    checkpoint: Path | None,
    fresh: _Network,
    dataset: ImageDataset | None,
    output: Path,
    *,
    fully_convolutional: bool,
    uint8_input: bool,
    progress: Progress,
) -> ExportResult:
    loaded = _load(checkpoint, fresh)
    from alexdeploy.data.samples import real_images
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.zoo import convnet

    return export_onnx(
        convnet.fully_convolutional(loaded.model) if fully_convolutional else loaded.model,
        _with_labels(loaded, dataset),
        output,
        real_images=real_images(loaded.contract.of_pixels if uint8_input else loaded.contract, dataset),
        any_size=fully_convolutional,
        uint8_input=uint8_input,
        parents=(files.parent(checkpoint),) if checkpoint is not None else (),
        progress=progress,
    )


def _load(checkpoint: Path | None, fresh: _Network) -> Checkpoint:
    from alexdeploy.zoo.checkpoint import load_checkpoint, untrained

    if checkpoint is not None:
        if fresh.classes is not None:
            raise UsageError("--classes is for fresh weights; a checkpoint has its own")
        return load_checkpoint(checkpoint, fresh.network)
    if fresh.network is None or fresh.classes is None:
        raise UsageError("name a CHECKPOINT, or --network NAME and --classes N for fresh weights")
    return untrained(fresh.network, fresh.classes, fresh.seed)
