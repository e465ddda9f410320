from __future__ import annotations

import unicodedata
import warnings

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
    visible,
)

FLAG = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"  # of Scotland


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
        ("\x1b[31m.png", r"\x1b[31m.png"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\tc\rd\0", r"a\nb\tc\rd\x00"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),  # a control sequence in one character
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2060b\ufeff\u2066", r"a\u2060b\ufeff\u2066"),
        ("\udcbb\udca8", r"\xbb\xa8"),  # bytes, as os.fsdecode has them
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        (FLAG[:-1], "🏴" + r"\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074"),  # a flag that has no end
        ("🏴" + FLAG[1:] * 2, FLAG + r"\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"),
        ("玫瑰\u3000é n\u0303 👩\u200d🔬 ab\\n", "玫瑰\u3000é n\u0303 👩\u200d🔬 ab\\n"),
        *((text, text) for text in (FLAG, "ไทย\u200bแมว", "שלום\u200f!", "\u061c\u200eabc", "Blu\xadme")),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_shown_as_python_writes_it(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
    assert str(InputError(f"{text}: no such file")) == f"{shown}: no such file"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(text, InputWarning, stacklevel=1)
    assert str(caught[0].message) == shown


def test_no_character_that_controls_anything_is_left() -> None:
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    joiners = "\u200c\u200d"  # Persian, Hindi and emoji need them
    for code in (*range(0x10000), *range(0xE0000, 0xE0100)):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in turning:
            assert visible(character).isascii(), hex(code)
        elif kind not in ("Cf", "Cn") or character in joiners:
            assert visible(character) == character, hex(code)


def test_of_a_long_message_beginning_and_end_remain() -> None:
    message = str(InputError(f"net.json: found {'x' * 5000}; expected a name; rename it"))
    assert message.startswith("net.json: found xxx")
    assert message.endswith("xxx; expected a name; rename it")
    assert len(message) < 200
    long = one_line(" ".join(["word"] * 1000) + "; mend it")
    assert (long[:4], long[-9:], len(long)) == ("word", "; mend it", 1000)


@pytest.mark.parametrize(("length", "whole"), [(256, True), (257, False)])
def test_a_word_as_long_as_a_files_name_is_shown_whole(length: int, whole: bool) -> None:
    assert (one_line(f"no class '{'n' * (length - 2)}'") == f"no class '{'n' * (length - 2)}'") is whole


def test_a_long_path_is_shown_whole() -> None:
    path = "/".join(["folder of some length"] * 20)
    assert str(InputError(f"{path}: no such file")) == f"{path}: no such file"
