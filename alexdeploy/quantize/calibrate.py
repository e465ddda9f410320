"""One streaming pass of a float model over a data set: the activations that quantization needs, observed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from alexdeploy import files
from alexdeploy.arrays import Batch
from alexdeploy.data.dataset import ImageDataset
from alexdeploy.errors import InputError, UsageError
from alexdeploy.graph.fp16 import largest_values
from alexdeploy.graph.lrn.lower import lower_lrn, squares_from_base, sums_of_squares
from alexdeploy.graph.memory import predict_memory
from alexdeploy.graph.model import contract_of, image_input, load_onnx, split_weights
from alexdeploy.graph.names import name_unnamed
from alexdeploy.graph.qdq import calibration_tensors
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import QUANTIZED_OPERATORS, half_weights
from alexdeploy.machine import cores
from alexdeploy.quantize.methods import PERCENTILE, ranges
from alexdeploy.quantize.moments import Columns, MomentsObserver
from alexdeploy.quantize.observer import ActivationObserver
from alexdeploy.quantize.rangefile import RangeFile
from alexdeploy.runners.onnxruntime import OnnxRuntimeRunner
from alexdeploy.specs import Progress

BATCH = 8
_MOST_WORKERS = 8
# of observed activations: a batch adds to the moments as one, whose bits must not hang on the number of cores
_BATCH_BYTES = 64 << 20
_BYTES_AT_ONCE = 256 << 20  # in all batches together, with ONNX Runtime's own and the columns for the moments


def calibrate(
    model_path: Path,
    dataset: ImageDataset,
    *,
    samples: int,
    percentile: float = PERCENTILE,
    moments: bool = True,
    progress: Progress = lambda what, share: None,
) -> RangeFile:
    """Observe what quantization needs: the inputs of Conv, Gemm and MatMul, and some of their outputs.

    Args:
        model_path: float ONNX with a preprocessing contract.
        dataset: images to learn from.
        samples: how many of them to take, spread evenly; all when there are fewer.
        percentile: share of |x| in percent that the method of that name keeps unclipped; above 50, at most 100.
        moments: gather what rounding by error needs, too.
        progress: called after each batch, with the images done and their share of those planned.

    Returns:
        The ranges by every method. Memory does not grow with the number of images.

    Raises:
        UsageError: ``percentile`` out of bounds.
        InputError: a model without contract or weighted layers, FP16 or quantized, an unreadable image, NaN or Inf.

    Example:
        >>> from pathlib import Path
        >>> from alexdeploy import calibrate
        >>> from alexdeploy.data.sources import load_dataset
        >>> calibrate(Path("model.onnx"), load_dataset("digits", "train"), samples=32).samples
        32
    """
    if not 50 < percentile <= 100:
        raise UsageError(f"percentile {percentile:g}: expected more than 50 and at most 100, as in {PERCENTILE}")
    chosen = dataset.subset(samples)
    observed = _ObservedModel(model_path, images=len(chosen) if moments else 0)
    # a batch or an image per core, each on one thread: faster than the cores sharing one, and none waits for another
    # (and where large activations leave fewer at once than cores, still: ranges must not hang on the number of threads)
    workers = min(cores(), _MOST_WORKERS)
    with ExitStack() as closing, ThreadPoolExecutor(workers) as pool:
        opened = pool.submit(lambda: closing.enter_context(observed.open()))  # while the first images are read
        digest = pool.submit(files.sha256_file, model_path)
        try:
            inputs = (image for _, image in chosen.inputs(observed.contract, pool=pool, reduced=True))
            fed = 0
            for fed in _observe_all(observed, opened, inputs, pool, 2 * workers):
                progress(f"calibrating {fed}/{len(chosen)}", fed / len(chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    observers, sha256 = observed.observers, digest.result()
    observed.check_not_replaced()
    result = RangeFile(
        model_sha256=sha256,
        contract=observed.contract.fingerprint,
        dataset={"name": "/".join(Path(dataset.name).parts[-2:]), "fingerprint": chosen.fingerprint},
        samples=fed,
        percentile=percentile,
        largest=observed.largest(),
        moments=observed.moments.result() if observed.moments is not None else None,
        tensors={
            name: {**ranges(o, percentile), "min": o.minimum, "samples": o.samples} for name, o in observers.items()
        },
    )
    result.check_receipt()
    return result


def _observe_all(
    observed: _ObservedModel,
    opened: Future[OnnxRuntimeRunner],
    inputs: Iterator[Batch],
    pool: ThreadPoolExecutor,
    most: int,
) -> Iterator[int]:
    """Observe all inputs, at ``most`` so many batches at once; yields the images done after each batch.

    The first image tells how many make a batch, and how many batches fit into the memory.
    """
    size, fed = observed.frozen_batch or 1, 0
    at_once = 1
    pending: deque[Future[tuple[int, Columns]]] = deque()
    while images := list(islice(inputs, size)):
        pending.append(pool.submit(observed.observe, opened, np.stack(images), fed))
        if not fed:
            first = pending.popleft()
            yield observed.add(first)
            columns = sum(array.nbytes for array in first.result()[1].values()) // len(images)
            image_bytes = 4 * sum(observer.values for observer in observed.observers.values()) // len(images) or 1
            size = observed.frozen_batch or min(max(_BATCH_BYTES // image_bytes, 1), BATCH)
            batch_bytes = max(size * image_bytes, observed.predicted_bytes(size)) + size * columns
            at_once = min(max(_BYTES_AT_ONCE // batch_bytes, 1), most)
        fed += len(images)
        while len(pending) >= at_once:
            yield observed.add(pending.popleft())
    while pending:
        yield observed.add(pending.popleft())


class _ObservedModel:
    """A float model with an observer on each tensor that quantization needs; threads share it.

    ``images``: how many moments are to be gathered from; 0 for no moments.

    Raises:
        InputError: a model that cannot be calibrated.
    """

    def __init__(self, path: Path, *, images: int) -> None:
        self._file = path.resolve()  # ONNX Runtime leaves no folder
        model, tensors = _float_model(path)
        self._loaded = files.identity(self._file)
        self._model = name_unnamed(model)  # moments are kept by layer
        self.contract = contract_of(self._model, str(path))
        self._input = image_input(self._model, str(path))
        batch = self._input.shape[0]
        self.frozen_batch = batch if isinstance(batch, int) else None
        self.observers = {name: ActivationObserver(name) for name in tensors}
        self._shapes = {str(value.name): value.shape for node in self._model.graph for value in node.outputs}
        self._measured = _measured(self._model)
        self._peaks = {tensor: 0.0 for tensor, _ in self._measured.values() if tensor not in self.observers}
        self._comparing = Lock()
        self.moments = MomentsObserver(self._model, images) if images else None

    def open(self) -> OnnxRuntimeRunner:
        """Open a session with the observed tensors as outputs."""
        inner = [name for name in self.observers if name != self._input.name]
        self._tapped = with_outputs(lower_lrn(self._model), inner, magnitudes=[*self._peaks])
        graph, weights = split_weights(self._tapped, self._file)
        return OnnxRuntimeRunner(graph, weights, folder=self._file.parent, threads=1)

    def predicted_bytes(self, images: int) -> int:
        """Of all activations of so many images, once it is open: as far as shapes tell, not only of those observed."""
        need = predict_memory(self._tapped, images)
        return need.activations_bytes + need.io_bytes

    def check_not_replaced(self) -> None:
        """The graph, the weights and the hash are read one after the other, so of one file only while it stays there.

        Raises:
            InputError: another file has taken its place.
        """
        if files.identity(self._file) != self._loaded:
            raise InputError(f"{self._file}: was replaced while it was being read; calibrate again")

    def observe(
        self, opened: Future[OnnxRuntimeRunner], images: npt.NDArray[np.float32], first: int
    ) -> tuple[int, Columns]:
        """Run a batch whose first image has the number ``first``; returns the number behind its last, for ``add``."""
        count, fed, runner = len(images), images, opened.result()
        if self.frozen_batch is not None and count < self.frozen_batch:  # filled up with images, not with zeros
            fed = np.resize(images, (self.frozen_batch, *images.shape[1:]))
        found = runner.run(fed)
        activations = {self._input.name: images}
        for name in self.observers.keys() & found.keys():
            activations[name] = samples_first(found[name], self._shapes.get(name), len(fed), count)
        for name, observer in self.observers.items():
            observer.update(activations[name], first, samples=count)
        with self._comparing:
            for name, output in zip(self._peaks, runner.output_names[-len(self._peaks) :], strict=bool(self._peaks)):
                self._peaks[name] = max(self._peaks[name], float(found[output]))
        return first + count, self.moments.columns(activations, first, count) if self.moments is not None else {}

    def add(self, observed: Future[tuple[int, Columns]]) -> int:
        """Take in the moments of a batch, in order; returns the images seen so far."""
        seen, columns = observed.result()
        if self.moments is not None:
            self.moments.add(columns)
        return seen

    def largest(self) -> dict[str, float]:
        """Largest magnitude so far of each of ``largest_values``."""
        amax = self._peaks | {name: observer.amax for name, observer in self.observers.items()}
        return {name: from_amax(amax[tensor]) for name, (tensor, from_amax) in self._measured.items()}


def _float_model(path: Path) -> tuple[ir.Model, list[str]]:
    """The model, and the tensors to observe.

    Raises:
        InputError: one that cannot be calibrated.
    """
    model = load_onnx(path)
    held = half_weights(model)
    if held is not None:
        raise InputError(f"{path}: holds {held} weights; calibrate the FP32 model it was made from")
    already = next((node for node in model.graph if node.op_type in QUANTIZED_OPERATORS), None)
    if already is not None:
        raise InputError(
            f"{path}: is quantized already (node '{already.name}' is {already.op_type}); calibrate the float model it "
            "was made from"
        )
    tensors = calibration_tensors(model)
    if not tensors:
        raise InputError(
            f"{path}: has no Conv, Gemm or MatMul with constant weights (of a MatMul a matrix); nothing to calibrate"
        )
    return model, tensors


def samples_first(
    activation: npt.NDArray[np.float32], shape: ir.Shape | None, fed: int, wanted: int
) -> npt.NDArray[np.float32]:
    """What ``fed`` images gave, of which ``wanted`` count, with the axis that runs over them as the first.

    That is the first of ``shape``, the graph's, that is open: ViT has (tokens, images, channels). It may run over equal
    parts of an image, such as windows. Where no axis runs over images, all of it is one.

    In a frozen graph no axis is open. Where it is not plain which one runs over the images, those that only fill the
    batch are taken too: they are copies of the others.
    """
    sizes = activation.shape
    if wanted < fed:
        plain = bool(sizes) and sizes[0] == fed and fed not in sizes[1:]
        return activation[:wanted] if plain else np.atleast_1d(activation)
    axis = next((index for index, dim in enumerate(shape or ()) if not isinstance(dim, int)), 0)
    if axis < len(sizes) > 1 and sizes[axis] % fed == 0:  # a Squeeze takes the batch of one image away, too
        return np.moveaxis(activation, axis, 0)
    return activation[None]


def _measured(model: ir.Model) -> dict[str, tuple[str, Callable[[float], float]]]:
    """The tensor of the lowered graph for each of ``largest_values``, and the function of its largest magnitude."""
    sums = sums_of_squares(lower_lrn(model))
    measured: dict[str, tuple[str, Callable[[float], float]]] = {}
    for name, value in largest_values(model).items():
        lrn = value.producer()
        if lrn is None or lrn.op_type != "LRN":
            measured[name] = (str(value.name), float)
        elif name in sums and squares_from_base(lrn, 1e9):  # alpha 0 shows nothing
            measured[name] = (sums[name], partial(squares_from_base, lrn))
    return measured
