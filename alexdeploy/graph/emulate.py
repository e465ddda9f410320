"""16 bits and FP8 for ONNX Runtime on a CPU, which has no kernels of them: FP32 arithmetic on rounded values.

And what its optimizers get wrong, in another form that they leave alone.

A kernel of bfloat16 multiplies exactly, sums in FP32 and rounds its result once; so does this, but for the order of the
sums. FP8 is computed so by ONNX Runtime itself, from its Q/DQ; but its optimizers (1.32) take a Relu before an FP8
QuantizeLinear for superfluous, so that negative values pass, and fail at a Clip there.

FP16 it computes in FP32, without rounding between the nodes of a region (1.32, even without its optimizers): what
overflows on a GPU does not on the CPU. That is well for answers, and useless for a judgement on the graph.

Its optimizer ClipQuantRewrite (1.32) drops a Clip whose bounds are within 1.2e-7 of what the levels behind it hold;
where the scale is below 1e-9 all bounds seem to be. A ReLU6 was dropped so in MobileNet-V2 with fresh weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from alexdeploy.graph.names import taken_names, unique

_FLOAT, _FP16, _BF16, _FP8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN
# what they give is one of the values that they read, so it is rounded already
_EXACT = frozenset(
    {"Concat", "Dropout", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape"}
)
_EXACT |= {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


_FAINT = 1e-9  # a scale of 8 bits whose levels reach no further than 1.2e-7
_OWN_TYPE = frozenset({"Cast", "Constant", "ConstantOfShape", "EyeLike"})  # an attribute says it


def for_cpu(model: ir.Model, *, fp16: bool = False) -> ir.Model:
    """The same function in FP32 with a rounding to bfloat16 wherever the graph has a bfloat16 result.

    Names stay; bfloat16 tensors hold FP32 now. A model without bfloat16, FP8 and faint scales is returned as it is.

    Args:
        model: not changed.
        fp16: the same for FP16, where what is above 65504 becomes infinite.
    """
    halves = (_BF16, _FP16) if fp16 else (_BF16,)
    found = {value.dtype for node in model.graph for value in node.outputs}
    found |= {value.dtype for value in model.graph.initializers.values()}
    if found.isdisjoint((*halves, _FP8)) and not _faint_clips(model.graph):
        return model
    model = model.clone()
    taken = taken_names(model)
    for clip in _faint_clips(model.graph):
        _as_maximum_and_minimum(model.graph, clip, taken)
    _without_fp8_quantize(model.graph, taken)
    for half in halves:
        _without(half, model.graph, taken)
    return model


def _faint_clips(graph: ir.Graph) -> list[ir.Node]:
    """Clip nodes before a QuantizeLinear with a scale so small that ONNX Runtime takes them for superfluous."""
    return [
        node
        for node in graph
        if node.op_type == "Clip" and any(_is_faint(user) for user in node.outputs[0].consumers())
    ]


def _is_faint(quantize: ir.Node) -> bool:
    scale = quantize.inputs[1] if quantize.op_type == "QuantizeLinear" else None
    tensor = scale.const_value if scale is not None else None
    return tensor is not None and bool(tensor.numpy().min(initial=1) < _FAINT)


def _as_maximum_and_minimum(graph: ir.Graph, clip: ir.Node, taken: set[str]) -> None:
    """Min(Max(x, lower), upper), which is what ONNX defines a Clip as."""
    bounds = [
        ("Max", clip.inputs[1] if clip.inputs[1:] else None),
        ("Min", clip.inputs[2] if clip.inputs[2:] else None),
    ]
    value, made = clip.inputs[0], []
    for operator, bound in bounds:
        if bound is not None:
            node = ir.node(operator, [value, bound], name=unique(f"{clip.name}.{operator.lower()}", taken))
            made.append(node)
            value = node.outputs[0]
            value.name, value.type, value.shape = node.name, clip.outputs[0].type, clip.outputs[0].shape
    if made:
        ir.convenience.replace_nodes_and_values(graph, clip, [clip], made, clip.outputs, made[-1].outputs)


def _without_fp8_quantize(graph: ir.Graph, taken: set[str]) -> None:
    """QuantizeLinear to FP8 as a division by the scale and a Cast, which saturates and rounds in the same way.

    One with a scale per channel, which only weights have, stays.
    """
    for node in list(graph):
        levels = node.outputs[0]
        source, scale = node.inputs[:2] if node.op_type == "QuantizeLinear" else (None, None)
        if source is None or scale is None or levels.dtype != _FP8:
            continue
        if scale.shape is None or len(scale.shape):
            continue
        divide = ir.node("Div", [source, scale], name=unique(f"{node.name}.divide", taken))
        divide.outputs[0].name, divide.outputs[0].type = unique(f"{levels.name}.exact", taken), ir.TensorType(_FLOAT)
        divide.outputs[0].shape = source.shape
        cast = ir.node("Cast", divide.outputs, {"to": int(_FP8)}, name=node.name)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [divide, cast], [levels], cast.outputs)


def _without(half: ir.DataType, graph: ir.Graph, taken: set[str]) -> None:
    for value in graph.initializers.values():
        if value.dtype == half and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(_FLOAT)
    for node in list(graph):
        for output in node.outputs:
            if output.dtype == half:
                output.type = ir.TensorType(_FLOAT)
                if node.op_type not in _EXACT:
                    _round(half, graph, node, output, taken)
    for value in graph.inputs:
        if value.dtype == half and value.uses():
            _widen(graph, value, taken)


def _round(half: ir.DataType, graph: ir.Graph, node: ir.Node, output: ir.Value, taken: set[str]) -> None:
    """FP32 → 16 bits → FP32 behind ``output``, whose name and users the result takes."""
    name, users = output.name, list(output.uses())
    output.name = unique(f"{name}.exact", taken)
    if node.op_type in _OWN_TYPE:  # it rounds by itself
        output.type, rounded = ir.TensorType(half), node
    else:
        rounded = ir.node("Cast", [output], {"to": int(half)}, name=unique(f"{name}.round", taken))
        rounded.outputs[0].name, rounded.outputs[0].type = unique(f"{name}.rounded", taken), ir.TensorType(half)
        graph.insert_after(node, [rounded])
    back = ir.node("Cast", rounded.outputs, {"to": int(_FLOAT)}, name=unique(f"{name}.widen", taken))
    graph.insert_after(rounded, [back])
    result = back.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(_FLOAT), output.shape
    for user, index in users:
        user.replace_input_with(index, result)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = result


def _widen(graph: ir.Graph, images: ir.Value, taken: set[str]) -> None:
    """An input of 16 bits as FP32 for all its users."""
    users = list(images.uses())
    cast = ir.node("Cast", [images], {"to": int(_FLOAT)}, name=unique(f"{images.name}.widen", taken))
    cast.outputs[0].name, cast.outputs[0].type = unique(f"{images.name}.wide", taken), ir.TensorType(_FLOAT)
    cast.outputs[0].shape = images.shape
    graph.insert_before(graph[0], [cast])
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])
