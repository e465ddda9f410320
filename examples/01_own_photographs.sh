#!/usr/bin/env bash
# From a folder of photographs to an INT8 model and the table that compares it with FP32.
#
#     bash examples/01_own_photographs.sh photos/ out/
#
# photos/ has one subfolder of images per class; a fifth of each class is held out to judge on. Optional: a network
# (alexnet-half), the number of epochs (30), and the runtime that the INT8 file is for (onnxruntime, or tensorrt).
# Run again with the same out/, it goes on with the training that is there.
set -euo pipefail

usage="usage: $0 PHOTOS OUT [NETWORK [EPOCHS [onnxruntime|openvino|tensorrt]]]"
photos=${1:?$usage}
out=${2:?$usage}
network=${3:-alexnet-half}
epochs=${4:-30}
runtime=${5:-onnxruntime}

mkdir -p "$out"
resume=()
if [ -e "$out/$network.last.pt" ]; then resume=(--resume); fi
alexdeploy train "$network" --data "$photos" --epochs "$epochs" --out "$out" ${resume[@]+"${resume[@]}"}
alexdeploy export "$out/$network.safetensors" --data "$photos" -o "$out/model.onnx"
alexdeploy calibrate "$out/model.onnx" --data "$photos" -o "$out/ranges.json"
alexdeploy quantize "$out/model.onnx" --ranges "$out/ranges.json" --for "$runtime" -o "$out/int8.onnx"
alexdeploy bench "$out/model.onnx" "$out/int8.onnx" --data "$photos" --seconds "${BENCH_SECONDS:-20}" \
    --html "$out/report.html"
