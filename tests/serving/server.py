"""Starting the real server, bound to this machine, on free ports."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.serving.install import PYTHON, ROOT, TRITON

WHY_NOT = None if TRITON.is_dir() else f"no server in {TRITON}; python -m tests.serving.install"
_READY_S = 60.0
_QUICK = ("--disable-auto-complete-config",)  # else every model is imported twice, to complete what is complete


class Server(NamedTuple):
    """Where it answers, what it writes, and its process, whose children run the models."""

    http: str
    grpc: str
    metrics: str
    log: Path
    pid: int


@contextlib.contextmanager
def running(
    repository: Path, log: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server that is ready; it ends with the block.

    Args:
        repository: of models; code of ours in it is that of this working tree.
        log: file for what it writes.
        options: of tritonserver, more than those that say where it listens.
        environment: variables, more than this process has.
    """
    http, grpc, metrics = _free_ports(3)
    places = {"http-port": http, "grpc-port": grpc, "metrics-port": metrics, "model-repository": repository}
    places |= dict.fromkeys(("http-address", "grpc-address", "metrics-address"), "127.0.0.1")
    places |= {"backend-directory": TRITON / "backends", "exit-timeout-secs": 30}
    command = [
        str(TRITON / "bin" / "tritonserver"),
        *(f"--{name}={value}" for name, value in places.items()),
        *_QUICK,
        *options,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env={**os.environ, **_PATHS, **(environment or {})},
            cwd=ROOT,  # the first folder where they look for modules
        )
    here = "127.0.0.1"
    server = Server(f"http://{here}:{http}", f"grpc://{here}:{grpc}", f"http://{here}:{metrics}", log, process.pid)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        process.wait()


_PATHS = {
    "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),  # of libpython, which the models' processes embed
    # PYTHONPATH is not read by them; their packages are those of the first python3 on the PATH
    "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}",
}


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{server.http}/v2/health/ready", timeout=5),
        ):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the server is not ready:\n{server.log.read_text(errors='replace')[-4000:]}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
