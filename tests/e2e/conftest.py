from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# what is tested is that it ends well and what it answers, so each runner is timed no longer than it takes at least
SHORT_DEMO = """
import alexdeploy.pipeline
from alexdeploy.cli import main
alexdeploy.pipeline.BENCH_SECONDS = 0.1
main()
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which ``alexdeploy demo --out demo --json`` has been run; its answer is demo.stdout.

    It is run once, however many processes share the tests; each gets a copy.
    """
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    shared = tmp_path_factory.getbasetemp().parent / "demo-of-all-workers"
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "demo.stdout").exists():
            _run_demo(shared)
    return Path(shutil.copytree(shared, tmp_path_factory.mktemp("home") / "home"))


def _run_demo(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", SHORT_DEMO, "demo", "--out", "demo", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (folder / "demo.stdout").write_text(result.stdout)
