"""A running server against the repository that it serves: configuration, answers, class names and preprocessing.

A server that is ready may still have another output's dims, another order of class names, another mean or another file:
Triton notices none of them. So each version's golden answers are asked for, and everything that differs is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError, few
from alexdeploy.metrics import relative_error, rerun_tolerance
from alexdeploy.runners.artifact import Artifact, open_artifact
from alexdeploy.runners.kserve import KServeRunner
from alexdeploy.specs import Precision
from alexdeploy.triton import golden
from alexdeploy.triton.config import (
    CONFIG,
    DECODE,
    IMAGE,
    LABEL,
    ModelConfig,
    Served,
    expected_configs,
    read_config,
    served,
)
from alexdeploy.triton.differences import differences
from alexdeploy.triton.repository import (
    backend_of,
    check_repository,
    labels_text,
    model_in,
    versions_of,
)


@dataclass(frozen=True)
class Compared:
    """One comparison.

    Attributes:
        model, version: on the server; no version where all share it.
        what: was compared.
        error: largest relative error, 0.0 where every bit is equal; None where it is not about numbers.
        passed: within the bound.
    """

    model: str
    version: int | None
    what: str
    error: float | None
    passed: bool


@dataclass(frozen=True)
class Checked:
    """What a check has to tell.

    Attributes:
        url: of the server.
        compared: all comparisons.
        findings: in words what is not as it was published; nothing where the server is sound.
        left_out: what could not be compared, and why.
    """

    url: str
    compared: tuple[Compared, ...]
    findings: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def check_server(
    repository: Path | str, url: str, *, name: str | None = None, version: int | None = None, timeout_s: float = 30.0
) -> Checked:
    """Compare what a server says and answers with what was published.

    Args:
        repository: the folder that ``publish`` wrote; the server may have a copy of it.
        url: as ``KServeRunner`` takes it: ``http://host:8000``, ``grpc://host:8001``.
        name: of a model; None for every one that was published there.
        version: None for all versions that are there.
        timeout_s: seconds that one answer may take.

    Raises:
        UsageError: no such URL, or a version that is not in the repository.
        InputError: no model was published there.
        UnavailableError: no answer from the server, or golden answers that nothing here can compute, where there is
            nothing else to tell.

    Example:
        >>> from alexdeploy.triton.check import check_server  # doctest: +SKIP
        >>> check_server("repository", "http://127.0.0.1:8000").findings  # doctest: +SKIP
        ()
    """
    root = Path(repository)
    names = [name] if name is not None else _published(root)
    there = {number for one in names for number in versions_of(root / one)}
    if not there:
        known = few(_published(root))
        if name is None or not known:
            raise InputError(f"{root}: no model was published in it; name the folder that publish wrote")
        raise InputError(f"{root}: no model '{name}' was published in it; it has {known}")
    if version is not None and version not in there:
        raise UsageError(f"`version` {version}: {root} has {few(map(str, sorted(there)))}")
    check = _Check(root, url, timeout_s)
    for one in names:
        check.model(one, version)
    if check.trouble and not check.findings:
        raise check.trouble[0]
    left_out = (*check.left_out, *map(str, check.trouble))
    return Checked(url, tuple(check.compared), tuple(check.findings), left_out)


def _published(root: Path) -> list[str]:
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [
        folder.name
        for folder in folders
        if any((folder / str(version) / golden.FILE).exists() for version in versions_of(folder))
    ]


@dataclass(frozen=True)
class _Version:
    """A version of the repository: what is in it, and what it should answer."""

    name: str
    number: int
    artifact: Artifact
    served: Served
    golden: golden.Golden
    logits: Logits

    @property
    def tolerance(self) -> float:
        return rerun_tolerance(Precision(self.golden.about.precision))


class _Check:
    """Collects comparisons and findings; ``trouble`` is what the server did not answer."""

    def __init__(self, root: Path, url: str, timeout_s: float) -> None:
        self._root = root
        self._runner = partial(KServeRunner, url, timeout_s=timeout_s)
        self.compared: list[Compared] = []
        self.findings: list[str] = []
        self.left_out: list[str] = []
        self.trouble: list[UnavailableError] = []

    def model(self, name: str, only: int | None) -> None:
        """All that is published under one name, or one version of it."""
        there = versions_of(self._root / name)
        with self._collecting(name):
            check_repository(self._root, name)
        running = self._running(name)
        if unknown := [str(number) for number in running if number not in there]:
            self._find(name, None, f"the server also has version {few(unknown)}, which was not published here")
        opened = []
        for number in there if only is None else sorted({only} & {*there}):
            if number not in running:
                has = f"the server has {few(map(str, running))}" if running else "the server has none"
                self._find(name, number, f"is not served; {has}")
                continue
            with self._collecting(f"{name}, version {number}"):
                version = _opened(self._root, name, number)
                self._file(version)
                self._answers(version)
                opened.append(version)
        if opened:
            self._shared(opened[-1], newest=opened[-1].number == max(running))

    def _running(self, name: str) -> list[int]:
        try:
            with self._runner(name) as runner:
                return [int(version) for version in runner.versions if version.isdecimal()]
        except InputError as error:
            self._find(name, None, f"is not served: {error}")
            return []

    def _shared(self, version: _Version, *, newest: bool) -> None:
        """What all versions of a model share, judged by the newest."""
        name = version.name
        config = read_config(self._root / name / CONFIG)
        compare = {name: self._class_names, f"{name}{DECODE}": self._decode, f"{name}{LABEL}": self._label}
        image = (self._root / f"{name}{IMAGE}").exists()
        if newest:
            compare[f"{name}{IMAGE}"] = self._image
        elif image:
            self.left_out.append(f"{name}{IMAGE}: its answers were not compared: it takes a newer version than this")
        for expected in expected_configs(config, version.served, image=image):
            with self._collecting(expected.name), self._runner(expected.name) as runner:
                there = runner.config()
                self._config(there, expected)
                if expected.name in compare:
                    compare[expected.name](version, runner, there.max_batch_size)

    def _file(self, version: _Version) -> None:
        digest, published = version.artifact.digest, version.golden.about.artifact_sha256
        if digest != published:
            self._find(
                version.name,
                version.number,
                f"{version.served.file} is not the file that was published (sha256 {digest[:12]}…, then "
                f"{published[:12]}…)",
            )

    def _config(self, there: ModelConfig, expected: ModelConfig) -> None:
        if not expected.default_model_filename:
            there.ClearField("default_model_filename")  # the server fills it in
        found = [f"{expected.name}: on the server {differs}" for differs in differences(there, expected)]
        self._compare(expected.name, None, "configuration", passed=not found)
        self.findings += found

    def _answers(self, version: _Version) -> None:
        inputs = version.golden.inputs
        with self._runner(version.name, version=str(version.number)) as runner:
            together = _in_batches(runner.infer, inputs, runner.config().max_batch_size)
            one_by_one = _in_batches(runner.infer, inputs, 1)
        for found, how in ((together, "together"), (one_by_one, "one by one")):
            self._numbers(
                version.name,
                version.number,
                f"logits, {how}",
                found,
                version.logits,
                version.tolerance,
                "another model, or one that was changed",
            )

    def _class_names(self, version: _Version, runner: KServeRunner, _: int) -> None:
        labels = labels_text(version.served).splitlines()
        if not labels or len(version.served.output.shape) != 2:
            return
        answer = runner.ask({runner.input.name: version.golden.inputs[:1]}, top=len(labels))
        texts = _named(answer, version.name, version.served.output.name)
        names = {}
        for text in texts.flat:  # value:index:label
            _, index, label = [*text.decode(errors="replace").split(":", 2), "", ""][:3]
            names[index] = label
        found = [names.get(str(index), "") for index in range(len(labels))]
        self._names(version.name, found, labels, "labels.txt is in another order, or was changed")

    def _decode(self, version: _Version, runner: KServeRunner, most: int) -> None:
        name = runner.outputs[0].name
        images = _as_bytes(version.golden.images)
        found = _in_batches(lambda batch: runner.ask({runner.input.name: batch})[name], images, most)
        bound = rerun_tolerance(Precision.of(fp16=version.served.contract.input_type == "float16"))
        cause = "its preprocessing is another"
        self._numbers(
            f"{version.name}{DECODE}", None, "preprocessed images", found, version.golden.inputs, bound, cause
        )

    def _label(self, version: _Version, runner: KServeRunner, most: int) -> None:
        model, classes, dtype = f"{version.name}{LABEL}", version.logits.shape[1], runner.input.dtype
        ask = partial(_labels, runner, model)
        each = _in_batches(ask, np.eye(classes, dtype=dtype), most)  # one of every class
        labels = version.served.contract.labels or tuple(map(str, range(classes)))
        self._names(model, list(each[:, 0]), labels, "the class names in its contract are in another order")
        answers = _in_batches(ask, version.logits.astype(dtype), most)
        bound = rerun_tolerance(Precision.of(fp16=dtype == "float16"))  # it gets the very logits, whoever made them
        self._probabilities(model, answers, version, near=bound, bound=bound)

    def _image(self, version: _Version, runner: KServeRunner, most: int) -> None:
        model = f"{version.name}{IMAGE}"
        answers = _in_batches(partial(_labels, runner, model), _as_bytes(version.golden.images), most)
        size, moved = float(np.max(np.abs(version.logits))), version.tolerance
        bound = moved * max(1.0, 2 * size)  # an error of the logits, in their exponentials
        self._probabilities(model, answers, version, near=moved, bound=bound)

    def _probabilities(
        self, model: str, answers: npt.NDArray[np.object_], version: _Version, *, near: float, bound: float
    ) -> None:
        """Labels and probabilities, (K, 2), of the golden images.

        Two classes whose logits are nearer than ``near``, relative to the largest, may change places.
        """
        contract, softmax = version.served.contract, version.served.ends_in_softmax
        labels, shares = golden.likeliest(version.logits, contract, ends_in_softmax=softmax)
        names = contract.labels or tuple(map(str, range(version.logits.shape[1])))
        apart = 2 * near * float(np.max(np.abs(version.logits)))
        equal = version.logits >= version.logits.max(axis=1, keepdims=True) - apart
        found = [str(label) for label in answers[:, 0]]
        wrong = [
            index
            for index, label in enumerate(found)
            if label not in {name for name, is_equal in zip(names, equal[index], strict=True) if is_equal}
        ]
        self._compare(model, None, "labels", passed=not wrong)
        for index in wrong[:1]:
            self._find(model, None, f"golden image {index} is '{found[index]}', expected '{labels[index]}'")
        self._numbers(
            model, None, "probabilities", answers[:, 1].astype(np.float32), shares, bound, "it computes something else"
        )

    def _names(self, model: str, found: Sequence[str], expected: Sequence[str], cause: str) -> None:
        wrong = [index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1]]
        self._compare(model, None, f"{len(expected)} class names", passed=not wrong)
        if wrong:
            first = wrong[0]
            more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
            self._find(model, None, f"class {first} is '{found[first]}', expected '{expected[first]}'{more}: {cause}")

    def _numbers(
        self,
        model: str,
        version: int | None,
        what: str,
        found: npt.NDArray[Any],
        expected: npt.NDArray[Any],
        bound: float,
        cause: str,
    ) -> None:
        if found.shape != expected.shape:
            self._compare(model, version, what, passed=False)
            self._find(model, version, f"{what} have the shape {found.shape}, expected {expected.shape}: wrong dims")
            return
        error = relative_error(found, expected)
        self._compare(model, version, what, error, passed=error <= bound)
        if not error <= bound:
            self._find(
                model, version, f"{what} differ by {error:.1e} (relative, at most {bound:.0e} is allowed): {cause}"
            )

    def _compare(self, model: str, version: int | None, what: str, error: float | None = None, *, passed: bool) -> None:
        self.compared.append(Compared(model, version, what, error, passed))

    def _find(self, model: str, version: int | None, words: str) -> None:
        number = f", version {version}" if version is not None else ""
        self.findings.append(f"{model}{number}: {words}")

    @contextlib.contextmanager
    def _collecting(self, where: str) -> Iterator[None]:
        try:
            yield
        except (GateError, InputError) as error:
            self.findings.append(str(error))
        except UsageError as error:  # images that the server, as it says itself, does not take
            self.findings.append(f"{where}: {error}")
        except UnavailableError as error:
            self.trouble.append(error)


def _opened(root: Path, name: str, number: int) -> _Version:
    folder = root / name / str(number)
    with contextlib.ExitStack() as held:
        artifact = open_artifact(model_in(folder))
        held.callback(artifact.release)
        found, answers = served(artifact, backend_of(read_config(root / name / CONFIG))), golden.read_golden(folder)
        logits = answers.logits
        if logits is None:
            try:
                with artifact.runner() as runner:
                    logits = runner.infer(answers.inputs)
            except (GateError, UnavailableError) as error:
                raise UnavailableError(
                    f"{folder}: no golden answers were stored, and nothing here runs the engine ({error}); check it on "
                    "the machine that serves it"
                ) from error
    return _Version(name, number, artifact, found, answers, logits)


def _in_batches(ask: Any, inputs: Batch, most: int) -> npt.NDArray[Any]:
    """Answers to all inputs, in requests of at most ``most``; a model without batches gets one at a time."""
    step = max(most, 1)
    return np.concatenate([ask(inputs[start : start + step]) for start in range(0, len(inputs), step)])


def _as_bytes(images: Sequence[bytes]) -> npt.NDArray[np.object_]:
    """(K, 1)."""
    return np.array([[image] for image in images], object)


def _labels(runner: KServeRunner, model: str, inputs: Batch) -> npt.NDArray[np.object_]:
    """(N, 2): label and probability."""
    answer = runner.ask({runner.input.name: inputs})
    labels, shares = (_named(answer, model, name) for name in ("label", "probability"))
    if not labels.size == shares.size == len(inputs):
        raise GateError(f"{model}: gives {labels.size} labels and {shares.size} probabilities to {len(inputs)} images")
    texts = [label.decode(errors="replace") for label in labels.flat]
    return np.array([*zip(texts, shares.flat, strict=True)], object)


def _named(answer: Mapping[str, npt.NDArray[Any]], model: str, output: str) -> npt.NDArray[Any]:
    if output not in answer:
        raise GateError(f"{model}: gives {', '.join(answer)}, expected {output}")
    return answer[output]
