"""Precision in the graph: what must be refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexdeploy.errors import UsageError
from alexdeploy.quantize.apply import PrecisionSettings, with_precision


def test_int8_without_ranges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="INT8 needs ranges"):
        with_precision(tmp_path / "m.onnx", settings=PrecisionSettings(int8=True))
    with pytest.raises(UsageError, match="`lrn_fp16` is for `fp16`"):
        PrecisionSettings(lrn_fp16=True)
