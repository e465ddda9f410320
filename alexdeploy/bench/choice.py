"""What to deploy: the fastest that is accurate enough."""

from __future__ import annotations

from collections.abc import Sequence

from alexdeploy.bench.results import Choice, Row


def choose(rows: Sequence[Row], max_drop: float) -> list[Choice]:
    """The fastest row of each batch size whose top-1 is at most ``max_drop`` percentage points below the first's.

    Without labels it is the agreement that counts; the first row's, with itself, is 100 %.
    """
    running = [row for row in rows if row.latency_ms is not None]
    labelled = any(row.top1 is not None for row in running)
    what, why = ("top-1", "") if labelled else ("agreement", ", as there are no labels")

    def share(row: Row) -> float:
        found = row.top1 if labelled else row.agreement
        assert found is not None  # of every row that ran
        return found

    choices = []
    for batch in dict.fromkeys(row.batch for row in running):
        same = [row for row in running if row.batch == batch]
        gate = share(same[0]) - max_drop / 100
        good = [row for row in same if share(row) >= gate]
        best = max(good, key=lambda row: row.images_per_s or 0.0)
        reason = (
            f"fastest of {len(good)} that meet the gate ({what} >= {gate:.2%}{why}), of {len(same)} measured: "
            f"{best.latency_ms.p50 if best.latency_ms else 0:.3g} ms, {what} {share(best):.2%}"
        )
        choices.append(Choice(batch, best.artifact, best.runtime, reason))
    return choices
