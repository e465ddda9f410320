"""Shape inference by ONNX, which believes the computation and not what the file declares; and libraries kept quiet."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

_LIBRARIES = ("onnx_ir", "onnxscript")


def infer_shapes(model: ir.Model) -> str | None:
    """Infer shapes and types of all values, in place.

    A declared shape or type that contradicts the inferred one is replaced.

    Returns:
        One line on the declared shapes and types that were wrong; None where all fit.
    """
    failure = why_not_inferred(model)
    if failure is None:
        return None
    wrong = _correct(model)
    if wrong:
        failure = why_not_inferred(model)
    found = f"; {len(wrong) - 1} more like it" if wrong[1:] else ""
    parts = [f"{wrong[0]}; the inferred one is used{found}"] if wrong else []
    if failure is not None:
        parts.append(f"shapes cannot be inferred: {failure}")
    return "; ".join(parts)


def why_not_inferred(model: ir.Model) -> str | None:
    """What strict inference complains of, which changes nothing then; None where all shapes and types were inferred."""
    with contained_logs() as records:
        common.ShapeInferencePass()(model)
    errors = [record.exc_info[1] for record in records if record.exc_info]
    return " ".join(re.sub(r"\[\w+Error\]", "", str(errors[0])).split())[:200] if errors else None


def _correct(model: ir.Model) -> list[str]:
    """Put inferred shapes and types where the declared ones are missing or contradict them.

    Returns:
        Each contradiction, in words.
    """
    bare = model.clone()
    for node in bare.graph:
        for value in node.outputs:
            value.type = value.shape = None
    with contained_logs():
        common.ShapeInferencePass(check_type=False, strict_mode=False)(bare)
    wrong = []
    for node, judged in zip(model.graph, bare.graph, strict=True):
        for declared, inferred in zip(node.outputs, judged.outputs, strict=True):
            fits = None in (declared.dtype, inferred.dtype) or declared.dtype == inferred.dtype
            if not fits:
                wrong.append(f"'{declared.name}' is declared as {declared.dtype}, inferred is {inferred.dtype}")
            elif _contradict(declared.shape, inferred.shape):
                wrong.append(f"'{declared.name}' is declared with shape {declared.shape}, inferred is {inferred.shape}")
                fits = False
            if declared.dtype is None or not fits:
                declared.type = inferred.type
            if declared.shape is None or not fits:
                declared.shape = inferred.shape
    return wrong


def _contradict(declared: ir.Shape | None, inferred: ir.Shape | None) -> bool:
    if declared is None or inferred is None:
        return False
    pairs = zip(declared, inferred, strict=False)
    return len(declared) != len(inferred) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


@contextlib.contextmanager
def contained_logs(*more: str) -> Iterator[list[logging.LogRecord]]:
    """Withhold what onnx_ir, onnxscript and ``more`` log in this thread while the block runs; it is in the list.

    They log tracebacks of what they go on without. Other threads, and the application's handlers, are left alone.
    """
    records: list[logging.LogRecord] = []
    thread = threading.get_ident()

    def withhold(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        records.append(record)
        return False

    # a filter does not reach the loggers below its own
    names = [name for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] in (*_LIBRARIES, *more)]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(withhold)
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeFilter(withhold)
