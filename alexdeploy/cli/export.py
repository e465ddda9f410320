from __future__ import annotations

from pathlib import Path

import click

from alexdeploy import artifacts
from alexdeploy.cli.options import FILE, data_options, json_option, open_data, output_option
from alexdeploy.cli.output import note_skipped, print_json
from alexdeploy.errors import UsageError


@click.command("export")
@click.argument("checkpoint", type=FILE, required=False)
@click.option("--network", help="Network of a bare state dict, or of fresh weights when no CHECKPOINT is given.")
@click.option("--classes", type=click.IntRange(min=2), help="Classes of a network with fresh weights.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of fresh weights.")
@data_options(required=False)
@output_option("model.onnx")
@json_option
def command(
    checkpoint: Path | None,
    network: str | None,
    classes: int | None,
    seed: int,
    data: str | None,
    data_root: Path | None,
    skip_bad_images: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Write a checkpoint as ONNX with native LRN.

    ONNX Runtime is compared with PyTorch at batch 1, 2 and 5 on noise and on real images (from --data, or
    photographs that scikit-learn brings); beyond a relative error of 1e-5 nothing is written (exit 5).

    \b
    Example: alexdeploy export alexnet-mnist.safetensors -o model.onnx
             alexdeploy export --network alexnet --classes 1000 --seed 0 -o untrained.onnx
    """
    artifacts.check_output(output)
    _check_arguments(checkpoint, network, classes)
    from alexdeploy.export import export_onnx
    from alexdeploy.pipeline.real_images import real_images
    from alexdeploy.zoo.checkpoint import load_checkpoint, untrained

    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint, network)
    else:
        assert network is not None
        assert classes is not None
        loaded = untrained(network, classes, seed)
    parents = (artifacts.parent(checkpoint),) if checkpoint is not None else ()
    dataset = open_data(data, "val", data_root, skip_bad_images) if data else None
    images = real_images(loaded.contract, dataset)
    if dataset is not None:
        note_skipped(dataset)
    result = export_onnx(loaded.model, loaded.contract, output, real_images=images, parents=parents)
    if as_json:
        print_json({"model": str(output), "ops": result.ops, "parity": result.parity})
        return
    ops = ", ".join(f"{count} {name}" for name, count in result.ops.items())
    worst = max(result.parity.random_inputs, result.parity.real_inputs)
    click.echo(f"{output}: {ops}; parity with PyTorch {worst:.1e} (relative, limit {result.parity.tolerance:.0e})")


def _check_arguments(checkpoint: Path | None, network: str | None, classes: int | None) -> None:
    if checkpoint is None and (network is None or classes is None):
        raise UsageError("name a CHECKPOINT, or --network NAME and --classes N for fresh weights")
    if checkpoint is not None and classes is not None:
        raise UsageError("--classes is for fresh weights; a checkpoint has its own")
