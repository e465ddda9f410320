"""The workflow files and the hooks for commits are well-formed, name what exists, and grant no more than they need."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="a source distribution holds no workflow files")


def steps(workflow: Any) -> list[Any]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_make_targets_that_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = " ; ".join(step.get("run", "") for step in steps(yaml.safe_load(path.read_text())))
    called = set(re.findall(r"\bmake ([a-z-]+)", commands))
    assert called <= targets
    assert path.name != "test.yml" or called == {"test"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_their_actions_and_hold_no_secrets(path: Path) -> None:
    used = [step["uses"] for step in steps(yaml.safe_load(path.read_text())) if "uses" in step]
    assert used
    assert [name for name in used if not re.search(r"@(v\d+|release/v\d+)$", name)] == []
    assert "secrets." not in path.read_text()


def test_only_the_publishing_job_may_write() -> None:
    granted = {}
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert set(workflow["permissions"].values()) <= {"read"}
        for name, job in workflow["jobs"].items():
            granted[path.name, name] = {key for key, right in job.get("permissions", {}).items() if right == "write"}
    assert {job: rights for job, rights in granted.items() if rights} == {("release.yml", "publish"): {"id-token"}}


def test_workflows_run_the_versions_of_python_that_are_supported() -> None:
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]["strategy"]
    oldest = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert matrix["matrix"]["python"][0] == oldest[1]


def test_hooks_check_what_make_check_checks() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = {hook["entry"].removeprefix(".venv/bin/") for repo in hooks for hook in repo["hooks"] if "entry" in hook}
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    checked = {
        line.strip().removeprefix("$(BIN)/").removesuffix(" .").removesuffix(" --check")
        for line in recipe[1].splitlines()
    }
    assert entries == checked == {"ruff check", "ruff format", "mypy"}
