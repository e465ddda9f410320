from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from msgspec.structs import replace
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import InterpolationMode, v2

from alexdeploy.contract import Contract
from alexdeploy.data.preprocess import preprocess, ten_crop
from alexdeploy.errors import InputError
from tests.helpers.shared_data import SHARED_DATA, needs_shared_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _contract(color: Any = "rgb", **options: Any) -> Contract:
    channels = 1 if color == "gray" else 3
    return Contract(color=color, mean=MEAN[:channels], std=STD[:channels], **options)


def _noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _by_torchvision(image: Image.Image, contract: Contract) -> npt.NDArray[np.float32]:
    steps: list[Any] = [v2.Grayscale() if contract.color == "gray" else v2.RGB()]
    if contract.resize:
        steps.append(
            v2.Resize(
                contract.resize if isinstance(contract.resize, int) else [*contract.resize],
                InterpolationMode(contract.interpolation),
                antialias=True,
            )
        )
    steps += [v2.CenterCrop([*contract.size]), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    result: npt.NDArray[np.float32] = v2.Compose([*steps, v2.Normalize(contract.mean, contract.std)])(image).numpy()
    return result


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(("resize", "crop"), [(None, 64), (64, 57), (57, 57), (33, 48)])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param((96, 72), id="landscape"),
        pytest.param((72, 96), id="portrait"),
        pytest.param((101, 64), id="odd-landscape"),
        pytest.param((67, 118), id="odd-portrait"),
        pytest.param((80, 80), id="square"),
        pytest.param((21, 40), id="small"),
        pytest.param((150, 11), id="flat"),
    ],
)
def test_preprocessing_is_torchvisions(size: tuple[int, int], resize: int | None, crop: int, color: str) -> None:
    image, contract = _noise(size), _contract(color, resize=resize, crop=crop)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_every_interpolation_is_torchvisions(interpolation: str) -> None:
    image, contract = _noise((101, 67)), _contract(resize=31, crop=28, interpolation=interpolation)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_an_image_stored_in_another_mode_is_converted(mode: str, color: str) -> None:
    image, contract = _noise((40, 30), mode), _contract(color, resize=24, crop=20)
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)


def test_bgr_is_rgb_with_the_channels_reversed() -> None:
    image = _noise((40, 30))
    rgb = preprocess(image, Contract(color="rgb", resize=24, crop=20, mean=MEAN, std=STD))
    bgr = preprocess(image, Contract(color="bgr", resize=24, crop=20, mean=MEAN[::-1], std=STD[::-1]))
    np.testing.assert_array_equal(bgr, rgb[::-1])


def test_a_small_image_lies_in_the_middle_of_black() -> None:
    white = Image.new("L", (2, 1), 255)
    result = preprocess(white, Contract(color="gray", crop=4, mean=(0.0,), std=(1.0,)))
    assert result.tolist() == [[[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]


def test_the_result_is_contiguous_float32_of_the_contracts_shape() -> None:
    contract = _contract("bgr", crop=20)
    result = preprocess(_noise((40, 30)), contract)
    assert (result.dtype.name, result.shape) == ("float32", contract.input_shape)
    assert result.flags.c_contiguous


def test_the_image_is_left_as_it_was() -> None:
    image = _noise((40, 30))
    before = image.tobytes()
    preprocess(image, _contract("bgr", resize=24, crop=20))
    assert (image.mode, image.size, image.tobytes()) == ("RGB", (40, 30), before)


# --- the modes of the second version, each against the library that it is named after, on pixels ---


def _pixels(image: Image.Image, **fields: Any) -> npt.NDArray[np.uint8]:
    contract = Contract(color=fields.pop("color", "rgb"), input_type="uint8", layout="nhwc", **fields)
    result: npt.NDArray[np.uint8] = preprocess(image, contract)
    return result


def _on_tensors(image: Image.Image, size: Any, interpolation: str, *, antialias: bool) -> npt.NDArray[np.uint8]:
    planes = v2.functional.pil_to_tensor(image)
    resized = v2.functional.resize(planes, size, InterpolationMode(interpolation), antialias=antialias)
    result: npt.NDArray[np.uint8] = resized.permute(1, 2, 0).numpy()
    return result


def _photographs(count: int) -> list[Image.Image]:
    paths = sorted((SHARED_DATA / "flowers").rglob("*.jpg"))
    return [Image.open(path).convert("RGB") for path in paths[:: len(paths) // count][:count]]


def _check_every_mode(image: Image.Image) -> None:
    height, width = 60, 100
    array = np.asarray(image)
    for name in ("nearest", "bilinear", "bicubic"):
        squashed = image.resize((width, height), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(_pixels(image, resize=(height, width), interpolation=name), np.asarray(squashed))
        for resampling, antialias in (("torchvision", True), ("torchvision-no-antialias", False)):
            expected = _on_tensors(image, [height, width], name, antialias=antialias)
            found = _pixels(image, resize=(height, width), interpolation=name, resampling=resampling)
            np.testing.assert_array_equal(found, expected)
            expected = _on_tensors(image, 64, name, antialias=antialias)  # the shorter side
            found = _pixels(image, resize=64, crop=expected.shape[:2], interpolation=name, resampling=resampling)
            np.testing.assert_array_equal(found, expected)
    for name, flag in (("nearest", cv2.INTER_NEAREST), ("bilinear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA)):
        found = _pixels(image, resize=(height, width), interpolation=name, resampling="opencv")
        np.testing.assert_array_equal(found, cv2.resize(array, (width, height), interpolation=flag))
    letterboxed = ImageOps.contain(image, (width, height), Image.Resampling.BILINEAR)
    inner = _pixels(image, resize=(height, width), letterbox=114).copy()
    top, left = (height - letterboxed.height) // 2, (width - letterboxed.width) // 2
    rows, columns = slice(top, top + letterboxed.height), slice(left, left + letterboxed.width)
    np.testing.assert_array_equal(inner[rows, columns], np.asarray(letterboxed))
    inner[rows, columns] = 114
    assert (inner == 114).all()


def test_every_mode_is_its_librarys() -> None:
    for size in ((101, 67), (64, 150), (240, 180)):
        _check_every_mode(_noise(size))


@needs_shared_data
def test_every_mode_is_its_librarys_on_photographs() -> None:
    for image in _photographs(200):
        _check_every_mode(image)


def test_a_crop_of_another_height_than_width_is_torchvisions() -> None:
    image, contract = _noise((101, 67)), _contract(resize=64, crop=(48, 80))
    np.testing.assert_allclose(preprocess(image, contract), _by_torchvision(image, contract), rtol=0, atol=1e-6)
    assert ten_crop(image, contract).shape == (10, 3, 48, 80)


def test_scale_layout_and_type_are_literal_arithmetic() -> None:
    image = _noise((20, 30))
    mean, std = (104.0, 117.0, 123.0), (1.0, 2.0, 4.0)
    contract = Contract(color="bgr", crop=(30, 20), scale=1.0, mean=mean, std=std, layout="nhwc", input_type="float16")
    bgr = np.asarray(image).astype(np.float32)[..., ::-1]
    expected = (bgr - np.array(mean, np.float32)) / np.array(std, np.float32)
    found = preprocess(image, contract)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_exif_orientation_is_applied_only_where_the_contract_says_so() -> None:
    image = _noise((30, 20))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown turned by 90° clockwise
    np.testing.assert_array_equal(_pixels(turned, crop=(20, 30), exif_orientation=True), np.asarray(image))
    np.testing.assert_array_equal(_pixels(turned, crop=(30, 20)), np.asarray(turned))


@pytest.mark.parametrize("orientation", range(10))
def test_every_exif_orientation_is_pillows(orientation: int) -> None:
    image, contract = _noise((40, 30)), _contract(resize=24, crop=20)
    image.getexif()[274] = orientation
    upright = preprocess(image, replace(contract, exif_orientation=True))
    assert np.array_equal(upright, preprocess(ImageOps.exif_transpose(image), contract))


def test_an_odd_exif_tag_does_not_matter() -> None:
    file = BytesIO()
    maker, upright = struct.pack("<HHII", 271, 5, 1, 38), struct.pack("<HHII", 274, 3, 1, 6)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + maker + upright + struct.pack("<III", 0, 5, 1)
    _noise((40, 30)).save(file, "JPEG", exif=exif)  # the maker is a fraction, which Pillow reads and cannot write
    with Image.open(file) as image:
        assert image.getexif()[271] == 5
        assert preprocess(image, _contract(crop=(40, 30), exif_orientation=True)).shape == (3, 40, 30)


@pytest.mark.parametrize(("kind", "exif"), [("PNG", b"SECRET"), ("WEBP", b"SECRET"), ("PNG", b"II*\0")])
def test_damaged_exif_data_are_told_in_a_line_where_they_matter(kind: str, exif: bytes) -> None:
    file = BytesIO()
    _noise((40, 30)).save(file, kind, exif=b"Exif\0\0" + exif)
    preprocess(Image.open(file), _contract(crop=(30, 40)))
    with pytest.raises(
        InputError, match=r"^its EXIF data are damaged, so which side is up is not known; store it anew$"
    ):
        preprocess(Image.open(file), _contract(crop=(30, 40), exif_orientation=True))


def test_exif_data_in_a_text_chunk_that_is_none() -> None:
    file, text = BytesIO(), PngInfo()
    text.add_text("Raw profile type exif", "exif\n\n 3\nSECRET")
    _noise((40, 30)).save(file, "PNG", pnginfo=text)
    with pytest.raises(InputError, match=r"^its EXIF data are damaged"):
        preprocess(Image.open(file), _contract(crop=(30, 40), exif_orientation=True))


def test_colours_that_pillow_does_not_convert_are_refused() -> None:
    with pytest.raises(InputError, match=r"its colours \(LAB\) cannot be converted"):
        preprocess(Image.new("LAB", (40, 30)), _contract("gray", crop=30))


def test_sixteen_bits_are_the_same_picture_as_eight(tmp_path: Any) -> None:
    gray = _noise((30, 20), "L")
    wide = np.asarray(gray).astype(np.uint16) * 257
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(wide).save(tmp_path / name)
        stored = Image.open(tmp_path / name)
        np.testing.assert_array_equal(_pixels(stored, color="gray", crop=(20, 30))[:, :, 0], np.asarray(gray))


@pytest.mark.parametrize(("mode", "kind"), [("I", "32-bit integers"), ("F", "floats")])
def test_pixels_of_an_unknown_range_are_refused(mode: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"its pixels are {kind}, whose range is not known"):
        _pixels(_noise((30, 20), mode), crop=20)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("fields", [{"resize": 256, "crop": 224}, {"crop": 1000}], ids=["resized", "padded"])
def test_a_needle_is_refused_before_it_takes_gigabytes(size: tuple[int, int], fields: dict[str, Any]) -> None:
    contract, image = _contract(**fields), Image.new("L", size)
    with pytest.raises(InputError, match=f"^{size[0]} x {size[1]} pixels become [0-9x ]+ when"):
        preprocess(image, contract)
    with pytest.raises(InputError, match="pixels become"):
        ten_crop(image, contract)


def test_a_narrow_image_and_a_large_input_are_no_needles() -> None:
    strip = _noise((700, 1)).resize((7000, 10))
    contract = _contract(resize=256, crop=224)
    np.testing.assert_allclose(preprocess(strip, contract), _by_torchvision(strip, contract), rtol=0, atol=1e-6)
    assert preprocess(Image.new("L", (8, 8)), _contract("gray", resize=7200, crop=8)).shape == (1, 8, 8)


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_an_input_of_one_pixel_a_side_is_no_other_shape(color: str, size: tuple[int, int]) -> None:
    contract = _contract(color, resize=size, resampling="torchvision")
    found = preprocess(_noise((9, 7)), contract)
    assert found.shape == (1 if color == "gray" else 3, *size)
