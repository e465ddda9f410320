from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run


def test_a_graph_for_tensorrt_passes(run: Run, int8: Path) -> None:
    result = run("lint", int8, "--json")
    found = json.loads(result.out)
    assert (result.code, found["errors"], found["findings"]) == (0, 0, [])


def test_a_graph_for_another_runtime_exits_5_and_names_node_rule_and_fix(
    run: Run, model: Path, ranges: Path, out: Path
) -> None:
    path = out / "cpu.onnx"
    assert run("quantize", model, "--ranges", ranges, "--for", "onnxruntime", "-o", path).code == 0
    result = run("lint", path, "--json")
    found = json.loads(result.out)
    assert result.code == 5
    assert found["errors"] > 0
    assert all({"node", "rule", "found", "fix", "severity"} == finding.keys() for finding in found["findings"])
