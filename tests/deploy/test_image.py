"""The image: hadolint, versions, what is sent to the builder."""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.deploy.files import DOCKERFILE, PROJECT, ROOT, search, uv_version


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    run = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_versions_are_the_projects() -> None:
    assert search(r"^FROM ghcr.io/astral-sh/uv:(\S+) AS uv$", DOCKERFILE) == uv_version()
    cuda = search(r"^FROM nvidia/cuda:(\d+\.\d+)\S*-base-ubuntu24.04$", DOCKERFILE)
    assert search(r"^nvidia-cuda-runtime==(\d+\.\d+)\.", ROOT / "requirements.lock") == cuda
    pythons = re.findall(r"python ?(3\.\d+)", DOCKERFILE.read_text())
    assert set(pythons) == {"3.12"}
    assert "3.12" in SpecifierSet(PROJECT["requires-python"])
    assert "uv pip sync --require-hashes --compile-bytecode requirements.lock" in DOCKERFILE.read_text()


def test_user_is_not_root() -> None:
    assert int(search(r"^USER (\S+)$", DOCKERFILE)) > 0


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last line that matches it or a folder above it decides."""
    above = [path, *map(str, Path(path).parents)][:-1]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [Path(name).name for name in above] if line.startswith("**/") else above
        if line and not line.startswith("#") and any(fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


def test_image_gets_what_the_job_needs_and_no_more() -> None:
    sources = {
        name
        for line in re.findall(r"^COPY ([^-].*) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in line.split()
    }
    assert sources == {"requirements.lock", "."}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = ["requirements.lock", "pyproject.toml", "README.md", "LICENSE", "cliper/fetch.py"]
    needed += [str(path.relative_to(ROOT)) for name in packages for path in (ROOT / name[:-1]).rglob("*.py")]
    needed += [
        "cliper/published.json",
        "cliper/demo_model/clip/open_clip_model.safetensors",
        "jobs/common/speeds.csv",
        "jobs/page/templates/report.css",
    ]
    assert all((ROOT / name).is_file() for name in needed)
    assert [name for name in needed if not is_sent(name)] == []
    unwanted = [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "tests/support/tiny.py",
        "ray_cluster.yaml",
        "cluster/deploy/Dockerfile",
    ]
    assert [name for name in [*unwanted, "jobs/__pycache__/annotate.pyc"] if is_sent(name)] == []
