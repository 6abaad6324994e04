"""GitHub's workflows and forms: their schemas, zizmor, and the release's own steps."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.files import PROJECT, ROOT

GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
FORMS = sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml"))
CHANGELOG = """# Changelog

## Unreleased

## 0.10.0 - 2026-05-01

### Added
- Much.
  With a second line.

## 0.1.0 - 2026-01-01

### Added
- All.
"""


def read(workflow: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(workflow.read_text())
    return content


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


def run_tool(name: str, *arguments: str | Path) -> None:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        pytest.skip(f"{name} is not installed")
    run = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("custom.github-workflows-require-timeout", WORKFLOWS),
        ("vendor.github-issue-forms", FORMS),
    ],
)
def test_files_fit_the_schemas(schema: str, files: list[Path]) -> None:
    assert len(files) == 2
    run_tool("check-jsonschema", "--builtin-schema", schema, *files)


def test_zizmor_finds_nothing() -> None:
    run_tool("zizmor", "--offline", "--quiet", GITHUB)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_commands_are_shell_and_targets_exist(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert set(re.findall(r"^make ([a-z-]+)$", command, re.MULTILINE)) <= targets
    for job in read(workflow)["jobs"].values():
        assert set(job.get("strategy", {}).get("matrix", {}).get("tests", [])) <= targets


def test_pythons_are_the_projects() -> None:
    pythons = read(GITHUB / "workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert pythons == ["3.11", "3.12"]


def notes(version: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the release's own step makes of a changelog."""
    (script,) = [
        step["run"] for step in steps(GITHUB / "workflows/release.yml") if "CHANGELOG.md" in step.get("name", "")
    ]
    (folder / "CHANGELOG.md").write_text(CHANGELOG)
    return subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=os.environ | {"VERSION_TAG": f"v{version}"}, text=True
    )


def test_notes_are_those_of_the_version(tmp_path: Path) -> None:
    assert notes("0.10.0", tmp_path).returncode == 0
    assert (tmp_path / "notes.md").read_text().strip() == "### Added\n- Much.\n  With a second line."
    assert notes("0.1.0", tmp_path).returncode == 0
    assert (tmp_path / "notes.md").read_text().strip() == "### Added\n- All."


@pytest.mark.parametrize("version", ["0.1", "0.10", "0.1.1", "010.0"])
def test_a_version_without_notes_is_not_released(version: str, tmp_path: Path) -> None:
    assert notes(version, tmp_path).returncode != 0
