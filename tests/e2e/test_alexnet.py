"""The paper's network at full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alexdeploy.cli import main


def test_full_alexnet_leaves_as_eight_weighted_layers_and_two_lrn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alexnet.onnx"
    with pytest.raises(SystemExit) as stop:
        main(["export", "--network", "alexnet", "--classes", "1000", "--seed", "0", "-o", str(path), "--json"])
    assert stop.value.code == 0
    result = json.loads(capfd.readouterr().out)
    assert result["ops"] == {"Conv": 5, "Flatten": 1, "Gemm": 3, "LRN": 2, "MaxPool": 3, "Relu": 7}
    assert result["parity"]["random_inputs"] <= 1e-5
    assert result["parity"]["real_inputs"] <= 1e-5
