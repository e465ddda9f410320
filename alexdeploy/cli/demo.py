from __future__ import annotations

from pathlib import Path

import click
import msgspec

from alexdeploy.cli.bench import bench_caption, bench_table
from alexdeploy.cli.options import FILE, json_option
from alexdeploy.cli.output import note, print_json, print_table


@click.command("demo")
@click.option("--out", type=FILE, default=Path("demo"), show_default=True, metavar="DIR", help="Folder for the files.")
@json_option
def command(out: Path, as_json: bool) -> None:
    """Run the whole chain: no network, no GPU, a minute.

    On scikit-learn's digits: trains alexnet-mnist, exports it with native LRN, calibrates, quantizes, builds
    FP32, FP16 and INT8 engines with TensorRT-RTX and compares everything that can run here. A second run keeps
    what is still good.

    \b
    Example: alexdeploy demo --out demo
    """
    from alexdeploy.optional import require

    for module in ("torch", "onnx", "onnxruntime", "tensorrt_rtx"):
        require(module)
    from alexdeploy.pipeline import demo

    report = demo(out, on_step=lambda name: note(f"{name} …"))
    if as_json:
        steps = msgspec.to_builtins(report.steps)
        made = {name: str(path) for name, path in report.artifacts.items()}
        print_json({"steps": steps, **msgspec.to_builtins(report.bench), "artifacts": made})
        return
    print_table(bench_table(report.bench))
    click.echo(bench_caption(report.bench))
    click.echo(
        "steps: " + " · ".join(f"{s.name} {s.seconds:.1f} s{' (kept)' * (s.status == 'kept')}" for s in report.steps)
    )
    click.echo(f"files: {out}/")
