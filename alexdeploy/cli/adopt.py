from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alexdeploy import files
from alexdeploy.cli.options import FILE, DataChoice, data_options, json_option, option_group, output_option
from alexdeploy.cli.output import echo, print_json, progress
from alexdeploy.errors import InputError, UsageError, few, words_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from alexdeploy.export.from_onnx import AdoptResult
    from alexdeploy.export.parity import Parity


@dataclass(frozen=True)
class Meaning:
    """Of the pixels that go in and the numbers that come out."""

    contract: str | None
    labels: Path | None


meaning_options = option_group(
    "meaning",
    Meaning,
    click.option(
        "--contract",
        metavar="NETWORK|FILE",
        help="Preprocessing it was trained with: a network's, a TOML file with a [preprocess] section, or a "
        "preprocessor_config.json of Transformers or config.json of timm.",
    ),
    click.option(
        "--labels", type=FILE, metavar="FILE", help="Class names: a class_indices.json, or a text file with one a line."
    ),
)


@dataclass(frozen=True)
class Foreign:
    """What a graph of others leaves open."""

    logits: str | None
    constant: tuple[str, ...]

    @property
    def given(self) -> bool:
        return self.logits is not None or bool(self.constant)

    def constants(self) -> dict[str, npt.ArrayLike]:
        """By input: a number, a truth value, or what a file holds."""
        found: dict[str, npt.ArrayLike] = {}
        for text in self.constant:
            name, _, value = text.rpartition("=")
            if not name or name in found:
                raise UsageError(f"--constant {text}: expected INPUT=VALUE, each input once, such as training=false")
            found[name] = _constant(text, value)
        return found


def _constant(text: str, value: str) -> npt.ArrayLike:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.endswith(".npy"):
        import numpy as np

        files.check_input(Path(value))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a header that Python 2 wrote
                return np.asarray(np.load(value, allow_pickle=False))
        except Exception as error:  # NumPy parses the header as Python
            raise InputError(f"{value}: not an array that NumPy wrote: {words_of(error)}") from error
    try:
        return int(value)
    except ValueError:
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"--constant {text}: expected a number, true, false or a .npy file") from None


foreign_options = option_group(
    "foreign",
    Foreign,
    click.option(
        "--logits",
        metavar="OUTPUT",
        help="Of several outputs the one with one score per class.  [default: the only one of shape (batch, classes)]",
    ),
    click.option(
        "--constant",
        multiple=True,
        metavar="INPUT=VALUE",
        help="Value of an input besides the image: a number, true, false, or a .npy file.",
    ),
)


uint8_option = click.option(
    "--uint8-input",
    is_flag=True,
    help="The file takes pixels, uint8 (batch, H, W, C) in RGB or gray: scale, mean, std and colour order are in it.",
)


@click.command("adopt")
@click.argument("model", type=FILE)
@meaning_options
@foreign_options
@uint8_option
@data_options(required=False, split=False)
@output_option("model.onnx")
@json_option
def command(
    model: Path,
    meaning: Meaning,
    foreign: Foreign,
    uint8_input: bool,
    data: DataChoice | None,
    output: Path,
    as_json: bool,
) -> None:
    """Make a foreign ONNX classifier one of ours.

    It gets the preprocessing of --contract, the class names of --labels or --data, and one LRN node for each LRN
    that its exporter took apart. One image input and one output of logits stay: other outputs and a Softmax at the
    end are taken out, other inputs get the value of --constant.

    ONNX Runtime compares it with the original at batch 1, 2 and 5 on noise; beyond a relative error of 1e-5
    nothing is written (exit 5).

    \b
    Example: alexdeploy adopt foreign.onnx --contract alexnet -o model.onnx
             alexdeploy adopt keras.onnx --contract mine.toml --logits dense --constant training=false -o model.onnx
    """
    adopt(model, meaning, foreign, data, output, uint8_input=uint8_input, as_json=as_json)


def adopt(
    model: Path,
    meaning: Meaning,
    foreign: Foreign,
    data: DataChoice | None,
    output: Path,
    *,
    uint8_input: bool,
    as_json: bool,
) -> None:
    """The command; also what ``export FOREIGN.onnx`` does."""
    if meaning.contract is None:
        raise UsageError("a foreign .onnx file needs --contract, the preprocessing it was trained with")
    files.check_output(output, model)
    files.check_input(model)
    import msgspec

    from alexdeploy.data.labels import read_class_indices
    from alexdeploy.export.from_onnx import adopt_onnx
    from alexdeploy.recipe import load_contract

    contract = load_contract(meaning.contract)
    if meaning.labels is not None:
        contract = msgspec.structs.replace(contract, labels=read_class_indices(meaning.labels))
    elif data is not None:
        contract = msgspec.structs.replace(contract, labels=data.open("val").names)
    with progress(f"reading {model.name}") as bar:
        result = adopt_onnx(
            model,
            contract,
            output,
            logits=foreign.logits,
            constants=foreign.constants(),
            uint8_input=uint8_input,
            progress=bar,
        )
    if as_json:
        told = {"ops": result.ops, "fused_lrn": result.fused, "interface": result.interface, "parity": result.parity}
        print_json({"model": str(output), **told})
        return
    print_written(output, result.ops, result.parity, model.name, _changes(result))


def _changes(result: AdoptResult) -> str:
    interface = result.interface
    changes = {
        "LRN put back": result.fused,
        "logits": [interface.logits] if interface.dropped else [],
        "outputs taken out": interface.dropped,
        "constants": interface.constants,
    }
    told = [f"{what}: {few(names)}" for what, names in changes.items() if names]
    if interface.softmax:
        told.append(f"{interface.softmax} taken out at the end, since predict applies it")
    return "".join(f"{change}; " for change in told)


def print_written(output: Path, ops: dict[str, int], parity: Parity, original: str, more: str = "") -> None:
    """The line that a written ONNX file gets."""
    counts = ", ".join(f"{count} {name}" for name, count in ops.items())
    limit = f"(relative, limit {parity.tolerance:.0e})"
    echo(f"{output}: {counts}; {more}parity with {original} {parity.worst:.1e} {limit}")
