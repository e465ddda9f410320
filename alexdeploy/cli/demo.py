from __future__ import annotations

from pathlib import Path

import click

from alexdeploy.cli.options import FILE, DataChoice, json_option
from alexdeploy.cli.run import run_chain


@click.command("demo")
@click.option("--out", type=FILE, default=Path("demo"), show_default=True, metavar="DIR", help="Folder for the files.")
@json_option
def command(out: Path, as_json: bool) -> None:
    """Run the whole chain: no network, no GPU, a minute.

    The same as run alexnet-mnist --data digits, on scikit-learn's digits: trains, exports with native LRN, calibrates,
    quantizes, builds FP32, FP16 and INT8 engines with TensorRT-RTX and compares everything that can run here. A second
    run keeps what is still good.

    \b
    Example: alexdeploy demo --out demo
    """
    from alexdeploy.optional import require
    from alexdeploy.recipe import load_recipe

    require("tensorrt_rtx")
    recipe, data = load_recipe("alexnet-mnist"), DataChoice("digits", None, skip_bad_images=False)
    run_chain(recipe, data, out, 512, builder="tensorrt-rtx", as_json=as_json)
