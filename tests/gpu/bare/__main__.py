"""Half an hour of GPU: our runner on a real CUDA driver, without TensorRT. ``python -m tests.gpu.bare OUT``.

From the root of a checkout, on a machine with an NVIDIA GPU, torch, CuPy, cuda-bindings, NumPy, onnx, onnxruntime,
msgspec, ml_dtypes and pytest. Where one of them is missing and the machine reaches no index, carry its wheel::

    pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels msgspec
    pip install --no-index --no-deps --target site wheels/*.whl && PYTHONPATH=site python -m tests.gpu.bare OUT

PyCUDA (``pip install pycuda``, needs nvcc), onnxruntime-gpu (255 MB, in the place of onnxruntime; ``split -b 50m``
where a transfer is limited) and tensorrt-lean-cu13-bindings with its libs add what needs them.

Each scenario is asked in a process that is restarted after a failure. OUT gets report.json, report.md and log.txt,
written anew after every answer. Nothing is "ok" that was not run. Exit status: 0 everything ran and is ok; 1
something failed; 4 something was not run, or there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tests.gpu.bare.child import END

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("cuda.bindings", "numpy", "onnx", "onnxruntime", "msgspec", "ml_dtypes", "pytest")
BINDINGS = ("cuda-python", "pycuda")
_TOLD = ("torch", "cupy", "cuda-bindings", "pycuda", "onnxruntime", "tensorrt", "numpy", "nvidia-cuda-nvrtc")
_FAILED, _NOT_RUN = 1, 4


@dataclass
class Result:
    """The answer to one scenario through one binding."""

    scenario: str
    binding: str
    what: str
    status: Literal["ok", "failed", "not run"] = "not run"
    detail: str = "not reached"
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


class Session:
    """The questions, their answers so far, and the report of them.

    ``child`` begins the command that asks them.
    """

    child: tuple[str, ...] = (sys.executable, "-m", "tests.gpu.bare.child")

    def __init__(self, out: Path, only: list[str]) -> None:
        from tests.gpu.bare import libraries, measuring, running  # noqa: F401 (they fill SCENARIOS)
        from tests.gpu.bare.scenario import SCENARIOS

        unknown = set(only) - set(SCENARIOS)
        if unknown:
            raise SystemExit(f"error: unknown scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
        self.scenarios = {
            name: one for name, one in SCENARIOS.items() if not one.control and (not only or name in only)
        }
        self.out, self.machine = out, _machine()
        self.results = {
            (name, binding): Result(name, binding, one.what.splitlines()[0])
            for binding in BINDINGS
            for name, one in self.scenarios.items()
            if one.both or binding == BINDINGS[0]
        }

    def run(self) -> None:
        """Ask everything."""
        with tempfile.TemporaryDirectory() as folder:
            for binding in BINDINGS:
                names = [name for name, of in self.results if of == binding]
                if binding == "pycuda" and find_spec("pycuda") is None:
                    self._all_not_run(names, binding, "PyCUDA is not installed")
                    continue
                remaining = [name for name in names if not self.scenarios[name].alone]
                while remaining:
                    remaining = self._process(Path(folder), binding, remaining)
                for name in (name for name in names if self.scenarios[name].alone):
                    self._process(Path(folder), binding, [name])

    def _process(self, folder: Path, binding: str, names: list[str]) -> list[str]:
        """Ask these in one process, until one fails; returns those that are left."""
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".jsonl", delete=False) as file:
            answers = Path(file.name)
        errors = answers.with_suffix(".err")
        command = [*self.child, str(folder), binding, str(answers), *names]
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (self.out / "log.txt").open("a") as log, errors.open("w") as stderr:
            log.write(f"\n== {binding}: {' '.join(names)}\n")
            log.flush()
            child = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=log, stderr=stderr
            )
            hung = self._wait(child, answers)
        said = errors.read_text(errors="replace")
        with (self.out / "log.txt").open("a") as log:
            log.write(said)
        left = self._take(answers, binding, names)
        self._judge_end(self.results[names[len(names) - len(left) - 1], binding], child.returncode, said, hung)
        self.write()
        return left

    def _wait(self, child: subprocess.Popen[bytes], answers: Path) -> bool:
        """Until the process ends; True if one scenario took too long and it was killed."""
        while True:
            try:
                child.wait(0.1)
            except subprocess.TimeoutExpired:
                lines = _lines(answers)
                if time.time() - answers.stat().st_mtime > self.limit_s(lines[-1]["scenario"] if lines else ""):
                    child.kill()
                    child.wait()
                    return True
            else:
                return False

    def limit_s(self, name: str) -> float:
        """How long that scenario may take; before the first one, how long Python may take to start."""
        return self.scenarios[name].seconds if name else 60.0

    def _take(self, answers: Path, binding: str, names: list[str]) -> list[str]:
        """Put the answers in their places; what began and gave none has failed."""
        lines = {line["scenario"]: line for line in _lines(answers)}
        for name, line in lines.items():
            result = self.results[name, binding]
            result.status = line["status"] if line["status"] != "begun" else "failed"
            result.detail = line.get("detail", "")
            result.seconds, result.figures = line.get("seconds", 0.0), line.get("figures", {})
        if not lines:
            self.results[names[0], binding].status, self.results[names[0], binding].detail = "failed", ""
            return names[1:]
        return [name for name in names if name not in lines]

    def _judge_end(self, last: Result, status: int, said: str, hung: bool) -> None:
        """How the process ended counts for its last scenario."""
        if hung:
            last.status, last.detail = (
                "failed",
                f"hung: it was ended after {self.limit_s(last.scenario):.0f} s",
            )
        elif last.status == "failed":
            last.detail = last.detail or f"its process ended with status {status}: {' '.join(said.split())[-400:]}"
        elif status:
            last.status, last.detail = "failed", f"its process ended with status {status} afterwards"
        elif last.status == "ok" and self.scenarios[last.scenario].silent and said.partition(END)[2].strip():
            words = " ".join(said.partition(END)[2].split())[:400]
            last.status, last.detail = "failed", f"its process said at its end: {words}"

    def _all_not_run(self, names: list[str], binding: str, reason: str) -> None:
        for name in names:
            self.results[name, binding].detail = reason
        self.write()

    @property
    def exit_status(self) -> int:
        """0 if everything is ok, 1 if something failed, 4 if something was not run."""
        found = {result.status for result in self.results.values()}
        return _FAILED if "failed" in found else _NOT_RUN if "not run" in found or not found else 0

    def write(self) -> None:
        """The report as it is now."""
        machine = self.machine
        results = list(self.results.values())
        counts = ", ".join(
            f"{sum(r.status == status for r in results)} {status}" for status in ("ok", "failed", "not run")
        )
        report = {"machine": machine, "summary": counts, "results": [asdict(result) for result in results]}
        (self.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        lines = [f"# The runner on a CUDA driver, without TensorRT\n\n{counts}\n"]
        if machine["simulated"]:
            lines.append("**This was the simulated driver in host memory, no GPU: the figures are left out.**\n")
        lines.append("| scenario | through | | seconds | |\n| --- | --- | --- | --- | --- |")
        for result in results:
            figures = "; ".join(f"{name}: {value}" for name, value in result.figures.items() if value is not None)
            words = (result.detail or figures or result.what).replace("|", "\\|")
            status = result.status if result.status == "ok" else f"**{result.status}**"
            lines.append(f"| {result.scenario} | {result.binding} | {status} | {result.seconds or ''} | {words} |")
        lines += ["\n## Machine\n", *(f"- {name}: {value}" for name, value in machine.items() if name != "nvidia-smi")]
        lines.append(f"\n```\n{machine['nvidia-smi']}\n```\n")
        (self.out / "report.md").write_text("\n".join(lines))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _machine() -> dict[str, Any]:
    from alexdeploy.machine import current_gpu, why_no_cuda
    from tests.gpu.bare.double import is_simulated

    gpu = current_gpu()
    smi = shutil.which("nvidia-smi")
    packages = {str(found.metadata["Name"]): found.version for found in distributions()}
    told = {name: version for name, version in packages.items() if name.lower().startswith(_TOLD)}
    return {
        "gpu": str(gpu) if gpu is not None else why_no_cuda(),
        "newest CUDA of the driver": gpu.cuda if gpu is not None else "",
        "simulated": gpu is not None and is_simulated(),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "packages": dict(sorted(told.items())),
        "nvidia-smi": _said(smi) if smi is not None else "no nvidia-smi",
    }


def _said(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the report")
    parser.add_argument("--only", action="append", default=[], metavar="SCENARIO", help="ask this alone; repeatable")
    asked = parser.parse_args(arguments)
    missing = []
    for module in NEEDED:
        try:
            import_module(module)
        except ImportError as error:
            missing.append(str(error))
    if missing:
        print(f"error: nothing was run: {'; '.join(missing)}", file=sys.stderr)
        return _NOT_RUN
    from alexdeploy.machine import why_no_cuda

    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "log.txt").write_text("")
    session = Session(asked.out, asked.only)
    reason = why_no_cuda()
    if reason is None:
        session.run()
    else:
        for result in session.results.values():
            result.detail = reason
    session.write()
    print((asked.out / "report.md").read_text())
    return session.exit_status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
