"""The faults, and what is done for each."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals

from tests.faults.cell import Cell
from tests.faults.forks import Strike


class Skipped(Exception):  # noqa: N818 (no error)
    """The fault does not exist here, or not for this verb."""


@dataclass(frozen=True)
class Fault:
    """How to apply it, and the exit codes that are right.

    Attributes:
        name: in the table.
        apply: changes the cell before the call; may raise ``Skipped``.
        codes: right answers. With 0 the results must be whole and new; else the old ones must be whole.
        signal: sent at a random time of the run.
        cheap: refused at once, so every verb gets it in the suite.
    """

    name: str
    apply: Callable[[Cell], None]
    codes: tuple[int, ...]
    signal: Signals | None = None
    cheap: bool = False


def _nothing(cell: Cell) -> None:
    """A run without a fault, over the results of an earlier one."""


def _two(cell: Cell) -> None:
    """Two processes write the same."""
    if cell.verb.takes_folder or not cell.verb.over_old or cell.verb.resumes:
        cell.codes = (0, 2)  # a version is published once, a folder is one run's, shards are gathered once


def _at_rename(number: int, what: Signals) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        cell.call = replace(cell.call, strike=Strike(what, "os.rename", number))

    return apply


def _in_its_place(make: Callable[[Path], None]) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        _remove(cell.target)
        cell.target.parent.mkdir(parents=True, exist_ok=True)
        make(cell.target)

    return apply


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_to_file(cell: Cell) -> None:
    cell.root.joinpath("elsewhere").write_bytes(b"of somebody else")
    cell.kept[cell.root / "elsewhere"] = b"of somebody else"
    _in_its_place(lambda path: path.symlink_to(cell.root / "elsewhere"))(cell)
    if cell.verb.takes_folder or cell.verb.name == "train":  # which replaces nothing
        cell.codes = (2,)


def _link_to_nothing(cell: Cell) -> None:
    _in_its_place(lambda path: path.symlink_to(cell.root / "nowhere"))(cell)
    if cell.verb.takes_folder:
        cell.codes = (2,)


def _folder(cell: Cell) -> None:
    if cell.verb.takes_folder:
        raise Skipped("writes into a folder")
    _in_its_place(lambda path: path.mkdir())(cell)


def _link_to_folder(cell: Cell) -> None:
    if cell.verb.takes_folder:
        raise Skipped("writes into a folder")
    cell.root.joinpath("elsewhere").mkdir()
    _in_its_place(lambda path: path.symlink_to(cell.root / "elsewhere"))(cell)


def _inputs_of_its_own(cell: Cell) -> Path:
    own = cell.root / "inputs"
    shutil.copytree(cell.bench.inputs["new"], own)
    cell.kept |= {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    return own


def _input(cell: Cell) -> None:
    if not cell.verb.input:
        raise Skipped("writes no file that it could read")
    own = _inputs_of_its_own(cell)
    cell.call = replace(cell.call, arguments=cell.verb.call(own, cell.results, own / cell.verb.input))


def _hard_link(cell: Cell) -> None:
    if not cell.verb.input:
        raise Skipped("writes no file that it could read")
    own = _inputs_of_its_own(cell)
    _remove(cell.target)
    os.link(own / cell.verb.input, cell.target)
    cell.call = replace(cell.call, arguments=cell.verb.call(own, cell.results))


def _read_only(cell: Cell) -> None:
    for folder in (cell.results, *(path for path in cell.results.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
        cell.on_exit.callback(folder.chmod, 0o755)
    cell.call = replace(cell.call, obeys_modes=True)


def _mounted(cell: Cell, size: str) -> None:
    """The results' folder on a file system of its own."""
    held = {path.name: path for path in cell.results.iterdir()}
    moved = cell.root / "moved"
    moved.mkdir()
    for path in held.values():
        path.rename(moved / path.name)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(cell.results)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        for name in held:
            (moved / name).rename(cell.results / name)
        raise Skipped("needs leave to mount")
    cell.on_exit.callback(subprocess.run, ["umount", str(cell.results)], check=True)
    for name in held:
        shutil.move(moved / name, cell.results / name)


def _read_only_mount(cell: Cell) -> None:
    _mounted(cell, "64m")
    subprocess.run(["mount", "-o", "remount,ro", str(cell.results)], check=True)


def _full_disk(cell: Cell) -> None:
    _mounted(cell, "8m")
    filler = cell.results / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    room = cell.chance.choice((0, 4096, 8192, 16384))
    os.truncate(filler, filler.stat().st_size - room)
    cell.kept[filler] = filler.read_bytes()


def _small_files(cell: Cell) -> None:
    most = cell.chance.choice((2000, 30_000))  # what it says goes to a file, too
    cell.call = replace(cell.call, limits={resource.RLIMIT_FSIZE: most})


def _few_descriptors(cell: Cell) -> None:
    cell.call = replace(cell.call, limits={resource.RLIMIT_NOFILE: 16})


def _little_memory(cell: Cell) -> None:
    # with less than 128 MiB, ONNX Runtime and OpenBLAS end the process themselves while they are loaded
    cell.call = replace(cell.call, memory=int(2 ** cell.chance.uniform(27, 30)))


def _no_home(cell: Cell) -> None:
    names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME")
    cell.call = replace(cell.call, environment=dict.fromkeys(names))


def _c_locale(cell: Cell) -> None:
    cell.forks = cell.bench.bare
    cell.results = cell.results.rename(cell.root / "resultats é 图")
    cell.call = replace(cell.call, arguments=cell.verb.call(cell.bench.inputs["new"], cell.results))


def _stdout(kind: str) -> Callable[[Cell], None]:
    def apply(cell: Cell) -> None:
        cell.call = replace(cell.call, stdout=kind, brief=False)  # type: ignore[arg-type]

    return apply


FAULTS = (
    Fault("none", _nothing, (0,)),
    Fault("kill", _nothing, (-SIGKILL, 0), SIGKILL),
    Fault("kill@1", _at_rename(1, SIGKILL), (-SIGKILL,)),
    Fault("kill@2", _at_rename(2, SIGKILL), (-SIGKILL, 0)),
    Fault("term", _nothing, (143, 0), SIGTERM),
    Fault("term@1", _at_rename(1, SIGTERM), (143, 0)),
    Fault("term@2", _at_rename(2, SIGTERM), (143, 0)),
    Fault("int", _nothing, (130, 0), SIGINT),
    Fault("int@1", _at_rename(1, SIGINT), (130, 0)),
    Fault("hangup", _nothing, (129, 0), SIGHUP),
    Fault("full", _full_disk, (4, 2, 0)),
    Fault("fsize", _small_files, (4, 2, 0)),
    Fault("ro-folder", _read_only, (2,), cheap=True),
    Fault("ro-mount", _read_only_mount, (2, 4), cheap=True),
    Fault("folder", _folder, (2,), cheap=True),
    Fault("fifo", _in_its_place(lambda path: os.mkfifo(path)), (2,), cheap=True),
    Fault("link-dir", _link_to_folder, (2,), cheap=True),
    Fault("link", _link_to_file, (0,)),
    Fault("dangling", _link_to_nothing, (0,)),
    Fault("input", _input, (2,), cheap=True),
    Fault("hardlink", _hard_link, (2,), cheap=True),
    Fault("two", _two, (0,)),
    Fault("16fds", _few_descriptors, (0, 4)),
    Fault("no-home", _no_home, (0,)),
    Fault("c-locale", _c_locale, (0,)),
    Fault("closed", _stdout("closed"), (0,)),
    Fault("pipe", _stdout("pipe"), (0,)),
    Fault("devfull", _stdout("full"), (4,)),
    Fault("memory", _little_memory, (0, 4)),
)
