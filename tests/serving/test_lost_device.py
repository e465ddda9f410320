"""A GPU that failed: the server must not go on saying that it is ready."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from alexdeploy.triton.publish import publish
from tests.helpers.graphs import conv_lrn_gemm, images
from tests.serving.asking import Client, wait_until
from tests.serving.conftest import CONTRACT, save
from tests.serving.server import WHY_NOT, running

LOSES = """
from alexdeploy.errors import DeviceLostError
from alexdeploy.triton.backend import Network

class TritonPythonModel(Network):
    def initialize(self, args):
        super().initialize(args)
        self.infer, self._runner.infer = self._runner.infer, self.answer_or_lose

    def answer_or_lose(self, batch):
        if (batch == 0).all():
            raise DeviceLostError("the GPU fell off the bus")
        return self.infer(batch)
"""


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_the_request_is_told_and_the_server_ends(tmp_path: Path) -> None:
    publish(save(conv_lrn_gemm(), CONTRACT, tmp_path / "lost.onnx"), tmp_path / "repository")
    (tmp_path / "repository" / "lost" / "1" / "model.py").write_text(LOSES)
    with running(tmp_path / "repository", tmp_path / "log") as server:
        with contextlib.closing(Client(server.http)) as client:
            assert client.ask("lost", {"input": images(1)})["logits"].shape == (1, 4)
            with pytest.raises(InferenceServerException, match="the GPU fell off the bus"):
                client.ask("lost", {"input": np.zeros((1, 3, 8, 8), np.float32)})
        wait_until(lambda: not Path(f"/proc/{server.pid}/exe").exists())  # ended, if not yet waited for
    assert "the GPU fell off the bus; the server ends" in server.log.read_text()
