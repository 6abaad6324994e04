"""The files that bring the job onto a cluster. No machine, cluster or image is started: tests put the files through
what would read them."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def uv_version() -> str:
    return search(r"^UV_VERSION := (\S+)$", ROOT / "Makefile")


def search(pattern: str, path: Path) -> str:
    found = re.findall(pattern, path.read_text(), re.MULTILINE)
    assert len(found) == 1, (pattern, found)
    return str(found[0])
