"""The command line. Commands parse, call one public function and render; they load nothing heavy before they run."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from alexdeploy import files
from alexdeploy._version import __version__
from alexdeploy.cli import process
from alexdeploy.cli.output import warn, with_options
from alexdeploy.errors import AlexdeployError, InputWarning, UnavailableError, unknown_name, visible
from alexdeploy.optional import unavailable

COMMANDS = (
    "train",
    "export",
    "adopt",
    "calibrate",
    "quantize",
    "lint",
    "analyze",
    "build-engine",
    "bench",
    "report",
    "compare",
    "predict",
    "publish",
    "inspect",
    "run",
    "doctor",
    "demo",
)


class _LazyGroup(click.Group):
    """Imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"alexdeploy.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(unknown_name("command", args[0], list(COMMANDS)), ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="alexdeploy")
def cli() -> None:
    """From a PyTorch CNN to a verified TensorRT engine, with what it cost and what it bought.

    \b
    Exit codes: 0 ok · 2 usage · 3 bad or missing input · 4 missing library or hardware
                5 a gate failed (parity, accuracy, INT8 coverage, sidecar)
                6 the GPU failed under way (start again) · 130 interrupted · 143 terminated · 129 hung up
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; a user's mistake is one line on stderr, never a traceback.

    Signals and standard streams are left as they are where ``arguments`` are given: the process is the caller's.
    """
    owned = arguments is None
    process.received.clear()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if owned:
        process.take_over()
    with _warnings_in_one_line():
        code, message = _run(arguments)
    if owned:
        process.finish()
    lost = process.flush() if owned else None
    if lost is not None and not code:
        code, message = UnavailableError.exit_code, lost
    if message:
        message = visible(message)
        with contextlib.suppress(OSError):  # of a full disk, where the output goes
            click.echo(f"error: {message}", err=True)
            if "--json" in arguments:
                click.echo(json.dumps({"error": message, "exit_code": code}))
    if owned:
        process.flush()
    sys.exit(code)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """The library's warnings and Pillow's on stderr, each once; those of other libraries as Python shows them."""
    shown: set[str] = set()
    with warnings.catch_warnings():
        as_python_does = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = str(message)
            if Path(filename).parent.name == "PIL":  # of an image, which it does not name
                text = f"Pillow, of an image: {text}"
            elif not issubclass(category, InputWarning):
                as_python_does(message, category, filename, lineno, file, line)
                return
            if text not in shown:
                shown.add(text)
                warn(text)

        warnings.showwarning = show
        warnings.filterwarnings("ignore", ".* could be decompression bomb")  # below Pillow's limit; the user's own file
        warnings.simplefilter("always", InputWarning)
        yield


def _run(arguments: list[str]) -> tuple[int, str | None]:
    """Exit code and error message."""
    try:
        cli.main(args=arguments, prog_name="alexdeploy", standalone_mode=False, obj=[*map(files.printable, arguments)])
    except AlexdeployError as error:
        cause = error.__cause__  # ONNX Runtime's, say: then the file is not to blame
        lack = process.lacking(cause, str(error)) if cause is not None and not isinstance(cause, OSError) else None
        if lack is not None:
            return UnavailableError.exit_code, with_options(lack)
        return error.exit_code, with_options(str(error))
    except ModuleNotFoundError as error:
        missing = unavailable(error)
        if missing is None:
            raise
        return missing.exit_code, str(missing)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code, None
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        return error.exit_code, f"{' '.join(error.format_message().split()).rstrip('.')}{hint}"
    except (click.Abort, KeyboardInterrupt) as stop:
        return 130, str(stop) or process.STOPPED[130]
    except SystemExit as end:  # a command has told it all itself, or a signal has come
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, process.STOPPED.get(code)
    except Exception as error:
        if process.received:
            return 128 + process.received[-1], process.STOPPED[128 + process.received[-1]]
        lack = process.lacking(error)
        if lack is None:
            raise
        return UnavailableError.exit_code, lack
    return 0, None
