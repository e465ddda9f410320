"""Take an ONNX classifier that another tool exported, quantize it, and see where INT8 differs from it.

    python examples/02_foreign_onnx.py foreign.onnx alexnet photos/

The second argument is the preprocessing that the network was trained with: the name of a network, or a TOML file with
a [preprocess] section. Writes adopted.onnx, ranges.json and int8.onnx to the working directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from alexdeploy import adopt_onnx, calibrate, compare_layers, quantize_onnx
from alexdeploy.data.sources import load_dataset
from alexdeploy.errors import AlexdeployError
from alexdeploy.quantize.rangefile import save_ranges
from alexdeploy.recipe import load_contract


def main(foreign: str, preprocessing: str, data: str) -> None:
    """Adopt, calibrate, quantize, compare; one line each."""
    learn, held_out = load_dataset(data, "train"), load_dataset(data, "val")
    contract = msgspec.structs.replace(load_contract(preprocessing), labels=learn.classes)
    adopted, ranges, int8 = Path("adopted.onnx"), Path("ranges.json"), Path("int8.onnx")

    result = adopt_onnx(Path(foreign), contract, adopted)
    print(f"adopted: LRN put together again: {', '.join(result.fused) or 'none'}; error {result.parity.worst:.0e}")

    seen = calibrate(adopted, learn, samples=512)
    save_ranges(ranges, seen, parents=(), options={})
    print(f"calibrated on {seen.samples} images: {len(seen.tensors)} tensors")

    print(f"quantized with {quantize_onnx(adopted, ranges, int8).method}")

    difference = compare_layers(adopted, int8, held_out)
    for layer in difference.layers:
        print(f"  {layer.layer:12} {layer.type:12} relative error {layer.relative_l2:.4f}")
    print(f"first layer beyond {difference.band:g}: {difference.first or 'none'}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except AlexdeployError as error:  # one clear line instead of a traceback
        sys.exit(f"error: {error}")
