from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from alexdeploy.cli.options import FILE, json_option, option_group
from alexdeploy.cli.output import echo, note, print_columns, print_json, progress
from alexdeploy.columns import Column
from alexdeploy.errors import GateError, UsageError
from alexdeploy.files import printable

if TYPE_CHECKING:
    from alexdeploy.triton.check import Compared
    from alexdeploy.triton.publish import Published


@click.command("publish")
@click.argument("artifact", type=FILE, required=False)
@click.option(
    "--triton",
    "repository",
    type=FILE,
    required=True,
    metavar="DIR",
    help="Model repository; made where it is missing.",
)
@click.option("--name", metavar="NAME", help="Name of the model.  [default: the file's, without its suffix]")
@click.option("--version", type=click.IntRange(min=1), help="Number of the version.  [default: one more than there is]")
@click.option("--image", is_flag=True, help="Also write NAME-image, which takes JPEG or PNG bytes and gives a label.")
@click.option(
    "--backend",
    type=click.Choice(["python", "onnxruntime"]),
    help="What runs an ONNX file: our runner, or Triton's own backend.  [default: python]",
)
@option_group(
    "settings",
    dict,
    click.option(
        "--instances",
        type=click.IntRange(min=1),
        help="Copies that run side by side.  [default: 1; of a further version those of the ones before]",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(min=1),
        help="Images that the server puts into one call at most.  [default: 32, or the most that an engine takes]",
    ),
    click.option(
        "--max-delay-us",
        type=click.IntRange(min=0),
        help="Microseconds that a request waits for others to fill its batch.  [default: 0]",
    ),
)
@click.option(
    "--check",
    "url",
    metavar="URL",
    help="Publish nothing: compare a server's answers, names and configuration with what was published (else exit 5); "
    "http://HOST:8000 or grpc://HOST:8001.",
)
@json_option
def command(
    artifact: Path | None,
    repository: Path,
    name: str | None,
    version: int | None,
    image: bool,
    backend: str | None,
    settings: dict[str, Any],
    url: str | None,
    as_json: bool,
) -> None:
    """Write a model repository for Triton, or check a server that has loaded one.

    An ONNX file is served on the CPU by our runner, a TensorRT engine by Triton's own backend, a TensorRT-RTX engine by
    our runner. A version that is published is never changed; a server sees a new one whole or not at all.

    \b
    Example: alexdeploy publish model.onnx --triton repository --name digits --image
             alexdeploy publish --triton repository --check http://127.0.0.1:8000
    """
    if url is not None:
        given = (artifact, backend, *settings.values())
        if image or any(value is not None for value in given):
            raise UsageError("--check publishes nothing; it takes --triton, --name and --version")
        _check(repository, url, name, version, as_json)
        return
    if artifact is None:
        raise UsageError("name the ARTIFACT to publish, or with --check the server to compare with what was published")
    from alexdeploy.triton.publish import publish

    with progress(f"publishing {printable(artifact.name)}"):
        done = publish(artifact, repository, name=name, version=version, image=image, backend=backend, **settings)
    if not done.answers:
        note(f"note: no golden answers were stored ({done.unanswered}); a check computes them")
    if as_json:
        print_json(_row(done))
        return
    echo(f"{done.name}, version {done.version}: {_words(done)}")
    for model in done.models:
        echo(f"  {printable(done.repository / model)}")
    echo(f"serve it with: {_start(done)}")
    if done.served.builder:
        note(f"note: the engine was made with {done.served.builder}; the server needs that version")


def _check(repository: Path, url: str, name: str | None, version: int | None, as_json: bool) -> None:
    from alexdeploy.triton.check import check_server

    with progress(f"checking {url}"):
        found = check_server(repository, url, name=name, version=version)
    failure = {"error": found.findings[0], "exit_code": GateError.exit_code} if found.findings else {}
    if as_json:
        print_json({**msgspec.to_builtins(found), **failure})
    else:
        rows = found.compared
        print_columns(
            [
                Column("model", [row.model for row in rows], text=True, folds=True),
                Column("version", [str(row.version or "") for row in rows]),
                Column("compared", [row.what for row in rows], text=True),
                Column("result", [_result(row) for row in rows], text=True),
            ],
            title=f"{url} against {printable(repository)}",
            styles=[None if row.passed else "red" for row in rows],
        )
    for number, line in enumerate(found.findings):
        note(line if number else f"error: {line}")
    for line in found.left_out:
        note(f"note: {line}")
    if found.findings:
        sys.exit(GateError.exit_code)


def _result(row: Compared) -> str:
    if row.error is None:
        return "equal" if row.passed else "differs"
    return "bit-equal" if row.error == 0 else f"{row.error:.1e}"


def _words(done: Published) -> str:
    chosen, found = done.settings, done.served
    copies = f"{chosen.instances} instance{'s' if chosen.instances > 1 else ''}"
    return (
        f"{found.file} on the backend {found.backend}, {copies}, batches up to {chosen.max_batch}, "
        f"delay {chosen.max_delay_us} µs"
    )


def _start(done: Published) -> str:
    addresses = " ".join(f"--{kind}-address 127.0.0.1" for kind in ("http", "grpc", "metrics"))
    repository = shlex.quote(printable(done.repository))
    return f"tritonserver --model-repository {repository} --disable-auto-complete-config {addresses}"


def _row(done: Published) -> dict[str, Any]:
    return {
        "repository": printable(done.repository),
        "name": done.name,
        "version": done.version,
        "models": done.models,
        "backend": done.served.backend,
        "file": done.served.file,
        "built_with": done.served.builder or None,
        "settings": done.settings,
        "answers": done.answers,
        "unanswered": done.unanswered or None,
        "serve": _start(done),
    }
