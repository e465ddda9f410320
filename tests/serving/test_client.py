"""Our client on the real server; its odd cases are tested on a small one, in tests/unit/runners."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import alexdeploy
from alexdeploy.errors import InputError
from alexdeploy.runners.kserve import Counters, KServeRunner
from alexdeploy.specs import TensorSpec
from tests.helpers.graphs import images
from tests.serving.asking import as_bytes
from tests.serving.conftest import LABELS, MAX_BATCH, Serving
from tests.serving.pictures import encoded


@pytest.fixture(params=["http", "grpc"])
def url(serving: Serving, request: pytest.FixtureRequest) -> str:
    return str(getattr(serving.server, request.param))


@pytest.fixture
def runner(url: str) -> Iterator[KServeRunner]:
    with KServeRunner(url, "digits", version="1") as runner:
        yield runner


def test_it_is_a_runner_like_that_of_the_file(serving: Serving, runner: KServeRunner) -> None:
    assert (runner.input, runner.classes) == (TensorSpec("input", (-1, 3, 8, 8), "float32"), 4)
    batch = images(5)
    with alexdeploy.load(serving.files["digits"], runtime="onnxruntime-cpu") as local:
        np.testing.assert_array_equal(runner.infer(batch), local.infer(batch))


def test_pixels(serving: Serving, url: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with KServeRunner(url, "pixels") as runner:
        before = runner.counters()
        found = [runner.infer(pixels) for _ in range(4)][-1]
        for _ in range(100):  # a server counts a request after it has answered it
            after = runner.counters()
            if after is not None and before is not None and (after - before).requests == 4:
                break
            time.sleep(0.05)
    with alexdeploy.load(serving.files["pixels"], runtime="onnxruntime-cpu") as local:
        np.testing.assert_array_equal(found, local.infer(pixels))
    assert isinstance(before, Counters)
    assert isinstance(after, Counters)
    spent = after - before
    assert (spent.inferences, spent.executions, spent.requests, spent.failed) == (12, 4, 4, 0)
    assert spent.compute_ns > 0


def test_threads_get_their_own_answers(runner: KServeRunner) -> None:
    batch = images(40)
    expected = np.concatenate([runner.infer(image[None]) for image in batch])
    with ThreadPoolExecutor(8) as pool:
        found = np.concatenate([*pool.map(lambda index: runner.infer(batch[index % 40][None]), range(200))])
    np.testing.assert_allclose(found, expected[np.arange(200) % 40], rtol=1e-5, atol=1e-6)


def test_encoded_images(url: str) -> None:
    files = [encoded(5), encoded(6, kind="JPEG")]
    with KServeRunner(url, "digits-image") as runner:
        found = runner.ask({"image": as_bytes(*files)})
        with pytest.raises(InputError, match="refuses a request to 'digits-image'"):
            runner.ask({"image": as_bytes(b"no image")})
        with pytest.raises(InputError, match="expected float32, float16, uint8 images"):
            runner.infer(as_bytes(*files))
    assert {label.decode() for label in found["label"].flat} <= {*LABELS}
    assert found["probability"].shape == (2, 1)


def test_what_it_refuses(url: str, runner: KServeRunner) -> None:
    with pytest.raises(InputError, match=f"batch-size must be <= {MAX_BATCH}"):
        runner.infer(images(MAX_BATCH + 1))
    with pytest.raises(InputError, match="unknown model"):
        KServeRunner(url, "nothing")
    with pytest.raises(InputError, match="'digits, version 7'"):
        KServeRunner(url, "digits", version="7")


def test_configuration_of_the_server(runner: KServeRunner) -> None:
    config = runner.config()
    assert (config.max_batch_size, list(config.output[0].dims)) == (MAX_BATCH, [4])
    assert config.parameters["runtime"].string_value == "onnxruntime-cpu"
