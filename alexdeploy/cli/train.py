from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alexdeploy import files
from alexdeploy.cli.allocator import keep_freed_memory
from alexdeploy.cli.options import FILE, DataChoice, data_options, device_option, json_option, option_group
from alexdeploy.cli.output import echo, note, note_data, note_skipped, print_json, progress
from alexdeploy.errors import UsageError, few

if TYPE_CHECKING:
    from alexdeploy.recipe import Recipe
    from alexdeploy.train import Epoch, Step, TrainResult


def _names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:  # noqa: ARG001
    return tuple(name.strip() for name in text.split(",")) if text else None


recipe_options = option_group(
    "changes",
    dict,  # by the names of the recipe's [train] keys
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over the images.  [default: the recipe's]"),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images per step.  [default: the recipe's]"),
    click.option("--lr", "learning_rate", type=float, help="Peak learning rate.  [default: the recipe's]"),
    click.option(
        "--head-lr", "head_learning_rate", type=float, help="Rate of the last layer.  [default: that of the others]"
    ),
    click.option(
        "--train-layers",
        callback=_names,
        metavar="NAME,...",
        help="Train these layers only, such as fc7,fc8; all of a kind by fc or conv.",
    ),
)


@click.command("train")
@click.argument("recipe", metavar="RECIPE|NETWORK|CHECKPOINT")
@data_options(required=True, split=False)
@recipe_options
@click.option("--weights", type=FILE, metavar="FILE", help="Start from these: .safetensors, .pth or bvlc_alexnet.npy.")
@click.option(
    "--qat",
    type=FILE,
    metavar="RANGES",
    help="Tune for INT8 with the ranges that calibrate wrote for these weights' ONNX file.",
)
@click.option("--out", type=FILE, metavar="DIR", help="Folder for what it writes.  [default: models/NETWORK]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, exactly where it was.")
@device_option("auto", "cpu")
@json_option
def command(
    recipe: str,
    data: DataChoice,
    changes: dict[str, Any],
    weights: Path | None,
    qat: Path | None,
    out: Path | None,
    resume: bool,
    device: str,
    as_json: bool,
) -> None:
    """Train a network and keep its best weights.

    Labels, preprocessing, recipe and metrics travel inside the checkpoint. RECIPE is a TOML file, NETWORK the name of
    a network with its own recipe, CHECKPOINT what this command wrote: its recipe again, from its weights on. Writes
    DIR/NETWORK.safetensors (the best weights), .last.pt (the last, and all that --resume needs), .jsonl (log), .png
    (curves) and class_indices.json; none of an earlier run is replaced. Where DATASET has a folder test/, the best
    weights are tried on it at the end.

    With --qat (quantization-aware training) the layers round as INT8 does while they learn, for a tenth of the epochs
    at a hundredth of the learning rate, unless they are named. It writes DIR/NETWORK-int8.safetensors, which export
    makes an INT8 ONNX file of.

    \b
    Example: alexdeploy train alexnet-mnist --data digits --out .
             alexdeploy train alexnet-caffe --data photos/ --weights bvlc_alexnet.npy --train-layers fc7,fc8
             alexdeploy train net.safetensors --data photos/ --qat ranges.json --epochs 1 --out .
             torchrun --nproc_per_node 4 -m alexdeploy train alexnet --data imagenet/
    """
    loaded, weights = _recipe(recipe, weights, changes, tune=qat is not None)
    keep_freed_memory()
    learn = data.open("train")
    judge = data.open("val")
    test = data.open_test()
    for images in filter(None, (learn, judge, test)):
        note_data(images)
    path = _checkpoint_path(out, loaded.network.name + ("-int8" if qat is not None else ""))

    with progress("loading PyTorch") as bar:
        from alexdeploy.train import folder_of_run, train_network

        def tick(step: Step) -> None:
            what = f"epoch {step.epoch}/{loaded.train.epochs}  loss {step.loss:.3f}  {step.images_per_s:.0f} images/s"
            bar(what, step.done / step.total)

        bar("preparing", 0.0)
        with folder_of_run(path, learn.classes, resume=resume):  # before the ranges, which are work
            ranges = None
            if qat is not None and weights is not None:
                from alexdeploy.tuning import ranges_by_layer

                ranges = ranges_by_layer(qat, loaded, weights, learn, progress=bar)
            result = train_network(
                loaded,
                learn,
                judge,
                path,
                device=device,
                weights=weights,
                ranges=ranges,
                resume=resume,
                test=test,
                on_epoch=partial(_show_epoch, loaded.train.epochs),
                on_step=tick,
            )
    if not result.is_first:
        return
    for images in filter(None, (learn, judge, test)):
        note_skipped(images)
    if result.fresh:
        note(f"{weights}: made for other classes; began anew: {few(result.fresh)}")
    _show_result(result, len(judge), as_json)


def _show_result(result: TrainResult, judged: int, as_json: bool) -> None:
    precision = "bf16" if result.bf16 else "fp32"
    if as_json:
        found = {"checkpoint": str(result.path), "top1": result.top1, "epochs": result.epochs, "fresh": result.fresh}
        print_json({**found, "precision": precision, "before": result.before, "test": result.test})
        return
    if result.bf16:
        note('computed in bfloat16; precision = "fp32" in the recipe forbids that')
    tuned = f", rounded to INT8; before tuning {result.before:.2%}" if result.before is not None else ""
    echo(f"{result.path}: top-1 {result.top1:.2%} on {judged} held-out images{tuned}")
    if result.test is not None:
        echo(f"top-1 {result.test.test_top1:.2%} on {result.test.test_images} test images, which chose nothing")


def _recipe(text: str, weights: Path | None, changes: dict[str, Any], *, tune: bool) -> tuple[Recipe, Path | None]:
    """The recipe named, with the changes, and the weights to start from; a checkpoint is both."""
    from alexdeploy.recipe import for_tuning, load_recipe, with_train_options

    path = Path(text)
    if path.suffix.lower() == ".safetensors" and path.is_file():
        from alexdeploy.zoo.checkpoint import stored_recipe

        if weights is not None:
            raise UsageError(f"{path} is a checkpoint, whose weights are taken; leave --weights out")
        recipe, weights = stored_recipe(path), path
    else:
        recipe = load_recipe(text)
    if tune and weights is None:
        raise UsageError("--qat tunes trained weights: name a CHECKPOINT, or a network and its --weights")
    return with_train_options(for_tuning(recipe) if tune else recipe, **changes), weights


def _show_epoch(epochs: int, epoch: Epoch) -> None:
    note(
        f"epoch {epoch.epoch}/{epochs}: loss {epoch.train_loss:.4f}, top-1 {epoch.train_top1:.2%}; "
        f"held out: loss {epoch.val_loss:.4f}, top-1 {epoch.top1:.2%}; {epoch.images_per_s:.0f} images/s, "
        f"{epoch.seconds:.1f} s"
    )


def _checkpoint_path(out: Path | None, network: str) -> Path:
    if out is None:
        files.make_folder(Path("models"))
        out = Path("models") / network
    files.make_folder(out)
    return out / f"{network}.safetensors"
