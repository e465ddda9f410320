"""Runs scenarios in this process; ``python -m tests.gpu.bare.child FOLDER BINDING RESULTS NAME…``.

A line of JSON for each goes to RESULTS, one when it begins and one when it ends, so that the parent knows which one
ended the process. It stops at the first failure: the context may be unusable after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

END = "== all were asked; what follows was said while the process ended"


def main(folder: Path, binding: str, results: Path, names: list[str]) -> int:
    os.environ["SIMULATED_BINDING"] = binding  # conftest makes PyCUDA unfindable where it is not meant
    with results.open("a") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        write(scenario=names[0], status="begun")  # importing is part of the first
        from tests.gpu.bare import double, libraries, measuring, running  # noqa: F401 (they fill SCENARIOS)
        from tests.gpu.bare.scenario import SCENARIOS, NotRun, Place
        from tests.simulated_cuda.conftest import write_engine

        double.install()
        engine = folder / f"double-{os.getpid()}.engine"
        write_engine(engine)
        place = Place(engine, folder, double.is_simulated())
        for name in names:
            write(scenario=name, status="begun")
            began = time.perf_counter()
            try:
                figures = SCENARIOS[name].run(place) or {}
            except NotRun as reason:
                write(scenario=name, status="not run", detail=str(reason))
                continue
            except BaseException as error:
                traceback.print_exc()
                detail = " ".join(f"{type(error).__name__}: {error}".split())[:600]
                write(scenario=name, status="failed", detail=detail)
                return 1
            seconds = round(time.perf_counter() - began, 2)
            if place.simulated:
                figures = dict.fromkeys(figures)  # they say nothing
            write(scenario=name, status="ok", seconds=seconds, figures=figures)
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    print(END, file=sys.stderr, flush=True)
    sys.exit(status)
