"""What a quantized file of ``calibration_peers.py`` is worth: its layers in INT8, and its answers beside FP32's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LAYERS = ("Conv", "Gemm", "MatMul")
# Between a DequantizeLinear and the layer: what comes out has the levels that went in.
_TRANSPARENT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "MaxPool", "Relu")

Logits = npt.NDArray[np.float64]


def int8_layers(path: Path) -> tuple[int, int]:
    """Conv, Gemm and MatMul whose input and weight both come from a DequantizeLinear of 8 bits, and all of them.

    Read off the file with ``onnx`` alone, so that no tool judges itself. A layer with a fused activation, or in
    another domain, counts as not quantized.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {node.output[0]: a.t.data_type for node in graph.node for a in node.attribute if a.name == "value"}
    eight_bits = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

    def is_8_bits(name: str) -> bool:
        node = producers.get(name)
        while node is not None and node.op_type in _TRANSPARENT:
            node = producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return False
        levels = [types[known] for known in (node.input[0], *node.input[2:]) if known in types]
        return all(found in eight_bits for found in levels)

    weighted = [node for node in graph.node if node.op_type in LAYERS]
    return sum(all(map(is_8_bits, node.input[:2])) for node in weighted), len(weighted)


class Judge:
    """Photographs in memory, and the logits of the float model on them.

    Args:
        model: the float model.
        contract: its contract.
        images: what ``load_dataset`` takes.
        split: which part of it.
        count: how many images at most; None: all.
    """

    def __init__(self, model: Path, contract: Any, images: str, split: Any, count: int | None) -> None:
        from alexdeploy.data.sources import load_dataset

        dataset = load_dataset(images, split)
        dataset = dataset if count is None else dataset.subset(count)
        self._batches = [batch for batch, _ in dataset.batches(contract, 32)]
        self.images = sum(map(len, self._batches))
        self._reference = self._logits(model)

    def scores(self, path: Path) -> dict[str, float]:
        """Share of images with FP32's top-1, and logit errors: ||a-b||2/||b||2 over all logits, max|a-b|/max|b|.

        Raises:
            RuntimeError: ONNX Runtime cannot run the file.
        """
        from alexdeploy.metrics import agreement, relative_error

        try:
            found = self._logits(path)
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            raise RuntimeError(f"ONNX Runtime CPU cannot run it: {str(error)[:200]}") from error
        reference = self._reference
        return {
            "agreement": agreement(found, reference),
            "logit_error": float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
            "logit_error_max": relative_error(found, reference),
        }

    def _logits(self, path: Path) -> Logits:
        """What the graph says, computed in float: the INT8 kernels of a CPU without VNNI saturate."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: batch})[0] for batch in self._batches]).astype(np.float64)
