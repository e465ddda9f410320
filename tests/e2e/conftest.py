from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which ``alexdeploy demo --out demo --json`` has been run; its answer is demo.stdout."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    folder = tmp_path_factory.mktemp("home")
    result = subprocess.run(
        [sys.executable, "-m", "alexdeploy", "demo", "--out", "demo", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (folder / "demo.stdout").write_text(result.stdout)
    return folder
