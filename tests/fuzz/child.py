"""The process that reads the inputs; it may die of one. The parent tells what to do on stdin, a line of JSON a job.

A job is ``[target, seed, first, end]``. A fault is a line of JSON on stdout, ``[index, kind, what]``; ``[]`` ends a
job. The mapped file tells the parent how far this has come: number of the input, refused, accepted.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import struct
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.fuzz.mutate import Inputs
from tests.fuzz.target import FAULTS, judge
from tests.fuzz.targets import all_targets, kept

PROGRESS = struct.Struct("<qqq")
_MORE_BYTES = 3 << 30  # of addresses, so that no input takes the machine's memory


@cache
def inputs_of(name: str, seed: int) -> Inputs:
    """Those of one target; its corpus belongs to the seeds."""
    return Inputs(all_targets()[name], seed, [path.read_bytes() for path in kept(name)])


def serve(progress: mmap.mmap) -> None:
    """Do jobs until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a reader prints is no answer
    for line in sys.stdin:
        name, seed, first, end = json.loads(line)
        target, inputs = all_targets()[name], inputs_of(name, seed)
        refused = accepted = 0
        with tempfile.TemporaryDirectory(prefix="fuzz-") as made:
            folder = Path(made)
            os.chdir(folder)
            if target.beside is not None:
                target.beside(folder)
            for index in range(first, end):
                data = inputs[index]
                PROGRESS.pack_into(progress, 0, index, refused, accepted)
                verdict = judge(target, data, folder)
                refused += verdict.kind == "refused"
                accepted += verdict.kind == "accepted"
                if verdict.kind in FAULTS:
                    print(json.dumps([index, *verdict]), file=answers, flush=True)
            os.chdir("/")
        PROGRESS.pack_into(progress, 0, end, refused, accepted)
        print("[]", file=answers, flush=True)


def _bound_memory() -> None:
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MORE_BYTES, resource.RLIM_INFINITY))
    except OSError:  # not Linux
        return


if __name__ == "__main__":
    faulthandler.enable()
    all_targets()
    _bound_memory()
    with Path(sys.argv[1]).open("r+b") as opened, mmap.mmap(opened.fileno(), PROGRESS.size) as shared:
        serve(shared)
