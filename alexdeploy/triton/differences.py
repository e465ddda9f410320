"""Where two configurations of a model disagree, in what its artifact decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from alexdeploy.contract import Contract
from alexdeploy.triton.config import CONFIG, ModelConfig

_CONTRACT = "parameters.contract.string_value"
_LONGEST = 80  # characters of a value in a message
_DEMANDED = (  # fields that the artifact decides, and no operator
    *("name", "platform", "backend", "max_batch_size", "input", "output", "default_model_filename"),
    *("parameters", "metric_tags", "ensemble_scheduling"),
)


@dataclass(frozen=True)
class Difference:
    """A field in which two configurations disagree, such as ``input[0].dims``."""

    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field} is {self.found}, expected {self.expected}"


def difference(found: ModelConfig, expected: ModelConfig) -> Difference | None:
    """The first of ``differences``."""
    return next(differences(found, expected), None)


def differences(found: ModelConfig, expected: ModelConfig) -> Iterator[Difference]:
    """Fields that the artifact decides and that are others; what an operator may tune is not compared."""
    from google.protobuf import json_format

    ours, theirs = (
        {name: tree[name] for name in _DEMANDED if name in tree}
        for tree in (json_format.MessageToDict(one, preserving_proto_field_name=True) for one in (found, expected))
    )
    yield from _differences("", ours, theirs)


def _differences(field: str, found: Any, expected: Any) -> Iterator[Difference]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in dict.fromkeys([*expected, *found]):
            yield from _differences(f"{field}.{name}" if field else name, found.get(name), expected.get(name))
    elif _nested(found) and _nested(expected) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from _differences(f"{field}[{index}]", *pair)
    elif found != expected and field == _CONTRACT and found and expected:
        yield from _contract_differences(found, expected)
    elif found != expected:
        yield Difference(field, _shown(found), _shown(expected))


def _contract_differences(found: str, expected: str) -> Iterator[Difference]:
    there, ours = (msgspec.structs.asdict(Contract.from_json(text, CONFIG)) for text in (found, expected))
    for field in ours:
        one, other = there[field], ours[field]
        if field == "labels" and len(one) == len(other):
            for index, pair in enumerate(zip(one, other, strict=True)):
                if pair[0] != pair[1]:
                    yield Difference(f"contract.labels[{index}]", *map(repr, pair))
        elif one != other:
            yield Difference(f"contract.{field}", _shown(one), _shown(other))


def _nested(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = f"[{', '.join(value)}]" if isinstance(value, list) and not _nested(value) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
