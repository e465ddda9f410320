"""What becomes of each graph of the zoo that is not simply right, and in which words."""

from __future__ import annotations

from typing import NamedTuple

from alexdeploy.errors import InputError, UsageError
from tests.field.zoo import ZOO

_TRAINING = r"is in training mode, so that.*export it in evaluation mode"
_OLD = r"13 is needed.*nor does ONNX Runtime run what is older than 7.*export it in opset 13"
_NEWER = r".*knows opset \d+ and IR version \d+ at most; export it in opset 21"

REFUSED = {  # by adopt
    "reshape_attribute": (InputError, f"opset 3, {_OLD}"),
    "old_batch_normalization": (InputError, f"opset 6, {_OLD}"),
    "old_broadcast": (InputError, f"opset 6, {_OLD}"),
    "nan_weight": (InputError, "'w2', a constant of node 'c2', holds 9 values that are NaN.*take a checkpoint"),
    "infinite_bias": (InputError, "'bias', a constant of node 'fc', holds 1 values that are NaN or infinite"),
    "division_by_zero": (InputError, "gives NaN or infinite scores.*look for a division by 0"),
    "zero_batch": (InputError, r"input 'image' has shape \(0, 3, 8, 8\).*export it with a dynamic batch"),
    "two_images": (UsageError, "expected one image as input.*found image.*other.*`constants`"),
    "long_input": (InputError, "input 'image' is int64.*export it with float32, float16 or uint8 images"),
    "opset_of_the_future": (InputError, f"has opset 99 and IR version 10;{_NEWER}"),
    "ir_of_the_future": (InputError, f"has opset 21 and IR version 99;{_NEWER}"),
    "training_batch_normalization": (InputError, rf"node 'bn' \(BatchNormalization\) {_TRAINING}"),
    "old_training_batch_normalization": (InputError, rf"node 'bn' \(BatchNormalization\) {_TRAINING}"),
    "training_dropout": (InputError, rf"node 'drop' \(Dropout\) {_TRAINING}"),
    "noisy": (InputError, r"node 'noise' \(RandomNormalLike\) gives random numbers; export it without them"),
    "mean_over_the_batch": (InputError, "depends on the other images of its batch.*export it in evaluation mode"),
    "even_lrn": (InputError, r"node 'lrn' \(LRN\) has an even window \(4\).*fine-tune with size 3 or 5"),
    "bfloat16_throughout": (InputError, "no kernel for node 'c1'.*export it with float32 arithmetic"),
}


class Quantized(NamedTuple):
    """A file that is adopted, and not calibrated.

    Attributes:
        why: calibrate's words.
        rules: that lint finds broken.
        built: TensorRT-RTX's verdict, or why it is not built.
        fp16: it can be made FP16.
    """

    why: str
    rules: frozenset[str]
    built: str
    fp16: bool = True


_INT32 = "has INT32 levels.*leave the bias in float"
NOT_CALIBRATED = {
    "partly_quantized": Quantized(
        "'dq' is DequantizeLinear", frozenset({"one-sided"}), "c2 .only its weights have Q/DQ"
    ),
    "integer_weights": Quantized(
        "'dq' is DequantizeLinear", frozenset({"one-sided"}), "c2 .only its weights have Q/DQ"
    ),
    "int4_weights": Quantized("'dq' is DequantizeLinear", frozenset(), "^$"),
    "dynamically_quantized": Quantized(
        "'dynamic' is Dynamic", frozenset({"integer-operator"}), "'dynamic' is Dyn.*quantize statically", fp16=False
    ),
    "ort_qdq": Quantized("is DequantizeLinear", frozenset({"level-type", "zero-point", "unsigned"}), _INT32),
    "ort_symmetric_qdq": Quantized("is DequantizeLinear", frozenset({"level-type", "qdq-before-relu"}), _INT32),
    "ort_int16_qdq": Quantized("is DequantizeLinear", frozenset({"level-type", "zero-point"}), _INT32),
    "qoperator": Quantized(
        "'image_QuantizeLinear' is Q", frozenset({"integer-operator", "zero-point"}), "zero point of", fp16=False
    ),
    "modelopt": Quantized("'x_Q' is QuantizeLinear", frozenset(), "^2 of 3 layers in INT8$"),
    "nncf": Quantized("'x_Q' is QuantizeLinear", frozenset({"unsigned"}), "'y_Q' quantizes to uint8.*quantize to sym"),
    "nncf_asymmetric": Quantized("'x_Q' is QuantizeLinear", frozenset({"zero-point"}), "'y_Q' has a zero point of 7"),
    "cast_islands": Quantized("holds FP16 weights", frozenset(), "^1 of 4 layers in HALF", fp16=False),
    "half_throughout": Quantized("holds FP16 weights", frozenset(), "^3 of 3 layers in HALF$", fp16=False),
}
NOT_CALIBRATED_WORDS = "is quantized already.*|holds FP16 weights.*calibrate the FP32 model"

USABLE = [name for name in ZOO if name not in REFUSED | NOT_CALIBRATED]

LEFT = {  # layers that stay in float when the others are INT8
    "stacked_matmul": {"mm": "its weight is no matrix"},
    "vector_matmul": {"mm": "its weight is no matrix"},
    "float64_island": {"mm": "its weights are float64"},
    "constant_on_the_left": {"mix": "its weights are its first input"},
    "computed_weight": {"long": "its weights are computed at run time"},
    "layers_in_branches": dict.fromkeys(("conv_a", "conv_b"), "it is in a branch or a loop"),
    "einsum": {"mix": "Einsum is not quantized"},
    "transposed_convolution": {"up": "ConvTranspose is not quantized"},
    "recurrent": {"gru": "GRU is not quantized"},
}
# TensorRT computes it while it builds
NO_KERNELS = {"scores_without_image": ("c1", "c2", "fc")}
# 16 channels whose sizes differ by 1e6 have one scale together; it is told
DOUBTFUL = {"unlike_channels": "away from its answers in float on 2 drawn images; judge it on your images"}
UNDERFLOW = ("normalized", "small_factor", "small_variance", "vanishing")
# ONNX's reference implementation (1.23) is another batch's, fails, or is wrong in FP32 too (BatchNormalization of opset
# 9 as in training, LRN)
NOT_BY_ONNX = frozenset({"frozen_batch", "opset7", "opset9", "transposed_convolution", "other_normalizations"})
NOT_BY_ONNX |= {"strong_lrn", "caffe"}
