from __future__ import annotations

from pathlib import Path

import click

from alexdeploy.cli.options import FILE, data_options, json_option, open_data
from alexdeploy.cli.output import note, note_skipped, print_json, progress


@click.command("train")
@click.argument("recipe", metavar="RECIPE|NETWORK")
@data_options(required=True)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per step.  [default: the recipe's]")
@click.option("--lr", type=float, help="Peak learning rate.  [default: the recipe's]")
@click.option("--out", type=FILE, metavar="DIR", help="Folder for the checkpoint.  [default: models/NETWORK]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@json_option
def command(
    recipe: str,
    data: str,
    data_root: Path | None,
    skip_bad_images: bool,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Train a network and keep its best weights.

    Labels, preprocessing, recipe and metrics travel inside the checkpoint. RECIPE is a TOML file, NETWORK the
    name of a network with its own recipe. Writes DIR/NETWORK.safetensors.

    \b
    Example: alexdeploy train alexnet-mnist --data digits --out .
    """
    from alexdeploy.recipe import load_recipe, with_train_options

    loaded = with_train_options(load_recipe(recipe), epochs=epochs, batch_size=batch_size, learning_rate=lr)
    from alexdeploy.train import Epoch, train

    learn = open_data(data, "train", data_root, skip_bad_images)
    judge = open_data(data, "val", data_root, skip_bad_images)
    path = _checkpoint_path(out, loaded.network.name)

    def show(epoch: Epoch) -> None:
        note(
            f"epoch {epoch.epoch}/{loaded.train.epochs}  loss {epoch.train_loss:.4f}  "
            f"top-1 {epoch.top1:.2%}  {epoch.seconds:.1f} s"
        )

    with progress() as bar:
        result = train(
            loaded,
            learn,
            judge,
            path,
            device=device,
            on_epoch=show,
            on_step=lambda done, total: bar(f"training, step {done}/{total}", done / total),
        )
    note_skipped(learn)
    note_skipped(judge)
    if as_json:
        print_json({"checkpoint": str(path), "top1": result.top1, "epochs": result.epochs})
    else:
        click.echo(f"{path}: top-1 {result.top1:.2%} on {len(judge)} held-out images")


def _checkpoint_path(out: Path | None, network: str) -> Path:
    if out is None:
        out = Path("models") / network
        out.mkdir(parents=True, exist_ok=True)
    return out / f"{network}.safetensors"
