from __future__ import annotations

import pytest

from alexdeploy.errors import UsageError
from alexdeploy.specs import BatchProfile, Precision


@pytest.mark.parametrize(
    ("int8", "fp16", "name"),
    [(False, False, "fp32"), (False, True, "fp16"), (True, False, "int8"), (True, True, "int8+fp16")],
)
def test_precision_is_named_by_its_two_switches(int8: bool, fp16: bool, name: str) -> None:
    assert Precision.of(int8=int8, fp16=fp16).value == name


@pytest.mark.parametrize(("text", "expected"), [("1:8:64", (1, 8, 64)), ("8", (8, 8, 8)), ("2:2:3", (2, 2, 3))])
def test_a_batch_profile_is_three_numbers_or_one(text: str, expected: tuple[int, int, int]) -> None:
    profile = BatchProfile.parse(text)
    assert (profile.min, profile.opt, profile.max) == expected


def test_a_batch_profile_prints_as_it_is_typed() -> None:
    assert str(BatchProfile.parse("1:8:64")) == "1:8:64"


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "1.5", "1:x:3", "0:1:2", "-1:1:1", "8:4:16", "1:8:4"])
def test_a_batch_profile_that_is_none_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(UsageError, match=f"batch profile '?{text}'?: expected"):
        BatchProfile.parse(text)
