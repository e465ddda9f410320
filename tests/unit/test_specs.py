from __future__ import annotations

import pytest

from alexdeploy.errors import UsageError
from alexdeploy.specs import Precision, Profile, cuda_ordinal


@pytest.mark.parametrize(
    ("int8", "fp8", "fp16", "name"),
    [
        (False, False, False, "fp32"),
        (False, False, True, "fp16"),
        (True, False, False, "int8"),
        (True, False, True, "int8+fp16"),
        (False, True, False, "fp8"),
        (False, True, True, "fp8+fp16"),
        (True, True, False, "int8"),
    ],
)
def test_precision_is_named_by_its_switches(int8: bool, fp8: bool, fp16: bool, name: str) -> None:
    precision = Precision.of(int8=int8, fp16=fp16, fp8=fp8)
    assert precision.value == name
    assert (precision.quantized, precision.fp16) == (int8 or fp8, fp16)


def test_bfloat16_stands_where_fp16_does() -> None:
    found = [
        Precision.of(int8=int8, fp8=fp8, bf16=True) for int8, fp8 in ((False, False), (True, False), (False, True))
    ]
    assert [precision.value for precision in found] == ["bf16", "int8+bf16", "fp8+bf16"]
    assert all(precision.bf16 and not precision.fp16 for precision in found)
    assert [precision.quantized for precision in found] == [False, True, True]


@pytest.mark.parametrize(("text", "expected"), [("1:8:64", (1, 8, 64)), ("8", (8, 8, 8)), ("2:2:3", (2, 2, 3))])
def test_a_batch_profile_is_three_numbers_or_one(text: str, expected: tuple[int, int, int]) -> None:
    assert Profile.parse(text) == Profile(*[(size,) for size in expected])


def test_a_profile_prints_as_it_is_typed() -> None:
    assert str(Profile.parse("1:8:64")) == "1:8:64"
    assert str(Profile.parse("1x3x8x8:2x3x8x8:4x3x9x9")) == "1x3x8x8:2x3x8x8:4x3x9x9"
    assert Profile.parse("1:8:64").with_sizes((3, 4)) == Profile.parse("1x3x4:8x3x4:64x3x4")


def test_a_profile_accepts_what_lies_between_its_ends() -> None:
    profile = Profile.parse("1x3x8:2x3x8:4x3x16")
    assert [profile.accepts(s) for s in ((1, 3, 8), (4, 3, 16), (5, 3, 8), (1, 3, 7), (1, 3))] == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "text", ["", "a", "1:2", "1:2:3:4", "1.5", "1:x:3", "1x2:1:3", "0:1:2", "-1:1:1", "8:4:16", "1:8:4"]
)
def test_a_batch_profile_that_is_none_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=f"profile '?{text}'?: expected"):
        Profile.parse(text)


def test_a_device_is_a_name_or_the_first() -> None:
    assert [cuda_ordinal(device) for device in ("cuda", "cuda:0", "cuda:12", None)] == [0, 0, 12, 0]
    for device in (1, 0, True, b"cuda"):
        with pytest.raises(UsageError, match=f"`device` {device!r}: expected cuda or cuda:N"):
            cuda_ordinal(device)  # type: ignore[arg-type]
