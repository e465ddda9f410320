"""The whole matrix by hand: ``python -m tests.faults [--rounds N] [--verbs a,b] [--faults c,d]``.

Each round kills at other times and limits memory otherwise. Prints a row for each fault and a column for each verb.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.cell import Bench
from tests.faults.faults import FAULTS
from tests.faults.forks import BARE, forks
from tests.faults.matrix import try_cell
from tests.faults.verbs import VERBS


def main() -> int:
    """Print the table; 1 where a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--verbs", default=",".join(verb.name for verb in VERBS))
    parser.add_argument("--faults", default=",".join(fault.name for fault in FAULTS))
    chosen = parser.parse_args()
    verbs = tuple(verb for verb in VERBS if verb.name in chosen.verbs.split(","))
    faults = [fault for fault in FAULTS if fault.name in chosen.faults.split(",")]
    table: dict[str, dict[str, Counter[str]]] = {}
    troubles = 0
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with forks() as opened, forks(BARE) as bare:
            bench = Bench(opened, bare, root, brief=False)
            for fault in faults:
                row = table.setdefault(fault.name, {})
                for verb in verbs:
                    found = row.setdefault(verb.name, Counter())
                    for seed in range(chosen.rounds):
                        cell = root / "cell"
                        cell.mkdir()
                        outcome, wrong = try_cell(bench, verb, fault, cell, seed)
                        if outcome != "-" and wrong:
                            troubles += 1
                            outcome += "!"
                            print(f"{verb.name} × {fault.name}, seed {seed}: {outcome}", *wrong, sep="\n    ")
                            sys.stdout.flush()
                        found[outcome] += 1
                        shutil.rmtree(cell)
    finally:
        shutil.rmtree(root)
    for first in range(0, len(verbs), 6):
        part = verbs[first : first + 6]
        print(" " * 10 + "".join(f"{text:<18}" for text in (verb.name for verb in part)).rstrip())
        for name, row in table.items():
            cells = (", ".join(row[verb.name])[:17] for verb in part)
            print(f"{name:<10}" + "".join(f"{text:<18}" for text in cells).rstrip())
    print(f"{troubles} cells are wrong")
    return min(troubles, 1)


if __name__ == "__main__":
    sys.exit(main())
