from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from alexdeploy import files, locks
from alexdeploy._version import __version__
from alexdeploy.errors import GateError, InputError, UsageError

ROOT = Path(__file__).parents[2]


def test_a_written_file_holds_the_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "model.onnx", b"weights")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.onnx": b"weights"}


def test_the_file_is_not_there_before_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half of it")
        assert not path.exists()
    assert path.read_bytes() == b"half of it"


def _write_half(path: Path, trouble: type[BaseException]) -> None:
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(b"half of it")
        raise trouble


@pytest.mark.parametrize("trouble", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing(tmp_path: Path, trouble: type[BaseException]) -> None:
    with pytest.raises(trouble):
        _write_half(tmp_path / "model.onnx", trouble)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        _write_half(path, RuntimeError)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_a_written_file_has_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_bytes(tmp_path / "model.onnx", b"weights")
    finally:
        after = os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.onnx").stat().st_mode) == 0o666 & ~mask
    assert after == mask


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"private")
    (tmp_path / "model.onnx").chmod(0o600)
    files.write_bytes(tmp_path / "model.onnx", b"weights")
    assert stat.S_IMODE((tmp_path / "model.onnx").stat().st_mode) == 0o600


def test_a_file_that_another_thread_creates_meanwhile_has_the_mode_of_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread takes its turn wherever the umask, which all threads share, has just been changed."""
    before = os.umask(0o077)
    created: list[Path] = []

    def other_thread() -> None:
        created.append(tmp_path / f"{len(created)}.txt")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(created[-1].write_text, "private").result()

    def changed(mask: int, change: Callable[[int], int] = os.umask) -> int:
        previous = change(mask)
        other_thread()
        return previous

    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", changed)
            with files.atomic_path(tmp_path / "model.onnx") as temporary:
                temporary.write_bytes(b"weights")
                other_thread()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in [*created, tmp_path / "model.onnx"]} == {0o600}


def test_the_hash_of_a_file_larger_than_a_block_is_its_sha256(tmp_path: Path) -> None:
    data = os.urandom(2_500_000)
    (tmp_path / "model.onnx").write_bytes(data)
    assert files.sha256_file(tmp_path / "model.onnx") == hashlib.sha256(data).hexdigest()


def _written(folder: Path) -> Path:
    path = folder / "model.onnx"
    files.write_artifact(path, b"weights", "onnx", options={"opset": 20})
    return path


def test_a_sidecar_survives_the_round_trip(tmp_path: Path) -> None:
    origin, path = tmp_path / "model.safetensors", tmp_path / "model.onnx"
    origin.write_bytes(b"origin")
    written = files.write_artifact(
        path,
        b"weights",
        "onnx",
        parents=(files.parent(origin),),
        options={"opset": 20, "dynamic": True},
        libraries={"torch": "2.14"},
        details={"kernels": [1, 2]},
    )
    read = files.read_sidecar(path)
    assert read == written
    assert read.parents == (files.Parent("model.safetensors", hashlib.sha256(b"origin").hexdigest()),)
    assert (read.kind, read.sha256, read.tool) == ("onnx", hashlib.sha256(b"weights").hexdigest(), __version__)


def test_the_sidecar_lies_beside_the_file_under_its_whole_name(tmp_path: Path) -> None:
    _written(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


def test_a_file_whose_sidecar_cannot_be_written_does_not_replace_the_old_one(tmp_path: Path) -> None:
    path = _written(tmp_path)
    before = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        files.write_artifact(path, b"other weights", "onnx", details={"no JSON": object()})
    assert {found.name: found.read_bytes() for found in tmp_path.iterdir()} == before


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_bytes(b"Weights")
    with pytest.raises(GateError, match=r"model\.onnx: changed since it was written"):
        files.read_sidecar(path)


def test_a_missing_sidecar_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path)
    files.sidecar_path(path).unlink()
    with pytest.raises(GateError, match=r"sidecar model\.onnx\.json is missing"):
        files.read_sidecar(path)


@pytest.mark.parametrize("garbage", [b"", b"not json", b"[]", b'{"kind": "onnx"}', b'{"kind": "\xff"}'])
def test_a_sidecar_that_is_none_is_refused(tmp_path: Path, garbage: bytes) -> None:
    path = _written(tmp_path)
    files.sidecar_path(path).write_bytes(garbage)
    with pytest.raises(InputError, match=r"model\.onnx\.json: not a sidecar"):
        files.read_sidecar(path)


def test_a_sidecar_of_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = _written(tmp_path)
    newer = msgspec.structs.replace(files.read_sidecar(path), schema=files.SCHEMA + 1)
    files.sidecar_path(path).write_bytes(msgspec.json.encode(newer))
    with pytest.raises(InputError, match="upgrade alexdeploy"):
        files.read_sidecar(path)


def test_an_input_that_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    complaints = {
        "missing": "no such file",
        "": "is a folder",
        "empty": "is empty",
        "pipe": "is a pipe, a socket or",
        "n" * 256: "no such file",
    }
    for path, complaint in complaints.items():
        with pytest.raises(InputError, match=complaint):
            files.check_input(tmp_path / path)


def test_an_output_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, complaint in [
        ("missing/model.onnx", "does not exist"),
        (f"{'n' * 256}/model.onnx", "does not exist"),
        (f"{'花' * 66}.onnx", "its name has 203 bytes; give it at most 200"),
        ("folder", "it is a folder"),
        ("pipe", "a device or a pipe"),
    ]:
        with pytest.raises(UsageError, match=complaint):
            files.check_output(tmp_path / path)


@pytest.mark.skipif(os.access("/", os.W_OK), reason="root may write anywhere")
def test_an_output_in_a_read_only_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="no permission"):
        files.check_output(Path("/model.onnx"))


def test_library_versions_leaves_out_what_is_not_installed() -> None:
    assert files.library_versions("numpy", "no-such-library") == {"numpy": metadata.version("numpy")}


def test_a_sidecar_that_is_being_read_is_not_overwritten(tmp_path: Path) -> None:
    path = _written(tmp_path)
    with pytest.raises(UsageError, match=r"model\.onnx\.json: it is what this reads"):
        files.check_output(path, files.sidecar_path(path))


def test_a_file_without_permission_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(tmp_path)
    monkeypatch.setattr(os, "access", lambda found, mode: found != path)  # root may read everything
    with pytest.raises(InputError, match="no permission to read it"):
        files.check_input(path)


def _left(folder: Path, name: str) -> Path:
    path = folder / f".{name}.{locks.system()}abcd.partial"
    path.write_bytes(b"half of it")
    return path


def test_what_a_killed_writer_left_goes_with_the_next_write_of_that_file_alone(tmp_path: Path) -> None:
    left, of_another = _left(tmp_path, "model.onnx"), _left(tmp_path, "model.onnx.json")
    foreign = tmp_path / ".model.onnx.mine.partial"
    foreign.touch()
    files.write_bytes(tmp_path / "model.onnx", b"weights")
    assert not left.exists()
    assert of_another.exists()
    assert foreign.exists()
    _written(tmp_path)
    assert not of_another.exists()


def test_a_write_leaves_alone_what_another_process_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with files.atomic_path(path) as first:
        first.write_bytes(b"first")
        files.write_bytes(path, b"second")
        assert first.exists()
    assert path.read_bytes() == b"first"


def test_two_writers_of_an_artifact_do_not_mix_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second writes where it does most harm: between the first's renames."""
    path, replace = tmp_path / "model.onnx", Path.replace
    with ThreadPoolExecutor(1) as pool:
        others: list[Future[files.Sidecar]] = []

        def replaced(source: Path, target: Path) -> Path:
            result = replace(source, target)
            if not others:
                others.append(pool.submit(files.write_artifact, path, b"second", "onnx"))
                time.sleep(0.3)
            return result

        monkeypatch.setattr(Path, "replace", replaced)
        files.write_artifact(path, b"first", "onnx")
        others[0].result()
    files.read_sidecar(path)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_signal_between_renames_does_not_part_an_artifact_from_its_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: type[BaseException], number: int
) -> None:
    path, replace, done = _written(tmp_path), Path.replace, 0

    def replaced(source: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == number:
            raise trouble
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replaced)
    with pytest.raises(trouble):
        files.write_artifact(path, b"other weights", "onnx", beside={tmp_path / "more": b"more"})
    sidecar = files.read_sidecar(path)
    assert (tmp_path / "more").exists() == (sidecar.sha256 == hashlib.sha256(b"other weights").hexdigest())
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_holds_the_folder_keeps_no_writer_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("it waits"))
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        files.write_bytes(tmp_path / "model.onnx", b"weights")
    finally:
        os.close(descriptor)


def test_a_writer_that_hangs_is_not_waited_for_longer_than_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.05)
    with locks.alone_at(tmp_path / "model.onnx"):
        files.write_bytes(tmp_path / "model.onnx", b"weights")
        assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", ".model.onnx.partial"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_mode_that_forbids_everything_leaves_no_temporary(tmp_path: Path) -> None:
    """The umask 0777, and a user who is not root."""
    code = "import os, sys; from tests.faults.forks import _give_up_root; from alexdeploy import files\n"
    code += "from pathlib import Path; os.umask(0o777); _give_up_root(); files.write_bytes(Path(sys.argv[1]), b'')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"PermissionError: [Errno 13] Permission denied: '{tmp_path / 'x'}'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_entered_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "closed/folder").mkdir(parents=True)
    (tmp_path / "closed/folder/x").write_text("x")
    (tmp_path / "closed").chmod(0o600)
    code = "import sys; from tests.faults.forks import _give_up_root; from alexdeploy import files\n"
    code += "from pathlib import Path; _give_up_root()\n"
    code += "for check in (files.check_input, files.check_output):\n"
    code += "    try: check(Path(sys.argv[1]))\n"
    code += "    except Exception as error: print(type(error).__name__, error)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "closed/folder/x")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        (tmp_path / "closed").chmod(0o700)
    words = f"no permission to enter '{tmp_path}/closed'; change its mode or owner"
    asked = f"{tmp_path}/closed/folder/x"
    assert done.stdout.splitlines() == [f"InputError {asked}: {words}", f"UsageError cannot write {asked}: {words}"]


def test_a_symbolic_link_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    target = _written(tmp_path)
    link = tmp_path / "latest.onnx"
    link.symlink_to(target)
    files.write_artifact(link, b"other weights", "onnx")
    assert not link.is_symlink()
    assert files.read_sidecar(link).sha256 != files.read_sidecar(target).sha256


def test_a_file_that_is_too_large_is_told_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(OSError, match="too large") as trouble, files.atomic_path(path):
        raise OSError(errno.EFBIG, "File too large")
    assert trouble.value.filename == str(path)
