"""Requests of one image each: a fixed number always in flight, or arrivals at random at a given rate.

The latency of an arrival counts from when it was due, not from when it could be sent, so that a slow server is not
flattered: requests that wait for a free sender wait in the figure too ("coordinated omission" would leave that out).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from alexdeploy.arrays import Batch, Logits
from alexdeploy.errors import AlexdeployError, DeviceLostError

SENDERS = 64  # arrivals that can be in flight; more wait here
_PATIENCE_S = 0.5  # or the length of a slice: for so long after it what is late is still sent

Ask = Callable[[Batch], Logits]

_now, _wait = time.perf_counter, threading.Event.wait


@dataclass(frozen=True)
class Load:
    """``in_flight`` requests at any time, or ``rate_per_s`` arrivals per second; the other is None."""

    in_flight: int | None = None
    rate_per_s: float | None = None

    def __str__(self) -> str:
        return f"{self.in_flight} in flight" if self.rate_per_s is None else f"{self.rate_per_s:g}/s"


@dataclass(frozen=True)
class Request:
    """One image and what came of it: an answer or an error.

    ``due_s`` is when it was sent or should have been, ``ended_s`` when it was over, from the start of the slice.
    """

    image: int
    due_s: float
    ended_s: float
    answer: Logits | None
    error: str | None


@dataclass(frozen=True)
class Slice:
    """What one target did under one load for a while.

    Attributes:
        requests: those that count.
        early: those that were sent before it began.
        seconds: that ``completed`` answers took.
        completed: answers within ``seconds``.
        unsent: arrivals that were due and for which no sender became free.
    """

    requests: list[Request]
    early: list[Request]
    seconds: float
    completed: int
    unsent: int = 0


def arrivals(rate_per_s: float, seconds: float, seed: Sequence[int]) -> npt.NDArray[np.float64]:
    """Seconds at which requests are due, ascending: a Poisson process, the same for the same seed."""
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate_per_s * seconds)))


def keep_in_flight(pool: Executor, ask: Ask, images: Batch, in_flight: int, seconds: float) -> Slice:
    """As many threads, each of which sends its next image when the last is answered.

    What was sent before every thread had its first answer does not count.
    """
    started = _now()
    window = _Window(in_flight, seconds)

    def send(first: int) -> Iterator[Request]:
        for image in count(first, in_flight):
            yield _request(ask, images, image % len(images), _now(), started)
            if image == first:  # and the thread that opens the window sends one more at least
                window.one_has_begun()
            elif window.is_over():
                return

    requests = _gather(pool, send, range(in_flight), window.stop)
    opened = window.opens - started
    counted = [request for request in requests if request.due_s >= opened]
    early = [request for request in requests if request.due_s < opened]
    ends = [request.ended_s - opened for request in requests if request.error is None and request.ended_s > opened]
    within = sum(end <= seconds for end in ends)
    if within or not ends:
        return Slice(counted, early, seconds, within)
    return Slice(counted, early, max(ends), len(ends))  # even the first answer took longer than the slice


def send_when_due(pool: Executor, ask: Ask, images: Batch, due: Sequence[float], seconds: float) -> Slice:
    """Requests at the given times, from ``SENDERS`` threads; what waits too long for one of them is not sent.

    Ends at the latest one request after twice ``seconds``, or half a second more.
    """
    pending: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    for each in enumerate(due):
        pending.put(each)
    started, stopped = _now(), threading.Event()
    gives_up = started + seconds + max(seconds, _PATIENCE_S)

    def send(_: int) -> Iterator[Request]:
        while not stopped.is_set() and _now() < gives_up:
            try:
                number, when = pending.get_nowait()
            except queue.Empty:
                return
            if _wait(stopped, max(started + when - _now(), 0.0)):
                return
            yield _request(ask, images, number % len(images), started + when, started)

    requests = _gather(pool, send, range(SENDERS), stopped.set)
    ends = [request.ended_s for request in requests if request.error is None]
    return Slice(requests, [], max(seconds, *ends, 0.0), len(ends), pending.qsize())


class _Window:
    """Opens when every thread has had its first answer, and is over ``seconds`` later."""

    def __init__(self, threads: int, seconds: float) -> None:
        self._lock = threading.Lock()
        self._missing, self._seconds = threads, seconds
        self._stopped = False
        self.opens = float("inf")

    def one_has_begun(self) -> None:
        with self._lock:
            self._missing -= 1
            if not self._missing:
                self.opens = _now()

    def is_over(self) -> bool:
        return self._stopped or _now() >= self.opens + self._seconds

    def stop(self) -> None:
        self._stopped = True


def _gather(
    pool: Executor, send: Callable[[int], Iterator[Request]], numbers: Sequence[int], stop: Callable[[], None]
) -> list[Request]:
    """What the threads sent, in the order in which it ended; an error of one of them stops the others."""

    def run(number: int) -> list[Request]:
        try:
            return [*send(number)]
        except BaseException:
            stop()
            raise

    futures: list[Future[list[Request]]] = [pool.submit(run, number) for number in numbers]
    try:
        requests = [request for future in futures for request in future.result()]
    except BaseException:  # Ctrl-C too, which only this thread gets
        stop()
        raise
    return sorted(requests, key=lambda request: request.ended_s)


def _request(ask: Ask, images: Batch, image: int, due: float, started: float) -> Request:
    answer, problem = None, None
    try:
        answer = ask(images[image : image + 1])
    except DeviceLostError:
        raise
    except AlexdeployError as error:
        problem = str(error)
    return Request(image, due - started, _now() - started, answer, problem)
