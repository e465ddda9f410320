"""Labels of very many image files: worker processes, and shards on disk from which a stopped run goes on.

``predictions.csv.shards/`` holds, beside the result: ``manifest.json``, written first, what the shards are of;
``000000.jsonl`` and so on, each written whole, with one row for each of its images; and ``lock``, which the run and its
workers hold. The kernel releases it when the last of them has ended, however that was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, reduction, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from alexdeploy import files
from alexdeploy.data.dataset import Seen
from alexdeploy.errors import AlexdeployError, GateError, InputError, InputWarning, UnavailableError, UsageError
from alexdeploy.files import printable
from alexdeploy.machine import cores
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.classifier import Classifier
from alexdeploy.runners.predict import JUDGED, FoundImage, Prediction, answers, none_can_be_read
from alexdeploy.runners.runtimes import RUNTIMES
from alexdeploy.specs import Progress

# Images. A multiple of a classifier's calls, so that images share calls as they do without workers. A kill loses one
# shard under way of each worker: seconds of work. Ten million images make 40,000 files, which a folder holds easily.
SHARD = 256
_PATIENCE_S = 5.0  # workers of a killed run end within that time


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the shards in a folder are of.

    Attributes:
        model: SHA-256 (hex) of the artifact.
        labels: its class names, or those given to it.
        top, ten_crop: as for ``predict``.
        count, images: how many images, and the SHA-256 (hex) of their paths and truths, in order, and where a path
            is relative of the working directory.
        shard: images of a shard.
    """

    model: str
    labels: tuple[str, ...]
    top: int
    ten_crop: bool
    count: int
    images: str
    shard: int


_WORDS = {
    "model": "another model",
    "labels": "other class names",
    "top": "another `top`",
    "ten_crop": "another `ten_crop`",
    "count": "another number of images",
    "images": "other images",
    "shard": "shards of another size",
}


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know; images come with each order."""

    artifact: Path
    labels: tuple[str, ...]
    top: int
    ten_crop: bool
    skip_bad: bool
    threads: int
    device: str | None

    def classifier(self) -> Classifier:
        opened = open_artifact(self.artifact)
        if self.labels:
            opened = opened.with_labels(self.labels)
        options: dict[str, Any] = {"device": self.device} if self.device is not None else {}
        if self.device is None and "threads" in RUNTIMES[opened.runtimes[0]].options:
            options["threads"] = self.threads
        return Classifier(opened, ten_crop=self.ten_crop, **options)


@dataclass(frozen=True)
class _Report:
    """What a worker tells: it is ready, or so many images are done, or its last word."""

    images: int = 0
    warnings: tuple[str, ...] = ()
    seen: Seen | None = None
    error: Exception | None = None


class _Lock:
    """A locked file; a worker that it is handed to holds the lock as well."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.descriptor)

    def __setstate__(self, duplicate: Any) -> None:
        self.descriptor = duplicate.detach()


def shards_folder(out: Path) -> Path:
    """``predictions.csv`` → ``predictions.csv.shards``."""
    return out.with_name(out.name + ".shards")


@contextlib.contextmanager
def labelled(
    artifact: Artifact,
    images: Sequence[FoundImage],
    out: Path,
    *,
    workers: int,
    top: int = 1,
    ten_crop: bool = False,
    skipped: list[str] | None = None,
    device: str | None = None,
    on_progress: Progress = lambda what, share: None,
) -> Iterator[Iterator[Prediction]]:
    """Label images in worker processes; the block gets what ``predict`` yields, and writes ``out`` from it.

    Each finished shard is kept in ``shards_folder(out)``, which is removed when the block has ended well. Whatever
    stops a run, the same call takes up the finished shards: lost is at most the shard that each worker was at.

    Args:
        artifact: opened from a file, with its class names.
        images: as ``find_images`` found them. Files that are changed between two calls are not noticed.
        out: the result, which names the folder.
        workers: processes, each with the model loaded and its share of the CPU's cores.
        top: as for ``predict``; the predictions hold at least ``JUDGED`` classes, where the model has them.
        ten_crop: as for ``predict``.
        skipped: as for ``predict``; it may be given to go on from a run without.
        device: as for ``load``; all workers share it.
        on_progress: told after each shard.

    Raises:
        UsageError: another run writes there, or the shards are of another model, other options or images; relative
            paths are other images in another working directory.
        UnavailableError: a worker was killed; also as for ``predict``.
        InputError, GateError: as for ``predict``; a GateError also for a shard that has not one row for each of its
            images.
    """
    folder, labels = shards_folder(out), artifact.contract.labels
    with _locked(folder) as lock:
        manifest = Manifest(
            model=artifact.digest,
            labels=labels,
            top=top,
            ten_crop=ten_crop,
            count=len(images),
            images=_digest(images),
            shard=SHARD,
        )
        _prepare(folder, manifest)
        shards = {
            _shard_path(folder, number): images[first : first + SHARD]
            for number, first in enumerate(range(0, len(images), SHARD))
        }
        missing = {path: part for path, part in shards.items() if not path.exists()}
        threads = max(1, cores() // workers)
        job = _Job(artifact.path, labels, max(top, JUDGED), ten_crop, skipped is not None, threads, device)
        seen = _Team(job, lock, workers).label(missing, len(images), on_progress)
        yield _joined(shards, skipped)
        seen.warn("the images", artifact.contract)
        for path in (*shards, folder / "manifest.json", folder / "lock"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds somebody else's file, or the lock of the next run
            folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[_Lock]:
    """The folder, made where there is none, for this run alone."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: a file, where the folder of the shards would be; choose another `out`")
    files.make_folder(folder)
    path, since = folder / "lock", time.monotonic()
    gone = UsageError(f"{folder}: another run has just ended and removed it; give the command again if need be")
    try:
        opened = path.open("ab")
    except FileNotFoundError:
        raise gone from None
    with opened as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - since > _PATIENCE_S:
                    raise UsageError(
                        f"{folder}: another run writes there; wait for it to end, or choose another `out`"
                    ) from None
                time.sleep(0.05)
        try:
            ours = os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            ours = False
        if not ours:
            raise gone
        yield _Lock(file.fileno())


def _prepare(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or compare it with the one that is there; remove what a kill left half-written."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()
    path = folder / "manifest.json"
    if not path.exists():
        if {entry.name for entry in folder.iterdir()} != {"lock"}:
            raise UsageError(
                f"{folder}: holds files and no manifest.json, so it is no folder of shards; choose another `out`"
            )
        files.write_bytes(path, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        return
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except files.UNDECODABLE as error:
        raise InputError(f"{path}: not a manifest of shards: {error}; remove the folder to begin again") from error
    differing = [words for name, words in _WORDS.items() if getattr(found, name) != getattr(manifest, name)]
    if differing:
        raise UsageError(
            f"{folder}: holds the shards of another run ({', '.join(differing)}); give that command again, choose "
            "another `out`, or remove the folder to begin again"
        )


def _digest(images: Sequence[FoundImage]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(os.fsencode(image.name) + b"\0" + (image.truth or "").encode() + b"\0")
    if not all(image.name.startswith(os.sep) for image in images):
        digest.update(bytes(Path.cwd()))
    return digest.hexdigest()


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.jsonl"


def _joined(shards: dict[Path, Sequence[FoundImage]], skipped: list[str] | None) -> Iterator[Prediction]:
    """The rows of all shards in order, one shard at a time; each must hold one row for each of its images."""
    decoder, answered = msgspec.json.Decoder(Prediction), False
    for path, images in shards.items():
        try:
            rows = decoder.decode_lines(path.read_bytes())
        except files.UNDECODABLE:
            rows = []
        if [row.image for row in rows] != [printable(image.name) for image in images]:
            raise GateError(
                f"{path}: has not one row for each of its images: it was changed; remove it and give the command again"
            )
        for row in rows:
            if row.top:
                answered = True
                yield row
            elif skipped is None:
                raise InputError(f"cannot read image '{row.image}'; remove it, or use `skipped`")
            else:
                skipped.append(row.image)
    if shards and not answered:
        raise InputError(none_can_be_read([image for images in shards.values() for image in images]))


class _Team:
    """The worker processes of a run, which all end with it."""

    def __init__(self, job: _Job, lock: _Lock, workers: int) -> None:
        self._job, self._lock, self._workers = job, lock, workers
        self._members: dict[connection.Connection, BaseProcess] = {}

    def label(self, missing: dict[Path, Sequence[FoundImage]], total: int, on_progress: Progress) -> Seen:
        """Have the shards written; what was seen of their images."""
        orders, seen = iter(missing.items()), Seen()
        done = before = total - sum(map(len, missing.values()))
        try:
            for _ in range(min(self._workers, len(missing))):
                self._hire()
            began = time.monotonic()
            while self._members:
                for line in connection.wait([*self._members]):
                    assert isinstance(line, connection.Connection)
                    report = self._hear(line, orders)
                    for text in report.warnings:
                        warnings.warn(text, InputWarning, stacklevel=2)
                    if report.seen is not None:
                        seen.merge(report.seen)
                    done += report.images
                    rate = (done - before) / (time.monotonic() - began)
                    on_progress(f"{done} of {total} images, {rate:.0f}/s", done / total)
        finally:
            for process in self._members.values():
                process.kill()
            for process in self._members.values():
                process.join()
        return seen

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self._job, self._lock, theirs), daemon=True)
        resource_tracker.ensure_running()  # starting it would unblock the signals
        # Ctrl-C goes to the whole group: the workers leave it to this process, which ends them
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        theirs.close()
        self._members[ours] = process

    def _hear(self, line: connection.Connection, orders: Iterator[tuple[Path, Sequence[FoundImage]]]) -> _Report:
        """What a worker has to say; it gets its next order, or leave to go."""
        process = self._members[line]
        try:
            report: _Report = line.recv()
            if report.error is not None:
                raise report.error
            if report.seen is None:
                line.send(next(orders, None))
                return report
        except (EOFError, ConnectionError):
            process.join(1)
            raise UnavailableError(_why_it_ended(process)) from None
        process.join()
        line.close()
        del self._members[line]
        return report


def _why_it_ended(process: BaseProcess) -> str:
    code = process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    fewer = "; it may have been short of memory: use fewer `workers`" if code == -signal.SIGKILL else ""
    return f"a worker process {how}{fewer}; finished shards are kept, the same command goes on"


def _work(job: _Job, lock: _Lock, line: connection.Connection) -> None:  # noqa: ARG001 (the lock is held by having it)
    """A worker: a shard for each order, until there are no more."""
    _end_with_parent()
    os.environ.setdefault("OMP_NUM_THREADS", str(job.threads))  # PyTorch's, which is not yet loaded
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            classifier = job.classifier()
        texts = tuple(str(warning.message) for warning in caught if issubclass(warning.category, InputWarning))
        line.send(_Report(warnings=texts))
        with classifier:
            while (order := line.recv()) is not None:
                path, images = order
                files.write_bytes(path, msgspec.json.Encoder().encode_lines(_rows(classifier, images, job)))
                line.send(_Report(images=len(images)))
        line.send(_Report(seen=classifier.seen))
    except (EOFError, ConnectionError):  # the run has ended
        pass
    except (AlexdeployError, OSError, MemoryError) as error:
        line.send(_Report(error=error))


def _rows(classifier: Classifier, images: Sequence[FoundImage], job: _Job) -> list[Prediction]:
    """One for each image; without classes where it cannot be read."""
    rows = [Prediction(printable(image.name), [], image.truth) for image in images]
    for position, prediction in answers(classifier, images, top=job.top, skipped=[] if job.skip_bad else None):
        rows[position] = prediction
    return rows


def _end_with_parent() -> None:
    """Let this process end when the run does, in the middle of anything."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
