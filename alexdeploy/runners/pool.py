"""A few costly things, made when they are first needed and lent to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from alexdeploy.errors import AlexdeployError, UsageError

_T = TypeVar("_T")


class Pool(Generic[_T]):
    """At most ``limit`` items; a borrower waits while all are lent.

    Args:
        make, release: called without the pool's lock, so they may take their time.
    """

    def __init__(self, make: Callable[[], _T], release: Callable[[_T], None], limit: int) -> None:
        self._make, self._release, self._limit = make, release, limit
        self._changed = threading.Condition()
        self._free: list[_T] = []
        self._made = 0
        self._closed = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[_T]:
        """Borrow an item. One whose block raises anything but a UsageError is released and not lent again.

        Raises:
            UsageError: the pool is closed.
        """
        item = self._take()
        try:
            yield item
        except UsageError:  # refused before it was touched
            self._give_back(item)
            raise
        except BaseException:
            with contextlib.suppress(AlexdeployError):  # what broke the block is what the caller must see
                self._release(item)
            self._forget()
            raise
        self._give_back(item)

    def close(self) -> None:
        """Wait for what is lent and release everything; later borrowers are refused. Twice is fine.

        Raises:
            AlexdeployError: a release failed; the others were released all the same.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._made == len(self._free))
            items, self._free, self._made = self._free, [], 0
        with contextlib.ExitStack() as stack:
            for item in items:
                stack.callback(self._release, item)

    def _take(self) -> _T:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free or self._made < self._limit)
            if self._closed:
                raise UsageError("the runner is closed; load the file again")
            if self._free:
                return self._free.pop()
            self._made += 1
        try:
            return self._make()
        except BaseException:
            self._forget()
            raise

    def _give_back(self, item: _T) -> None:
        with self._changed:
            self._free.append(item)  # the last one used is the first one lent: its memory is warm
            self._changed.notify_all()

    def _forget(self) -> None:
        with self._changed:
            self._made -= 1
            self._changed.notify_all()
