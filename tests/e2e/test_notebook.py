"""The notebook on calibration is stored with its output, runs again, and what its text says holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "calibration.ipynb"
METHODS = ["minmax", "entropy", "percentile", "mse"]
FIGURES = 4
FINDINGS = """
json.dump(
    {
        "figures": len(plt.get_fignums()),
        "top1": trained.top1,
        "thresholds": ranges.tensors,
        "errors": {tensor: {method: sum(map(float, cost[tensor][method])) for method in COLOURS} for tensor in cost},
        "clipping": {tensor: {method: float(cost[tensor][method][1]) for method in COLOURS} for tensor in cost},
        "agreement": {method: float(agreement[method]) for method in agreement},
    },
    open("findings.json", "w"),
)
"""


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_as_it_ran() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES
    assert NOTEBOOK.stat().st_size < 400_000


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its cells, run in order by plain Python."""
    folder = tmp_path_factory.mktemp("notebook")
    script = "\n\n".join(["import json", *("".join(cell["source"]) for cell in code_cells()), FINDINGS])
    (folder / "notebook.py").write_text(script)
    result = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "findings.json").read_text())


@pytest.mark.slow
def test_it_runs_again(findings: Any) -> None:
    assert findings["figures"] == FIGURES
    assert findings["top1"] > 0.85
    assert findings["agreement"].keys() == set(METHODS)


@pytest.mark.slow
def test_entropy_clips_the_plain_background_and_changes_answers(findings: Any) -> None:
    entropy = findings["thresholds"]["input"]["entropy"]
    assert all(entropy < findings["thresholds"]["input"][method] / 2 for method in METHODS if method != "entropy")
    agreement = findings["agreement"]
    assert all(agreement["entropy"] < agreement[method] - 0.03 for method in METHODS if method != "entropy")
    assert min(agreement[method] for method in METHODS if method != "entropy") > 0.97


@pytest.mark.slow
def test_minmax_clips_nothing_and_mse_has_the_least_error(findings: Any) -> None:
    for tensor, clipping in findings["clipping"].items():
        assert clipping["minmax"] < 1e-9, tensor
        errors = findings["errors"][tensor]
        assert errors["mse"] <= 1.02 * min(errors.values()), tensor
