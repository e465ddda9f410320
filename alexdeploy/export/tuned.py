"""A network tuned for INT8 as the Q/DQ graph that it learned to be, and the gate that proves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from alexdeploy.arrays import Batch
from alexdeploy.export.parity import Parity, in_batches, noise
from alexdeploy.graph.model import model_bytes
from alexdeploy.graph.qdq import TensorRange, insert_qdq
from alexdeploy.graph.taps import with_outputs
from alexdeploy.graph.weighted import weighted_nodes
from alexdeploy.metrics import relative_error
from alexdeploy.runners.onnxruntime import session_options
from alexdeploy.zoo.convnet import ConvNet, layer_paths
from alexdeploy.zoo.fake_quantize import layer_ranges

TUNED_TOLERANCE = 1e-4


def with_learned_qdq(model: ir.Model, network: ConvNet) -> ir.Model:
    """The float graph of ``network`` with Q/DQ where its layers round, on their grid, in the dialect tensorrt."""
    ranges = layer_ranges(network)
    return insert_qdq(
        model, {str(node.activation.name): TensorRange(ranges[node.name]) for node in weighted_nodes(model)}
    )


def check_tuned_parity(network: ConvNet, model: ir.Model, real_images: Batch) -> Parity:
    """ONNX Runtime against PyTorch from each layer that rounds to the next, on noise and on real images.

    Each stretch starts from the tensor that ONNX Runtime computed. Over the whole network the two part by more than
    their arithmetic: where a value lies halfway between two levels, its last bit decides which one it gets.

    Args:
        network: its layers round; in evaluation mode.
        model: its Q/DQ graph.
        real_images: (n >= 1, C, H, W), preprocessed.

    Returns:
        The largest relative error of any stretch.

    Raises:
        GateError: it is beyond ``TUNED_TOLERANCE``.
    """
    inputs = [str(node.inputs[0].name) for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0]]
    ends = [*inputs[1:], str(model.graph.outputs[0].name)]
    options = session_options()
    # else it rounds each bias to a multiple of the two scales, which another runtime does not
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model_bytes(with_outputs(model, ends)), options, providers=["CPUExecutionProvider"])

    def worst(batches: Sequence[Batch]) -> float:
        return max(_worst_stretch(network, batch, [batch, *session.run(ends, {inputs[0]: batch})]) for batch in batches)

    random, real = worst(in_batches(noise(real_images.shape[1:]))), worst(in_batches(real_images))
    parity = Parity(random, real, tolerance=TUNED_TOLERANCE)
    parity.check("ONNX Runtime differs from PyTorch between two quantized layers")
    return parity


def _worst_stretch(network: ConvNet, batch: Batch, expected: Sequence[Any]) -> float:
    """The error of what PyTorch makes of each of ``expected``: the inputs of the layers, and at last the logits."""
    found: list[Tensor] = []

    def take_over(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        found.append(inputs[0])
        return (torch.from_numpy(expected[len(found) - 1]),)

    layers = [network.get_submodule(path) for path in layer_paths(network).values()]
    handles = [layer.register_forward_pre_hook(take_over) for layer in layers]
    try:
        with torch.inference_mode():
            found.append(network(torch.from_numpy(batch)))
    finally:
        for handle in handles:
            handle.remove()
    return max(relative_error(one.numpy(), other) for one, other in zip(found[1:], expected[1:], strict=True))
