"""The server's answers are the runner's, over both protocols."""

from __future__ import annotations

import contextlib
import io
import urllib.request

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import alexdeploy
from tests.helpers.graphs import images
from tests.serving.asking import Client, as_bytes
from tests.serving.conftest import LABELS, Serving
from tests.serving.pictures import every_kind


def test_logits_are_the_runners_to_the_last_bit(serving: Serving, client: Client) -> None:
    batch = images(7)
    with alexdeploy.load(serving.files["digits"], runtime="onnxruntime-cpu") as runner:
        for given in (batch, batch[:1], batch[3:5]):
            found = client.ask("digits", {"input": given})["logits"]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, runner.infer(given))


def test_logits_are_those_of_plain_onnx_runtime(serving: Serving, client: Client) -> None:
    batch = images(5)
    session = ort.InferenceSession(serving.files["digits"], providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": batch})[0]
    np.testing.assert_allclose(client.ask("digits", {"input": batch})["logits"], expected, rtol=1e-5, atol=1e-6)


def test_pixels_go_in_as_uint8(serving: Serving, client: Client) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), np.uint8)
    with alexdeploy.load(serving.files["pixels"], runtime="onnxruntime-cpu") as runner:
        np.testing.assert_array_equal(client.ask("pixels", {"pixels": pixels})["logits"], runner.infer(pixels))


@pytest.mark.parametrize("model", ["digits", "pixels"])
def test_labels_of_encoded_images_are_the_classifiers(serving: Serving, client: Client, model: str) -> None:
    files = every_kind()
    with alexdeploy.Classifier(serving.files[model], runtime="onnxruntime-cpu") as classifier:
        expected = [classifier([Image.open(io.BytesIO(file))])[0] for file in files]
    assert [client.label(f"{model}-image", file) for file in files] == expected
    assert len({label for label, _ in expected}) > 2


def test_many_encoded_images_in_one_request(client: Client) -> None:
    files = every_kind()[:9]
    one_by_one = [client.label("digits-image", file) for file in files]
    answer = client.ask("digits-image", {"image": as_bytes(*files)})
    assert [label.decode() for label in answer["label"][:, 0]] == [label for label, _ in one_by_one]
    np.testing.assert_allclose(answer["probability"][:, 0], [share for _, share in one_by_one], rtol=1e-5)


def test_the_server_knows_the_class_names(serving: Serving, client: Client) -> None:
    batch = images(1)
    with alexdeploy.load(serving.files["digits"], runtime="onnxruntime-cpu") as runner:
        best = int(runner.infer(batch).argmax())
    (likeliest,) = client.ask("digits", {"input": batch}, classes=1)["logits"].ravel()
    assert likeliest.decode().endswith(f":{best}:{LABELS[best]}")


def test_curl_sends_a_file_as_it_is(serving: Serving) -> None:
    (photo, *_) = every_kind()
    address = f"{serving.server.http}/v2/models/digits-image/infer"
    request = urllib.request.Request(address, photo, {"Inference-Header-Content-Length": "0"})
    with urllib.request.urlopen(request) as answer, contextlib.closing(Client(serving.server.http)) as client:
        label, probability = client.label("digits-image", photo)
        content = answer.read()
    assert label.encode() in content
    assert np.float32(probability).tobytes() in content
