from __future__ import annotations

from alexdeploy.errors import (
    DeviceLostError,
    GateError,
    InputError,
    UnavailableError,
    UsageError,
    few,
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
