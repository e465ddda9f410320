"""``python -m tests.fuzz [TARGET…] [--inputs N] [--seconds S] [--seed K]``: mutated inputs, and what came of them."""

from __future__ import annotations

import argparse
import signal
import time

from tests.fuzz.run import Watched, fuzz, table
from tests.fuzz.target import FAULTS
from tests.fuzz.targets import all_targets


def main() -> int:
    """Fuzz each target; 1 where a fault was found, whose input is in ``tests/fuzz/corpus``."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all: {', '.join(all_targets())}")
    parser.add_argument("--inputs", type=int, default=20_000, help="of each target, at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs (%(default)s)")
    given = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):  # both end it with the table
        signal.signal(stop, signal.default_int_handler)
    if unknown := sorted({*given.targets} - {*all_targets()}):
        parser.error(f"unknown target {unknown[0]}; there are {', '.join(all_targets())}")
    watched, tallies, began = Watched(), [], time.monotonic()
    try:
        for name in given.targets or all_targets():
            tallies.append(fuzz(name, watched, inputs=given.inputs, seconds=given.seconds, seed=given.seed))
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        watched.close()
    print(table(tallies))
    print(f"seed {given.seed}, {time.monotonic() - began:.0f} s")
    return int(any(tally.counts[kind] for tally in tallies for kind in FAULTS))


if __name__ == "__main__":
    raise SystemExit(main())
