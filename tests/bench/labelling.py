"""Labelling 20,000 files, killed at random times and resumed: ``python -m tests.bench.labelling [--rounds N]``.

Each round starts ``predict --workers 2``, kills that process with SIGKILL at a random moment between its first and its
last shard, gives the same command again, and compares every row with those of a run without workers. It ends with 1
where a row is missing, double or different.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from alexdeploy.runners.labelling import SHARD

_FILES, _PICTURES, _WORKERS = 20_000, 50, 2


def _photos(root: Path) -> None:
    """Hard links to a few pictures, in ten class folders."""
    noise = np.random.default_rng(0)
    root.mkdir()
    for number in range(_PICTURES):
        Image.fromarray(noise.integers(0, 256, (28, 28), dtype=np.uint8)).save(root.parent / f"{number}.png")
    for number in range(_FILES):
        folder = root / str(number % 10)
        folder.mkdir(exist_ok=True)
        (folder / f"{number:06}.png").hardlink_to(root.parent / f"{number % _PICTURES}.png")


def _alexdeploy(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "alexdeploy", *map(str, arguments)]


def _ended(pids: Sequence[str]) -> float:
    """Seconds until none of the processes is left."""
    began = time.perf_counter()
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):  # noqa: PTH110
        time.sleep(0.001)
    return time.perf_counter() - began


def _killed(command: list[str], out: Path, after: int, pause: float) -> str:
    """What was there after a kill, so many shards and seconds from the start."""
    shards = out.with_name(out.name + ".shards")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(shards.glob("[0-9]*.jsonl"))) < after and process.poll() is None:
        time.sleep(0.001)
    time.sleep(pause)
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    children = tasks.read_text().split() if process.poll() is None else []
    process.kill()
    process.wait()
    gone = _ended(children)
    if out.exists():
        return "it had ended"
    kept = len(list(shards.glob("[0-9]*.jsonl")))
    return f"{kept} of {-(-_FILES // SHARD)} shards kept, workers gone after {gone:.2f} s"


def main() -> None:
    """Print a row for each round; exit with 1 where a row is not as it was without a kill."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance, wrong = random.Random(arguments.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _photos(folder / "photos")
        model = folder / "lenet.onnx"
        export = _alexdeploy("export", "--network", "lenet", "--classes", 10, "--seed", 0, "-o", model)
        subprocess.run(export, check=True, capture_output=True)
        command = _alexdeploy("predict", model, folder / "photos", "--out")
        subprocess.run([*command, folder / "plain.csv"], check=True, capture_output=True)
        expected = (folder / "plain.csv").read_bytes()
        out = folder / "labelled.csv"
        whole = [*command, str(out), "--workers", str(_WORKERS)]
        began = time.perf_counter()
        subprocess.run(whole, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        print(f"{_FILES} files, {_WORKERS} workers: {seconds:.1f} s; the same bytes: {out.read_bytes() == expected}")
        for number in range(arguments.rounds):
            out.unlink()
            found = _killed(whole, out, chance.randrange(_FILES // SHARD), chance.uniform(0, 0.1))
            subprocess.run(whole, check=True, capture_output=True)
            rows = [row["image"] for row in csv.DictReader(out.read_text().splitlines())]
            same = out.read_bytes() == expected and len(set(rows)) == len(rows) == _FILES
            wrong += not same
            print(f"round {number + 1}: killed: {found}; resumed: every file once, same rows: {same}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
