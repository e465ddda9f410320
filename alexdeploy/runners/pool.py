"""A few costly things, made when they are first needed and lent to one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from alexdeploy.errors import AlexdeployError, DeviceLostError, UsageError
from alexdeploy.runners.base import CLOSED

_T = TypeVar("_T")


class Pool(Generic[_T]):
    """At most ``limit`` items; a borrower waits while all are lent, and is refused at once when the device is lost.

    Args:
        make, release: called without the pool's lock, so they may take their time.
    """

    def __init__(self, make: Callable[[], _T], release: Callable[[_T], None], limit: int) -> None:
        self._make, self._release, self._limit = make, release, limit
        self._changed = threading.Condition()
        self._free: list[_T] = []
        self._made = 0
        self._closed = False
        self._lost = ""  # what was said of it

    @contextlib.contextmanager
    def lend(self) -> Iterator[_T]:
        """Borrow an item. One whose block raises anything but a UsageError is released and not lent again.

        Raises:
            UsageError: the pool is closed.
            DeviceLostError: this block, its release or an earlier one found the device lost.
        """
        item = self._take()
        try:
            yield item
        except UsageError:  # refused before it was touched
            self._give_back(item)
            raise
        except BaseException as error:
            lost = error if isinstance(error, DeviceLostError) else None
            try:
                self._release(item)
            except DeviceLostError as found:  # the reason why the block failed, of which TensorRT says less
                lost = lost or found
            except AlexdeployError:  # what broke the block is what the caller must see
                pass
            finally:
                self._forget(lost)
            if lost is not None and lost is not error:
                raise lost from error
            raise
        self._give_back(item)

    def close(self, wait_s: float | None = None) -> None:
        """Wait for what is lent and release everything; later borrowers are refused. Twice is fine.

        Args:
            wait_s: at most so long; what is lent even then is left alone. None waits for all of it.

        Raises:
            AlexdeployError: a release failed; the others were released all the same. Not for a device whose loss a
                borrower has been told of.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._made == len(self._free), wait_s)
            items, self._free = self._free, []
            self._made -= len(items)
        with self.known_loss(), contextlib.ExitStack() as stack:
            for item in items:
                stack.callback(self._release, item)

    def known_loss(self) -> contextlib.AbstractContextManager[None]:
        """A block in which the loss of the device is no error any more, once it has been one."""
        return contextlib.suppress(DeviceLostError) if self._lost else contextlib.nullcontext()

    def _take(self) -> _T:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._lost or self._free or self._made < self._limit)
            if self._closed:
                raise UsageError(CLOSED)
            if self._lost:
                raise DeviceLostError(self._lost)
            if self._free:
                return self._free.pop()
            self._made += 1
        try:
            return self._make()
        except BaseException as error:
            self._forget(error if isinstance(error, DeviceLostError) else None)
            raise

    def _give_back(self, item: _T) -> None:
        with self._changed:
            self._free.append(item)  # the last one used is the first one lent: its memory is warm
            self._changed.notify_all()

    def _forget(self, lost: DeviceLostError | None) -> None:
        with self._changed:
            self._made -= 1
            self._lost = self._lost or str(lost or "")
            self._changed.notify_all()
