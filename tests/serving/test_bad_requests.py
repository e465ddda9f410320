"""What cannot be answered is refused with the client's own kind of error, in a line; the next request is answered."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

import alexdeploy
from tests.helpers.graphs import images
from tests.serving.asking import Client, as_bytes
from tests.serving.conftest import MAX_BATCH, Serving
from tests.serving.pictures import bomb, encoded

REFUSED = ("400", "StatusCode.INVALID_ARGUMENT")
UNKNOWN = ("404", "StatusCode.NOT_FOUND")
SECRET = b"a secret that no message may tell"


def needle() -> bytes:
    """A whole image of few bytes and few pixels, which would take gigabytes when resized."""
    file = io.BytesIO()
    Image.new("1", (2, 8_000_000)).save(file, "PNG")
    return file.getvalue()


def odd_exif() -> bytes:
    """A whole image whose EXIF data are none."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, "PNG", exif=b"Exif\0\0" + SECRET)
    return file.getvalue()


def mixed() -> npt.NDArray[np.object_]:
    return as_bytes(encoded(1), SECRET)


ONE = images(1)
PIXELS = np.zeros((1, 8, 8, 3), np.uint8)
BAD: dict[str, tuple[str, Any, str]] = {  # model, input, what the message must say
    "no image": ("digits-image", as_bytes(SECRET), f"{len(SECRET)} bytes are no image; expected JPEG"),
    "nothing": ("digits-image", as_bytes(b""), "0 bytes are no image"),
    "64 MB of nothing": ("digits-image", as_bytes(bytes(64 << 20)), "67108864 bytes are no image"),
    "half a JPEG": ("digits-image", as_bytes(encoded(1, kind="JPEG")[:-200]), "damaged or cut off"),
    "a PNG with another end": ("digits-image", as_bytes(encoded(1)[:-300] + SECRET * 10), "damaged or cut off"),
    "EPS, which is a program": ("digits-image", as_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "bytes are no image"),
    "a bomb": ("digits-image", as_bytes(bomb(8000, 8000)), "8000 x 8000 pixels; at most 50000000"),
    "a larger bomb": ("digits-image", as_bytes(bomb(60000, 60000)), "too many pixels"),
    "a needle": ("digits-image", as_bytes(needle()), "2 x 8000000 pixels become 10 x 40000000"),
    "odd EXIF data": ("digits-image", as_bytes(odd_exif()), "its EXIF data are damaged"),
    "one of two images": ("digits-image", mixed(), f"{len(SECRET)} bytes are no image"),
    "numbers for an image": ("digits-image", np.zeros((1, 1), np.float32), "data-type is 'FP32'"),
    "too many images": ("digits-image", as_bytes(*[encoded(1)] * (MAX_BATCH + 1)), f"must be <= {MAX_BATCH}"),
    "another type": ("digits", ONE.astype(np.float64), "data-type is 'FP64'"),
    "floats for pixels": ("pixels", PIXELS.astype(np.float32), "data-type is 'FP32'"),
    "another height": ("digits", ONE[:, :, :7], "unexpected shape"),
    "another order": ("digits", ONE.transpose(0, 2, 3, 1), "unexpected shape"),
    "no batch": ("digits", ONE[0], "unexpected shape"),
    "an empty batch": ("digits", ONE[:0], "byte size mismatch"),
    "a batch that is too large": ("digits", images(MAX_BATCH + 1), f"must be <= {MAX_BATCH}"),
}
INPUT = {"digits": "input", "pixels": "pixels", "digits-image": "image"}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_and_the_server_goes_on(serving: Serving, client: Client, name: str) -> None:
    model, given, said = BAD[name]
    with pytest.raises(InferenceServerException) as refusal:
        client.ask(model, {INPUT[model]: given})
    assert refusal.value.status() in REFUSED
    assert said in refusal.value.message()
    assert "\n" not in refusal.value.message()
    assert SECRET.decode() not in refusal.value.message()
    with alexdeploy.load(serving.files["digits"], runtime="onnxruntime-cpu") as runner:
        np.testing.assert_array_equal(client.ask("digits", {"input": ONE})["logits"], runner.infer(ONE))


@pytest.mark.parametrize(("model", "version"), [("digit", ""), ("digits", "7")])
def test_what_is_not_there_is_not_found(client: Client, model: str, version: str) -> None:
    with pytest.raises(InferenceServerException) as refusal:
        client.ask(model, {"input": ONE}, version)
    assert refusal.value.status() in UNKNOWN


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_logits_that_are_not_finite_get_no_label(client: Client, value: float, kind: str) -> None:
    with pytest.raises(InferenceServerException, match=f"its logits are {kind}") as refusal:
        client.ask("digits-label", {"logits": np.array([[0, value, 0, 0]], np.float32)})
    assert refusal.value.status() in ("500", "StatusCode.INTERNAL")
