"""All targets by name, which ``python -m tests.fuzz.targets`` prints. A family is a module with a tuple ``TARGETS``."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from tests.fuzz.target import Target

FAMILIES = ("text", "records", "arrays", "images", "weights", "answers", "graphs", "engines")
CORPUS = Path(__file__).parent / "corpus"


@cache
def all_targets() -> dict[str, Target]:
    """By name, in the order of the families."""
    found = [target for family in FAMILIES for target in import_module(f"tests.fuzz.{family}").TARGETS]
    return {target.name: target for target in found}


def kept(name: str) -> list[Path]:
    """The files of a target's corpus."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


if __name__ == "__main__":
    print(*all_targets())
