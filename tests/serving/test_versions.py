"""A version is published and another removed while requests come in."""

from __future__ import annotations

import contextlib
import shutil
import threading
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import alexdeploy
from alexdeploy.triton.publish import publish
from tests.helpers.graphs import conv_lrn_gemm, images
from tests.serving.asking import Client, wait_until
from tests.serving.conftest import CONTRACT, MAX_BATCH, Serving, save
from tests.serving.pictures import encoded


def test_version_2_takes_over_and_version_1_goes(serving: Serving) -> None:
    batch, photo = images(1), encoded(5)
    newer = save(conv_lrn_gemm(seed=9), CONTRACT, serving.files["moving"].with_name("newer.onnx"))
    expected = []
    for path in (serving.files["moving"], newer):
        with alexdeploy.load(path, runtime="onnxruntime-cpu") as runner:
            expected.append(runner.infer(batch))
    answers: dict[str, list[Any]] = {"moving": [], "moving-image": []}
    failures: list[Exception] = []
    stop = threading.Event()

    def ask(url: str, model: str) -> None:
        with contextlib.closing(Client(url)) as client:
            while not stop.is_set():
                try:
                    image = model.endswith("-image")
                    found = client.label(model, photo) if image else client.ask(model, {"input": batch})["logits"]
                    answers[model].append(found)
                except InferenceServerException as error:
                    failures.append(error)

    urls = (serving.server.http, serving.server.grpc)
    threads = [threading.Thread(target=ask, args=(url, model)) for url in urls for model in answers]
    for thread in threads:
        thread.start()
    client = Client(serving.server.http)
    try:
        wait_until(lambda: min(map(len, answers.values())) > 20)
        publish(newer, serving.repository, name="moving", image=True, max_batch=MAX_BATCH)
        wait_until(lambda: client.is_ready("moving", "2"))
        assert client.is_ready("moving", "1")
        np.testing.assert_array_equal(client.ask("moving", {"input": batch}, "1")["logits"], expected[0])
        np.testing.assert_array_equal(client.ask("moving", {"input": batch}, "2")["logits"], expected[1])
        shutil.rmtree(serving.repository / "moving" / "1")
        wait_until(lambda: not client.is_ready("moving", "1"))
        seen = {model: len(found) for model, found in answers.items()}
        with pytest.raises(InferenceServerException):
            client.ask("moving", {"input": batch}, "1")
        wait_until(lambda: all(len(found) > seen[model] + 20 for model, found in answers.items()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        client.close()
    assert failures == []
    kinds = ["".join(str(i) for i in (0, 1) if np.allclose(found, expected[i], 1e-5)) for found in answers["moving"]]
    assert set(kinds) == {"0", "1"}  # each is the answer of one of them
    assert kinds[0] == "0"
    assert kinds[-1] == "1"
    assert len({share for _, share in answers["moving-image"]}) == 2


def test_a_server_that_polls_loads_what_did_not_change_once(serving: Serving) -> None:
    with contextlib.closing(Client(serving.server.http)) as client:
        publish(serving.files["digits"], serving.repository, name="late")
        wait_until(lambda: client.is_ready("late"))  # so it has looked at the repository since the others were ready
    loaded = [line for line in serving.server.log.read_text().splitlines() if "loading: digits:1" in line]
    assert len(loaded) == 1
