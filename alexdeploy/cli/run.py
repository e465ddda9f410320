from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from alexdeploy.cli.bench import show_bench
from alexdeploy.cli.options import FILE, DataChoice, data_options, device_option, json_option
from alexdeploy.cli.output import note, note_skipped, print_json, progress, say
from alexdeploy.specs import Builder, Progress

if TYPE_CHECKING:
    from alexdeploy.pipeline import PipelineReport
    from alexdeploy.recipe import Recipe


@click.command("run")
@click.argument("recipe", metavar="RECIPE|NETWORK")
@data_options(required=True, split=False)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images.  [default: the recipe's]")
@click.option("--samples", type=click.IntRange(min=1), default=512, show_default=True, help="Images to calibrate on.")
@click.option("--out", type=FILE, metavar="DIR", help="Folder for the files.  [default: NETWORK]")
@device_option()
@json_option
def command(
    recipe: str,
    data: DataChoice,
    epochs: int | None,
    samples: int,
    out: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run the whole chain for a recipe, from training to the comparison.

    Trains, exports, calibrates, quantizes for TensorRT, ONNX Runtime and OpenVINO, builds FP32, FP16 and INT8 engines
    and compares everything that can run here. Run it again after an interruption: it keeps what is still good, also a
    checkpoint that train wrote in DIR. A training with other settings or images wants another DIR. Steps whose library
    is missing are skipped.

    \b
    Example: alexdeploy run lenet --data digits --epochs 2
             alexdeploy run alexnet --data photos/ --out photos-alexnet
    """
    from alexdeploy.recipe import load_recipe, with_train_options

    loaded = with_train_options(load_recipe(recipe), epochs=epochs)
    folder = out or Path(loaded.network.name)
    run_chain(loaded, data, folder, samples, builder="auto", device=device, as_json=as_json)


def run_chain(
    recipe: Recipe,
    data: DataChoice,
    out: Path,
    samples: int,
    *,
    builder: Builder,
    device: str | None = None,
    as_json: bool,
) -> None:
    """Run the chain and show its report."""
    learn, judge = data.open("train"), data.open("val")
    rebuild = shlex.join(["alexdeploy", *click.get_current_context().obj])
    with _step_by_step() as show:
        from alexdeploy.pipeline import run_pipeline

        report = run_pipeline(
            recipe, learn, judge, out, samples=samples, builder=builder, device=device, rebuild=rebuild, progress=show
        )
    note_skipped(learn)
    note_skipped(judge)
    if as_json:
        steps = msgspec.to_builtins(report.steps)
        made = {name: str(path) for name, path in report.artifacts.items()}
        print_json({"steps": steps, **msgspec.to_builtins(report.bench), "artifacts": made})
        return
    show_bench(report.comparison)
    for step in report.steps:
        if step.reason is not None:
            say(f"{step.name}{' skipped' * (step.status == 'skipped')}: {step.reason}")
    say("steps: " + " · ".join(f"{s.name} {s.seconds:.1f} s{' (kept)' * (s.status == 'kept')}" for s in report.steps))
    say(f"files: {out}/")
    for line in _conclusion(report):
        say(line)


def _conclusion(report: PipelineReport) -> list[str]:
    graph, images = report.tensorrt_graph, report.bench.images
    lines = []
    if graph.agreement is not None:
        lines.append(
            f"{Path(graph.artifact).name}, TensorRT's graph: same answers on {_percent(graph.agreement)} of "
            f"{images} images; its speed is that of its engine, so it is not in the table"
        )
    for gain in report.gains:
        doubt = "" if gain.ratio.is_shown else f" ({gain.ratio.verdict})"
        lines.append(
            f"INT8 on {gain.runtime}: {gain.ratio.value:.1f} × FP32 at batch {gain.batch}{doubt}, same answers on "
            f"{_percent(gain.agreement)} of {images} images"
        )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


@contextlib.contextmanager
def _step_by_step() -> Iterator[Progress]:
    """A bar where stderr is a terminal, else one line per step."""
    if sys.stderr.isatty():
        with progress("loading PyTorch") as bar:
            yield bar
        return
    begun: set[str] = set()

    def line(what: str, share: float) -> None:  # noqa: ARG001
        step = what.partition(":")[0]
        if step not in begun:
            begun.add(step)
            note(f"{step} …")

    yield line
