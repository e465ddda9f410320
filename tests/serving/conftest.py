from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import helper

from alexdeploy.contract import METADATA_KEY, Contract
from alexdeploy.triton.publish import publish
from tests.helpers.graphs import conv_lrn_gemm, of_pixels
from tests.serving.asking import Client
from tests.serving.server import WHY_NOT, Server, running

LABELS = ("ant", "bee", "cat", "dog")
CONTRACT = Contract(
    color="rgb", resize=10, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3, labels=LABELS, exif_orientation=True
)
POLLING = ("--model-control-mode=poll", "--repository-poll-secs=1")
MAX_BATCH = 16


@dataclass(frozen=True)
class Serving:
    """A server that has these files, each as the model of its name, and polls the repository for more.

    ``digits`` has the models for encoded images and waits 3 ms for others; ``pixels`` has a uint8 input; ``moving`` is
    for tests that publish and remove versions.
    """

    server: Server
    repository: Path
    files: dict[str, Path]


@pytest.fixture(scope="session")
def triton_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """``triton_server(repository, *options)`` starts a server that lives as long as the tests."""
    if WHY_NOT is not None:
        pytest.skip(WHY_NOT)
    started: list[contextlib.ExitStack] = []

    def start(repository: Path, *options: str) -> Server:
        started.append(contextlib.ExitStack())
        return started[-1].enter_context(running(repository, tmp_path_factory.mktemp("server") / "log", *options))

    yield start
    with ThreadPoolExecutor() as pool:  # a server takes seconds to end
        list(pool.map(contextlib.ExitStack.close, started))


@pytest.fixture(scope="session")
def serving(triton_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Serving:
    folder = tmp_path_factory.mktemp("serving")
    files = {
        "digits": save(conv_lrn_gemm(), CONTRACT, folder / "digits.onnx"),
        "pixels": save(
            of_pixels(conv_lrn_gemm(), 255, (0.5,) * 3, (0.25,) * 3), CONTRACT.of_pixels, folder / "pixels.onnx"
        ),
        "moving": save(conv_lrn_gemm(), CONTRACT, folder / "moving.onnx"),
    }
    repository = folder / "repository"
    for name, path in files.items():
        delay = 3000 if name == "digits" else 0
        publish(path, repository, image=True, max_batch=MAX_BATCH, max_delay_us=delay)
    return Serving(triton_server(repository, *POLLING), repository, files)


@pytest.fixture(params=["http", "grpc"])
def client(serving: Serving, request: pytest.FixtureRequest) -> Iterator[Client]:
    """Of each protocol in turn."""
    with contextlib.closing(Client(getattr(serving.server, request.param))) as client:
        yield client


def save(model: onnx.ModelProto, contract: Contract, path: Path) -> Path:
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    path.write_bytes(model.SerializeToString())
    return path
