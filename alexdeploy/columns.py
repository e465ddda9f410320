"""A column of a table of text, and how many characters a table takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_BORDER = 3  # characters of a cell's padding and its border
_LEAST = 26  # characters of a column that folds: a layer's name of three or four parts


@dataclass(frozen=True)
class Column:
    """Cells from top to bottom.

    Attributes:
        text: aligned left.
        folds: where the terminal is narrow, a long cell takes more than one line.
        rank: where there is still no room the column of the highest rank is left out first; 0: never.
    """

    header: str
    cells: Sequence[str]
    text: bool = False
    folds: bool = False
    rank: int = 0

    @property
    def width(self) -> int:
        """Characters of the longest cell."""
        return max(map(len, (self.header, *self.cells)))

    @property
    def least(self) -> int:
        """Characters below which it cannot be read."""
        return min(self.width, _LEAST) if self.folds else self.width


def table_width(widths: Iterable[int]) -> int:
    """Characters of a table whose columns have these widths."""
    return sum(width + _BORDER for width in widths) + 1
