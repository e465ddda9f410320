from __future__ import annotations

import gc
from collections import Counter

import pytest

from alexdeploy.bench.measure import MIN_ROUNDS, measure


class Log:
    """Calls that say when they were made."""

    def __init__(self, names: str) -> None:
        self.names = names
        self.made: list[str] = []
        self.calls = [lambda name=name: self.made.append(name) for name in names]

    def turns(self) -> list[tuple[str, int]]:
        """(name, calls in a row), in order."""
        found: list[tuple[str, int]] = []
        for name in self.made:
            before = found.pop()[1] if found and found[-1][0] == name else 0
            found.append((name, before + 1))
        return found


def test_every_round_has_one_turn_of_each_candidate_and_a_turn_has_one_untimed_call() -> None:
    log = Log("abc")
    rounds = measure(log.calls, seconds=1e-9, min_rounds=20)
    timed = rounds[0].shape[1]
    assert [part.shape for part in rounds] == [(20, timed)] * 3
    after_warm_up = Counter(log.made[-20 * 3 * (timed + 1) :])
    assert after_warm_up == dict.fromkeys("abc", 20 * (timed + 1))
    for first in range(len(log.made) - 20 * 3 * (timed + 1), len(log.made), 3 * (timed + 1)):
        assert set(log.made[first : first + 3 * (timed + 1)]) == set("abc")


def test_the_order_within_a_round_changes_and_a_seed_repeats_it() -> None:
    def order(seed: int) -> str:
        log = Log("ab")
        measure(log.calls, seconds=1e-9, min_rounds=40, seed=seed)
        return "".join(name for name, _ in log.turns()[2:])

    assert order(1) == order(1)
    assert {"abba", "baab"} <= {order(1)[at : at + 4] for at in range(100)} or "aa" not in order(1)
    assert order(1) != order(2)


def test_the_minimum_of_rounds_is_taken_even_without_time() -> None:
    assert len(measure([lambda: None], seconds=1e-9)[0]) == MIN_ROUNDS


def test_the_time_is_used_up() -> None:
    (rounds,) = measure([lambda: sum(range(2000))], seconds=0.05, min_rounds=1)
    assert rounds.sum() >= 25  # of 50 ms; the rest is warm-up, untimed calls and bookkeeping


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    measure([lambda: None], seconds=1e-9, min_rounds=4, progress=shares.append)
    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_samples_are_whole_tenths_of_a_microsecond() -> None:
    (rounds,) = measure([lambda: None], seconds=1e-9)
    assert (rounds == rounds.round(4)).all()


def test_a_candidate_that_fails_is_not_hidden_and_garbage_collection_is_on_again() -> None:
    calls = iter(range(20))

    def fail() -> None:
        if next(calls, None) is None:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        measure([fail], seconds=1e-9)
    assert gc.isenabled()
