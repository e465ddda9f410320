from __future__ import annotations

from alexdeploy.errors import GateError, InputError, UnavailableError, UsageError, unknown_name


def test_the_exit_codes_are_those_that_the_command_line_promises() -> None:
    assert [kind.exit_code for kind in (UsageError, InputError, UnavailableError, GateError)] == [2, 3, 4, 5]


def test_a_misspelt_name_is_answered_with_the_nearest_and_all_valid_names() -> None:
    message = unknown_name("method", "entropi", ["minmax", "entropy"])
    assert message == "unknown method 'entropi'; did you mean 'entropy'? valid: entropy, minmax"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert unknown_name("method", "xyz", ["minmax"]) == "unknown method 'xyz'; valid: minmax"
