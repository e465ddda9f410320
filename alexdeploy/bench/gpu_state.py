"""What nvidia-smi tells of one card: facts that stay, and its clocks, power and temperature while it is measured.

NVIDIA asks for both: "record and monitor the GPU status in parallel to the inference workload" (TensorRT, Hardware and
Software Environment for Performance Measurements). nvidia-smi runs beside the bench as one process, which ends with it.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

_PERIOD_MS = 250
_FIELDS = ("timestamp", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # since driver 535, and before it
_IDLE = 0x1
_SLOWED = {  # nvml.h: nvmlClocksEventReason…, without idle and without clocks that somebody has set
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
_VARIED = 1.1


@dataclass(frozen=True)
class GpuState:
    """The samples of nvidia-smi during one group of measurements; None for what it did not tell.

    Attributes:
        boundary, batch: of the group, as in ``Row``; ``gpu`` for the times by CUDA events.
        samples: how many; 0 where the group was shorter than the time between two.
        sm_mhz, memory_mhz: lowest and highest clock, of the samples in which the card was not idle.
        power_w, temperature_c: highest.
        slowed_by: why its clocks were held down, by nvidia-smi's names.
    """

    boundary: str
    batch: int
    samples: int
    sm_mhz: tuple[float, float] | None
    memory_mhz: tuple[float, float] | None
    power_w: float | None
    temperature_c: float | None
    slowed_by: tuple[str, ...]

    @property
    def varied(self) -> bool:
        """True if the highest clock was over a tenth above the lowest: times of this group may not be comparable."""
        return self.sm_mhz is not None and self.sm_mhz[1] > _VARIED * self.sm_mhz[0]


@dataclass(frozen=True)
class _Sample:
    at: float
    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    reasons: int


def ask_nvidia_smi(card: str, fields: Sequence[str]) -> dict[str, str]:
    """Values of ``--query-gpu`` with their units, by field; empty where nvidia-smi is missing or refuses.

    Args:
        card: ``GPU-…``; nvidia-smi's numbers are not CUDA's.
        fields: as ``nvidia-smi`` calls them.
    """
    try:
        answer = subprocess.run(_query(card, fields), capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}


class GpuWatch:
    """Samples one card while its ``with`` block runs; ``states`` has them afterwards, group by group.

    Args:
        card: ``GPU-…``; None watches nothing.
    """

    def __init__(self, card: str | None) -> None:
        self._card = card
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._samples: list[_Sample] = []
        self._groups: list[tuple[str, int, float, float]] = []
        self.states: list[GpuState] = []

    def __enter__(self) -> GpuWatch:
        card = self._card
        reasons = [name for name in _REASONS if ask_nvidia_smi(card, [name])] if card is not None else []
        if card is not None and reasons:
            command = [*_query(card, (*_FIELDS, reasons[0]), "nounits"), f"--loop-ms={_PERIOD_MS}"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._reader is None:
            return
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self.states = [
            _state(boundary, batch, [sample for sample in self._samples if start <= sample.at <= end])
            for boundary, batch, start, end in self._groups
        ]

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            self._samples.extend(filter(None, map(_sample, lines)))

    @contextlib.contextmanager
    def during(self, boundary: str, batch: int) -> Iterator[None]:
        """What is sampled in this block belongs to that group."""
        start = time.time()
        yield
        self._groups.append((boundary, batch, start, time.time()))


def _query(card: str, fields: Sequence[str], *more: str) -> list[str]:
    return [
        "nvidia-smi",
        f"--id={card}",
        f"--query-gpu={','.join(fields)}",
        f"--format={','.join(['csv', 'noheader', *more])}",
    ]


def _sample(line: str) -> _Sample | None:
    """None for a line that is not whole."""
    values = [value.strip() for value in line.split(",")]
    if len(values) != len(_FIELDS) + 1:
        return None
    try:
        at = datetime.strptime(values[0], "%Y/%m/%d %H:%M:%S.%f").timestamp()
    except ValueError:
        return None
    sm_mhz, memory_mhz, power_w, temperature_c = map(_number, values[1:-1])
    reasons = int(values[-1], 16) if values[-1].startswith("0x") else 0
    return _Sample(at, sm_mhz, memory_mhz, power_w, temperature_c, reasons)


def _number(value: str) -> float | None:
    """None for ``[N/A]`` and the like."""
    try:
        return float(value)
    except ValueError:
        return None


def _state(boundary: str, batch: int, samples: Sequence[_Sample]) -> GpuState:
    busy = [sample for sample in samples if not sample.reasons & _IDLE]
    power = [sample.power_w for sample in samples if sample.power_w is not None]
    temperature = [sample.temperature_c for sample in samples if sample.temperature_c is not None]
    return GpuState(
        boundary,
        batch,
        len(samples),
        _range([sample.sm_mhz for sample in busy]),
        _range([sample.memory_mhz for sample in busy]),
        max(power, default=None),
        max(temperature, default=None),
        tuple(name for bit, name in _SLOWED.items() if any(sample.reasons & bit for sample in samples)),
    )


def _range(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
