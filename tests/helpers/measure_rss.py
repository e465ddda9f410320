"""Peak resident memory of a command run in a child process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CHILD = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"


def peak_rss_mib(arguments: Sequence[str], cwd: Path) -> float:
    """MiB at most resident while ``python -m alexdeploy ARGUMENTS`` ran; it must end with 0."""
    command = [sys.executable, "-c", _CHILD, sys.executable, "-m", "alexdeploy", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # ru_maxrss: bytes there, KiB elsewhere
    return int(result.stdout) * unit / (1 << 20)
