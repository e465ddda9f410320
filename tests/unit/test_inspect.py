from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from alexdeploy import files
from alexdeploy.errors import InputWarning
from alexdeploy.graph.model import save_onnx
from alexdeploy.inspect import inspect_artifact
from tests.helpers.graphs import conv_lrn_gemm


def test_the_sidecar_of_another_file_is_told(tmp_path: Path) -> None:
    for name in ("ours.onnx", "other.onnx"):
        model = ir.from_proto(conv_lrn_gemm())
        model.producer_name = name
        save_onnx(model, tmp_path / name)
    assert inspect_artifact(tmp_path / "ours.onnx")["kind"] == "onnx"
    files.sidecar_path(tmp_path / "other.onnx").replace(files.sidecar_path(tmp_path / "ours.onnx"))
    with pytest.warns(InputWarning, match=r"ours\.onnx: changed since it was written .*; write it again$") as told:
        assert inspect_artifact(tmp_path / "ours.onnx")["ops"]["LRN"] == 1
    assert len(told) == 1
    assert inspect_artifact(tmp_path / "other.onnx")["ops"]["LRN"] == 1, "without a sidecar there is nothing to tell"
