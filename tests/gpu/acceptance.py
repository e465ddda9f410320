"""Acceptance on a machine with a GPU: ``python -m tests.gpu.acceptance EXTRA FOLDER [--allow NAME]...``.

``make gpu-check`` runs it in one venv for each extra. Tests of tests/gpu through both CUDA bindings, engines of every
kind, and benches whose every row must have been measured. What was skipped counts as failed unless it is allowed by its
name; a failure cannot be allowed. FOLDER gets report.md, written either way.

Exit status: 0 accepted; 1 not accepted; 4 no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from alexdeploy.errors import UnavailableError
from alexdeploy.machine import current_gpu, why_no_cuda
from tests.gpu.steps import BATCHES, FEATURES, TESTS_OF, Bench, Step, plan

ROOT = Path(__file__).resolve().parents[2]
PROVIDER_TEST = "test_the_provider_gives_pytorch_s_answers_and_computes_in_its_own_memory"
LIMIT_S = 3600.0  # for one command; a build takes minutes
BINDINGS = ("cuda-python", "pycuda")
# what the doctor tries, as it begins, and the feature that it needs; what is not named is asked of every extra
_DOCTORS = {
    "openvino": "openvino",
    "onnxruntime-cuda": "onnxruntime-cuda",
    "onnxruntime-tensorrt": "onnxruntime-tensorrt",
    "tensorrt-rtx": "rtx",
}
_UNAVAILABLE = UnavailableError.exit_code


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    status: int
    out: str
    err: str


Execute = Callable[[Sequence[str], Path, dict[str, str]], Finished]


def execute(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Finished:
    """Run it there with these environment variables added; shown here as well."""
    print("$", shlex.join(command), flush=True)
    environment = {**os.environ, **variables}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return Finished(124, "", f"did not end within {LIMIT_S} s")
    print(done.stdout[-4000:], done.stderr[-4000:], flush=True)
    return Finished(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Check:
    """One thing that was asked for."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    detail: str = ""


@dataclass
class Acceptance:
    """The check of one venv: what was asked, what came of it, and the report."""

    extra: str
    folder: Path
    allowed: frozenset[str]
    execute: Execute = execute
    checks: list[Check] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def run(self) -> bool:
        """Ask everything, whatever fails on the way; True if it is accepted."""
        gpu = current_gpu()
        assert gpu is not None, "main has asked"
        asked = plan(self.extra, gpu)
        self.parts.append(f"{gpu}, driver for CUDA {gpu.cuda}; extra '{self.extra}'\n")
        try:
            self._facts(FEATURES[self.extra] - set(asked.left_out))
            for binding in BINDINGS:
                self._tests(binding, asked.left_out)
            for step in asked.steps:
                self._step(step)
            for bench in asked.benches:
                self._bench(bench)
        except BaseException as error:
            self._add("the check itself", "failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self._write(asked.left_out)
        return not self.faults

    @property
    def faults(self) -> list[Check]:
        """What stands against acceptance."""
        return [
            c for c in self.checks if c.status == "failed" or (c.status == "skipped" and c.name not in self.allowed)
        ]

    def _alexdeploy(self, arguments: str) -> Finished:
        return self.execute([sys.executable, "-m", "alexdeploy", *shlex.split(arguments)], self.folder, {})

    def _add(self, name: str, status: Literal["ok", "failed", "skipped"], detail: str = "") -> None:
        self.checks.append(Check(name, status, detail))

    def _facts(self, features: frozenset[str]) -> None:
        """What the report says of the machine, and what the doctor finds in it."""
        smi = shutil.which("nvidia-smi")
        for name, command in {
            "nvidia-smi": [smi] if smi else None,
            "pip freeze": [sys.executable, "-m", "pip", "freeze"],
        }.items():
            said = self.execute(command, self.folder, {}) if command else Finished(0, "no nvidia-smi\n", "")
            self.parts.append(f"## {name}\n\n```\n{said.out}{said.err}```\n")
        done = self._alexdeploy("doctor --json")
        self.parts.append(f"## doctor\n\n```json\n{done.out}```\n")
        findings = _json(done.out).get("findings", [])
        if not findings:
            self._add("doctor", "failed", f"status {done.status}: {_end(done)}")
        states: dict[str, Literal["ok", "failed", "skipped"]] = {"ok": "ok", "missing": "skipped"}
        for finding in findings:
            backend, status = finding["backend"], states.get(finding["status"], "failed")
            needs = next((feature for name, feature in _DOCTORS.items() if backend.startswith(name)), None)
            if needs is None or needs in features:
                self._add(f"doctor: {backend}", status, finding["detail"])

    def _tests(self, binding: str, left_out: dict[str, str]) -> None:
        """tests/gpu through one of the two CUDA bindings, test by test."""
        name = f"tests through {binding}"
        if binding == "pycuda" and not has_pycuda():
            self._add(name, "skipped", "PyCUDA is not installed")
            return
        report = self.folder / f"tests-{binding}.xml"
        report.unlink(missing_ok=True)
        needless = [f"tests/gpu/{TESTS_OF[name].format(test=PROVIDER_TEST)}" for name in TESTS_OF if name in left_out]
        deselected = [word for test in needless for word in ("--deselect", test)]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-ra", f"--junit-xml={report.resolve()}"]
        done = self.execute([*command, *deselected], ROOT, {"GPU_BINDING": binding})
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
        self._add(name, "ok" if done.status == 0 and cases else "failed", f"{len(cases)} tests; {_end(done)}")
        for case in cases:
            test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            for state in ("skipped", "failure", "error"):
                found = case.find(state)
                if found is not None:
                    status: Literal["failed", "skipped"] = "skipped" if state == "skipped" else "failed"
                    self._add(f"{test} ({binding})", status, found.get("message", ""))

    def _step(self, step: Step) -> None:
        for name in step.makes:
            (self.folder / name).unlink(missing_ok=True)
        done = self._alexdeploy(step.command)
        missing = [name for name in step.makes if not (self.folder / name).exists()]
        if done.status == 0 and not missing:
            self._add(step.name, "ok", step.command)
        elif done.status == _UNAVAILABLE:
            self._add(step.name, "skipped", _end(done))
        else:
            self._add(
                step.name, "failed", f"status {done.status}, {', '.join(missing) or 'files'} missing: {_end(done)}"
            )

    def _bench(self, bench: Bench) -> None:
        """Each artifact that was asked for has a row at each batch size, measured, with the reference's answers."""
        present = frozenset(name for name, _ in bench.artifacts if (self.folder / name).exists())
        done = self._alexdeploy(bench.command(present)) if present else Finished(1, "", "none of its files was made")
        report = _json(done.out)
        if done.status or not report:
            status: Literal["failed", "skipped"] = "skipped" if done.status == _UNAVAILABLE else "failed"
            self._add(bench.name, status, f"status {done.status}: {_end(done)}")
        found = {(row["artifact"], row["runtime"], row["batch"]): row for row in report.get("rows", [])}
        for artifact, runtime in bench.artifacts:
            for batch in BATCHES:
                name = f"{bench.name}: {artifact} on {runtime}, batch {batch}"
                self._row(name, found.get((artifact, runtime, batch)), bench.agreement)
        if "--server-ms" in bench.options and not any(row.get("server") for row in found.values()):
            self._add(f"{bench.name}: server", "skipped", "no rate was found")
        markdown = self.folder / f"{bench.name}.md"
        if markdown.exists():
            self.parts.append(f"## {bench.name}\n\n{markdown.read_text()}")

    def _row(self, name: str, row: dict[str, Any] | None, least: float | None) -> None:
        if row is None:
            self._add(name, "skipped", "was not measured")
        elif row["status"] != "ok" or not row.get("latency_ms"):
            self._add(name, "skipped", str(row.get("reason")))
        elif least is not None and (row.get("agreement") or 0.0) < least:
            self._add(
                name, "failed", f"agrees with the reference on {row.get('agreement')} of the images, below {least}"
            )
        else:
            self._add(name, "ok", f"{row['latency_ms']['p50']:.4g} ms")

    def _write(self, left_out: dict[str, str]) -> None:
        faults = self.faults
        lines = [f"# GPU acceptance: {self.verdict}\n", self.parts[0]]
        if faults:
            lines.append("## Against it\n\n" + "".join(f"- {c.status}: {c.name}: {c.detail}\n" for c in faults))
        if self.without:
            lines.append("## Skipped and allowed\n\n" + "".join(f"- {c.name}: {c.detail}\n" for c in self.without))
        lines.append("## Not asked here\n\n" + "".join(f"- {name}: {why}\n" for name, why in left_out.items()))
        good = [c for c in self.checks if c.status == "ok"]
        lines.append(f"## {len(good)} checks passed\n\n" + "".join(f"- {c.name}: {c.detail}\n" for c in good))
        (self.folder / "report.md").write_text("\n".join([*lines, *self.parts[1:]]))

    @property
    def without(self) -> list[Check]:
        """What was skipped by permission."""
        return [c for c in self.checks if c.status == "skipped" and c.name in self.allowed]

    @property
    def verdict(self) -> str:
        """In words."""
        if self.faults:
            return "NOT accepted"
        return f"accepted, without {', '.join(c.name for c in self.without)}" if self.without else "accepted"


def has_pycuda() -> bool:
    """Whether it is installed in this venv."""
    return find_spec("pycuda") is not None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end(done: Finished) -> str:
    """Its last words."""
    lines = [line.strip() for line in (done.err.strip() or done.out.strip()).splitlines()]
    return lines[-1][:400] if lines else "it said nothing"


def main(arguments: list[str], run: Execute = execute) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.acceptance")
    parser.add_argument("extra", choices=FEATURES, help="what is installed in this venv")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--allow", action="append", default=[], metavar="NAME", help="may be skipped; repeatable")
    asked = parser.parse_args(arguments)
    if current_gpu() is None:
        print(f"error: {why_no_cuda()}; this check is for a machine with an NVIDIA GPU", file=sys.stderr)
        return _UNAVAILABLE
    asked.folder.mkdir(parents=True, exist_ok=True)
    acceptance = Acceptance(asked.extra, asked.folder, frozenset(asked.allow), run)
    good = acceptance.run()
    print(f"{acceptance.verdict}: see {asked.folder / 'report.md'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
