"""Many requests at a time: nobody gets another's answer, and what waits runs together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import alexdeploy
from tests.helpers.graphs import images
from tests.serving.asking import Client
from tests.serving.conftest import Serving
from tests.serving.pictures import encoded

REQUESTS = 2000
IN_FLIGHT = 32


def drive(url: str, requests: int, in_flight: int, ask: Callable[[Client, int], Any]) -> list[Any]:
    """What ``ask`` gives for each request, in order, by threads with a client each; errors are results."""
    local = threading.local()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(in_flight) as pool:

        def one(index: int) -> Any:
            if not hasattr(local, "client"):
                local.client = stack.enter_context(contextlib.closing(Client(url)))
            try:
                return ask(local.client, index)
            except InferenceServerException as error:
                return error

        return list(pool.map(one, range(requests)))


def counters(serving: Serving, model: str) -> tuple[int, int]:
    """(images, calls of the model) so far, once they stand still: Triton counts after it has answered."""
    with contextlib.closing(Client(serving.server.http)) as client:
        before, found = None, client.statistics(model)
        while found != before:
            time.sleep(0.1)
            before, found = found, client.statistics(model)
    return int(found["inference_count"]), int(found["execution_count"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_every_answer_belongs_to_its_request(serving: Serving, protocol: str) -> None:
    batch = images(REQUESTS, seed=3)
    with alexdeploy.load(serving.files["digits"], runtime="onnxruntime-cpu") as runner:
        expected = runner.infer(batch)
    url = getattr(serving.server, protocol)
    answers = drive(
        url, REQUESTS, IN_FLIGHT, lambda client, i: client.ask("digits", {"input": batch[i : i + 1]})["logits"]
    )
    # sums of another batch size differ in their last bits, those of another image in the first digit
    np.testing.assert_allclose(np.concatenate(answers), expected, rtol=1e-4, atol=1e-5)


def test_what_waits_runs_together(serving: Serving) -> None:
    batch = images(320)
    images_before, calls_before = counters(serving, "digits")
    drive(serving.server.http, 320, 16, lambda client, i: client.ask("digits", {"input": batch[i : i + 1]}))
    images_after, calls_after = counters(serving, "digits")
    assert images_after - images_before == 320
    assert (images_after - images_before) / (calls_after - calls_before) >= 2


def test_a_bad_image_does_not_sink_those_beside_it(serving: Serving) -> None:
    files = [b"no image" if i % 4 == 0 else encoded(i) for i in range(160)]
    alone = drive(serving.server.http, 160, 1, lambda client, i: client.label("digits-image", files[i]))
    images_before, calls_before = counters(serving, "digits")
    together = drive(serving.server.http, 160, 16, lambda client, i: client.label("digits-image", files[i]))
    images_after, calls_after = counters(serving, "digits")
    assert images_after - images_before == 120
    assert calls_after - calls_before < 120
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        if index % 4 == 0:
            assert isinstance(other, InferenceServerException)
            assert other.status() == "400"
        else:
            assert other == (one[0], pytest.approx(one[1], rel=1e-4))
