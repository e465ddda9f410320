from __future__ import annotations

import os

import pytest

from alexdeploy.errors import (
    DeviceLostError,
    GateError,
    InputError,
    InputWarning,
    UnavailableError,
    UsageError,
    few,
    one_line,
    unknown_name,
)


def test_the_exit_codes_are_those_that_the_command_line_promises() -> None:
    kinds = (UsageError, InputError, UnavailableError, GateError, DeviceLostError)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6]


def test_a_misspelt_name_is_answered_with_the_nearest_and_all_valid_names() -> None:
    message = unknown_name("method", "entropi", ["minmax", "entropy"])
    assert message == "unknown method 'entropi'; did you mean 'entropy'? valid: entropy, minmax"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert unknown_name("method", "xyz", ["minmax"]) == "unknown method 'xyz'; valid: minmax"


def test_few_names_are_all_shown_and_many_are_counted() -> None:
    assert few([]) == ""
    assert few(["conv1", "conv2", "conv3", "fc4"]) == "conv1, conv2, conv3, fc4"
    assert few(f"conv{number}" for number in range(1, 51)) == "conv1, conv2, conv3 and 47 more"
    assert (
        few(["a is missing", "b is missing", "c", "d", "e"], separator="; ")
        == "a is missing; b is missing; c and 2 more"
    )


def test_fifty_layers_do_not_fill_a_line() -> None:
    message = unknown_name("layer", "conv51x", [f"conv{number}" for number in range(1, 61)])
    assert message.startswith("unknown layer 'conv51x'; did you mean 'conv51'? valid: ")
    assert message.endswith(" and 41 more")
    assert len(unknown_name("command", "x", [f"c{number}" for number in range(20)]).split(", ")) == 20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a name\x1b[31m", r"a name\x1b[31m"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        (os.fsdecode(b"\xbb\xa8.jpg"), r"\xbb\xa8.jpg"),
        ("玫瑰 é …", "玫瑰 é …"),
    ],
)
def test_a_message_holds_nothing_that_a_terminal_would_obey(text: str, shown: str) -> None:
    assert str(InputError(text)) == str(InputWarning(text)) == shown


def test_of_a_long_message_beginning_and_end_remain() -> None:
    message = str(InputError(f"net.json: found {'x' * 5000}; expected a name; rename it"))
    assert message.startswith("net.json: found xxx")
    assert message.endswith("xxx; expected a name; rename it")
    assert len(message) < 200
    long = one_line(" ".join(["word"] * 1000) + "; mend it")
    assert (long[:4], long[-9:], len(long)) == ("word", "; mend it", 1000)


def test_a_long_path_is_shown_whole() -> None:
    path = "/".join(["folder of some length"] * 20)
    assert str(InputError(f"{path}: no such file")) == f"{path}: no such file"
