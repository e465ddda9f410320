"""A queue in front of a runner: one worker runs what waits together, as a server with dynamic batching does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

import numpy as np

from alexdeploy.arrays import Batch, Logits
from alexdeploy.runners.base import Runner

_Item = TypeVar("_Item")


def work(waiting: queue.SimpleQueue[_Item | None], most: int, run: Callable[[list[_Item]], None]) -> None:
    """Hand over what waits, up to ``most`` at a time, until None comes; ``run`` must not fail."""
    closing = False
    while not closing:
        batch = [waiting.get()]
        while len(batch) < most and not waiting.empty():
            batch.append(waiting.get())
        closing = None in batch
        items = [item for item in batch if item is not None]
        if items:
            run(items)


class QueuedRunner:
    """A runner that one worker feeds with whatever waits, up to ``max_batch`` images. Threads may share it.

    Used as a context manager, it ends its worker; the runner stays open.
    """

    def __init__(self, runner: Runner, max_batch: int) -> None:
        self._runner = runner
        self._waiting: queue.SimpleQueue[tuple[Batch, Future[Logits]] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=work, args=(self._waiting, max_batch, self._answer), daemon=True)
        self._worker.start()

    def infer(self, image: Batch) -> Logits:
        """(1, *input) → (1, classes) float32, when its turn has come.

        Raises:
            UsageError, UnavailableError: as the runner's ``infer``; all images that ran together get the error.
        """
        future: Future[Logits] = Future()
        self._waiting.put((image, future))
        return future.result()

    def _answer(self, asked: list[tuple[Batch, Future[Logits]]]) -> None:
        try:
            logits = self._runner.infer(np.concatenate([image for image, _ in asked]))
        except BaseException as error:  # who waits must be told, whatever it is
            for _, future in asked:
                future.set_exception(error)
            return
        for index, (_, future) in enumerate(asked):
            future.set_result(logits[index : index + 1])

    def __enter__(self) -> QueuedRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._worker.join()
