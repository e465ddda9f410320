"""Every input that once broke something, and every seed, is read or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.target import judge
from tests.fuzz.targets import CORPUS, all_targets, kept


@pytest.mark.parametrize("name", all_targets())
def test_what_once_broke_something_breaks_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = all_targets()[name]
    monkeypatch.chdir(tmp_path)
    if target.beside is not None:
        target.beside(tmp_path)
    seeds = [judge(target, seed, tmp_path) for seed in target.seeds()]
    assert "accepted" in {verdict.kind for verdict in seeds}  # else it would be no reader that is fuzzed
    assert {verdict.kind for verdict in seeds} <= {"accepted", "refused"}
    found = {path.name: judge(target, path.read_bytes(), tmp_path) for path in kept(name)}
    assert {file: verdict for file, verdict in found.items() if verdict.kind not in ("accepted", "refused")} == {}


def test_every_folder_of_the_corpus_belongs_to_a_target_and_is_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {*all_targets()}
    large = [path for name in all_targets() for path in kept(name) if path.stat().st_size > 100_000]
    assert large == []
