"""Traffic on a clock that only the test moves, against queueing theory; rounds and rows against what was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alexdeploy.bench import load_rounds, traffic
from alexdeploy.bench.load_results import LoadRow, Target
from alexdeploy.bench.load_rounds import Expected, take_rounds
from alexdeploy.bench.traffic import Load, arrivals, keep_in_flight, send_when_due
from alexdeploy.bench.waiting import QueuedRunner
from alexdeploy.errors import UnavailableError
from alexdeploy.runners.base import Runner
from alexdeploy.runners.kserve import Counters

Floats = npt.NDArray[np.float32]
IMAGES = np.arange(1, 6, dtype=np.float32).reshape(5, 1)
EXPECTED = Expected(IMAGES, IMAGES * np.array([1, 2, 3], np.float32), bound=1e-3)


class Clock:
    """Time that passes when somebody sleeps or serves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 100.0
        monkeypatch.setattr(traffic, "_now", lambda: self.time)
        monkeypatch.setattr(traffic, "_wait", self.wait)
        monkeypatch.setattr(traffic, "SENDERS", 1)

    def pass_by(self, seconds: float) -> None:
        assert seconds >= 0
        self.time += seconds

    def wait(self, stopped: threading.Event, seconds: float) -> bool:
        self.pass_by(seconds)
        return stopped.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def one() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def serving(clock: Clock, seconds: float) -> traffic.Ask:
    def ask(image: Floats) -> Floats:
        clock.pass_by(seconds)
        return right(image)

    return ask


def right(image: Floats) -> Floats:
    return image * np.array([1, 2, 3], np.float32)


def lindley(due: npt.NDArray[np.float64], service: float) -> list[float]:
    """Latencies behind one server, first come, first served."""
    free, latencies = 0.0, []
    for when in due:
        free = max(free, when) + service
        latencies.append(free - when)
    return latencies


@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
def test_latency_counts_from_when_the_request_was_due(load: float, clock: Clock, one: ThreadPoolExecutor) -> None:
    """Behind one sender waits what waits in the queue M/D/1; the figure has it although it was not sent yet."""
    due = arrivals(100 * load, 3.0, [1])
    taken = send_when_due(one, serving(clock, 0.01), IMAGES, due.tolist(), 3.0)
    found = [request.ended_s - request.due_s for request in taken.requests]
    assert found == pytest.approx(lindley(due, 0.01)[: len(found)])
    assert [request.image for request in taken.requests] == [number % 5 for number in range(len(found))]
    assert (len(found), taken.unsent) == (len(due), 0)
    assert taken.completed / taken.seconds == pytest.approx(min(len(due) / 3, 100), rel=0.01)


def test_a_queue_that_grows_without_bound_is_given_up(clock: Clock, one: ThreadPoolExecutor) -> None:
    due = arrivals(1000, 1.0, [2])
    taken = send_when_due(one, serving(clock, 0.01), IMAGES, due.tolist(), 1.0)
    assert clock.time - 100 <= 2 + 0.011
    assert len(taken.requests) == pytest.approx(200, abs=2)
    assert len(taken.requests) + taken.unsent == len(due)


def test_arrivals_are_a_poisson_process_and_the_same_for_the_same_seed() -> None:
    assert arrivals(50, 2.0, (1, 2)).tolist() == arrivals(50, 2.0, (1, 2)).tolist()
    assert arrivals(50, 2.0, (1, 2)).tolist() != arrivals(50, 2.0, (1, 3)).tolist()
    counts = [len(arrivals(50, 2.0, [seed])) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(100, abs=4 * np.sqrt(100 / 400))
    assert np.var(counts) == pytest.approx(100, rel=4 * np.sqrt(2 / 400))
    gaps = np.diff(arrivals(1000, 20.0, [0]))
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(gaps.std(), rel=0.05)  # of an exponential distribution both are alike


def test_one_in_flight_counts_what_ends_within_the_window(clock: Clock, one: ThreadPoolExecutor) -> None:
    taken = keep_in_flight(one, serving(clock, 0.125), IMAGES, 1, 2.0)
    assert [request.ended_s - request.due_s for request in taken.requests] == [0.125] * 16
    assert (len(taken.early), taken.completed, taken.seconds) == (1, 16, 2.0), "the first opens the window"
    assert [request.image for request in taken.requests[:6]] == [1, 2, 3, 4, 0, 1]


def test_an_answer_that_takes_longer_than_the_slice_still_counts(clock: Clock, one: ThreadPoolExecutor) -> None:
    taken = keep_in_flight(one, serving(clock, 5.0), IMAGES, 1, 2.0)
    assert (len(taken.requests), taken.completed, taken.seconds) == (1, 1, 5.0)


class Counting(Runner):
    """Answers right, and keeps the sizes of its batches."""

    runtime = "counting"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def infer(self, batch: Floats) -> Floats:
        self.sizes.append(len(batch))
        return right(batch)


def test_as_many_as_asked_are_in_flight_at_once() -> None:
    """The first four are answered only when four are there; there are never five."""
    lock, together = threading.Lock(), threading.Barrier(4)
    inside, most, number = 0, 0, count()

    def ask(image: Floats) -> Floats:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if next(number) < 4:
            together.wait(10)
        with lock:
            inside -= 1
        return right(image)

    with ThreadPoolExecutor(8) as pool:
        taken = keep_in_flight(pool, ask, IMAGES, 4, 0.01)
    assert most == 4
    assert len(taken.early) + len(taken.requests) == next(number)
    assert len(taken.early) >= 4
    assert taken.completed > 0


def test_what_waits_runs_together_up_to_the_largest_batch_and_each_gets_its_own() -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow(Counting):
        def infer(self, batch: Floats) -> Floats:
            begun.set()
            assert go.wait(10)
            return super().infer(batch)

    runner = Slow()
    with QueuedRunner(runner, 3) as queued, ThreadPoolExecutor(8) as pool:
        first = pool.submit(queued.infer, IMAGES[:1])
        assert begun.wait(10)
        others = [pool.submit(queued.infer, IMAGES[i % 5 : i % 5 + 1]) for i in range(1, 8)]
        while queued._waiting.qsize() < 7:
            pass
        go.set()
        answers = [each.result() for each in (first, *others)]
    assert runner.sizes == [1, 3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(answers), right(IMAGES[[0, 1, 2, 3, 4, 0, 1, 2]]))


def test_who_waits_for_a_runner_that_fails_is_told() -> None:
    class Failing(Counting):
        def infer(self, batch: Floats) -> Floats:
            raise UnavailableError(f"out of memory for {len(batch)} image")

    with QueuedRunner(Failing(), 4) as queued, pytest.raises(UnavailableError, match="out of memory"):
        queued.infer(IMAGES[:1])


def rows(*loads: Load, ask: traffic.Ask = right, **options: Any) -> dict[tuple[str, str], LoadRow]:
    """Ten rounds of a server beside a right runner."""
    targets: dict[Target, traffic.Ask] = {"server": ask, "queued": right, "shared": right}
    found, rounds = take_rounds(targets, loads, EXPECTED, seconds=1e-3, one_image_s=1e-5, **options)
    assert rounds == 10
    assert [(row.target, row.load) for row in found] == [(target, load) for load in loads for target in targets]
    return {(row.target, str(row.load)): row for row in found}


def test_a_row_says_what_its_samples_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_rounds, "_GROWTH", np.inf)  # however busy this machine is
    monkeypatch.setattr(traffic, "_PATIENCE_S", 30)
    found = rows(Load(in_flight=2), Load(rate_per_s=4000))
    for row in found.values():
        assert (row.status, row.reason, row.failures) == ("ok", None, 0)
        assert len(row.samples_ms) == len(row.rates_per_s) == 10
        samples = np.concatenate(row.samples_ms)
        for percent, estimate in ((50, row.p50_ms), (90, row.p90_ms), (99, row.p99_ms)):
            assert estimate is not None
            assert estimate.value == np.percentile(samples, percent)
            assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
        assert row.images_per_s is not None
        assert min(row.rates_per_s) <= row.images_per_s.value <= max(row.rates_per_s)
        assert (row.p99_ratio is None) == (row.target == "queued")
        assert (row.rate_ratio is None) == (row.target == "queued" or row.load.rate_per_s is not None)
        assert row.requests >= len(samples)
    sent = {found[target, "4000/s"].requests for target in ("server", "queued", "shared")}
    assert sent == {sum(len(arrivals(4000, 50 / 4000, (0, number, 4_000_000))) for number in range(10))}


def test_an_answer_of_another_image_is_noticed() -> None:
    def mixed_up(image: Floats) -> Floats:
        return right(IMAGES[4:]) if image.item() == 2 else right(image)

    found = rows(Load(in_flight=1), ask=mixed_up)
    row = found["server", "1 in flight"]
    assert (row.status, row.p99_ms, row.images_per_s) == ("failed", None, None)
    assert row.reason == (
        f"{row.failures} of {row.requests} requests failed, the first: the answer to image 1 is that of image 4"
    )
    assert len(row.samples_ms) == 1, "no more is sent after a slice in which a request failed"
    assert found["queued", "1 in flight"].status == "ok"
    assert len(found["queued", "1 in flight"].samples_ms) == 10


@pytest.mark.parametrize("load", [Load(in_flight=1), Load(in_flight=3), Load(rate_per_s=3000)], ids=str)
def test_requests_without_an_answer_are_counted(load: Load) -> None:
    asked = count(1)
    lost = []

    def unsteady(image: Floats) -> Floats:
        number = next(asked)
        if number % 3 == 1:
            lost.append(number)
            raise UnavailableError("connection reset")
        return right(image)

    row = rows(load, ask=unsteady)["server", str(load)]
    assert (row.status, row.failures, row.requests) == ("failed", len(lost), next(asked) - 1)
    assert f"{len(lost)} of {row.requests} requests failed, the first: connection reset" == row.reason


def test_where_nothing_answers_it_ends_at_once() -> None:
    def gone(image: Floats) -> Floats:
        raise UnavailableError(f"no answer to {image.size} value")

    targets: dict[Target, traffic.Ask] = dict.fromkeys(("server", "queued"), gone)
    found, rounds = take_rounds(targets, [Load(in_flight=1)], EXPECTED, seconds=1e6, one_image_s=1e-5)
    assert rounds == 1
    assert [(row.status, row.images_per_s) for row in found] == [("failed", None)] * 2


def test_an_error_of_ours_is_no_failed_request() -> None:
    def broken(image: Floats) -> Floats:
        raise TypeError(f"a bug with {image.size} value")

    with pytest.raises(TypeError, match="a bug with 1 value"):
        rows(Load(in_flight=4), ask=broken)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_does_not_wait_for_arrivals_that_are_due_later(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when two senders already wait until the last two are due."""
    asked: list[float] = []
    waiting = threading.Semaphore(0)

    def wait(stopped: threading.Event, seconds: float) -> bool:
        if seconds > 1:
            waiting.release()
        return stopped.wait(seconds)

    monkeypatch.setattr(traffic, "_wait", wait)

    def ask(image: Floats) -> Floats:
        assert all(waiting.acquire(timeout=10) for _ in range(2))
        asked.append(image.item())
        raise stop

    with ThreadPoolExecutor(traffic.SENDERS) as pool, pytest.raises(stop):
        send_when_due(pool, ask, IMAGES, [0.0, 20.0, 20.0], 30.0)
    assert asked == [1]


def test_threads_that_wait_for_others_end_where_those_cannot_start() -> None:
    class Full(ThreadPoolExecutor):
        def submit(self, *args: Any, **options: Any) -> Any:
            if len(self._threads) == 2:
                raise RuntimeError("can't start new thread")
            return super().submit(*args, **options)

    with Full(3) as pool, pytest.raises(UnavailableError, match=r"no 3 threads .* give fewer `in_flight`"):
        load_rounds._connect(pool, 3, lambda: None)


def test_what_is_slower_than_the_queued_runner_is_called_so() -> None:
    """By a factor of about twenty, of waiting that no machine shortens."""

    def late(image: Floats) -> Floats:
        time.sleep(5e-3)
        return right(image)

    row = rows(Load(in_flight=1), ask=late)["server", "1 in flight"]
    assert row.p50_ms is not None
    assert row.p50_ms.value >= 5
    assert row.rate_ratio is not None
    assert row.p99_ratio is not None
    assert row.rate_ratio.value < 1


def test_counters_are_differences_over_the_slices_of_one_load() -> None:
    """A server that had run before, and that takes two images together."""
    asked = count(10_000)
    answered = 10_000

    def ask(image: Floats) -> Floats:
        nonlocal answered
        answered = next(asked) + 1
        return right(image)

    def counters() -> Counters:
        return Counters(
            inferences=answered,
            executions=7 + answered // 2,
            queue_ns=3_000_000 * answered,
            compute_ns=500_000 * answered,
            requests=answered,
            failed=0,
        )

    found = rows(Load(in_flight=1), Load(rate_per_s=5000), ask=ask, counters=counters)
    for load in ("1 in flight", "5000/s"):
        row = found["server", load]
        assert row.served is not None
        assert row.served.inferences == row.requests
        assert row.served.mean_batch == pytest.approx(2, rel=0.2)
        assert (row.served.queue_ms, row.served.compute_ms) == (3, 0.5)
        assert found["queued", load].served is None


def test_counters_that_went_back_do_not_count() -> None:
    """A version was unloaded, and its counters with it."""
    left, more = count(10**6, -10), count(1)

    def counters() -> Counters:
        return Counters(next(left), next(more), 0, 0, next(more), 0)

    assert rows(Load(in_flight=1), counters=counters)["server", "1 in flight"].served is None


def test_a_server_without_counters_and_one_that_is_gone_have_none() -> None:
    def gone() -> Counters:
        raise UnavailableError("no answer")

    assert rows(Load(in_flight=1))["server", "1 in flight"].served is None
    assert rows(Load(in_flight=1), counters=gone)["server", "1 in flight"].served is None


def test_a_rate_beyond_what_a_server_can_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sender, ten times as many arrivals as it can send."""
    monkeypatch.setattr(traffic, "SENDERS", 1)
    monkeypatch.setattr(traffic, "_PATIENCE_S", 0)
    waiting = threading.Event()

    def slow(image: Floats) -> Floats:
        waiting.wait(5e-3)
        return right(image)

    row = rows(Load(rate_per_s=2000), ask=slow)["server", "2000/s"]
    assert (row.status, row.p99_ms, row.p99_ratio) == ("overloaded", None, None)
    assert row.unsent > 0
    assert re.fullmatch(r"overloaded: offered 2000/s, answered \d+\.\d/s", row.reason or "")
    assert row.images_per_s is not None
    assert row.images_per_s.value <= 200


def test_growth_tells_a_queue_without_bound_from_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test: M/D/1 at 80 % of what it can do has a queue, at 120 % it grows without end."""
    clock = Clock(monkeypatch)
    ask = serving(clock, 0.01)
    found = {}
    for rate in (80, 120):
        monkeypatch.setattr(load_rounds, "_LEAST_ARRIVALS", 4 * rate)
        targets: dict[Target, traffic.Ask] = {"server": ask, "queued": ask}
        (row, _), _ = take_rounds(targets, [Load(rate_per_s=rate)], EXPECTED, seconds=1e-3, one_image_s=0.01)
        found[rate] = row.status
    assert found == {80: "ok", 120: "overloaded"}
