"""Inputs made from seeds: the same number gives the same bytes on every machine."""

from __future__ import annotations

import gzip
import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.target import Mutator, Target

MOST_BYTES = 1 << 20
_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
)
_TOKENS = (
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\x1b[31m",
    b"../",
    b"nan",
    b"-1",
    b"1e999",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**40),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "a", "\0", "\x1b[2J", "\ud800", "\u202e", "é\n", "x" * 600, "../../etc/passwd", "1", "nan"),
    *([], {}, [[]], [None], {"": None}, [1] * 50),
)


class Inputs:
    """The inputs of a target by number; the first ones are its seeds as they are."""

    def __init__(self, target: Target, seed: int, more: Sequence[bytes] = ()) -> None:
        self._target, self._seed = target, seed
        self._seeds = [*target.seeds(), *more]

    def __getitem__(self, index: int) -> bytes:
        if index < len(self._seeds):
            return self._seeds[index]
        random = Random(f"{self._seed}/{self._target.name}/{index}")
        return self.mutated(random, random.choice(self._seeds))

    def mutated(self, random: Random, data: bytes) -> bytes:
        """``data`` after one or a few mutations."""
        for _ in range(random.choice((1, 1, 1, 2, 2, 4, 8))):
            mutators = self._target.mutators
            own = mutators and random.random() < 0.7
            data = random.choice(mutators)(random, data) if own else self._bytes(random, data)
        return data[:MOST_BYTES]

    def _bytes(self, random: Random, data: bytes) -> bytes:
        if random.random() < 0.1:
            return splice(random, data, random.choice(self._seeds))
        if self._target.tokens and random.random() < 0.3:
            return put(random, data, random.choice(self._target.tokens))
        return any_bytes(random, data)


_INSTRUCTIONS = (
    *(
        b"N",
        b"(",
        b"t",
        b"R",
        b"}",
        b"]",
        b"s",
        b"u",
        b"b",
        b"e",
        b"a",
        b"0",
        b"2",
        b".",
        b")",
        b"\x81",
        b"\x85",
        b"\x93",
    ),
    *(
        b"K\x00",
        b"J\xff\xff\xff\xff",
        b"I-1\n",
        b"F1e999\n",
        b"X\x01\0\0\0a",
        b"U\xff",
        b"h\x00",
        b"q\x00",
        b"Q",
        b"\x8a\x05",
        b"r\0\0\0\x08",
    ),
    *(b"cos\nsystem\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"cbuiltins\neval\n"),
)


def any_bytes(random: Random, data: bytes) -> bytes:
    """Flip, set, cut, repeat, insert or remove bytes of ``data``."""
    return random.choice(_ON_BYTES)(random, data)


def splice(random: Random, data: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of the other."""
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


def put(random: Random, data: bytes, token: bytes) -> bytes:
    """``token`` somewhere, in place of as many bytes or between two."""
    at = random.randint(0, len(data))
    return data[:at] + token + data[at + len(token) * random.randint(0, 1) :]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _number(random: Random, data: bytes) -> bytes:
    """A 1, 2, 4 or 8 byte number at a likely place: the first bytes of a file are where the sizes are."""
    kind = random.choice("BHIQ")
    size = struct.calcsize(kind)
    number = random.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    at = random.randint(0, min(len(data), random.choice((16, 64, len(data)))))
    return data[:at] + struct.pack(random.choice("<>") + kind, number) + data[at + size :]


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _remove(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + data[at + random.choice((1, 2, 8, 64)) :]


def _repeat(random: Random, data: bytes) -> bytes:
    at = random.randint(0, len(data))
    piece = data[at : at + random.choice((1, 4, 16, 256))]
    return data[:at] + piece * random.choice((2, 2, 3, 100)) + data[at + len(piece) :]


def _insert(random: Random, data: bytes) -> bytes:
    return put(random, data, random.choice((random.randbytes(random.choice((1, 4, 16))), *_TOKENS)))


_ON_BYTES: tuple[Mutator, ...] = (_flip, _flip, _number, _cut, _remove, _repeat, _insert)


def json_value(random: Random, data: bytes) -> bytes:
    """Another value, key or order at one place of a JSON text; bytes are mutated where it is none."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(random, data)
    if random.random() < 0.03:
        deep = random.choice((200, 5_000, 200_000))
        return data.replace(b":", b": " + b"[" * deep + b"]" * deep + b",", 1)
    holder, key = _place(random, content)
    if holder is None:
        content = random.choice(_ODD)
    else:
        _change(random, holder, key)
    return json.dumps(content).encode()


def _place(random: Random, content: Any) -> tuple[Any, Any]:
    """A container in ``content`` and a key of it, every depth alike; (None, None) for ``content`` itself."""
    holder, key = None, None
    while isinstance(content, dict | list) and content and (holder is None or random.random() < 0.75):
        holder = content
        key = random.choice(list(content)) if isinstance(content, dict) else random.randrange(len(content))
        content = content[key]
    return holder, key


def _change(random: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    action = random.choice(("odd", "odd", "near", "remove", "add", "rename", "wrap"))
    if action == "remove":
        del holder[key]
    elif action == "add" and isinstance(holder, dict):
        holder[random.choice(("", "x", "\x1b[0m", "é" * 300, f"{key} "))] = random.choice(_ODD)
    elif action == "add":
        holder.insert(key, random.choice((value, *_ODD)))
    elif action == "rename" and isinstance(holder, dict):
        holder[random.choice(("", "x\ny", "\x1b[0m", "k" * 500, f"{key}_"))] = holder.pop(key)
    elif action == "near" and isinstance(value, int | float):
        holder[key] = random.choice(
            (-value, value + 1, value - 1, value * 1000, float(max(-1e300, min(1e300, value))), str(value))
        )
    elif action == "near" and isinstance(value, str):
        holder[key] = random.choice(
            (value.upper(), value[:-1], value + value, value + "\n", value + "\x1b[1m", [value])
        )
    elif action == "wrap":
        holder[key] = random.choice(([value], {"x": value}, [value, value]))
    else:
        holder[key] = random.choice(_ODD)


def text_line(random: Random, data: bytes) -> bytes:
    """Remove, repeat, swap or change a line, or what follows its first ``=`` or ``:``; for TOML and texts alike."""
    lines = data.split(b"\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    action = random.randrange(6)
    if action == 0:
        del lines[at]
    elif action == 1:
        lines.insert(other, lines[at])
    elif action == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif action == 3:
        lines[at] = any_bytes(random, lines[at])
    else:
        mark = next((mark for mark in (b"=", b": ", b",", b" ") if mark in lines[at]), b" ")
        before, mark, _ = lines[at].partition(mark)
        odd = random.choice(_ODD)
        value = random.choice(
            (json.dumps(odd), str(odd), "[1, 2", "''", '"""', "{}", "1979-05-27", "0x1f", "+nan", "1_0")
        )
        lines[at] = before + mark + b" " + value.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def inside(unpack: Callable[[bytes], bytes], pack: Callable[[bytes, bytes], bytes], mutator: Mutator) -> Mutator:
    """Mutate a part: ``unpack(data)`` gives it, ``pack(data, part)`` puts it back; whole bytes where there is none."""

    def mutated(random: Random, data: bytes) -> bytes:
        try:
            return pack(data, mutator(random, unpack(data)))
        except Exception:  # a file that an earlier mutation has damaged
            return any_bytes(random, data)

    return mutated


def within_gzip(mutator: Mutator) -> Mutator:
    """Mutate what is compressed, and compress it again."""
    return inside(gzip.decompress, lambda _, part: gzip.compress(part, compresslevel=1, mtime=0), mutator)


def within_zip(mutator: Mutator) -> Mutator:
    """Mutate one file of an archive, or now and then its name; the check sums stay right."""

    def mutated(random: Random, data: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parts = [(item, archive.read(item)) for item in archive.infolist()]
            chosen = random.randrange(len(parts))
            with zipfile.ZipFile(written := io.BytesIO(), "w") as archive:
                for number, (item, content) in enumerate(parts):
                    name, changed = item.filename, content
                    if number == chosen and random.random() < 0.1:
                        name = random.choice(("", "..", f"{name}/", f"x{name}", name[:-1], parts[0][0].filename))
                    elif number == chosen:
                        changed = mutator(random, content)
                    archive.writestr(name, changed, item.compress_type)
        except Exception:  # a file that an earlier mutation has damaged
            return any_bytes(random, data)
        return written.getvalue()

    return mutated


def pickle_part(random: Random, data: bytes) -> bytes:
    """Remove, repeat or insert instructions of a pickle."""
    try:
        places = [place for *_, place in pickletools.genops(data) if place is not None]
    except Exception:  # what a damaged pickle raises has no common base
        return any_bytes(random, data)
    first, second = sorted((random.choice(places), random.choice(places)))
    action = random.randrange(4)
    if action == 0:
        return data[:first] + data[random.choice([place for place in places if place >= first][:2]) :]
    if action == 1:
        return data[:second] + data[first:second][:64] + data[second:]
    if action == 2:
        return data[:first] + random.choice(_INSTRUCTIONS) + data[first:]
    return data[:first] + any_bytes(random, data[first:second]) + data[second:]


def within_safetensors(mutator: Mutator) -> Mutator:
    """Mutate the JSON header; its length stays right."""

    def header(data: bytes) -> bytes:
        return data[8 : 8 + int.from_bytes(data[:8], "little")]

    def with_header(data: bytes, part: bytes) -> bytes:
        return len(part).to_bytes(8, "little") + part + data[8 + len(header(data)) :]

    return inside(header, with_header, mutator)


def png_chunk(random: Random, data: bytes) -> bytes:
    """Mutate one chunk of a PNG; its length and its check sum stay right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    if not data.startswith(b"\x89PNG") or not chunks:
        return any_bytes(random, data)
    at = random.randrange(len(chunks))
    name, content = chunks[at]
    chunks[at] = name, any_bytes(random, content)
    if random.random() < 0.2:
        chunks.insert(random.randrange(len(chunks)), random.choice(chunks))
    return data[:8] + b"".join(
        len(part).to_bytes(4, "big") + name + part + zlib.crc32(name + part).to_bytes(4, "big") for name, part in chunks
    )
