from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, output_option
from alexdeploy.cli.output import note_skipped, print_json
from alexdeploy.errors import UsageError

if TYPE_CHECKING:
    from alexdeploy.data.dataset import ImageDataset
    from alexdeploy.zoo.checkpoint import Checkpoint


@click.command("export")
@click.argument("checkpoint", type=FILE, required=False)
@click.option("--network", help="Network of a bare state dict, or of fresh weights when no CHECKPOINT is given.")
@click.option("--classes", type=click.IntRange(min=2), help="Classes of a network with fresh weights.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of fresh weights.")
@click.option(
    "--contract",
    metavar="RECIPE|NETWORK",
    help="Preprocessing of a foreign .onnx file: a network's, or a TOML file with a [preprocess] section.",
)
@click.option(
    "--fully-convolutional",
    is_flag=True,
    help="The classifier as convolutions: takes larger images too and returns a map of logits.",
)
@data_options(required=False)
@output_option("model.onnx")
@json_option
def command(
    checkpoint: Path | None,
    network: str | None,
    classes: int | None,
    seed: int,
    contract: str | None,
    fully_convolutional: bool,
    data: DataChoice | None,
    output: Path,
    as_json: bool,
) -> None:
    """Write a checkpoint as ONNX with native LRN, or adopt a foreign ONNX file.

    Foreign weights (a state dict in .safetensors or .pth, bvlc_alexnet.npy) need --network.

    ONNX Runtime is compared with PyTorch at batch 1, 2 and 5 on noise and on real images (from --data, or
    photographs that scikit-learn brings); beyond a relative error of 1e-5 nothing is written (exit 5).

    A foreign .onnx file gets the preprocessing of --contract, the class names of --data, and one LRN node for each
    LRN that its exporter took apart; ONNX Runtime compares it with the original in the same way, on noise.

    \b
    Example: alexdeploy export alexnet-mnist.safetensors -o model.onnx
             alexdeploy export --network alexnet --classes 1000 --seed 0 -o untrained.onnx
             alexdeploy export bvlc_alexnet.npy --network alexnet-caffe -o model.onnx
             alexdeploy export foreign.onnx --contract alexnet -o model.onnx
    """
    files.check_output(output, *([checkpoint] if checkpoint is not None else []))
    foreign = checkpoint is not None and checkpoint.suffix.lower() == ".onnx"
    if foreign:
        _check_foreign_arguments(network, classes, contract, fully_convolutional)
    else:
        _check_arguments(checkpoint, network, classes, contract)
    dataset = data.open("val") if data else None
    if foreign:
        assert checkpoint is not None
        assert contract is not None
        _adopt(checkpoint, contract, dataset, output, as_json)
        return
    _export(_load(checkpoint, network, classes, seed), checkpoint, dataset, output, fully_convolutional, as_json)


def _check_arguments(checkpoint: Path | None, network: str | None, classes: int | None, contract: str | None) -> None:
    if contract is not None:
        raise UsageError("--contract is for a foreign .onnx file; a checkpoint and a network have their own")
    if checkpoint is None and (network is None or classes is None):
        raise UsageError("name a CHECKPOINT, or --network NAME and --classes N for fresh weights")
    if checkpoint is not None and classes is not None:
        raise UsageError("--classes is for fresh weights; a checkpoint has its own")


def _check_foreign_arguments(
    network: str | None, classes: int | None, contract: str | None, fully_convolutional: bool
) -> None:
    if network is not None or classes is not None or fully_convolutional:
        raise UsageError(
            "--network, --classes and --fully-convolutional are for PyTorch weights; an .onnx file has its own graph"
        )
    if contract is None:
        raise UsageError(
            "an .onnx file needs --contract: a network (alexnet) or a TOML file with a [preprocess] section"
        )


def _load(checkpoint: Path | None, network: str | None, classes: int | None, seed: int) -> Checkpoint:
    from alexdeploy.zoo.checkpoint import load_checkpoint, untrained

    if checkpoint is not None:
        return load_checkpoint(checkpoint, network)
    assert network is not None
    assert classes is not None
    return untrained(network, classes, seed)


def _export(
    loaded: Checkpoint,
    checkpoint: Path | None,
    dataset: ImageDataset | None,
    output: Path,
    any_size: bool,
    as_json: bool,
) -> None:
    from alexdeploy.data.samples import real_images
    from alexdeploy.export.from_torch import export_onnx
    from alexdeploy.zoo.convnet import fully_convolutional

    parents = (files.parent(checkpoint),) if checkpoint is not None else ()
    images = real_images(loaded.contract, dataset)
    if dataset is not None:
        note_skipped(dataset)
    model = fully_convolutional(loaded.model) if any_size else loaded.model
    result = export_onnx(model, loaded.contract, output, real_images=images, any_size=any_size, parents=parents)
    if as_json:
        print_json({"model": str(output), "ops": result.ops, "parity": result.parity})
        return
    worst = max(result.parity.random_inputs, result.parity.real_inputs)
    _print_line(output, result.ops, f"parity with PyTorch {worst:.1e} (relative, limit {result.parity.tolerance:.0e})")


def _adopt(model: Path, name: str, dataset: ImageDataset | None, output: Path, as_json: bool) -> None:
    import msgspec

    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.recipe import load_contract

    contract = load_contract(name)
    if dataset is not None:
        contract = msgspec.structs.replace(contract, labels=dataset.classes)
    result = adopt_onnx(model, contract, output)
    if as_json:
        print_json({"model": str(output), "ops": result.ops, "fused_lrn": result.fused, "parity": result.parity})
        return
    lrn = f"LRN put back: {', '.join(result.fused)}; " if result.fused else ""
    parity = f"parity with {model.name} {result.parity.random_inputs:.1e} (relative, limit "
    _print_line(output, result.ops, f"{lrn}{parity}{result.parity.tolerance:.0e})")


def _print_line(output: Path, ops: dict[str, int], rest: str) -> None:
    click.echo(f"{output}: {', '.join(f'{count} {name}' for name, count in ops.items())}; {rest}")
