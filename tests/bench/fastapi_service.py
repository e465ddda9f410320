"""The service of ``examples/04_fastapi_service.py`` under load: ``python -m tests.bench.fastapi_service [MODEL]``.

32 clients on this machine, each with a connection of its own, send photographs and every fifth time something bad, for
a minute. Every answer is held against ``Classifier``. Prints images per second, latencies and the service's memory per
quarter; exits with 1 after a wrong answer. Without MODEL: an untrained alexnet-half, 224 x 224.
"""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from alexdeploy import Classifier
from alexdeploy.data.decode import image_from_bytes
from tests.helpers.docs import ROOT

CLIENTS, QUARTERS, SECONDS = 32, 4, 15
BAD = {b"": 400, b"no image": 400, bytes((10 << 20) + 1): 413}


def main() -> int:
    """The exit status."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "model.onnx"
        if len(sys.argv) < 2:
            export = ["export", "--network", "alexnet-half", "--classes", "1000", "--seed", "0", "-o", str(model)]
            subprocess.run([sys.executable, "-m", "alexdeploy", *export], check=True, capture_output=True)
        photos = [photograph(seed) for seed in range(16)]
        with Classifier(model) as classifier:
            truth = classifier(list(map(image_from_bytes, photos)))
        command = [sys.executable, str(ROOT / "examples" / "04_fastapi_service.py"), str(model), "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdout is not None
            address = service.stdout.readline().removeprefix("listening on http://").strip()
            try:
                return drive(address, photos, truth)
            finally:
                service.terminate()


def photograph(seed: int) -> bytes:
    """A part of a photograph, 640 x 427, as JPEG."""
    random, file = np.random.default_rng(seed), io.BytesIO()
    image = Image.fromarray(load_sample_images().images[seed % 2])
    left, top = map(int, random.integers(0, (300, 200)))
    image.resize((640, 427), box=(left, top, left + 340, top + 227)).save(file, "JPEG", quality=90)
    return file.getvalue()


def drive(address: str, photos: list[bytes], truth: list[tuple[str, float]]) -> int:
    """1 after a wrong answer."""
    wrong = 0
    for quarter in range(QUARTERS):
        end = time.monotonic() + SECONDS
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(partial(client, address, end, photos, truth), range(CLIENTS)))
        latencies = np.concatenate([samples for samples, _, _ in found]) * 1e3
        bad = sum(count for _, count, _ in found)
        wrong += sum(count for _, _, count in found)
        p50, p99 = np.percentile(latencies, (50, 99))
        print(
            f"quarter {quarter + 1}: {len(latencies) / SECONDS:.1f} images/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
            f"{bad} bad requests refused, {wrong} wrong answers, service {memory(address):.0f} MiB"
        )
    return int(wrong > 0)


def client(
    address: str, end: float, photos: list[bytes], truth: list[tuple[str, float]], number: int
) -> tuple[list[float], int, int]:
    """Seconds of each good request; how many bad ones were refused as they should be; how many answers are wrong."""
    connection, samples, refused, wrong, turn = http.client.HTTPConnection(address, timeout=60), [], 0, 0, number
    while time.monotonic() < end:
        turn += 1
        is_bad = turn % 5 == 0
        body, status = list(BAD.items())[turn // 5 % len(BAD)] if is_bad else (photos[turn % len(photos)], 200)
        start = time.perf_counter()
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        seconds = time.perf_counter() - start
        if answer.status != status:
            wrong += 1
        elif is_bad:
            refused += 1
        else:
            samples.append(seconds)
            label, probability = truth[turn % len(photos)]
            wrong += content["label"] != label or abs(content["probability"] - probability) > 1e-4 * probability
    connection.close()
    return samples, refused, wrong


def memory(address: str) -> float:
    """MiB resident."""
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / (1 << 20)


if __name__ == "__main__":
    sys.exit(main())
